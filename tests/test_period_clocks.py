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
from tests.counting import a_budget, a_demand, ada, always, empty_redis, everything, redis, some_usage


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
def test_d9_a_process_whose_clock_is_hours_off_counts_nothing_and_hinders_nobody(
    monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    budget = a_budget(2, "requests", schedule=around_now(a_day_around_now()))
    use(ada(budget))
    [right] = counters()
    with monkeypatch.context() as wrong:
        wrong.setattr(clock, "_ahead_ms", clock._ahead_ms + hours * 3_600_000)
        budget._counter = budget._period = None
        with pytest.raises(ClockDoubtful):
            admit(ada(budget))

    use(ada(budget))

    assert counters() == [right]
    assert redis().hget(right, "used") == b"2"
    with pytest.raises(BudgetExhausted):
        admit(ada(budget))


@pytest.mark.parametrize("seconds", [-8, 8])
def test_d9_two_processes_on_both_sides_of_a_boundary_count_in_the_period_of_redis(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """The guess of the one is refused by the script as moved, and its next one is right."""
    boundary = int(time.time()) - 4 if seconds < 0 else int(time.time()) + 4
    start = boundary if seconds < 0 else boundary - 86_400
    right, wrong = (a_budget(2, "requests", id="0" * 32, schedule=around_now(start)) for _ in range(2))
    with monkeypatch.context() as other:
        other.setattr(clock, "_ahead_ms", clock._ahead_ms + seconds * 1000)
        use(ada(wrong))

    use(ada(right))

    # Slowly run, this may pass the boundary itself; a budget of two is still one of two in each period.
    used = {int(key.rsplit(":", 1)[1]): int(redis().hget(key, "used")) for key in counters()}
    assert sum(used.values()) == 2
    assert set(used) <= {start, boundary}


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


def test_d11_what_periods_counted_before_and_after_a_change_is_all_that_was_used() -> None:
    budget = a_budget(None, "requests", schedule=always("fixed", seconds=1))
    caller = ada(budget)
    until, made, changed = time.monotonic() + 30, 0, False
    while len(counters()) < 4 and time.monotonic() < until:
        use(caller)
        made += 1
        if len(counters()) == 2 and not changed and budget.schedule is not None:
            [(_, two_seconds)] = always("fixed", seconds=2).calendars
            budget.schedule, changed = budget.schedule.changed(time.time(), two_seconds), True

    assert changed
    assert sum(int(redis().hget(key, "used")) for key in counters()) == made


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
