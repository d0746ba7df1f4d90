"""The refusal of a call for which a limit has no room."""

from __future__ import annotations

from collections.abc import Sequence

from budgets.charges import Charge
from budgets.counters import Counter
from budgets.exceptions import (
    BudgetExhausted,
    ConcurrencyLimited,
    HumanCheckRequired,
    LimitReached,
    RateLimited,
)
from budgets.limits import Limit
from budgets.reservations.calls import LEAST_GPU_MS, Demand
from budgets.reservations.standing import named, standing_of
from budgets.visitors import UNTIL_CHECK

# Nobody can tell when a running call ends; this is when asking again is worth it.
CONCURRENCY_RETRY_SECONDS = 1.0


def limit_reached(
    demand: Demand,
    limits: tuple[Limit, ...],
    counters: tuple[Counter, ...],
    charges: tuple[Charge, ...],
    refused: list[int],
    figures: Sequence[int],
    now_ms: int,
) -> LimitReached:
    """The refusal of the limit that has to be waited for longest; sooner, another one would refuse."""
    waits: dict[int, float | None] = {}
    for number in refused:
        limit, counter = limits[number - 1], counters[number - 1]
        wait_ms = figures[3 * number - 1]
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
    standing = standing_of(limits, counters, figures, now_ms, first)
    refused_by = [
        named(limits[number - 1], counters[number - 1], fits=fits(limits, charges, number, demand))
        for number in first
    ]
    if limits[longest - 1].name == UNTIL_CHECK:
        return HumanCheckRequired(standing, None, refused_by)
    return kinds[limits[longest - 1].kind](standing, waits[longest], refused_by)


def fits(limits: tuple[Limit, ...], charges: tuple[Charge, ...], number: int, demand: Demand) -> bool:
    """Whether the call would fit a limit of which nothing is used."""
    limit = limits[number - 1].limit
    return limit is not None and charges[number - 1].amount(demand.least_output, LEAST_GPU_MS) <= limit
