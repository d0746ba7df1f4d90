"""What it did, or would do, to switch keys off: how many, how soon for everybody, and how many calls it cuts.

Keys are switched off one by one, or all of a tenant's with the tenant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from django.utils.timezone import now

from keys.above import above
from keys.models import ApiKey
from keys.states import State, in_state
from tenants import generations
from tenants.models import ServiceAccount, Tenant
from tenants.redis import RedisError

Row = TypeVar("Row", ApiKey, Tenant)


@dataclass(frozen=True, slots=True)
class Effect:
    """``changed``: how many of the keys or tenants were not so already.

    ``seconds``: from the first change until no process admitted a call that it
    forbids; None: that is pending, because Redis cannot be reached. ``running``:
    calls that ran with the keys and end with the next heartbeat; None: nobody
    can say.
    """

    changed: int
    seconds: float | None
    running: int | None


def working_keys(tenants: Sequence[Tenant]) -> list[ApiKey]:
    """The keys of ``tenants`` that are good themselves: those of which a tenant's state decides."""
    return list(ApiKey.objects.filter(in_state(State.LIVE, now()), tenant__in=tenants))


def keys_of_accounts(accounts: Sequence[ServiceAccount]) -> list[ApiKey]:
    """The keys that closing service accounts revokes; those of one that is closed are revoked already."""
    return list(ApiKey.objects.filter(service_account__in=accounts, revoked_at=None))


def running_calls(keys: Sequence[ApiKey]) -> int | None:
    """How many calls run with ``keys`` now; None: Redis cannot be asked."""
    try:
        return above.running_calls([key.pk for key in keys])
    except RedisError:
        return None


def cut_calls(keys: Sequence[ApiKey]) -> str:
    """For operators: how many calls are cut when ``keys`` are switched off now, a sentence."""
    running = running_calls(keys)
    if running is None:
        return "Redis cannot be reached, so nobody can say how many calls run with them."
    return f"Running calls that are cut: {running}."


def measured(keys: Sequence[ApiKey], change: Callable[[ApiKey], bool]) -> Effect:
    """Do ``change`` to each key, and tell what that did. Not to be asked within a transaction."""
    return _measured(keys, change, running_calls(keys), {key.tenant_id for key in keys})


def measured_of_tenants(tenants: Sequence[Tenant], change: Callable[[Tenant], bool]) -> Effect:
    """The same for what is done to whole tenants: what it did to all of their keys."""
    running = running_calls(working_keys(tenants))
    return _measured(tenants, change, running, {tenant.pk for tenant in tenants})


def _measured(
    rows: Sequence[Row], change: Callable[[Row], bool], running: int | None, tenant_ids: Collection[UUID]
) -> Effect:
    began = time.monotonic()
    changed = sum(map(change, rows))
    in_force = all(map(generations.in_force, tenant_ids))
    return Effect(changed, time.monotonic() - began if in_force else None, running)
