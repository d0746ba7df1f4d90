import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets.rebuild import ensure_epoch
from tenants.redis import RedisError


class Command(BaseCommand):
    help = "Set the counters in Redis from the ledger, if Redis has lost them. Nothing is admitted meanwhile."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--force", action="store_true", help="even if they look right")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            rebuilt = ensure_epoch(force=options["force"])
        except RedisError as exc:
            raise CommandError(f"Redis cannot be reached: {exc}") from exc
        if options["json"]:
            self.stdout.write(json.dumps({"rebuilt": rebuilt}))
        elif rebuilt:
            self.stdout.write("The counters have been rebuilt from the ledger.")
        else:
            self.stdout.write(
                "Nothing to do: the counters can be believed, or another process rebuilds them now."
            )
