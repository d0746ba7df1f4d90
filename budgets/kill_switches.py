"""Kill switches as the path of a request needs them, and which of them stops a call.

A switch is two kinds of rows that only grow: ``KillSwitch`` when it is armed,
``KillSwitchLift`` when somebody lifts it. What is on for a caller is read with
its limits and is as new as they are, so a call is admitted only by what the
reserve script has proved to be the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Q
from django.utils.timezone import now

from budgets.exceptions import (
    KeyKilled,
    Killed,
    ModelKilled,
    PlatformKilled,
    TenantKilled,
    UpstreamKilled,
)
from budgets.models import KillSwitch
from keys.verification import Caller

# The clock that decides is Redis'. What is over by another one may last by that, if no longer than this.
CLOCKS_DIFFER_MS = 60_000

REFUSALS: dict[str, type[Killed]] = {
    "platform": PlatformKilled,
    "tenant": TenantKilled,
    "key": KeyKilled,
    "upstream": UpstreamKilled,
    "model": ModelKilled,
}
# Of several switches the one that stops most is told.
WIDEST_FIRST = list(REFUSALS)


@dataclass(slots=True)
class Switch:
    """A switch that was armed and not lifted.

    It is on until ``until_ms`` since 1970 by Redis' clock. ``model`` and
    ``upstream`` are empty where it stops every call of the caller.
    """

    scope: str
    model: str
    upstream: str
    until_ms: int
    message: str

    def stops(self, model: str, upstream: str) -> bool:
        return self.model in ("", model) and self.upstream in ("", upstream)

    def refusal(self) -> Killed:
        return REFUSALS[self.scope](self.message)


def load(caller: Caller) -> tuple[Switch, ...]:
    """Read the switches that may stop a caller, those that stop most first."""
    applies = (
        Q(scope__in=["platform", "upstream"])
        | Q(scope="tenant", tenant_id=caller.tenant_id)
        | Q(scope="key", key_id=caller.key_id)
        | Q(scope="model") & (Q(tenant_id=caller.tenant_id) | Q(tenant_id=None))
    )
    since = now() - timedelta(milliseconds=CLOCKS_DIFFER_MS)
    rows = KillSwitch.objects.filter(applies, lift=None, until__gt=since).order_by("-id")
    return tuple(
        Switch(row.scope, row.model, row.upstream, int(row.until.timestamp() * 1000), row.message)
        for row in sorted(rows, key=lambda row: WIDEST_FIRST.index(row.scope))
    )


def stopping(switches: Iterable[Switch], now_ms: float, model: str = "", upstream: str = "") -> Switch | None:
    """The switch that stops a call to ``model`` at ``upstream``; without these, every call."""
    return next((one for one in switches if one.until_ms > now_ms and one.stops(model, upstream)), None)
