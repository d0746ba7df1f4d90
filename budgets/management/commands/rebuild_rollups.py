import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DatabaseError

from audit.recording import person_at_the_shell
from budgets import rollups, verification
from budgets.commands import month_written
from budgets.comparisons import Slugs
from budgets.rollups import Part
from budgets.usage import FIGURES
from tenants.commands import tenant_called


class Command(BaseCommand):
    help = (
        "Make the rollups anew from the ledger, beside those there are, and show what differs. "
        "Nothing is changed without --write."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="SLUG", help="only those of this tenant")
        parser.add_argument("--month", metavar="YYYY-MM", help="only this accounting month")
        parser.add_argument("--write", action="store_true", help="put right what differs; it is in the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        month = month_written(options["month"]) if options["month"] else None
        part = verification.month_part(month, tenant) if month else Part(tenant.pk if tenant else None)
        try:
            made = rollups.rebuild(part=part, actor=person_at_the_shell(), write=options["write"])
        except DatabaseError as exc:
            raise CommandError(f"Nothing was changed: {exc}".strip()) from exc
        if options["json"]:
            self.stdout.write(json.dumps(asdict(made), cls=DjangoJSONEncoder))
            return
        slugs = Slugs(one.tenant_id for one in made.differences)
        for one in made.differences:
            figures = [
                f"{name} {one.rollups[name]:,}, must be {one.ledger[name]:,}"
                for name in FIGURES
                if one.rollups[name] != one.ledger[name]
            ]
            told = "; ".join(figures) or "together they come to the same"
            self.stdout.write(f"{one.day} {slugs.of(one.tenant_id)}: {one.rows} rows differ: {told}")
        if not made.different:
            self.stdout.write(f"Equal: all {made.rows:,} rollups are what the ledger says.")
        elif made.written:
            self.stdout.write(f"{made.written:,} rows were set from the ledger.")
        else:
            self.stdout.write(
                f"{made.different:,} rows differ. Nothing was changed; --write sets them from the ledger."
            )
