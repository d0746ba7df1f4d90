import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from keys import services
from keys.scopes import SCOPES
from tenants.commands import moment, tenant_called, told_plainly


class Command(BaseCommand):
    help = "Issue a key for the management API and print its secret, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--label", required=True, help="what the key is for, such as terraform")
        parser.add_argument(
            "--scope",
            action="append",
            required=True,
            dest="scopes",
            choices=list(SCOPES),
            metavar="SCOPE",
            help="what may be done with it, such as budgets:read; may be repeated",
        )
        parser.add_argument(
            "--tenant", metavar="SLUG", help="the one tenant that it sees and touches (default: everything)"
        )
        parser.add_argument(
            "--expires", metavar="WHEN", help="90d, 12h, a date or a time; without it the key does not expire"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        zone = tenant.time_zone if tenant else "UTC"
        expires_at = moment(options["expires"], zone) if options["expires"] else None
        with told_plainly():
            key, secret = services.issue_management_key(
                label=options["label"],
                scopes=options["scopes"],
                tenant=tenant,
                expires_at=expires_at,
                actor=person_at_the_shell(),
            )
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "public_id": key.public_id,
                "secret": secret,
                "label": key.label,
                "scopes": key.scopes,
                "tenant": tenant and tenant.slug,
                "expires_at": expires_at and expires_at.isoformat(),
            }
            self.stdout.write(json.dumps(described))
            return
        whose = f"tenant {tenant.slug}" if tenant else "everything"
        # The secret is the last line, for those who take it from there.
        self.stdout.write(
            f"Issued management key {key.label} ({key.pk}) for {whose}. Its secret is not shown again:"
        )
        self.stdout.write(secret)
