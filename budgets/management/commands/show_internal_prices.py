import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from budgets.commands import month_written
from budgets.price_report import (
    Table,
    as_json,
    model_table,
    notes,
    price_table,
    report_of,
    upstream_table,
)


class Command(BaseCommand):
    help = "Show what the upstreams cost in a month, what of it was idle, and what tokens cost for it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--month", required=True, metavar="YYYY-MM", help="a month of UTC: 2026-10")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        month = month_written(options["month"])
        if month > now().date():
            raise CommandError(f"{month:%B %Y} has not begun.")
        report = report_of(month)
        if options["json"]:
            self.stdout.write(json.dumps(as_json(report)))
            return
        for table in (upstream_table(report), model_table(report), price_table(report)):
            if table.rows:
                self._write(table)
        for note in notes(report):
            self.stdout.write(note)

    def _write(self, table: Table) -> None:
        lines = [table.columns, *table.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                cell.ljust(width) if place < table.names else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            self.stdout.write("  ".join(cells))
        self.stdout.write("")
