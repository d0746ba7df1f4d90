"""Limits in shadow mode: they refuse nobody and tell what they would have refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from audit.models import RequestEvent
from budgets import ledger
from budgets.counters import REFUSALS, USAGE
from budgets.limits import Limit
from budgets.models import BudgetPeriod
from budgets.pricing import PinnedPrice
from budgets.reservations import Reservation, reserve, settle
from budgets.settlements import Moments
from tests.counting import MODEL, a_budget, a_demand, a_rate, ada, concurrency, empty_redis, redis, some_usage

PRICE = PinnedPrice("0" * 32, 1_000_000, 1_000_000, 1_000_000)


def in_shadow(limit: Limit) -> Limit:
    limit.hard = False
    return limit


def admitted(limit: Limit, before: int = 0, priced: bool = True, **demand: Any) -> Reservation:
    """A reservation of a caller with ``before`` calls running."""
    empty_redis()
    caller = ada(limit, prices={MODEL: PRICE} if priced else None)

    async def calls() -> Reservation:
        for _ in range(before):
            await reserve(caller, a_demand())
        return await reserve(caller, a_demand(**demand))

    return asyncio.run(calls())


@pytest.mark.parametrize(
    ("limit", "demand", "refused"),
    [
        pytest.param(a_budget(None), {}, False, id="no limit"),
        pytest.param(a_budget(0), {}, True, id="nothing is let through"),
        pytest.param(a_budget(11), {}, False, id="the least fits, though the wish does not"),
        pytest.param(a_budget(10), {}, True, id="not even the least fits"),
        pytest.param(a_budget(120), {"before": 1}, True, id="what is held counts"),
        pytest.param(a_budget(121), {"before": 1}, False, id="what is held leaves the least"),
        pytest.param(a_budget(1, "requests"), {}, False, id="the first request"),
        pytest.param(a_budget(1, "requests"), {"before": 1}, True, id="the second request"),
        pytest.param(a_budget(11, "micro_usd"), {}, False, id="money for the least"),
        pytest.param(a_budget(10, "micro_usd"), {}, True, id="too little money"),
        pytest.param(a_budget(10**6, "micro_usd"), {"priced": False}, True, id="no price"),
        pytest.param(a_rate(1), {}, False, id="the first request of the minute"),
        pytest.param(a_rate(1), {"before": 1}, True, id="the second request of the minute"),
        pytest.param(concurrency(1), {}, False, id="the first at one time"),
        pytest.param(concurrency(1), {"before": 1}, True, id="two at one time"),
    ],
)
def test_a_shadow_limit_tells_whether_it_would_have_refused(
    limit: Limit, demand: dict[str, Any], refused: bool
) -> None:
    reservation = admitted(in_shadow(limit), **demand)

    assert [one[0] for one in reservation.would_have_refused()] == [limit.name] * refused
    assert reservation.output_cap == 100


@pytest.mark.django_db(transaction=True)
def test_a_call_that_would_have_been_refused_is_counted_once() -> None:
    limit = in_shadow(a_budget(0, window="lifetime"))
    reservation = admitted(limit)
    asyncio.run(settle(reservation, some_usage(), "completed", Moments(), 200))
    ledger.drain()
    # As after a backup of PostgreSQL was restored: the group reads all of it again.
    redis().xgroup_setid(USAGE, ledger.GROUP, "0")

    ledger.drain()

    assert BudgetPeriod.objects.get().refused == 1
    assert BudgetPeriod.objects.get().used == 27
    assert RequestEvent.objects.get().refused_by == ["key-tokens-day"]


@pytest.mark.django_db(transaction=True)
def test_a_note_of_a_refusal_that_is_read_again_is_counted_once() -> None:
    """As after a drain that died between its commit and the deletion of the notes."""
    empty_redis()
    noted = {
        "request_id": uuid4().hex,
        "status": 429,
        "refused_by": [["key-tokens-day", "budget", uuid4().hex, "tokens", 0, None]],
    }
    for _ in range(2):
        redis().xadd(REFUSALS, {"event": json.dumps(noted)})
        ledger.drain()

    assert BudgetPeriod.objects.get().refused == 1
    assert RequestEvent.objects.get().refused_by == ["key-tokens-day"]
