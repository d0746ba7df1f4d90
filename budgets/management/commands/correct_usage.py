import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets.corrections import correct_usage
from budgets.usage import SUMS
from tenants.commands import told_plainly


class Command(BaseCommand):
    help = "Book a signed difference to what the ledger says of a request."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("request_id", metavar="REQUEST_ID", help="as X-Request-Id told it")
        parser.add_argument(
            "--change",
            action="append",
            required=True,
            metavar="FIGURE=N",
            help=f"what is added to a figure, such as output_tokens=-20; may be repeated: {', '.join(SUMS)}",
        )
        parser.add_argument("--reason", required=True, help="why, for the books and the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            request_id = UUID(options["request_id"])
        except ValueError as exc:
            raise CommandError(f"{options['request_id']!r} is no id of a request.") from exc
        changes = dict(map(_change, options["change"]))
        if len(changes) < len(options["change"]):
            raise CommandError("Name each figure once.")
        with told_plainly():
            entry = correct_usage(
                request_id=request_id,
                changes=changes,
                reason=options["reason"],
                actor=person_at_the_shell(),
            )
        if options["json"]:
            described = {
                "correction": str(entry.request_id),
                "corrects": str(request_id),
                "tenant": entry.tenant,
                "day": entry.day.isoformat(),
                "closed_month": entry.closed_month and entry.closed_month.isoformat(),
                "changes": {figure: getattr(entry, figure) for figure in SUMS},
            }
            self.stdout.write(json.dumps(described))
            return
        of_month = f", for the closed {entry.closed_month:%Y-%m}" if entry.closed_month else ""
        self.stdout.write(f"Corrected {request_id} of {entry.tenant} on {entry.day}{of_month}.")


def _change(text: str) -> tuple[str, int]:
    figure, _, amount = text.partition("=")
    try:
        return figure, int(amount)
    except ValueError as exc:
        raise CommandError(f"{text!r} is no change. An example: output_tokens=-20.") from exc
