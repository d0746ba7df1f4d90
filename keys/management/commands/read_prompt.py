import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.models import LoggedPrompt
from audit.recording import person_at_the_shell
from audit.sealing import Unreadable
from keys import prompts
from tenants.commands import told_plainly
from tenants.names import for_terminal


class Command(BaseCommand):
    help = "Show what a call said and was answered, where its tenant lets operators read. It is audited."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "request_id", metavar="REQUEST_ID", help="as in X-Request-Id and the request events"
        )
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with told_plainly():
                reading = prompts.read_prompt(
                    request_id=UUID(options["request_id"]),
                    roles={prompts.OPERATOR},
                    actor=person_at_the_shell(),
                    reason=options["reason"],
                )
        except (ValueError, LoggedPrompt.DoesNotExist) as exc:
            raise CommandError(f"There is no prompt of {options['request_id']!r} to be read.") from exc
        except Unreadable as exc:
            raise CommandError(f"It cannot be read: {exc}.") from exc
        if options["json"]:
            row = reading.row
            described = {
                "request_id": str(row.request_id),
                "tenant": row.tenant,
                "key": row.key,
                "at": row.at.isoformat(),
                "expires_at": row.expires_at.isoformat(),
                "cut": row.cut,
                "prompt": reading.prompt,
                "answer": reading.answer,
            }
            self.stdout.write(json.dumps(described))
            return
        self.stdout.write(for_terminal(f"{reading.prompt}\n\n{reading.answer}"))
