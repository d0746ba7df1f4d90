"""What the commands about keys have in common."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from keys.effects import Effect, measured
from keys.models import ApiKey
from tenants.commands import PENDING


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


class SwitchCommand(BaseCommand):
    """A command that lets a key work or not: ``changed`` and ``unchanged`` begin what it says."""

    changed: str
    unchanged: str
    # What ``--json`` calls whether it was changed.
    answer: str

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", metavar="PUBLIC_ID|KEY_ID", help="12 characters after tg_, or the key's UUID"
        )
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def switch(self, *, key: ApiKey, actor: str, reason: str) -> bool:
        """Do it; return False if it was so already."""
        raise NotImplementedError

    def told(self, effect: Effect) -> str:
        """What it means that this is in force."""
        raise NotImplementedError

    def described(self, key: ApiKey) -> dict[str, Any]:
        """What ``--json`` tells of the key besides."""
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        key = key_called(options["key"])
        actor, reason = person_at_the_shell(), options["reason"]
        effect = measured([key], lambda one: self.switch(key=one, actor=actor, reason=reason))
        key.refresh_from_db()
        in_force = effect.seconds is not None
        if options["json"]:
            told = {
                "key_id": str(key.pk),
                "tenant": key.tenant.slug,
                "label": key.label,
                self.answer: bool(effect.changed),
                **self.described(key),
                "running_calls": effect.running,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(told))
            return
        begin = self.changed if effect.changed else self.unchanged
        self.stdout.write(f"{begin} {key.label} ({key.pk}) of {key.tenant.slug}.")
        self.stdout.write(self.told(effect) if in_force else PENDING)
