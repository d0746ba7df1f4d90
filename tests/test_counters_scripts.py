"""The scripts, each run against a real Redis through the functions that call it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import override_settings

from budgets import counters
from budgets.counters import (
    CLOCK,
    DRAINED,
    EPOCH,
    GENERATIONS,
    SCRIPTS,
    SETTLED,
    hold_key,
)
from budgets.exceptions import (
    BacklogFull,
    BudgetExhausted,
    ClockDoubtful,
    ConcurrencyLimited,
    CountersUnavailable,
    KeyNoLongerValid,
    LimitReached,
    PriceMissing,
    RateLimited,
    StaleCaller,
    TooLarge,
)
from budgets.pricing import PinnedPrice
from budgets.reservations import Reservation, release, reserve, settle
from budgets.settlements import Moments
from budgets.sweeping import _sweep
from config.embedded import Valkey
from keys.verification import Caller
from tenants.clock import clock
from tests.counting import (
    MODEL,
    a_budget,
    a_demand,
    a_rate,
    ada,
    concurrency,
    counter_of,
    empty_redis,
    everything,
    expire_hold,
    figures,
    mistake_the_time,
    open_holds,
    records,
    records_counted,
    redis,
    some_usage,
    with_redis_at,
)

HOLDS_IN_LUA = (Path(counters.__file__).parent / "lua" / "holds.lua").read_text()
TWO_MICRO_A_TOKEN = PinnedPrice(uuid4().hex, 2_000_000, 1_000_000, 2_000_000)


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def admit(caller: Caller, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(**demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def give_back(reservation: Reservation) -> None:
    asyncio.run(release(reservation, "upstream_failed", 502))


def test_a_hold_becomes_usage() -> None:
    tokens, requests = a_budget(1000), a_budget(5, "requests")
    caller = ada(tokens, requests)

    reservation = admit(caller, input_tokens=10, output_tokens=100)
    held = figures(tokens), figures(requests)
    end(reservation, input_tokens=7, output_tokens=20)

    assert held == ((0, 110), (0, 1))
    assert (figures(tokens), figures(requests)) == ((27, 0), (1, 0))
    assert open_holds() == []
    assert [record["kind"] for record in records()] == ["usage"]


def test_the_output_cap_is_what_the_tightest_limit_allows() -> None:
    caller = ada(a_budget(1000), a_budget(60, name="tight"), a_rate(80, "tokens"))

    reservation = admit(caller, input_tokens=10, output_tokens=100)

    assert (reservation.output_cap, reservation.capped_by) == (50, "tight")


def test_a_money_budget_caps_at_the_last_micro_dollar() -> None:
    money = a_budget(101, "micro_usd")
    caller = ada(money, prices={MODEL: TWO_MICRO_A_TOKEN})

    reservation = admit(caller, input_tokens=10, output_tokens=100)

    assert reservation.output_cap == 40
    assert figures(money) == (0, 100)


def test_a_wish_that_fits_is_not_capped() -> None:
    reservation = admit(ada(a_budget(110)), input_tokens=10, output_tokens=100)

    assert (reservation.output_cap, reservation.capped_by) == (100, None)


@pytest.mark.parametrize(
    ("limit", "admitted"),
    [
        pytest.param(None, 3, id="no limit"),
        pytest.param(0, 0, id="nothing"),
        pytest.param(1, 1, id="one"),
        pytest.param(2, 2, id="two"),
        pytest.param(2**53 - 1, 3, id="the largest"),
    ],
)
@pytest.mark.parametrize("limiting", [lambda n: a_budget(n, "requests"), a_rate, concurrency])
def test_null_zero_and_a_number_are_three_things(limiting: Any, limit: int | None, admitted: int) -> None:
    limited = limiting(limit)
    caller = ada(limited)
    count = 0

    for _ in range(3):
        try:
            admit(caller)
        except LimitReached:
            continue
        count += 1

    assert count == admitted
    assert sum(figures(limited)) == admitted


@pytest.mark.parametrize(
    ("full", "refusal"),
    [
        pytest.param(a_budget(0), BudgetExhausted, id="budget"),
        pytest.param(a_rate(0), RateLimited, id="rate"),
        pytest.param(concurrency(0), ConcurrencyLimited, id="concurrency"),
    ],
)
def test_a_refused_call_leaves_everything_alone(full: Any, refusal: type[LimitReached]) -> None:
    caller = ada(a_budget(10_000), a_rate(100), concurrency(5), full, a_budget(50, "requests"))
    before = everything()

    with pytest.raises(refusal) as caught:
        admit(caller)

    assert everything() == before
    assert caught.value.standing[0].name == full.name
    assert caught.value.retry_after is None


def test_a_shadow_budget_counts_and_never_refuses_or_caps() -> None:
    shadow = a_budget(5, hard=False)
    reservation = admit(ada(shadow), input_tokens=10, output_tokens=100)

    end(reservation, input_tokens=10, output_tokens=90)

    assert reservation.output_cap == 100
    assert figures(shadow) == (100, 0)
    assert reservation.standing == []


def test_forty_racing_holds_never_overrun() -> None:
    limits = a_budget(10, "requests"), a_budget(10 * 110), a_rate(10), concurrency(10)
    caller = ada(*limits)

    async def race() -> list[Reservation | BaseException]:
        demands = [a_demand(input_tokens=10, output_tokens=100) for _ in range(40)]
        return await asyncio.gather(*(reserve(caller, demand) for demand in demands), return_exceptions=True)

    outcomes = asyncio.run(race())

    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 10
    assert [sum(figures(limit)) for limit in limits] == [10, 1100, 10, 10]


def test_a_repeated_reserve_returns_what_was_decided_and_holds_once() -> None:
    budget = a_budget(60)
    caller = ada(budget, concurrency(3))
    demand = a_demand(input_tokens=10, output_tokens=100)

    first = asyncio.run(reserve(caller, demand))
    before = everything()
    second = asyncio.run(reserve(caller, demand))

    assert everything() == before
    assert (second.output_cap, second.capped_by) == (first.output_cap, first.capped_by) == (50, budget.name)


def test_a_reserve_that_comes_after_the_end_is_refused() -> None:
    caller = ada(a_budget(1000))
    demand = a_demand()
    end(asyncio.run(reserve(caller, demand)))
    before = everything()

    with pytest.raises(CountersUnavailable):
        asyncio.run(reserve(caller, demand))

    assert everything() == before


def test_settling_twice_books_the_first_amounts_once() -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget))
    end(reservation, input_tokens=1, output_tokens=2)
    reservation.ended = False

    end(reservation, input_tokens=10, output_tokens=90)

    assert figures(budget) == (3, 0)
    assert records_counted() == len(records()) == 1


def test_a_released_call_counts_nothing_and_is_told_of() -> None:
    limits = a_budget(1000), a_budget(5, "requests"), a_rate(5), a_rate(500, "tokens"), concurrency(1)
    reservation = admit(ada(*limits))

    give_back(reservation)

    assert [sum(figures(limit)) for limit in limits] == [0, 0, 0, 0, 0]
    assert [record["kind"] for record in records()] == ["usage"]


def test_usage_beyond_the_hold_is_booked_as_the_hold_and_not_as_exact() -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget), input_tokens=10, output_tokens=100)

    end(reservation, input_tokens=2**60, output_tokens=-1)

    assert figures(budget) == (10, 0)
    assert records()[0]["end"]["exact"] is False


def test_the_rate_is_corrected_to_what_was_used() -> None:
    rate = a_rate(1000, "tokens")
    reservation = admit(ada(rate), input_tokens=10, output_tokens=500)

    end(reservation, input_tokens=10, output_tokens=20)

    assert figures(rate) == (30, 0)


def present_ms() -> int:
    """Milliseconds since 1970 on the clock of Redis, which goes on while a test runs."""
    seconds, microseconds = redis().time()
    return int(seconds * 1000 + microseconds // 1000)


def refused_until_ms(caller: Caller) -> tuple[int, int]:
    """The earliest and the latest moment that a refused call can have been told to wait for."""
    before = present_ms()
    with pytest.raises(RateLimited) as caught:
        admit(caller)
    after = present_ms()
    assert caught.value.retry_after is not None
    wait_ms = round(caught.value.retry_after * 1000)
    return before + wait_ms, after + wait_ms


def test_a_call_leaves_the_window_after_a_minute_and_not_before() -> None:
    rate = a_rate(1)
    caller = ada(rate)
    key = counter_of(rate).key
    second = present_ms() // 1000

    redis().hset(key, mapping={"sum": 1, "oldest": second - 30, str(second - 30): 1})
    earliest, latest = refused_until_ms(caller)
    redis().delete(key)
    redis().hset(key, mapping={"sum": 1, "oldest": second - 62, str(second - 62): 1})
    admit(caller)

    # A minute after the end of the second in which it came.
    assert earliest <= (second - 30 + 61) * 1000 <= latest
    assert figures(rate) == (1, 0)


@pytest.mark.parametrize("summed", [True, False])
def test_only_what_has_left_the_window_is_taken_off_a_rate(summed: bool) -> None:
    rate = a_rate(4)
    caller = ada(rate)
    key = counter_of(rate).key
    second = present_ms() // 1000
    redis().hset(key, mapping={str(second - 62): 2, str(second - 30): 3})
    if summed:
        redis().hset(key, mapping={"sum": 5, "oldest": second - 62})

    admit(caller)
    earliest, latest = refused_until_ms(caller)

    assert earliest <= (second - 30 + 61) * 1000 <= latest
    assert figures(rate) == (4, 0)


def test_the_oldest_second_of_a_rate_is_the_earliest_also_after_its_clock_went_back() -> None:
    rate = a_rate(4)
    ahead = present_ms() // 1000 + 30
    redis().hset(counter_of(rate).key, mapping={"sum": 1, "oldest": ahead, str(ahead): 1})

    reservation = admit(ada(rate))

    assert figures(rate) == (2, 0)
    oldest = int(redis().hget(counter_of(rate).key, "oldest"))
    assert oldest == reservation.admitted_at_ms // 1000


def test_a_settlement_that_comes_after_its_second_has_gone_leaves_the_rate_alone() -> None:
    rate = a_rate(1000, "tokens")
    caller = ada(rate)
    reservation = admit(caller, input_tokens=10, output_tokens=500)
    second = reservation.admitted_at_ms // 1000
    redis().hdel(counter_of(rate).key, second)
    redis().hset(counter_of(rate).key, mapping={"sum": 7, "oldest": second - 1, str(second - 1): 7})

    end(reservation, input_tokens=10, output_tokens=20)

    assert figures(rate) == (7, 0)


def test_a_refused_call_does_not_use_up_the_rate() -> None:
    rate, running = a_rate(2), concurrency(1)
    caller = ada(rate, running)
    first = admit(caller)

    with pytest.raises(ConcurrencyLimited) as caught:
        admit(caller)
    end(first)
    admit(caller)

    assert caught.value.retry_after == 1
    assert figures(rate) == (2, 0)


def test_leases_of_a_dead_process_free_their_place() -> None:
    running = concurrency(1)
    caller = ada(running)
    admit(caller)

    redis().zadd(counter_of(running).key, dict.fromkeys(open_holds(), 1))
    admit(caller)

    assert figures(running) == (1, 0)


def test_the_refusal_that_lasts_longest_is_the_one_told() -> None:
    lifetime = a_budget(5, window="lifetime", name="key-tokens-lifetime")
    caller = ada(a_rate(0), concurrency(1), a_budget(3, "requests"), lifetime)

    with pytest.raises(LimitReached) as caught:
        admit(caller, input_tokens=10)

    assert caught.value.retry_after is None


def test_a_used_up_budget_tells_when_it_is_whole_again() -> None:
    day = a_budget(1, "requests")
    caller = ada(day)
    admit(caller)

    end_of_day = counter_of(day).end
    before = time.time()
    with pytest.raises(BudgetExhausted) as caught:
        admit(caller)

    (standing,) = caught.value.standing
    assert end_of_day is not None
    assert caught.value.retry_after is not None
    # By the clock of Redis, which may tell the same moment a little otherwise.
    assert end_of_day - time.time() - 1 <= caught.value.retry_after <= end_of_day - before + 1
    assert (standing.limit, standing.remaining) == (1, 0)


def test_what_remains_is_negative_after_the_limit_was_lowered() -> None:
    budget = a_budget(1000)
    admit(ada(budget), input_tokens=10, output_tokens=100)
    budget.limit = 50

    with pytest.raises(BudgetExhausted) as caught:
        admit(ada(budget))

    assert caught.value.standing[0].remaining == -60


def test_a_counter_is_given_its_end_once() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    admit(caller)
    key = counter_of(budget).key
    redis().expire(key, 1000)

    admit(caller)

    assert redis().ttl(key) <= 1000


def test_a_counter_for_ever_has_no_end() -> None:
    budget = a_budget(1000, window="lifetime")
    end(admit(ada(budget)))

    assert redis().ttl(counter_of(budget).key) == -1


@pytest.mark.parametrize(
    ("generation", "subject"),
    [pytest.param(2, "tenant", id="tenant changed"), pytest.param(2, "platform", id="platform changed")],
)
def test_a_caller_that_is_not_the_newest_is_sent_back(generation: int, subject: str) -> None:
    caller = ada(a_budget(1000))
    redis().zadd(GENERATIONS, {caller.tenant_id.hex if subject == "tenant" else subject: generation})
    before = everything()

    with pytest.raises(StaleCaller):
        admit(caller)

    assert everything() == before


def test_a_tenant_redis_knows_nothing_of_is_sent_back() -> None:
    caller = ada()
    redis().delete(GENERATIONS)

    with pytest.raises(StaleCaller):
        admit(caller)


def test_a_key_expires_by_the_clock_of_redis() -> None:
    now_ms = int(redis().time()[0]) * 1000

    with pytest.raises(KeyNoLongerValid):
        admit(ada(expires_at_ms=now_ms))
    admit(ada(expires_at_ms=now_ms + 60_000))


def test_nothing_is_admitted_without_the_epoch() -> None:
    caller = ada()
    redis().delete(EPOCH)

    with pytest.raises(CountersUnavailable):
        admit(caller)


@override_settings(MAX_BACKLOG=10)
def test_nothing_is_admitted_when_too_much_waits_for_the_ledger() -> None:
    caller = ada()
    redis().set(SETTLED, 110)
    redis().set(DRAINED, 100)

    with pytest.raises(BacklogFull):
        admit(caller)
    redis().set(DRAINED, 101)
    admit(caller)


def test_nothing_is_admitted_when_the_clock_went_back() -> None:
    caller = ada()
    redis().set(CLOCK, int(time.time() * 1000) + 60_000)

    with pytest.raises(ClockDoubtful):
        admit(caller)


def test_the_time_that_was_seen_never_falls() -> None:
    caller = ada()
    ahead = int(time.time() * 1000) + 900
    redis().set(CLOCK, ahead)

    admit(caller)

    assert int(redis().get(CLOCK)) >= ahead


@pytest.mark.parametrize("seconds", [-7200, -60, 60, 7200])
def test_nothing_is_admitted_while_our_clock_and_that_of_redis_differ(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """A step of Redis' clock, or a process whose clock is wrong; nobody can tell which."""
    budget = a_budget(1000)
    caller = ada(budget)
    monkeypatch.setattr(clock, "_ahead_ms", clock._ahead_ms + seconds * 1000)

    for _ in range(2):
        with pytest.raises(ClockDoubtful):
            admit(caller)

    assert figures(budget) == (0, 0)


