from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets.commands import add_raise_arguments, add_whose_arguments, raise_and_tell, whose_named
from budgets.models import Measure, RateLimit


class Command(BaseCommand):
    help = "Let calls come faster, or more of them run at one time, until a moment."

    def add_arguments(self, parser: CommandParser) -> None:
        add_whose_arguments(parser)
        parser.add_argument("--measure", required=True, choices=Measure.values)
        add_raise_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        wanted = whose_named(options) | {"measure": options["measure"]}
        found = RateLimit.objects.filter(**wanted, shadow=False).first()
        if found is None:
            raise CommandError(f"There is no rate limit of {RateLimit(**wanted)}.")
        raise_and_tell(self, found, options)
