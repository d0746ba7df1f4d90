"""How limits stand, in the words that callers are told: the same for those who pay and for visitors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from budgets.reservations import Standing
from budgets.visitors import UNTIL_CHECK
from keys.callers import Caller

Status = Literal["ok", "warning", "blocked"]

# From how much of a limit on a caller with a key is told: warning.
WARNING_PERCENT = 80


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a limit. ``reserved`` is what running calls may use of it yet.

    Allowed is who is not ``blocked``: there is something left. ``warning`` is
    told as soon as used and reserved reach the threshold.
    """

    allowed: bool
    status: Status
    used: int | None
    limit: int | None
    reserved: int | None
    remaining: int | None


UNLIMITED = Quota(allowed=True, status="ok", used=None, limit=None, reserved=None, remaining=None)


def status_of(taken: int, limit: int, warning_percent: int) -> Status:
    """How a limit stands of which ``taken`` is used or reserved."""
    if taken >= limit:
        return "blocked"
    return "warning" if taken * 100 >= limit * warning_percent else "ok"


def quota(standing: Standing, warning_percent: int = WARNING_PERCENT) -> Quota:
    """What is left of one limit; what is left is never less than nothing."""
    taken = standing.limit - standing.remaining
    status = status_of(taken, standing.limit, warning_percent)
    return Quota(
        allowed=status != "blocked",
        status=status,
        used=taken - standing.held,
        limit=standing.limit,
        reserved=standing.held,
        remaining=max(0, standing.remaining),
    )


def strictest(standings: Iterable[Standing]) -> Standing | None:
    """The budget that ends first: of each unit the one with least left, of these the fullest; or None."""
    least: dict[str, Standing] = {}
    for one in standings:
        if one.window in ("now", "minute") or one.name == UNTIL_CHECK:
            continue
        if one.unit not in least or one.remaining < least[one.unit].remaining:
            least[one.unit] = one
    return min(least.values(), key=lambda one: one.remaining / one.limit if one.limit else 0, default=None)


def told(caller: Caller, standings: list[Standing]) -> dict[str, Any]:
    """What a caller is told of its limits: the strictest budget, and each of them."""
    percent = WARNING_PERCENT if caller.allowance is None else caller.allowance.warning_percent
    tightest = strictest(standings)
    return {
        "object": "usage",
        **_told(tightest, percent),
        "limits": [_told(one, percent) for one in standings],
    }


def _told(standing: Standing | None, warning_percent: int) -> dict[str, Any]:
    left = UNLIMITED if standing is None else quota(standing, warning_percent)
    reset = standing and standing.reset_seconds
    return {
        "name": standing and standing.name,
        "unit": standing and standing.unit,
        "window": standing and standing.window,
        **asdict(left),
        "resets_in_seconds": None if reset is None else round(reset),
    }