def test_a_process_that_took_long_to_ask_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = ada(a_budget(1000))
    guesses = [clock.now_ms() - 60_000] * 2
    real = clock.now_ms
    monkeypatch.setattr(clock, "now_ms", lambda: guesses.pop() if guesses else real())

    admit(caller)

    assert not guesses


def test_a_redis_that_has_forgotten_a_call_is_not_believed() -> None:
    """E5, E14: a replica that lagged, or a backup, with the epoch it had then."""
    caller = ada(a_budget(1000))
    admit(caller)
    redis().set(CLOCK, int(redis().get(CLOCK)) - 1)

    with pytest.raises(CountersUnavailable):
        admit(caller)

    assert redis().get(EPOCH) is None


def test_the_period_is_the_one_of_redis_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    hour = a_budget(1000, window="hour")
    right = counter_of(hour).key
    hour._counter = None
    ahead = ada(hour)
    mistake_the_time(monkeypatch, 7_200_000)

    admit(ahead, input_tokens=10, output_tokens=100)

    assert [key for key in everything() if ":budget:" in key] == [right]


def test_a_model_without_a_price_is_refused_where_money_is_counted() -> None:
    with pytest.raises(PriceMissing):
        admit(ada(a_budget(None, "micro_usd")))
    admit(ada(a_budget(1000)))


