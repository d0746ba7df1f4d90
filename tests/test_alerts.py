"""What people are told of budgets: thresholds once per crossing, refusals, ended raises, forecasts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from budgets import alerts, closing, services
from budgets.alerts import crossed
from budgets.counters import GRACE_SECONDS, Counter
from budgets.models import Budget, BudgetPeriod, Delivery, KillSwitch, LimitRaise, Notice, PeriodClosing
from budgets.rebuild import ensure_epoch
from budgets.schedules import schedules_of
from budgets.standing import empty_at, standings
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.counting import redis

DEFAULT = [80, 95, 100]


@pytest.mark.parametrize(
    ("used", "limit", "told", "expected"),
    [
        pytest.param(0, 100, [], [], id="nothing used"),
        pytest.param(79, 100, [], [], id="just below"),
        pytest.param(80, 100, [], [80], id="just reached"),
        pytest.param(97, 100, [], [80, 95], id="two at once"),
        pytest.param(130, 100, [], [80, 95, 100], id="all at once, and beyond"),
        pytest.param(97, 100, [(80, 85)], [95], id="the next one"),
        pytest.param(97, 100, [(80, 97), (95, 97)], [], id="told before"),
        pytest.param(0, 0, [], [], id="of nothing no share can be used"),
        pytest.param(2, 3, [], [], id="66.7 % is not 80"),
        pytest.param(2**53 - 2, 2**53 - 1, [], [80, 95], id="as exact as can be"),
        pytest.param(850, 10_000, [(80, 850)], [], id="raised: far from the new mark"),
        pytest.param(8_100, 10_000, [(80, 850)], [80], id="raised: the new mark is crossed"),
        pytest.param(8_200, 1_000, [(80, 850), (80, 8_100)], [95, 100], id="lowered again: told before"),
        pytest.param(850, 1_001, [(80, 850)], [], id="raised by a little: told of as much before"),
        pytest.param(500, 1_000, [], [], id="half of it"),
        pytest.param(500, 500, [], [80, 95, 100], id="lowered onto what is used"),
    ],
)
def test_thresholds_are_told_when_their_mark_is_crossed(
    used: int, limit: int, told: list[tuple[int, int]], expected: list[int]
) -> None:
    assert crossed(used, limit, DEFAULT, told) == expected


THRESHOLDS = st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True)


@given(st.lists(st.integers(0, 400), max_size=12), THRESHOLDS, st.integers(1, 1000))
def test_under_one_limit_each_threshold_is_told_once_and_only_when_reached(
    steps: list[int], thresholds: list[int], limit: int
) -> None:
    used = 0
    told: list[tuple[int, int]] = []
    for step in steps:
        used += step
        told += [(threshold, used) for threshold in crossed(used, limit, thresholds, told)]

    assert sorted(threshold for threshold, _ in told) == sorted(
        threshold for threshold in thresholds if used * 100 >= threshold * limit
    )
    assert all(then * 100 >= threshold * limit for threshold, then in told)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 1000)), max_size=12),
    THRESHOLDS,
)
def test_whatever_the_limit_does_nobody_is_told_twice_of_the_same_use(
    steps: list[tuple[int, int]], thresholds: list[int]
) -> None:
    """Again only once use has gone past what it was when it was told; and never twice for one limit."""
    used = 0
    told: list[tuple[int, int]] = []
    limits: list[tuple[int, int]] = []
    for step, limit in steps:
        used += step
        for threshold in crossed(used, limit, thresholds, told):
            assert all(then < used for before, then in told if before == threshold)
            assert (threshold, limit) not in limits
            told.append((threshold, used))
            limits.append((threshold, limit))


AT = 1_800_000_000
# Of a period that does not end while a test runs.
YEARS = 1830 * 86_400


@pytest.mark.parametrize(
    ("limit", "used", "elapsed", "end", "after"),
    [
        pytest.param(100, 50, 3600, None, 3600, id="half in an hour"),
        pytest.param(100, 50, 3600, 3601, 3600, id="just before the end"),
        pytest.param(100, 50, 3600, 3600, None, id="only when the period is over"),
        pytest.param(100, 33, 3600, None, 7310, id="rounded up to the second"),
        pytest.param(None, 50, 3600, None, None, id="no limit"),
        pytest.param(0, 0, 3600, None, None, id="nothing is let through"),
        pytest.param(100, 0, 3600, None, None, id="nothing used"),
        pytest.param(100, 100, 3600, None, None, id="empty already"),
        pytest.param(100, 130, 3600, None, None, id="beyond empty"),
        pytest.param(100, 50, 59, None, None, id="too early to say"),
        pytest.param(2**53 - 1, 1, 3600, None, None, id="beyond the calendar"),
    ],
)
def test_when_a_budget_is_empty_at_this_pace(
    limit: int | None, used: int, elapsed: int, end: int | None, after: int | None
) -> None:
    expected = None if after is None else datetime.fromtimestamp(AT + after, UTC)

    assert empty_at(limit, used, AT - elapsed, AT, None if end is None else AT + end) == expected


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(60, 10**7))
def test_a_forecast_is_the_first_second_at_which_nothing_is_left(limit: int, used: int, elapsed: int) -> None:
    found = empty_at(limit, used, AT - elapsed, AT, None)

    if found is not None:
        seconds = int(found.timestamp()) - AT
        assert used * (elapsed + seconds) >= limit * elapsed
        assert used * (elapsed + seconds - 1) < limit * elapsed


# With counters and books


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    redis().flushdb()
    ensure_epoch()
    tenant = create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin")
    services.add_recipient(kind="email", address="ada@acme.test", tenant=tenant, actor="test")
    return tenant


@pytest.fixture
def budget(acme: Tenant) -> Budget:
    return a_budget(acme)


def a_budget(tenant: Tenant, limit: int | None = 1000, **changes: Any) -> Budget:
    options: dict[str, Any] = {"unit": "tokens", "period": "lifetime"} | changes
    return services.set_budget(scope="tenant", tenant=tenant, limit=limit, actor="test", **options)


def counter_of(budget: Budget, moment: float | None = None) -> Counter:
    seconds, _ = redis().time()
    period = schedules_of([budget])[budget.pk].period(seconds if moment is None else moment)
    return Counter("budget", budget.pk.hex, budget.unit, period.start, period.end)


def use(budget: Budget, used: int, held: int = 0) -> None:
    redis().hset(counter_of(budget).key, mapping={"used": used, "held": held})


def told() -> list[tuple[str, int | None]]:
    """Happening and threshold of what people were told, not only what was written down."""
    deliveries = Delivery.objects.select_related("notice").order_by("notice__at", "id")
    return [(one.notice.happening, one.notice.threshold) for one in deliveries]


def test_a_threshold_is_told_once_with_how_the_budget_stands(budget: Budget) -> None:
    use(budget, 810, held=100)

    assert [alerts.look() for _ in range(3)] == [1, 0, 0]

    notice = Notice.objects.get()
    assert notice.text.startswith("80 % of tenant acme's tokens")
    assert "810 of 1,000" in notice.text
    assert notice.facts["tenant"] == "acme"
    assert notice.facts["threshold"] == 80
    assert (notice.facts["budget"]["used"], notice.facts["budget"]["held"]) == (810, 100)
    assert told() == [("threshold", 80)]


def test_what_is_only_held_crosses_nothing(budget: Budget) -> None:
    use(budget, 100, held=900)

    assert alerts.look() == 0


def test_of_several_thresholds_crossed_at_once_the_highest_is_told_and_all_are_written_down(
    budget: Budget,
) -> None:
    use(budget, 960)

    assert alerts.look() == 2

    assert told() == [("threshold", 95)]
    assert set(Notice.objects.values_list("threshold", flat=True)) == {80, 95}


def test_nothing_is_told_again_after_redis_lost_its_data(budget: Budget) -> None:
    use(budget, 810)
    BudgetPeriod.objects.create(budget_id=budget.pk, period_start=datetime(1970, 1, 1, tzinfo=UTC), used=810)
    alerts.look()

    redis().flushdb()
    assert alerts.look() == 0
    ensure_epoch(force=True)
    assert redis().hget(counter_of(budget).key, "used") == b"810"

    assert alerts.look() == 0
    assert told() == [("threshold", 80)]


def at_once(*work: Callable[[], object]) -> None:
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], object]) -> None:
        barrier.wait()
        one()
        connection.close()

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_workers_at_the_same_time_tell_once(budget: Budget) -> None:
    use(budget, 999)

    at_once(alerts.look, alerts.look, alerts.look)

    assert told() == [("threshold", 95)]
    assert Notice.objects.count() == 2


def test_each_period_is_told_of_anew(acme: Tenant) -> None:
    budget = a_budget(acme, period="1830d")
    use(budget, 900)
    alerts.look()
    first = Notice.objects.get()
    # As if it had been the period before.
    Notice.objects.update(period_start=first.period_start - timedelta(minutes=1))  # type: ignore[operator]  # it has one
    use(budget, 900)

    alerts.look()

    assert told() == [("threshold", 80)] * 2


def test_what_the_last_calls_of_a_period_used_is_told_after_its_end(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "LATE_SECONDS", YEARS)
    budget = a_budget(acme, period="1830d")
    seconds, _ = redis().time()
    before = counter_of(budget, seconds - YEARS)
    redis().hset(before.key, "used", 900)
    redis().expireat(before.key, seconds + GRACE_SECONDS)

    alerts.look()

    assert Notice.objects.get().period_start == datetime.fromtimestamp(before.start or 0, UTC)


def test_a_limit_that_was_raised_is_warned_of_at_its_new_marks_and_not_again_when_lowered(
    acme: Tenant, budget: Budget
) -> None:
    use(budget, 850)
    alerts.look()
    a_budget(acme, 10_000)
    alerts.look()
    assert told() == [("threshold", 80)]

    use(budget, 8_100)
    alerts.look()
    assert told() == [("threshold", 80)] * 2

    a_budget(acme, 8_500)
    alerts.look()
    assert told() == [("threshold", 80)] * 2 + [("threshold", 95)]


def test_a_raise_moves_the_marks_while_it_holds(budget: Budget) -> None:
    services.raise_limit(
        row=budget, by=1000, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="test"
    )
    use(budget, 900)
    assert alerts.look() == 0

    use(budget, 1600)
    alerts.look()

    assert told() == [("threshold", 80)]
    assert Notice.objects.get().facts["budget"]["limit"] == 2000
    assert Notice.objects.get().facts["budget"]["limit_without_raises"] == 1000


def test_thresholds_changed_in_mid_period_count_from_the_next_look(acme: Tenant, budget: Budget) -> None:
    use(budget, 550)
    alerts.look()
    a_budget(acme, thresholds=[50, 100])
    alerts.look()
    a_budget(acme, thresholds=[])
    use(budget, 1000)

    assert alerts.look() == 0
    assert told() == [("threshold", 50)]


@pytest.mark.parametrize("thresholds", [[0], [101], [-5], [80, 200]], ids=str)
def test_a_threshold_is_a_percentage(acme: Tenant, thresholds: list[int]) -> None:
    with pytest.raises(ValidationError):
        a_budget(acme, thresholds=thresholds)


def test_the_command_sets_thresholds(acme: Tenant) -> None:
    options = {"tenant": "acme", "unit": "tokens", "period": "day", "limit": "100", "stdout": StringIO()}

    call_command("set_budget", thresholds="90,50", **options)
    assert Budget.objects.get().thresholds == [50, 90]
    call_command("set_budget", **options)
    assert Budget.objects.get().thresholds == [50, 90], "they stay when nothing is said"
    call_command("set_budget", thresholds="none", **options)
    assert Budget.objects.get().thresholds == []
    with pytest.raises(CommandError, match="no thresholds"):
        call_command("set_budget", thresholds="lots", **options)


@pytest.mark.parametrize(("shadow", "happening"), [(False, "exhausted"), (True, "shadow_refused")])
def test_the_first_refusal_of_a_period_is_told_once(acme: Tenant, shadow: bool, happening: str) -> None:
    budget = a_budget(acme, shadow=shadow, thresholds=[])
    use(budget, 700, held=290)
    BudgetPeriod.objects.create(
        budget_id=budget.pk, period_start=datetime(1970, 1, 1, tzinfo=UTC), used=700, refused=3
    )

    at_once(alerts.look, alerts.look)
    alerts.look()

    assert told() == [(happening, None)]
    assert "700 is used and 290 held" in Notice.objects.get().text
    assert ("would have refused" in Notice.objects.get().text) is shadow


@pytest.mark.parametrize("early", [False, True], ids=["at its end", "taken back"])
def test_the_end_of_a_raise_is_told_once(budget: Budget, early: bool) -> None:
    raised = services.raise_limit(
        row=budget, to=5000, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="ada"
    )
    assert alerts.look() == 0

    if early:
        services.take_back_raise(raised=raised, actor="ada", reason="done")
    else:
        LimitRaise.objects.update(starts_at=now() - timedelta(hours=2), ends_at=now())

    assert [alerts.look(), alerts.look()] == [1, 0]
    notice = Notice.objects.get()
    assert notice.text.endswith("is over: its limit is 1,000 now.")
    assert notice.facts["raise"]["reason"] == "a deadline"
    assert told() == [("raise_ended", None)]


def test_the_end_of_a_raise_of_a_rate_limit_is_told_too(budget: Budget) -> None:
    row = services.set_rate_limit(
        scope="tenant", tenant=budget.tenant, measure="tokens_per_minute", limit=1000, actor="test"
    )
    raised = services.raise_limit(
        row=row, by=5, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="ada"
    )
    services.take_back_raise(raised=raised, actor="ada", reason="done")

    assert [alerts.look(), alerts.look()] == [1, 0]
    notice = Notice.objects.get()
    assert notice.text == "The raise of tenant acme's tokens per minute is over: its limit is 1,000 now."
    assert notice.tenant_id == row.tenant_id
    assert notice.facts["rate_limit"] == {
        "id": str(row.pk), "whose": "tenant acme", "scope": "tenant", "unit": "tokens",
        "measure": "tokens_per_minute", "shadow": False, "limit": 1000,
    }  # fmt: skip


def closed(budget: Budget, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "budget_id": budget.pk, "tenant_id": budget.tenant_id, "budget": str(budget), "unit": "tokens",
        "time_zone": "Europe/Berlin", "period_start": datetime(2026, 3, 28, 23, tzinfo=UTC),
        "period_end": datetime(2026, 3, 29, 22, tzinfo=UTC), "limit": 1000, "used": 900, "refused": 2,
    }  # fmt: skip
    PeriodClosing.objects.create(**(fields | changes))


def test_a_closed_period_is_told_once_to_those_who_asked_for_it(acme: Tenant, budget: Budget) -> None:
    services.add_recipient(
        kind="email", address="cfo@acme.test", tenant=acme, happenings=["period_closed"], actor="test"
    )
    closed(budget)

    at_once(alerts.look, alerts.look)
    alerts.look()

    notice = Notice.objects.get()
    assert told() == [("period_closed", None)]
    assert "900 of 1,000 was used from 2026-03-29 00:00 CET to 2026-03-30 00:00 CEST. 2 calls" in notice.text
    assert notice.facts["closing"]["used"] == 900


def test_closed_periods_that_nobody_asked_for_are_passed_over(acme: Tenant, budget: Budget) -> None:
    umbrella = create_tenant(slug="umbrella", name="Umbrella", actor="test")
    services.add_recipient(
        kind="email", address="cfo@umbrella.test", tenant=umbrella, happenings=["period_closed"], actor="test"
    )
    closed(budget)

    alerts.look()

    assert told() == []
    assert not closing.not_notified().exists()


def test_a_kill_switch_is_told_when_it_is_armed_and_when_it_is_lifted(acme: Tenant) -> None:
    switch = services.arm_kill_switch(
        scope="tenant", tenant=acme, reason="they owe us", message="Please call us.", actor="root"
    )
    at_once(alerts.look, alerts.look)
    services.lift_kill_switch(switch=switch, reason="they paid", actor="root")

    assert [alerts.look(), alerts.look()] == [1, 0]

    assert told() == [("kill_switch_armed", None), ("kill_switch_lifted", None)]
    armed, lifted = Notice.objects.order_by("at")
    assert "tenant acme" in armed.text
    assert "Please call us." in armed.text
    assert "owe" not in armed.text + str(armed.facts) + lifted.text + str(lifted.facts)
    assert armed.facts["kill_switch"]["stops"] == "tenant acme"


def test_a_kill_switch_of_the_platform_is_told_with_who_and_why_and_not_to_tenants(acme: Tenant) -> None:
    services.add_recipient(kind="email", address="root@tollgate.test", actor="test")
    services.arm_kill_switch(scope="platform", reason="a leak", actor="root")

    alerts.look()

    assert Delivery.objects.get().to == "email root@tollgate.test"
    assert "root: a leak" in Notice.objects.get().text


def test_a_kill_switch_whose_time_has_come_is_told(acme: Tenant) -> None:
    KillSwitch.objects.create(
        scope="tenant", tenant_id=acme.pk, tenant="acme", reason="a test", armed_by="root",
        armed_at=now() - timedelta(days=9), until=now() - timedelta(minutes=1),
    )  # fmt: skip

    assert [alerts.look(), alerts.look()] == [1, 0]

    assert told() == [("kill_switch_lifted", None)]
    assert "its time has come" in Notice.objects.get().text


def test_budgets_of_runs_are_not_told_of(acme: Tenant) -> None:
    budget = services.set_budget(
        scope="run", tenant=acme, unit="tokens", period="lifetime", limit=10, actor="test"
    )
    BudgetPeriod.objects.create(
        budget_id=budget.pk, period_start=datetime(1970, 1, 1, tzinfo=UTC), run="mine", refused=3
    )

    assert alerts.look() == 0
    assert standings([budget])[0].refused == 3


def test_the_command_shows_how_budgets_stand(acme: Tenant) -> None:
    budget, money = a_budget(acme), a_budget(acme, None, unit="micro_usd", period="month")
    Budget.objects.update(created_at=now() - timedelta(hours=1))
    use(budget, 500, held=20)
    use(money, 1_500_000)
    BudgetPeriod.objects.create(
        budget_id=budget.pk, period_start=datetime(1970, 1, 1, tzinfo=UTC), used=500, refused=2
    )
    words, figures = StringIO(), StringIO()

    call_command("show_budgets", tenant="acme", stdout=words)
    call_command("show_budgets", tenant="acme", json=True, stdout=figures)

    told = words.getvalue()
    assert "tokens per lifetime of tenant acme: refused 2 calls." in told
    assert "tokens per lifetime of tenant acme: at this pace empty on " in told
    by_unit = {row["unit"]: row for row in json.loads(figures.getvalue())["budgets"]}
    assert [by_unit["tokens"][name] for name in ("used", "held", "refused")] == [500, 20, 2]
    assert by_unit["tokens"]["empty_at"] is not None
    assert by_unit["micro_usd"]["limit"] is None
