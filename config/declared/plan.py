"""What differs between a file and the gateway, and making the gateway like the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import ProtectedError

from audit.recording import record
from config.declared.document import Document, Row
from config.declared.kinds import KINDS, Secrets, present


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to be added, changed or removed: its row as it is (None: not there) and as it shall be."""

    section: str
    before: Row | None
    after: Row | None

    @property
    def verb(self) -> str:
        if self.before is None:
            return "add"
        return "remove" if self.after is None else "change"

    @property
    def changed(self) -> list[str]:
        """The settings that differ."""
        before, after = self.before or {}, self.after or {}
        return [name for name in {**before, **after} if before.get(name) != after.get(name)]

    def __str__(self) -> str:
        sign = {"add": "+", "change": "~", "remove": "-"}[self.verb]
        shape = KINDS[self.section].shape
        row: dict[str, Any] = self.after or self.before or {}
        which = " ".join(f"{name}={row[name]}" for name in shape.identity if row[name] not in (None, False))
        settings = [name for name in self.changed if name not in shape.identity]
        told = [
            f"{name}: {_told(self.before[name])} -> {_told(row[name])}"
            if self.before
            else f"{name}: {_told(row[name])}"
            for name in settings
            if self.after is not None and (self.before or row[name] != shape.fields[name][1])
        ]
        return f"{sign} {self.section} {which}{'  ' if told else ''}{', '.join(told)}"


def _told(value: object) -> str:
    return "nothing" if value is None else str(value)


def plan(wanted: Document, *, prune: bool) -> list[Change]:
    """What has to be done, in the order in which it can be; ``prune``: what the file does not name goes."""
    now = present()
    made = [
        Change(section, now[section].get(identity), row)
        for section in KINDS
        for identity, row in wanted[section].items()
        if now[section].get(identity) != row
    ]
    gone = [
        Change(section, row, None)
        for section in reversed(KINDS)
        for identity, row in now[section].items()
        if identity not in wanted[section] and not (section == "tenants" and row["suspended"])
    ]
    # First, because what comes may need a name or an address that what goes still has.
    return gone + made if prune else made


@transaction.atomic
def apply(changes: list[Change], *, actor: str) -> Secrets:
    """Make all changes, or none; returns the secrets of keys that were issued, by name.

    Each goes through the service of its kind and has its own audit event.
    Raises ``ValidationError`` that names the row which cannot be.
    """
    secrets: Secrets = {}
    for change in changes:
        kind = KINDS[change.section]
        try:
            if change.after is None:
                kind.remove(change.before or {}, actor)
            else:
                kind.make(change.after, None if change.before is None else change.changed, actor, secrets)
        except ValidationError as exc:
            raise ValidationError(f"{change}: {' '.join(exc.messages)}") from exc
        except ProtectedError as exc:
            raise ValidationError(f"{change}: something belongs to it still.") from exc
    if changes:
        record(action="config.applied", actor=actor, subject="platform", changes=len(changes))
    return secrets
