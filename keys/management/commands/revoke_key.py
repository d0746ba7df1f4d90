import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from keys import services
from keys.models import ApiKey
from tenants import generations
from tenants.commands import PENDING


class Command(BaseCommand):
    help = "Revoke a key for good. Doing so twice is no error."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", metavar="PUBLIC_ID|KEY_ID", help="12 characters after tg_, or the key's UUID"
        )
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        key = key_called(options["key"])
        revoked_now = services.revoke_key(key=key, actor=person_at_the_shell(), reason=options["reason"])
        in_force = generations.in_force(key.tenant_id)
        key.refresh_from_db()
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "tenant": key.tenant.slug,
                "label": key.label,
                "revoked_now": revoked_now,
                "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        done = "Revoked key" if revoked_now else "It was revoked before: key"
        self.stdout.write(f"{done} {key.label} ({key.pk}) of {key.tenant.slug}.")
        if in_force:
            self.stdout.write("In force: no process admits another call with it.")
        else:
            self.stdout.write(PENDING)


def key_called(name: str) -> ApiKey:
    """The key with this id, or one of whose secrets has this public id; raises ``CommandError``."""
    keys = ApiKey.objects.select_related("tenant")
    try:
        if len(name) == 12:
            return keys.get(secrets__public_id=name)
        return keys.get(pk=UUID(name))
    except ValueError as exc:
        raise CommandError(f"{name!r} is neither a public id (12 characters) nor the UUID of a key.") from exc
    except ApiKey.DoesNotExist as exc:
        raise CommandError(f"There is no key {name!r}.") from exc
