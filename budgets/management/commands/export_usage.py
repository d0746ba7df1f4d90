import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets.exports import LAYOUTS, PROFILES, SEPARATORS, Order, Writing, as_text, estimate, file_name
from budgets.exports.jobs import note_export
from budgets.usage import Selection
from tenants.commands import tenant_called, told_plainly

STANDARD_OUTPUT = "-"


class Command(BaseCommand):
    help = (
        "Write what the ledger says was used into a file, and beside it a sidecar with its totals, "
        "its count of rows and its SHA-256."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--tenant", metavar="SLUG", help="the usage of this tenant")
        whose.add_argument("--all", action="store_true", help="the usage of all tenants")
        parser.add_argument("--from", dest="from_day", required=True, metavar="DAY", help="first day")
        parser.add_argument(
            "--before", dest="before_day", required=True, metavar="DAY", help="first day that is not in it"
        )
        parser.add_argument("--profile", choices=list(PROFILES), default="requests", help="what a row is")
        parser.add_argument("--layout", choices=list(LAYOUTS), default="csv", help="csv is for machines")
        parser.add_argument("--separator", choices=list(SEPARATORS), help="of a spreadsheet; semicolon")
        parser.add_argument("--decimal-comma", action="store_true", help="in a spreadsheet")
        parser.add_argument("--gzip", action="store_true", help="compress the CSV")
        parser.add_argument("--output", metavar="FILE", help="- is standard output, without a sidecar")
        parser.add_argument("--estimate", action="store_true", help="say how large it will be, and stop")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with told_plainly():
            order = _order(options)
            if options["estimate"]:
                self._estimate(order, options)
            elif options["output"] == STANDARD_OUTPUT:
                note_export(order=order, actor=person_at_the_shell())
                for chunk in Writing(order):
                    sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            else:
                self._write(order, options)

    def _estimate(self, order: Order, options: dict[str, Any]) -> None:
        size = estimate(order)
        if options["json"]:
            self.stdout.write(json.dumps(asdict(size)))
        else:
            about = "" if size.exact else "about "
            self.stdout.write(
                f"{about}{size.rows} rows from {size.entries} entries of the ledger, about {size.bytes} bytes"
            )

    def _write(self, order: Order, options: dict[str, Any]) -> None:
        file = Path(options["output"] or file_name(order))
        try:
            sidecar = _written(order, file)
        except OSError as exc:
            raise CommandError(f"{file} cannot be written: {exc.strerror}.") from exc
        if options["json"]:
            self.stdout.write(json.dumps({"path": str(file), **sidecar}))
        else:
            self.stdout.write(
                f"{file}: {sidecar['rows']} rows, {sidecar['bytes']} bytes, sha256 {sidecar['sha256']}"
            )


def _order(options: dict[str, Any]) -> Order:
    tenant = tenant_called(options["tenant"]) if options["tenant"] else None
    selection = Selection(
        tenant_id=None if tenant is None else tenant.pk,
        from_day=_day(options["from_day"]),
        before_day=_day(options["before_day"]),
    )
    usual = "semicolon" if options["layout"] == "spreadsheet" else "comma"
    return Order(
        selection,
        options["profile"],
        layout=options["layout"],
        separator=options["separator"] or usual,
        decimal_comma=options["decimal_comma"],
        gzip=options["gzip"],
    )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as exc:
        raise CommandError(f"{text!r} is no day. An example: 2026-11-30.") from exc


def _written(order: Order, file: Path) -> dict[str, Any]:
    """Write file and sidecar, and only when both are whole give them their names."""
    with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as directory:
        whole, beside = Path(directory) / "whole", Path(directory) / "beside"
        writing = Writing(order)
        with whole.open("wb") as written:
            for chunk in writing:
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
        sidecar = writing.sidecar | {"file": file.name}
        beside.write_text(as_text(sidecar))
        note_export(
            order=order,
            actor=person_at_the_shell(),
            rows=sidecar["rows"],
            sha256=sidecar["sha256"],
        )
        beside.rename(file.with_name(f"{file.name}.json"))
        whole.rename(file)
    return sidecar
