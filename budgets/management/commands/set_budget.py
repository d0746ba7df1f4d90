import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils.timezone import now

from audit.recording import person_at_the_shell
from budgets import services
from budgets.commands import add_whose_arguments, described_whose, whose_named
from budgets.models import Budget, Unit
from budgets.periods import kind_and_seconds
from budgets.schedules import schedules_of
from tenants import generations
from tenants.commands import PENDING, number_or, told_plainly


class Command(BaseCommand):
    help = "Set how much may be used in a period."

    def add_arguments(self, parser: CommandParser) -> None:
        add_whose_arguments(parser)
        parser.add_argument("--unit", required=True, choices=Unit.values)
        parser.add_argument(
            "--period",
            required=True,
            help="hour, day, week, month, year, lifetime, or a length: 90m, 36h, 30d",
        )
        parser.add_argument(
            "--limit", required=True, metavar="N", help="how much; none: no limit, only counted"
        )
        parser.add_argument(
            "--thresholds",
            metavar="PERCENTS",
            help="of the limit, at which people are told, such as 80,95,100; none: never",
        )
        parser.add_argument(
            "--was",
            metavar="PERIOD",
            help="give the budget that has this period the new one, from the end of its present period on",
        )
        parser.add_argument("--shadow", action="store_true", help="count and report, never refuse")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        whose = whose_named(options)
        actor, number = person_at_the_shell(), number_or("none", options["limit"])
        percents = _percents(options["thresholds"])
        whose |= {"unit": options["unit"], "shadow": options["shadow"]}
        with told_plainly(), transaction.atomic():
            if options["was"]:
                budget = _budget_with(options["was"], whose)
                services.change_period(budget=budget, period=options["period"], actor=actor)
            budget = services.set_budget(
                **whose, period=options["period"], limit=number, thresholds=percents, actor=actor
            )
            change = schedules_of([budget])[budget.pk].next_change(now().timestamp())
        in_force = generations.in_force(budget.tenant_id)
        zone = ZoneInfo(budget.tenant.time_zone if budget.tenant else "UTC")
        takes_effect_at = change and datetime.fromtimestamp(change[0], zone).isoformat()
        if options["json"]:
            described = {
                "budget_id": str(budget.pk),
                **described_whose(budget),
                "unit": budget.unit,
                "period": budget.length,
                "seconds": budget.seconds,
                "takes_effect_at": takes_effect_at,
                "limit": budget.limit,
                "shadow": budget.shadow,
                "thresholds": budget.thresholds,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        limit = "no limit" if budget.limit is None else str(budget.limit)
        self.stdout.write(f"{limit}: {budget}{', in shadow mode' if budget.shadow else ''}.")
        if takes_effect_at:
            self.stdout.write(f"Its present period stays as it is; the new ones begin at {takes_effect_at}.")
        if not in_force:
            self.stdout.write(PENDING)


def _budget_with(period: str, whose: dict[str, Any]) -> Budget:
    """The budget of a scope and unit that has this period; raises ``CommandError`` if there is none."""
    try:
        kind, seconds = kind_and_seconds(period)
        return Budget.objects.get(**whose, period=kind, seconds=seconds)
    except ValueError as exc:
        raise CommandError(str(exc)) from exc
    except Budget.DoesNotExist as exc:
        raise CommandError(f"There is no such budget per {period}.") from exc


def _percents(text: str | None) -> list[int] | None:
    if text is None or text == "none":
        return None if text is None else []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise CommandError(f"{text!r} are no thresholds. An example: 80,95,100.") from exc
