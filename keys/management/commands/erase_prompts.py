import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from keys import prompts
from tenants.commands import member_with, tenant_called


class Command(BaseCommand):
    help = "Delete all that the prompt log has of one member of a tenant. What was used stays in the ledger."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG")
        parser.add_argument("--member", required=True, metavar="EMAIL")
        parser.add_argument("--reason", default="", help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        member = member_with(options["member"], tenant_called(options["tenant"]))
        erased = prompts.erase_prompts(member=member, actor=person_at_the_shell(), reason=options["reason"])
        if options["json"]:
            self.stdout.write(json.dumps({"tenant": options["tenant"], "calls": erased}))
            return
        self.stdout.write(f"Erased what {erased} calls of {member} said and were answered.")
