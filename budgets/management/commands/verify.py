import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from audit.recording import person_at_the_shell
from budgets import verdicts, verification
from budgets.commands import month_written
from budgets.models import Verification
from budgets.rollups import Part
from tenants.commands import tenant_called

STATUS = {
    Verification.Outcome.AGREES: 0,
    Verification.Outcome.DIFFERS: 1,
    Verification.Outcome.UNASKED: 2,
}


class Command(BaseCommand):
    help = (
        "Prove that the books agree: request events, ledger, rollups and counters, while traffic runs too. "
        "Ends with status 0 if they do, 1 if they differ, 2 if something could not be asked."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="SLUG", help="only the books of this tenant")
        when = parser.add_mutually_exclusive_group()
        when.add_argument("--month", metavar="YYYY-MM", help="only this accounting month")
        when.add_argument("--all", action="store_true", help="every day there is, not only those still open")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            row = verification.verify_and_keep(part=_part(options), asked_by=person_at_the_shell())
        except DatabaseError as exc:
            raise CommandError(f"PostgreSQL cannot be asked: {exc}".strip(), returncode=2) from exc
        if options["json"]:
            self.stdout.write(json.dumps(verdicts.as_dict(row)))
        else:
            self.stdout.write("\n".join(verdicts.lines(row)))
        if status := STATUS[Verification.Outcome(row.outcome)]:
            sys.exit(status)


def _part(options: dict[str, Any]) -> Part:
    try:
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        month = month_written(options["month"]) if options["month"] else None
    except CommandError as exc:
        # A 1 would say that the books differ.
        raise CommandError(str(exc), returncode=2) from exc
    if month:
        return verification.month_part(month, tenant)
    if options["all"]:
        return Part(tenant.pk if tenant else None)
    return verification.open_part(tenant)
