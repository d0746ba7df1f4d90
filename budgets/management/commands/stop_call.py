import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.management.commands.running_calls import redis_told_plainly, whose_calls
from budgets.models import RunningCall
from budgets.running_calls import running_call, running_calls


class Command(BaseCommand):
    help = "End running calls: one, those of a key or a tenant, or all. New ones still begin; see kill."

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("request_id", nargs="?", metavar="REQUEST_ID", help="the X-Request-Id of a call")
        which.add_argument("--key", metavar="PUBLIC_ID|KEY_ID", help="those of this key")
        which.add_argument("--tenant", metavar="SLUG", help="those of this tenant")
        which.add_argument("--all", action="store_true", help="every call of everybody")
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--message", default="", help="what the callers are told besides")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with redis_told_plainly():
            stopped = services.stop_calls(
                calls=_calls(options),
                reason=options["reason"],
                message=options["message"],
                actor=person_at_the_shell(),
            )
        if options["request_id"] and not stopped:
            raise CommandError(f"No call {options['request_id']} is running.")
        if options["json"]:
            self.stdout.write(json.dumps({"stopped": [str(call.request_id) for call in stopped]}))
            return
        for call in stopped:
            self.stdout.write(f"Stopping {call.request_id} of {call.key} of {call.tenant}.")
        if not stopped:
            self.stdout.write("No such call is running.")


def _calls(options: dict[str, Any]) -> list[RunningCall]:
    if not options["request_id"]:
        return list(running_calls(**whose_calls(options)))
    try:
        call = running_call(UUID(options["request_id"]))
    except ValueError as exc:
        raise CommandError(f"{options['request_id']!r} is no request id.") from exc
    return [call] if call else []
