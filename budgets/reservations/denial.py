"""The refusal of a call for which a limit has no room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budgets.charges import Charge
from budgets.exceptions import (
    BudgetExhausted,
    ConcurrencyLimited,
    HumanCheckRequired,
    LimitReached,
    RateLimited,
)
from budgets.limits import Limit
from budgets.reservations.calls import LEAST_GPU_MS, Demand
from budgets.reservations.standing import Figures, named, standing_of
from budgets.visitors import UNTIL_CHECK

# Nobody can tell when a running call ends; this is when asking again is worth it.
CONCURRENCY_RETRY_SECONDS = 1.0


def limit_reached(
    demand: Demand,
    rates: Sequence[Charge],
    refused: Sequence[int],
    figures: Figures,
) -> LimitReached:
    """The refusal of the limit that has to be waited for longest; sooner, another one would refuse.

    ``rates`` is what the call may cost in each unit of its counting.
    """
    counting, now_ms = figures.counting, figures.now_ms
    limits, counters, charges = counting.limits, counting.counters, counting.of_each(rates)
    waits: dict[int, float | None] = {}
    for number in refused:
        limit, counter = limits[number - 1], counters[number - 1]
        wait_ms = figures.values[3 * number - 1]
        if not fits(limits, charges, number, demand):
            waits[number] = None
        elif limit.kind == "leases":
            waits[number] = CONCURRENCY_RETRY_SECONDS
        elif limit.kind == "rate":
            waits[number] = None if wait_ms < 0 else wait_ms / 1000
        else:
            waits[number] = None if counter.end is None else counter.end - now_ms / 1000
    # A human check lifts one limit; where another one refuses too, it would be asked for in vain.
    others = {number: wait for number, wait in waits.items() if limits[number - 1].name != UNTIL_CHECK}
    longest = max(
        others or waits, key=lambda number: float("inf") if (wait := waits[number]) is None else wait
    )
    kinds: dict[str, type[LimitReached]] = {
        "budget": BudgetExhausted,
        "rate": RateLimited,
        "leases": ConcurrencyLimited,
    }
    first = [longest, *(number for number in refused if number != longest)]
    standing = standing_of(figures, first)
    refused_by = [
        named(limits[number - 1], counters[number - 1], fits=fits(limits, charges, number, demand))
        for number in first
    ]
    looked_at = as_looked_at(demand, charges, refused, figures)
    if limits[longest - 1].name == UNTIL_CHECK:
        return HumanCheckRequired(standing, None, refused_by, looked_at)
    return kinds[limits[longest - 1].kind](standing, waits[longest], refused_by, looked_at)


def as_looked_at(
    demand: Demand,
    charges: tuple[Charge, ...],
    refused: Sequence[int],
    figures: Figures,
) -> list[dict[str, Any]]:
    """Every limit that was asked, in this order, as it stood: what people are shown of a refusal.

    ``needed`` is the least of the limit's unit with which the call would have been let through;
    ``back_at``, in seconds since 1970, is when some of it comes back, null for never or for nobody knows.
    """
    found = []
    limits, counters, now_ms = figures.counting.limits, figures.counting.counters, figures.now_ms
    for number, (limit, counter, charge) in enumerate(zip(limits, counters, charges, strict=True), start=1):
        if limit.limit is None:
            continue
        used, held, wait_ms = figures.values[3 * number - 3 : 3 * number]
        needed = charge.amount(demand.least_output, LEAST_GPU_MS)
        back_at: float | None = None
        if limit.kind == "budget":
            back_at = counter.end
        elif limit.kind == "rate" and wait_ms >= 0:
            back_at = (now_ms + wait_ms) / 1000
        found.append(
            {
                "id": limit.id,
                "kind": limit.kind,
                "name": limit.name,
                "scope": limit.scope,
                "unit": limit.unit,
                "window": limit.window,
                "model": limit.model,
                "upstream": limit.upstream,
                "limit": limit.limit,
                "used": used,
                "held": held,
                "needed": needed,
                "hard": limit.hard,
                # The script asks only those that may refuse.
                "refused": number in refused if limit.hard else used + held + needed > limit.limit,
                "back_at": back_at,
            }
        )
    return found


def fits(limits: tuple[Limit, ...], charges: tuple[Charge, ...], number: int, demand: Demand) -> bool:
    """Whether the call would fit a limit of which nothing is used."""
    limit = limits[number - 1].limit
    return limit is not None and charges[number - 1].amount(demand.least_output, LEAST_GPU_MS) <= limit
