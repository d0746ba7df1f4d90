"""Programs that manage: who asks with a management key, in the place where Django has a user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Program:
    """The holder of a management key; ``tenant`` is the one that it sees and touches, None: all.

    No user of Django: where somebody asks it for permissions it has none. What
    it may do is said by ``scopes`` alone.
    """

    pk: UUID
    label: str
    public_id: str
    scopes: frozenset[str]
    tenant: Tenant | None

    is_authenticated = True
    is_active = True
    is_anonymous = False
    is_staff = False

    def has_perm(self, permission: str) -> bool:
        return False

    def has_perms(self, permissions: Iterable[str]) -> bool:
        return False

    def __str__(self) -> str:
        """What the audit calls it."""
        return f"management key {self.label} ({self.public_id})"


def tenant_of(user: Any) -> Tenant | None:
    """The tenant beyond which whoever asks sees and touches nothing; None: there is no such wall."""
    return user.tenant if isinstance(user, Program) else None


def actor_of(user: Any) -> str:
    """Who asks, as a name that nobody else has."""
    return f"{'key' if isinstance(user, Program) else 'user'}:{user.pk.hex}"
