import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from budgets.estimators import newest
from budgets.models import Estimate
from budgets.usage import in_percent
from tenants.commands import model_called

COLUMNS = ("model", "side", "bytes", "bytes_per_token", "within", "calls", "version")


class Command(BaseCommand):
    help = "Show how many bytes of text make a token, as it was learned for each model, and how sure that is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--model", metavar="NAME", help="only this model, such as llama3.2:latest")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        found = newest()
        if options["model"]:
            found = found.filter(model=model_called(options["model"]))
        if options["json"]:
            self.stdout.write(json.dumps([_described(row) for row in found]))
            return
        lines = [COLUMNS, *map(_line, found)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = zip(line, widths, strict=True)
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def _line(row: Estimate) -> tuple[str, ...]:
    within = f"+- {in_percent(row.error_per_mille)}"
    size = f"up to {row.up_to_bytes}"
    return row.model, row.side, size, row.bytes_per_token, within, str(row.calls), row.name


def _described(row: Estimate) -> dict[str, Any]:
    return {
        "model": row.model,
        "side": row.side,
        "up_to_bytes": row.up_to_bytes,
        "bytes": row.bytes,
        "tokens": row.tokens,
        "error_per_mille": row.error_per_mille,
        "calls": row.calls,
        "version": row.name,
        "published_at": row.published_at.isoformat(),
    }
