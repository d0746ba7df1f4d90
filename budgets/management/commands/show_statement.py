import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets import canonical
from budgets.api.statements import statement_as_json
from budgets.models import ClosedMonth, Statement
from budgets.month_closing import DetailArchived, refuse_without_detail
from budgets.papers import KINDS
from budgets.pricing import usd_in_full
from budgets.usage import FIGURES


class Command(BaseCommand):
    help = "Show a statement, or write its papers into files."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("number", metavar="NUMBER", help="such as 2026-000017")
        for kind in KINDS:
            parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"where its {kind.upper()} goes")
        parser.add_argument(
            "--entries", type=Path, metavar="FILE", help="where the month's entries go, one by one, as CSV"
        )
        parser.add_argument("--json", action="store_true", help="print it as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        found = Statement.objects.select_related("closing", "replaces", "replaced_by")
        statement = found.filter(number=options["number"]).first()
        if statement is None:
            raise CommandError(f"There is no statement {options['number']!r}.")
        for kind in KINDS:
            if options[kind] is not None:
                self._write(options[kind], [bytes(getattr(statement, kind))])
        if options["entries"] is not None:
            self._write_entries(options["entries"], statement.closing)
        if options["json"]:
            self.stdout.write(json.dumps(statement_as_json(statement)))
            return
        self.stdout.write(
            f"Statement {statement.number}: {statement.month:%Y-%m} of {statement.tenant}, "
            f"{statement.time_zone}, from {statement.month} to before {statement.before}."
        )
        if statement.replaces is not None:
            self.stdout.write(f"It replaces {statement.replaces.number}.")
        if hasattr(statement, "replaced_by"):
            self.stdout.write(f"It was replaced by {statement.replaced_by.number}.")
        for line in statement.lines:
            month = f" of {line['closed_month']}" if line["closed_month"] else ""
            cost = usd_in_full(line["cost_micro_usd"])
            self.stdout.write(
                f"{line['part']}{month}: {line['key']} {line['model']}: {line['requests']} requests, "
                f"{line['input_tokens']} in, {line['output_tokens']} out, {cost} USD"
            )
        figures = ", ".join(f"{figure} {getattr(statement, figure)}" for figure in FIGURES)
        self.stdout.write(f"total: {figures}")
        self.stdout.write(
            f"SHA-256 of the CSV {statement.csv_sha256}\n"
            f"SHA-256 of the PDF {statement.pdf_sha256}\n"
            f"SHA-256 of {statement.closing.entries} entries {statement.closing.export_sha256}"
        )

    def _write_entries(self, file: Path, closing: ClosedMonth) -> None:
        """Write them again; that they are no longer those of the closing is a failure."""
        try:
            refuse_without_detail(closing)
        except DetailArchived as exc:
            raise CommandError(f"The entries of {closing} are archived: {exc}.") from exc
        digest = self._write(file, canonical.lines(closing.tenant_id, closing.month))
        if digest != closing.export_sha256:
            opened = ", which was opened again since" if closing.reopened_at else ""
            raise CommandError(f"{file} has {digest}, and not what {closing} was closed with{opened}.")

    def _write(self, file: Path, pieces: Iterable[bytes]) -> str:
        """Write a file and return its digest."""
        digest = hashlib.sha256()
        try:
            with file.open("wb") as written:
                for piece in pieces:
                    digest.update(piece)
                    written.write(piece)
            return digest.hexdigest()
        except OSError as exc:
            raise CommandError(f"{file} cannot be written: {exc.strerror}.") from exc
