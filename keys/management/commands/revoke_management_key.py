import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from keys import services
from keys.models import ManagementKey


class Command(BaseCommand):
    help = "Revoke a management key for good. Doing so twice is no error."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", metavar="PUBLIC_ID", help="12 characters after tgm_")
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        key = ManagementKey.objects.filter(public_id=options["key"]).first()
        if key is None:
            raise CommandError(f"There is no management key {options['key']!r}.")
        revoked_now = services.revoke_management_key(
            key=key, actor=person_at_the_shell(), reason=options["reason"]
        )
        key.refresh_from_db()
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "label": key.label,
                "revoked_now": revoked_now,
                "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
            }
            self.stdout.write(json.dumps(described))
            return
        done = "Revoked management key" if revoked_now else "It was revoked before: management key"
        self.stdout.write(f"{done} {key.label} ({key.pk}). No request is taken from it any more.")
