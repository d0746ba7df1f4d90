from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets.commands import add_raise_arguments, add_whose_arguments, raise_and_tell, whose_named
from budgets.models import Budget, Unit
from budgets.periods import kind_and_seconds


class Command(BaseCommand):
    help = "Give a tenant, one of its keys or another scope more of a budget until a moment."

    def add_arguments(self, parser: CommandParser) -> None:
        add_whose_arguments(parser)
        parser.add_argument("--unit", required=True, choices=Unit.values)
        parser.add_argument("--period", required=True, metavar="PERIOD", help="as it was set: day, 90m …")
        add_raise_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            kind, seconds = kind_and_seconds(options["period"])
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        wanted = whose_named(options) | {"unit": options["unit"], "period": kind, "seconds": seconds}
        found = Budget.objects.filter(**wanted, shadow=False).first()
        if found is None:
            raise CommandError(f"There is no budget of {Budget(**wanted)}.")
        raise_and_tell(self, found, options)
