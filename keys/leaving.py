"""What becomes of the keys of somebody who goes: revoked in the transaction in which they go."""

from __future__ import annotations

from typing import Any

from keys import services
from keys.models import ApiKey
from tenants.models import Member, ServiceAccount


def revoke_keys_of_member(*, member: Member, actor: str, **_: Any) -> int:
    """Revoke a leaver's keys and leave them to the tenant, for their history; how many were live."""
    keys = ApiKey.objects.select_for_update().filter(member=member)
    revoked = sum(
        services.revoke_key(key=key, actor=actor, reason=f"{member.user} left the tenant") for key in keys
    )
    keys.update(member=None)
    return revoked


def revoke_keys_of_service_account(*, account: ServiceAccount, actor: str, **_: Any) -> int:
    """Revoke the keys of an account that is closed; how many were live."""
    keys = ApiKey.objects.select_for_update().filter(service_account=account, revoked_at=None)
    reason = f"service account {account} was closed"
    return sum(services.revoke_key(key=key, actor=actor, reason=reason) for key in keys)
