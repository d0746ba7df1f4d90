"""Budgets and clocks: whichever clock is wrong, no budget is handed out twice and none stays locked."""

from __future__ import annotations

import asyncio
import time

import pytest

from budgets.counters import CLOCK
from budgets.exceptions import BudgetExhausted, ClockDoubtful
from budgets.limits import Limit
from budgets.periods import Period, Schedule
from budgets.reservations import Reservation, reserve, settle
from budgets.settlements import Moments
from keys.verification import Caller
from tenants.clock import clock
from tests.counting import (
    a_budget,
    a_demand,
    ada,
    always,
    empty_redis,
    everything,
    mistake_the_time,
    redis,
    some_usage,
)


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def admit(caller: Caller) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(10, 100)))


def use(caller: Caller) -> None:
    asyncio.run(settle(admit(caller), some_usage(7, 20), "completed", Moments(), 200))


def counters() -> list[str]:
    return [key for key in everything() if ":budget:" in key]


def a_day_around_now() -> int:
    """The start of a day that neither begins nor ends while a test runs."""
    return int(time.time()) - 43_200


def around_now(start: int) -> Schedule:
    """A calendar whose present day began at ``start``, whatever hour the test runs at."""
    return Schedule(((0, always("fixed", seconds=86_400).calendars[0][1]),), Period(start, start + 86_400))


@pytest.mark.parametrize("hours", [-9000, -30, -24, -1, 1, 24, 30, 9000])
def test_d9_a_process_whose_clock_is_hours_off_counts_in_the_period_of_redis(
    monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Were it let: its guess is refused as moved; the next is right, whatever its own clock says."""
    budget = a_budget(100, schedule=around_now(a_day_around_now()))
    use(ada(budget))
    [right] = counters()
    budget._counter = budget._period = None
    mistake_the_time(monkeypatch, hours * 3_600_000)

    caller = ada(budget)
    use(caller)
    use(caller)

    assert counters() == [right]
    assert redis().hget(right, "used") == b"81"
    if abs(hours) > 12:  # else it was right about the period, and need not learn more
        assert abs(clock.now_ms() - time.time() * 1000) < 60_000


def test_d9_two_processes_that_disagree_about_now_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    start = a_day_around_now()
    right, wrong = (a_budget(2, "requests", id="0" * 32, schedule=around_now(start)) for _ in range(2))
    use(ada(right))
    mistake_the_time(monkeypatch, 86_400_000 + 90_000)

    use(ada(wrong))

    with pytest.raises(BudgetExhausted):
        use(ada(right))
    with pytest.raises(BudgetExhausted):
        use(ada(wrong))


def at_another_time(budget: Limit, start: int) -> None:
    """Let the clock of Redis jump: it cannot be set here, so the periods are moved past it instead."""
    budget.schedule = around_now(start)
    budget._counter = budget._period = None


def test_d10_a_clock_that_jumps_into_another_period_and_back_finds_each_budget_as_it_was() -> None:
    today = a_day_around_now()
    tomorrow = today + 20_000
    budget = a_budget(2, "requests", schedule=around_now(today))
    use(ada(budget))
    at_another_time(budget, tomorrow)
    use(ada(budget))
    at_another_time(budget, today)
    use(ada(budget))

    with pytest.raises(BudgetExhausted):
        use(ada(budget))
    at_another_time(budget, tomorrow)
    use(ada(budget))

    with pytest.raises(BudgetExhausted):
        use(ada(budget))
    used = {key.rsplit(":", 1)[1]: redis().hget(key, "used") for key in counters()}
    assert used == {str(today): b"2", str(tomorrow): b"2"}


def test_d10_a_clock_that_went_back_admits_nothing_and_goes_on_when_it_is_right_again() -> None:
    budget = a_budget(1000, schedule=around_now(a_day_around_now()))
    caller = ada(budget)
    use(caller)
    ahead = int(time.time() * 1000) + 7_200_000
    before = redis().get(CLOCK)
    redis().set(CLOCK, ahead)

    with pytest.raises(ClockDoubtful):
        admit(caller)
    redis().set(CLOCK, before)
    use(caller)

    [counter] = counters()
    assert redis().hget(counter, "used") == b"54"


def test_d1_spending_resumes_at_the_boundary_with_no_job_at_all() -> None:
    yesterday, today = a_day_around_now() - 86_400, a_day_around_now()
    budget = a_budget(110, schedule=around_now(today))
    redis().hset(f"{{p0}}:budget:{budget.id}:{yesterday}", mapping={"used": 110, "held": 0})

    use(ada(budget))

    assert redis().hget(f"{{p0}}:budget:{budget.id}:{today}", "used") == b"27"
    assert redis().hget(f"{{p0}}:budget:{budget.id}:{yesterday}", "used") == b"110"


def test_d6_nothing_is_zeroed_when_a_period_begins_while_another_is_settled() -> None:
    start = a_day_around_now()
    budget = a_budget(1000, schedule=around_now(start - 20_000))
    running = admit(ada(budget))
    at_another_time(budget, start)

    use(ada(budget))
    asyncio.run(settle(running, some_usage(7, 20), "completed", Moments(), 200))

    used = {key.rsplit(":", 1)[1]: redis().hmget(key, "used", "held") for key in counters()}
    assert used == {str(start - 20_000): [b"27", b"0"], str(start): [b"27", b"0"]}


def test_d7_a_counter_that_is_used_all_the_time_expires_with_its_period() -> None:
    budget = a_budget(None, schedule=around_now(a_day_around_now()))
    caller = ada(budget)
    use(caller)
    [counter] = counters()
    expires = redis().pexpiretime(counter)

    for _ in range(3):
        use(caller)

    assert redis().pexpiretime(counter) == expires


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "Pacific/Chatham", "America/Havana"])
def test_several_budgets_of_one_scope_are_each_counted_in_their_own_period(zone: str) -> None:
    kinds = ["hour", "day", "week", "month", "year", "lifetime"]
    budgets = [a_budget(None, window=kind, schedule=always(kind, zone)) for kind in kinds]
    fixed = a_budget(None, window="fixed", schedule=always("fixed", zone, 36 * 3600))
    moment = time.time()

    use(ada(*budgets, fixed))

    found = {key.split(":")[2]: int(key.split(":")[3]) for key in counters()}
    assert found.keys() == {limit.id for limit in [*budgets, fixed]}
    for limit in [*budgets, fixed]:
        assert limit.schedule is not None
        # An hour, or more, may have ended while this ran.
        begun = {limit.schedule.period(at).start for at in (moment, time.time())}
        assert found[limit.id] in begun