def test_more_tokens_than_can_be_counted_exactly_are_refused() -> None:
    with pytest.raises(TooLarge):
        admit(ada(), input_tokens=2**40)


def test_a_lost_hold_is_booked_all_the_same() -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget))
    redis().flushdb()

    end(reservation, input_tokens=7, output_tokens=20)

    assert figures(budget) == (27, 0)
    assert redis().ttl(counter_of(budget).key) > 0
    assert [record["kind"] for record in records()] == ["late"]


def test_the_owner_of_a_swept_call_books_the_difference() -> None:
    budget, rate = a_budget(1000), a_rate(1000, "tokens")
    reservation = admit(ada(budget, rate), input_tokens=10, output_tokens=100)
    expire_hold(reservation.request_id)

    assert _sweep(str(reservation.request_id))
    assert not _sweep(str(reservation.request_id))
    swept = figures(budget), figures(rate)
    end(reservation, input_tokens=7, output_tokens=20)

    assert swept == ((10, 0), (10, 0))
    assert (figures(budget), figures(rate)) == ((27, 0), (27, 0))
    assert [record["kind"] for record in records()] == ["usage", "adjustment"]


def test_a_sweep_leaves_a_call_that_is_alive_alone() -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget), input_tokens=10, output_tokens=100)

    assert not _sweep(str(reservation.request_id))

    assert figures(budget) == (0, 110)


