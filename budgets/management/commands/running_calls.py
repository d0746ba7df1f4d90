import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets.api.running_calls import call_as_json
from budgets.running_calls import running_calls
from keys.commands import key_called
from tenants.commands import tenant_called
from tenants.redis import RedisError


class Command(BaseCommand):
    help = "List the calls that are running now, on all processes."

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group()
        whose.add_argument("--tenant", metavar="SLUG", help="only those of this tenant")
        whose.add_argument("--key", metavar="PUBLIC_ID|KEY_ID", help="only those of this key")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with redis_told_plainly():
            calls = sorted(running_calls(**whose_calls(options)), key=lambda call: call.admitted_at)
        if options["json"]:
            self.stdout.write(json.dumps([call_as_json(call) for call in calls]))
            return
        for call in calls:
            self.stdout.write(
                f"{call.request_id}  {call.tenant}  {call.key}  {call.model}  {call.upstream}"
                f"  since {call.admitted_at:%H:%M:%S} UTC  {call.output_tokens} of {call.output_cap} tokens"
                f"{f'  from {call.client}' if call.client else ''}"
                f"{'  stopping' if call.stopping else ''}"
            )
        if not calls:
            self.stdout.write("No call is running.")


def whose_calls(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``running_calls`` that ``--tenant`` and ``--key`` mean; raises ``CommandError``."""
    if options["tenant"]:
        return {"tenant_id": tenant_called(options["tenant"]).pk}
    return {"key_id": key_called(options["key"]).pk} if options["key"] else {}


@contextmanager
def redis_told_plainly() -> Iterator[None]:
    """Turn trouble with Redis into the one line that a command prints."""
    try:
        yield
    except RedisError as exc:
        raise CommandError(f"Nobody knows what is running: Redis cannot be asked. {exc}") from exc
