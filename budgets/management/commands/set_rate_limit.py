import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.commands import add_whose_arguments, described_whose, whose_named
from budgets.models import Measure
from tenants import generations
from tenants.commands import PENDING, number_or, told_plainly


class Command(BaseCommand):
    help = "Set how fast calls may come, or how many may run at one time."

    def add_arguments(self, parser: CommandParser) -> None:
        add_whose_arguments(parser)
        parser.add_argument("--measure", required=True, choices=Measure.values)
        parser.add_argument(
            "--limit", required=True, metavar="N", help="how many; none: no limit, only counted"
        )
        parser.add_argument("--shadow", action="store_true", help="count and report, never refuse")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        whose, limit = whose_named(options), number_or("none", options["limit"])
        with told_plainly():
            row = services.set_rate_limit(
                **whose,
                measure=options["measure"],
                limit=limit,
                shadow=options["shadow"],
                actor=person_at_the_shell(),
            )
        in_force = generations.in_force(row.tenant_id)
        if options["json"]:
            described = {
                "rate_limit_id": str(row.pk),
                **described_whose(row),
                "measure": row.measure,
                "limit": row.limit,
                "shadow": row.shadow,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        number = "no limit" if row.limit is None else str(row.limit)
        self.stdout.write(f"{number}: {row}{', in shadow mode' if row.shadow else ''}.")
        if not in_force:
            self.stdout.write(PENDING)