def test_amounts_up_to_the_largest_are_counted_exactly() -> None:
    largest = 2**53 - 1
    budget = a_budget(largest)
    caller = ada(budget)
    key = counter_of(budget).key
    redis().hset(key, "used", largest - 111)

    reservation = admit(caller, input_tokens=10, output_tokens=100)
    with pytest.raises(BudgetExhausted):
        admit(caller, input_tokens=1, output_tokens=1)
    end(reservation, input_tokens=10, output_tokens=100)

    assert figures(budget) == (largest - 1, 0)


def test_scripts_are_sent_again_to_a_redis_that_forgot_them(valkey: Valkey) -> None:
    with with_redis_at(valkey.url):
        empty_redis()
        caller = ada(a_budget(1000))
        reservation = admit(caller)
        redis().script_flush()
        end(reservation)
        redis().script_flush()
        end(admit(caller))

        assert records_counted() == 2


def test_every_script_says_at_its_head_what_it_takes_answers_and_does_twice() -> None:
    for script in SCRIPTS:
        # Of some, how a hold is read and written stands before it.
        head = script.text.removeprefix(HOLDS_IN_LUA).split("\n\n")[0]
        assert all(line.startswith("--") for line in head.splitlines())
        assert "KEYS[1]" in head
        assert "Returns" in head
        assert "repeat" in script.text.lower()


def test_a_cancelled_reserve_is_taken_back() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    demand = a_demand()

    async def leave() -> None:
        task = asyncio.create_task(reserve(caller, demand))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: redis().get(hold_key(demand.request_id)) == b"void")

    asyncio.run(leave())

    assert figures(budget) == (0, 0)
    assert open_holds() == []
    assert records() == []


async def until(condition: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110, what is waited for happens in Redis
            await asyncio.sleep(0.01)


def test_a_process_gone_before_its_answer_is_void_even_if_the_reserve_comes_later() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    demand = a_demand()
    redis().set(hold_key(demand.request_id), "void")

    with pytest.raises(CountersUnavailable):
        asyncio.run(reserve(caller, demand))

    assert figures(budget) == (0, 0)
