"""Closing periods: once, when all is booked; what comes later is told beside it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import ledger, services
from budgets.closing import close_periods, not_notified, note_late_usage, notified
from budgets.models import (
    Budget,
    BudgetChange,
    BudgetPeriod,
    CounterEpoch,
    LateUsage,
    LimitRaise,
    PeriodClosing,
    SpooledSettlement,
)
from budgets.rebuild import ensure_epoch
from budgets.reservations import settle
from budgets.settlements import Moments
from budgets.sweeping import sweep
from keys.services import issue_key
from tenants.ids import new_id
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.counting import admit, end, expire_hold, redis, some_usage

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _spool(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"


@pytest.fixture
def acme() -> Tenant:
    redis().flushdb()
    ensure_epoch()
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Asia/Kathmandu")


@pytest.fixture
def secret(acme: Tenant) -> str:
    return issue_key(tenant=acme, label="nightly", actor="test")[1]


@pytest.fixture
def budget(acme: Tenant) -> Budget:
    return services.set_budget(
        scope="tenant", tenant=acme, unit="tokens", period="year", limit=1000, actor="test"
    )


def call(secret: str) -> None:
    """A call that uses 27 tokens."""
    end(admit(secret))
    ledger.drain()


def let_it_end(minutes: int = 5) -> None:
    """Say in the books that the periods ended so long ago; the counters go on under the same name."""
    BudgetPeriod.objects.update(period_end=now() - timedelta(minutes=minutes))


def test_a_period_is_closed_once_with_what_it_came_to(acme: Tenant, budget: Budget, secret: str) -> None:
    call(secret)
    assert close_periods() == 0
    let_it_end()

    closed = [close_periods(), close_periods()]

    closing, period = PeriodClosing.objects.get(), BudgetPeriod.objects.get()
    assert closed == [1, 0]
    assert (closing.used, closing.limit, closing.refused) == (27, 1000, 0)
    assert (closing.budget, closing.unit, closing.tenant_id) == (str(budget), "tokens", acme.pk)
    assert (closing.period_start, closing.period_end) == (period.period_start, period.period_end)
    assert closing.time_zone == "Asia/Kathmandu"


def test_a_period_is_not_closed_before_its_last_minute_is_well_over(budget: Budget, secret: str) -> None:
    call(secret)
    BudgetPeriod.objects.update(period_end=now() - timedelta(seconds=20))

    assert close_periods() == 0


def test_d5_a_call_that_runs_over_the_end_is_waited_for_and_booked_where_it_was_admitted(
    budget: Budget, secret: str
) -> None:
    call(secret)
    running = admit(secret)
    let_it_end()
    assert close_periods() == 0

    end(running)

    assert close_periods() == 1
    assert PeriodClosing.objects.get().used == 54
    assert BudgetPeriod.objects.get().used == 54


def test_a_settlement_that_waits_in_the_spool_keeps_periods_open(budget: Budget, secret: str) -> None:
    call(secret)
    let_it_end()
    SpooledSettlement.objects.create(request_id=new_id(), settlement={})

    assert close_periods() == 0
    SpooledSettlement.objects.all().delete()
    assert close_periods() == 1


def test_nothing_is_closed_while_the_counters_cannot_be_believed(budget: Budget, secret: str) -> None:
    call(secret)
    let_it_end()
    CounterEpoch.objects.update(epoch="another")

    assert close_periods() == 0


def test_what_is_booked_later_changes_no_closing_and_is_told_beside_it(
    acme: Tenant, budget: Budget, secret: str
) -> None:
    call(secret)
    let_it_end()
    close_periods()
    end_of_books = PeriodClosing.objects.values().get()
    for _ in range(2):
        call(secret)

    noted = [note_late_usage(), note_late_usage()]

    assert noted == [1, 0]
    assert PeriodClosing.objects.values().get() == end_of_books
    assert [late.used for late in LateUsage.objects.all()] == [54]
    event = AuditEvent.objects.get(action="budget.late_usage")
    assert (event.tenant_id, event.details["used"], event.details["what"]) == (acme.pk, 54, str(budget))
    assert close_periods() == 0


def test_an_adjustment_after_the_closing_may_take_usage_back(budget: Budget, secret: str) -> None:
    """The sweep booked a call whose process was silent; then the process turned up and had used less."""
    call(secret)
    running = admit(secret)
    expire_hold(running.request_id)
    sweep()
    ledger.drain()
    let_it_end()
    close_periods()
    booked = PeriodClosing.objects.get().used

    asyncio.run(settle(running, some_usage(1, 0), "completed", Moments(), 200))
    ledger.drain()
    note_late_usage()

    assert [late.used for late in LateUsage.objects.all()] == [28 - booked]
    assert 28 - booked < 0


def test_two_who_close_at_once_close_once(budget: Budget, secret: str) -> None:
    call(secret)
    let_it_end()
    barrier = Barrier(2)

    def close(_: int) -> int:
        try:
            barrier.wait()
            return close_periods()
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        closed = list(threads.map(close, range(2)))

    # Whoever found the other at the drain left it to that one.
    assert sum(closed) + close_periods() == 1
    assert PeriodClosing.objects.count() == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE budgets_periodclosing SET used = 0",
        "UPDATE budgets_periodclosing SET \"limit\" = NULL, notified_at = now()",
        "DELETE FROM budgets_periodclosing",
        "UPDATE budgets_lateusage SET used = 0",
        "DELETE FROM budgets_lateusage",
    ],
)  # fmt: skip
def test_no_closing_and_no_late_usage_can_be_changed(budget: Budget, secret: str, statement: str) -> None:
    call(secret)
    let_it_end()
    close_periods()
    call(secret)
    note_late_usage()

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_whoever_tells_people_finds_each_closing_once(budget: Budget, secret: str) -> None:
    call(secret)
    let_it_end()
    close_periods()

    found = list(not_notified())

    assert [closing.used for closing in found] == [27]
    assert [notified(found), notified(found)] == [1, 0]
    assert not not_notified().exists()


def test_the_closing_has_the_limit_of_the_periods_end_with_its_raises(
    acme: Tenant, budget: Budget, secret: str
) -> None:
    call(secret)
    let_it_end(minutes=30)
    ended_at = BudgetPeriod.objects.get().period_end
    assert ended_at is not None
    hour = timedelta(hours=1)
    for by, starts_at, ends_at, taken_back_at in [
        (5, ended_at - hour, ended_at + hour, None),
        (50, ended_at - hour, ended_at, None),
        (500, ended_at, ended_at + hour, None),
        (5000, ended_at - hour, ended_at + hour, ended_at - hour / 2),
    ]:
        LimitRaise.objects.create(
            budget=budget,
            by=by,
            starts_at=starts_at,
            ends_at=ends_at,
            taken_back_at=taken_back_at,
            reason="x",
        )
    services.set_budget(scope="tenant", tenant=acme, unit="tokens", period="year", limit=9, actor="test")
    assert BudgetChange.objects.get().limit_before == 1000

    close_periods()

    assert PeriodClosing.objects.get().limit == 1055


def test_a_period_of_a_removed_budget_is_closed_with_what_the_audit_knows(
    acme: Tenant, budget: Budget, secret: str
) -> None:
    call(secret)
    let_it_end()
    services.remove_budget(budget=budget, actor="ada")

    close_periods()

    closing = PeriodClosing.objects.get()
    assert (closing.budget, closing.limit, closing.used) == ("tokens per year of tenant acme", 1000, 27)
    assert closing.tenant_id == acme.pk


def test_a_period_of_a_budget_that_plain_sql_removed_is_closed_too(acme: Tenant, secret: str) -> None:
    nobodys = UUID(int=1)
    start = now() - timedelta(days=2)
    BudgetPeriod.objects.create(
        budget_id=nobodys, period_start=start, period_end=start + timedelta(days=1), used=3
    )

    assert close_periods() == 1
    assert (PeriodClosing.objects.get().budget, PeriodClosing.objects.get().used) == ("", 3)


def test_a_lifetime_is_never_closed(acme: Tenant, secret: str) -> None:
    services.set_budget(
        scope="tenant", tenant=acme, unit="tokens", period="lifetime", limit=None, actor="test"
    )
    call(secret)

    assert close_periods() == 0
    assert BudgetPeriod.objects.get().period_end is None
