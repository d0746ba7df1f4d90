"""Which kill switch stops which call, by which clock, and what a process says that may be out of date."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from budgets.exceptions import CountersUnavailable, Killed, ModelKilled, StaleCaller, TenantKilled
from budgets.kill_switches import Switch
from budgets.limits import Limits, _cache
from budgets.reservations import refuse_killed, reserve
from tenants.clock import clock
from tests.counting import MODEL, UPSTREAM, a_demand, ada, empty_redis, open_holds, redis

# Made when the cases are listed, which may be long before they run.
IN_THE_YEAR_2100_MS = 4_102_444_800_000


def switch(scope: str = "tenant", until_ms: float = IN_THE_YEAR_2100_MS, **fields: Any) -> Switch:
    return Switch(scope, fields.get("model", ""), fields.get("upstream", ""), int(until_ms), "")


def known_to_be_killed(*switches: Switch) -> Any:
    """A caller whose process remembers these switches."""
    empty_redis()
    caller = ada()
    _cache.put(caller, Limits((), {}, switches=switches))
    return caller


def test_a_no_from_memory_is_told_only_while_it_is_the_newest():
    caller = known_to_be_killed(switch())
    redis().zadd("{p0}:generations", {caller.tenant_id.hex: 2})

    with pytest.raises(StaleCaller):
        asyncio.run(reserve(caller, a_demand()))
    with pytest.raises(StaleCaller):
        asyncio.run(refuse_killed(caller))


def test_without_redis_nobody_is_told_that_a_switch_is_on_or_off(settings):
    caller = known_to_be_killed(switch())
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    with pytest.raises(CountersUnavailable):
        asyncio.run(reserve(caller, a_demand()))


@pytest.mark.parametrize(
    ("switches", "told"),
    [
        pytest.param([switch("tenant")], TenantKilled, id="on"),
        pytest.param([switch("tenant", until_ms=1)], None, id="long over"),
        pytest.param([switch("tenant", until_ms=time.time() * 1000)], None, id="just over"),
        pytest.param([switch("model", model=MODEL)], ModelKilled, id="the model"),
        pytest.param([switch("model", model="other:1b")], None, id="another model"),
        pytest.param([switch("upstream", upstream="other")], None, id="another upstream"),
        pytest.param(
            [switch("model", model=MODEL), switch("tenant", until_ms=1)], ModelKilled, id="one of two"
        ),
    ],
)
def test_which_switch_stops_a_call(switches, told):
    caller = known_to_be_killed(*switches)

    if told is None:
        reservation = asyncio.run(reserve(caller, a_demand(model=MODEL, upstream=UPSTREAM)))
        assert reservation.output_cap == 100
    else:
        with pytest.raises(told):
            asyncio.run(reserve(caller, a_demand(model=MODEL, upstream=UPSTREAM)))
        assert open_holds() == []


def test_the_clock_that_ends_a_switch_is_that_of_redis(monkeypatch):
    """A process whose own clock is ahead would let calls through that are still stopped."""
    caller = known_to_be_killed(switch(until_ms=time.time() * 1000 + 9_000))
    monkeypatch.setattr(clock, "_ahead_ms", clock._ahead_ms + 9_500)

    with pytest.raises(Killed):
        asyncio.run(reserve(caller, a_demand()))
