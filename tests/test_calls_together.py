"""Calls that are sent to Redis together: each is decided and booked as if it had come alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks.counting import Count, counted
from budgets.exceptions import CountersUnavailable, LimitReached, StaleCaller
from budgets.holds import holds_of
from budgets.limits import Limit
from budgets.reservations import Reservation, release, reserve, settle
from budgets.settlements import Moments
from tenants.redis import MOST_PARTS
from tests.counting import (
    a_budget,
    a_demand,
    a_rate,
    ada,
    change_hold,
    concurrency,
    counter_of,
    empty_redis,
    figures,
    open_holds,
    records,
    records_counted,
    redis,
    relayed,
    some_usage,
)


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """What came of each; begun in one turn of an event loop, so that it is sent together."""

    async def run() -> list[Any]:
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(run())


def one_by_one(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The same, each after the one before has ended."""

    async def run() -> list[Any]:
        return [(await asyncio.gather(one, return_exceptions=True))[0] for one in work]

    return asyncio.run(run())


def ending(reservation: Reservation, output_tokens: int = 20) -> Coroutine[Any, Any, None]:
    return settle(reservation, some_usage(5, output_tokens), "completed", Moments(), 200)


def scripts_in(count: Count) -> int:
    return sum(often for name, often in count.requests.items() if name.startswith("EVAL"))


def test_one_script_serves_all_that_come_at_one_moment() -> None:
    caller = ada(a_budget(10**6), a_rate(1000), concurrency(1000))
    # So that Redis knows both scripts.
    one_by_one(ending(one_by_one(reserve(caller, a_demand()))[0]))

    with relayed() as relays:
        with counted(relays) as reserving:
            reservations = together(*(reserve(caller, a_demand()) for _ in range(2 * MOST_PARTS)))
        with counted(relays) as settling:
            together(*map(ending, reservations))

    assert scripts_in(reserving["redis"]) == 2
    assert scripts_in(settling["redis"]) == 2
    assert records_counted() == len(records()) == 2 * MOST_PARTS + 1
    assert open_holds() == []


sizes = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 120)), min_size=1, max_size=20)


