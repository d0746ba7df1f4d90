import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets import services, webhooks
from budgets.models import Recipient, every_happening
from tenants.commands import tenant_called, told_plainly


class Command(BaseCommand):
    help = "Let somebody be told of warnings, by e-mail or by a webhook, whose secret is printed this once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--tenant", metavar="SLUG", help="of this tenant alone; else of all, and the platform"
        )
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--email", metavar="ADDRESS")
        where.add_argument("--webhook", metavar="URL")
        parser.add_argument(
            "--happening",
            action="append",
            choices=every_happening(),
            help="what they are told of, may be repeated; else all but closed periods",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        with told_plainly():
            recipient = services.add_recipient(
                tenant=tenant,
                kind="email" if options["email"] else "webhook",
                address=options["email"] or options["webhook"],
                happenings=options["happening"],
                actor=person_at_the_shell(),
            )
        secret = webhooks.secret_of(recipient) if recipient.kind == Recipient.Kind.WEBHOOK else None
        if options["json"]:
            described = {
                "recipient_id": str(recipient.pk),
                "tenant": tenant and tenant.slug,
                "kind": recipient.kind,
                "happenings": recipient.happenings,
                "secret": secret,
            }
            self.stdout.write(json.dumps(described))
            return
        self.stdout.write(f"{recipient.pk}: {recipient} is told.")
        if secret is not None:
            self.stdout.write(f"{secret}\nThis secret is not shown again.")