@given(sizes=sizes, tokens=st.integers(0, 600), requests=st.integers(0, 12), running=st.integers(0, 12))
@hypothesis_settings(deadline=None, max_examples=60)
def test_together_is_decided_and_booked_as_one_by_one(
    sizes: list[tuple[int, int]], tokens: int, requests: int, running: int
) -> None:
    def play(in_turn: Any) -> Any:
        empty_redis()
        limits: tuple[Limit, ...] = (
            a_budget(tokens), a_rate(requests), a_rate(2 * tokens, "tokens"), a_budget(None, "requests"),
            a_budget(tokens // 2, "output_tokens", hard=False), concurrency(running),
        )  # fmt: skip
        caller = ada(*limits)
        outcomes = in_turn(*(reserve(caller, a_demand(*size)) for size in sizes))
        admitted = [one for one in outcomes if isinstance(one, Reservation)]
        held = [figures(limit) for limit in limits]
        in_turn(
            *map(ending, admitted[::2]), *(release(one, "upstream_failed", 502) for one in admitted[1::2])
        )
        booked = [figures(limit) for limit in limits]
        told = [_told(one) for one in outcomes]
        return told, held, booked, records_counted(), len(records()), open_holds()

    assert play(together) == play(one_by_one)


def _told(outcome: Any) -> Any:
    if isinstance(outcome, Reservation):
        return outcome.output_cap, outcome.capped_by, [name for name, *_ in outcome.would_have_refused()]
    assert isinstance(outcome, LimitReached)
    return type(outcome), [(one.name, one.remaining) for one in outcome.standing]


def test_callers_that_share_a_counter_see_what_the_other_was_granted() -> None:
    shared, running = a_budget(10, "requests"), concurrency(7)
    callers = [ada(shared, running), ada(running, a_budget(10**6), shared)]

    outcomes = together(*(reserve(callers[number % 2], a_demand()) for number in range(14)))

    assert sum(isinstance(one, Reservation) for one in outcomes) == 7
    assert figures(shared) == (0, 7)
    assert figures(running) == (7, 0)


@pytest.mark.parametrize("room", [60, 1000])
def test_a_repeat_that_comes_together_with_the_first_holds_once(room: int) -> None:
    budget, running = a_budget(room), concurrency(5)
    caller, demand = ada(budget, running), a_demand(10, 100)

    first, second = together(reserve(caller, demand), reserve(caller, demand))

    assert (first.output_cap, first.capped_by) == (second.output_cap, second.capped_by)
    assert first.output_cap == min(100, room - 10)
    assert figures(budget) == (0, min(110, room))
    assert figures(running) == (1, 0)


def test_two_ends_of_a_call_that_come_together_are_one() -> None:
    budget, rate = a_budget(1000), a_rate(1000, "tokens")
    reservation = one_by_one(reserve(ada(budget, rate), a_demand(10, 100)))[0]

    async def end_again() -> None:
        reservation.ended = False
        await ending(reservation, 90)

    together(ending(reservation, 20), end_again())

    assert figures(budget) == (25, 0)
    assert figures(rate) == (25, 0)
    assert records_counted() == len(records()) == 1


def test_each_is_refused_for_a_reason_of_its_own() -> None:
    budget = a_budget(1000)
    good, stale = ada(budget), ada(budget, tenant_generation=2)

    outcomes = together(*(reserve(caller, a_demand()) for caller in (good, stale, good, stale)))

    assert [type(one) for one in outcomes] == [Reservation, StaleCaller, Reservation, StaleCaller]
    assert figures(budget) == (0, 220)


def test_a_counter_that_cannot_be_read_fails_its_own_calls_only() -> None:
    budget, broken = a_budget(1000), a_budget(1000)
    good, bad = ada(budget), ada(broken)
    redis().set(counter_of(broken).key, "not a hash")

    outcomes = together(*(reserve(caller, a_demand(10, 100)) for caller in (good, bad, good)))

    assert [type(one) for one in outcomes] == [Reservation, CountersUnavailable, Reservation]
    assert figures(budget) == (0, 220)
    assert len(open_holds()) == 2


def test_calls_that_are_admitted_as_one_are_told_the_same() -> None:
    budget, rate = a_budget(10**6), a_rate(1000)
    caller = ada(budget, rate)

    reservations = together(*(reserve(caller, a_demand(10, 100)) for _ in range(4)))

    assert len({id(one.figures) for one in reservations}) == 1
    assert [one.remaining for one in reservations[0].standing] == [10**6 - 4 * 110, 996]
    assert {hold and hold.amounts for hold in holds_of([one.request_id for one in reservations])} == {
        (110, 1)
    }


def test_who_exceeds_a_limit_that_only_counts_is_told_from_who_came_before() -> None:
    caller = ada(a_budget(220, hard=False))

    reservations = together(*(reserve(caller, a_demand(10, 100)) for _ in range(4)))

    assert [len(one.would_have_refused()) for one in reservations] == [0, 0, 1, 1]


def test_a_hold_that_is_not_as_its_owner_knows_it_is_booked_alone() -> None:
    budget, rate, running = a_budget(1000), a_rate(1000, "tokens"), concurrency(5)
    caller = ada(budget, rate, running)
    reservations = together(*(reserve(caller, a_demand(10, 100)) for _ in range(3)))
    # As if more had been granted to it, of which its process has not heard.
    change_hold(reservations[1].request_id, amounts=(130, 110, 1))
    redis().hincrby(counter_of(budget).key, "held", 20)

    together(*map(ending, reservations))

    assert figures(budget) == (3 * 25, 0)
    assert figures(rate) == (3 * 25, 0)
    assert figures(running) == (0, 0)
    assert records_counted() == len(records()) == 3


def test_calls_that_end_together_are_booked_in_the_seconds_in_which_they_came() -> None:
    rate = a_rate(1000, "tokens")
    caller = ada(rate)
    reservations = together(*(reserve(caller, a_demand(10, 100)) for _ in range(3)))
    # What lies in the next second is another call's.
    key, second = counter_of(rate).key, reservations[0].admitted_at_ms // 1000
    redis().hincrby(key, str(second + 1), 110)
    redis().hincrby(key, "sum", 110)
    reservations[2].admitted_at_ms += 1000

    together(*map(ending, reservations))

    seconds = redis().hgetall(key)
    assert (int(seconds[str(second).encode()]), int(seconds[str(second + 1).encode()])) == (160, 25)
    assert int(seconds[b"sum"]) == 185
