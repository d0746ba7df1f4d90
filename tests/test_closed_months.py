"""Closing a month: when it can be, what is frozen by it, where late usage goes, how it is opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

import audit.recording
from audit.models import AuditEvent
from budgets import booking, canonical, ledger, month_closing
from budgets.corrections import correct_usage
from budgets.models import (
    ClosedMonth,
    CounterEpoch,
    LedgerEntry,
    ParkedRecord,
    SpooledSettlement,
    Statement,
    UsageRollup,
)
from budgets.month_closing import (
    close_month,
    confirm_reopening,
    outlook,
    request_reopening,
    same_as_closed,
    tenants_to_close,
)
from budgets.open_months import first_of, following
from keys.services import issue_key
from tenants.ids import new_id
from tenants.models import Tenant
from tenants.services import suspend_tenant
from tests.accounts import a_tenant, ago, of_ledger, of_rollups, on, quiet_counters, settled, today, used
from tests.conftest import eventually
from tests.counting import admit, change_hold, end

pytestmark = pytest.mark.django_db(transaction=True)

ZONES = ["Europe/Berlin", "America/Los_Angeles", "Pacific/Kiritimati", "Pacific/Niue", "Asia/Kathmandu"]


@pytest.fixture(autouse=True)
def _books(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"
    quiet_counters()


@pytest.fixture
def acme() -> Tenant:
    return a_tenant()


@pytest.fixture
def last() -> date:
    """The month before this one."""
    return ago(1)


def closed(tenant: Tenant, month: date) -> ClosedMonth:
    return close_month(tenant=tenant, month=month, actor="ada", reason="month end").closing


def reopened(closing: ClosedMonth) -> ClosedMonth:
    request_reopening(closing=closing, actor="ada", reason="a wrong price")
    return confirm_reopening(closing=closing, actor="bob")


def against(tenant: Tenant, month: date) -> list[str]:
    """What stands against closing, as closing tells it; nothing is closed then."""
    with pytest.raises(ValidationError) as refused:
        close_month(tenant=tenant, month=month, actor="ada")
    assert not ClosedMonth.objects.filter(tenant_id=tenant.pk, month=month, reopened_at=None).exists()
    return list(refused.value.messages)


# When it can be closed


def test_a_month_is_closed_with_its_digest_and_told_in_the_audit(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    used(acme, on(today(acme)))

    closing = closed(acme, last)

    assert (closing.tenant, closing.tenant_name, closing.time_zone) == (
        "acme",
        "ACME Laboratories",
        "Europe/Berlin",
    )
    assert (closing.entries, closing.export_sha256) == (1, canonical.sha256_of(acme.pk, last))
    event = AuditEvent.objects.get(action="month.closed")
    assert (event.actor, event.reason, event.tenant_id) == ("ada", "month end", acme.pk)
    assert event.details["statement"] == closing.statement.number
    assert event.details["export_sha256"] == closing.export_sha256


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(("seconds", "over"), [(-1, False), (59, False), (61, True)])
def test_a_month_is_over_when_it_is_in_the_tenants_zone_and_a_minute_more(
    zone: str, seconds: int, over: bool
) -> None:
    acme, month = a_tenant(zone=zone), ago(2)
    moment = on(following(month), "00:00", zone) + timedelta(seconds=seconds)

    with time_machine.travel(moment, tick=False):
        told = outlook(tenant=acme, month=month).against

    assert told == (
        [] if over else [f"{month:%Y-%m} is not over in {zone}, or has been for less than a minute."]
    )


@pytest.mark.parametrize("zone", ZONES)
def test_a_stream_over_the_end_of_the_month_is_in_the_statement_of_the_day_it_ended_on(zone: str) -> None:
    # On the first of a month the last one is not over everywhere.
    acme, month = a_tenant(zone=zone), ago(3)
    midnight = on(following(month), "00:00", zone)
    before = settled(acme, midnight - timedelta(milliseconds=1), output_tokens=1)
    after = settled(acme, midnight + timedelta(milliseconds=500), output_tokens=2)
    ledger.drain()

    statements = [close_month(tenant=acme, month=one, actor="ada") for one in (month, following(month))]

    assert [statement.output_tokens for statement in statements] == [1, 2]
    days = dict(LedgerEntry.objects.values_list("request_id", "day"))
    assert days == {before: following(month) - timedelta(days=1), after: following(month)}
    # The second was admitted in the month in which it did not end.
    assert LedgerEntry.objects.get(request_id=after).admitted_at < midnight


def test_a_month_that_runs_is_not_closed(acme: Tenant) -> None:
    [told] = against(acme, first_of(today(acme)))

    assert "is not over in Europe/Berlin" in told


def test_a_month_is_closed_once(acme: Tenant, last: date) -> None:
    closed(acme, last)

    with pytest.raises(ValidationError, match="is closed already"):
        closed(acme, last)

    assert (ClosedMonth.objects.count(), Statement.objects.count()) == (1, 1)


def test_months_are_closed_in_their_order_but_those_without_usage(acme: Tenant, last: date) -> None:
    used(acme, on(ago(4)))
    used(acme, on(ago(2)))

    assert against(acme, last) == [
        f"Earlier months of acme are open: {ago(4):%Y-%m}, {ago(2):%Y-%m}. Close them first."
    ]
    for month in (ago(4), ago(2), last):
        closed(acme, month)


def test_a_call_that_began_in_the_month_and_still_runs_keeps_it_open(acme: Tenant, last: date) -> None:
    secret = issue_key(tenant=acme, label="nightly", actor="test")[1]
    began = on(following(last), "00:00") - timedelta(seconds=5)
    running = admit(secret)
    change_hold(running.request_id, admitted_ms=int(began.timestamp() * 1000))

    assert against(acme, last) == ["1 calls that began in the month still run."]
    end(running)
    closed(acme, last)


def test_a_call_that_began_later_keeps_no_month_open(acme: Tenant, last: date) -> None:
    admit(issue_key(tenant=acme, label="nightly", actor="test")[1])

    closed(acme, last)


@pytest.mark.parametrize(
    ("hinder", "help_it", "told"),
    [
        pytest.param(
            lambda _: SpooledSettlement.objects.create(request_id=new_id(), settlement={}),
            lambda: SpooledSettlement.objects.all().delete(),
            "1 settlements wait in the spool, of whichever tenant.",
            id="a settlement in the spool",
        ),
        pytest.param(
            lambda _: CounterEpoch.objects.update(epoch="another"),
            quiet_counters,
            "The counters in Redis cannot be believed before they are rebuilt.",
            id="counters nobody believes",
        ),
        pytest.param(
            lambda _: ParkedRecord.objects.create(stream_id="1-1", record="{}", reason="broken"),
            lambda: ParkedRecord.objects.all().delete(),
            "1 records are parked that may belong to the month.",
            id="a record that nobody can read",
        ),
    ],
)
def test_what_may_not_be_booked_yet_keeps_a_month_open(
    acme: Tenant, last: date, hinder: Callable[[Tenant], Any], help_it: Callable[[], Any], told: str
) -> None:
    used(acme, on(last))
    hinder(acme)

    assert against(acme, last) == [told]
    assert outlook(tenant=acme, month=last).against == [told]
    help_it()
    closed(acme, last)


def test_records_that_wait_are_drained_before_a_month_is_closed(acme: Tenant, last: date) -> None:
    settled(acme, on(last))
    assert outlook(tenant=acme, month=last).against == ["1 records wait for the ledger."]

    closing = closed(acme, last)

    assert closing.statement.requests == 1


def test_a_month_stays_open_while_somebody_else_drains(acme: Tenant, last: date) -> None:
    settled(acme, on(last))

    with another_transaction(booking.keep_drains_out):
        assert against(acme, last) == ["1 records wait for the ledger."]


def test_parked_records_can_be_left_out_and_those_of_others_do_not_count(acme: Tenant, last: date) -> None:
    globex = a_tenant("globex")
    settled(globex, on(last), model="x" * 300, requests=7)
    ledger.drain()
    assert ParkedRecord.objects.count() == 1

    assert outlook(tenant=acme, month=last).against == []
    assert against(globex, last) == ["1 records are parked that may belong to the month."]
    close_month(tenant=globex, month=last, actor="ada", despite_parked=True)


def test_who_used_something_and_is_open_is_to_be_closed(acme: Tenant, last: date) -> None:
    globex, initech = a_tenant("globex"), a_tenant("initech")
    used(acme, on(last))
    used(globex, on(last))
    used(initech, on(ago(2)))
    closed(acme, last)

    assert tenants_to_close(last) == [globex]


# What is frozen


def copy_of(entry: LedgerEntry, into: str = "budgets_ledgerentry", **changes: Any) -> None:
    """The same entry once more, with another id, written with plain SQL."""
    row = {column: getattr(entry, column) for column in booking.COLUMNS} | {"request_id": new_id()} | changes
    columns = ", ".join(f'"{column}"' for column in row)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {into} ({columns}) VALUES ({', '.join(['%s'] * len(row))})",  # noqa: S608
            list(row.values()),
        )


def partition_of_now() -> str:
    return f"budgets_ledgerentry_y{now():%Y}m{now():%m}"


@pytest.mark.parametrize("into", ["budgets_ledgerentry", "the partition"])
def test_nothing_is_inserted_on_a_day_of_a_closed_month_not_even_into_the_partition(
    acme: Tenant, last: date, into: str
) -> None:
    entry = used(acme, on(last))
    table = partition_of_now() if into == "the partition" else into
    copy_of(entry, table)
    closing = closed(acme, last)

    for day in (last, following(last) - timedelta(days=1)):
        with pytest.raises(IntegrityError, match=f"the month {last:%Y-%m} of tenant .* is closed"):
            copy_of(entry, table, day=day)

    copy_of(entry, table, day=following(last))
    copy_of(entry, table, day=last - timedelta(days=1))
    copy_of(entry, table, tenant_id=new_id())
    assert same_as_closed(closing)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE budgets_usagerollup SET requests = 2 WHERE day < %s",
        "UPDATE budgets_usagerollup SET day = day + 40 WHERE day < %s",
        "UPDATE budgets_usagerollup SET day = day - 20 WHERE day >= %s",
        "DELETE FROM budgets_usagerollup WHERE day < %s",
        "UPDATE budgets_ledgerentry SET requests = 2 WHERE day < %s",
        "DELETE FROM budgets_ledgerentry WHERE day < %s",
        "UPDATE budgets_closedmonth SET entries = 5 WHERE month < %s",
        "UPDATE budgets_closedmonth SET month = month - interval '1 month' WHERE month < %s",
        "DELETE FROM budgets_closedmonth WHERE month < %s",
        "UPDATE budgets_statement SET cost_micro_usd = 0 WHERE month < %s",
        "UPDATE budgets_statement SET csv = '' WHERE month < %s",
        "DELETE FROM budgets_statement WHERE month < %s",
    ],
)
def test_what_a_closed_month_consists_of_cannot_be_changed(acme: Tenant, last: date, statement: str) -> None:
    used(acme, on(last, "12:00") + timedelta(days=10))
    used(acme, on(following(last)))
    closed(acme, last)

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, [following(last)])


def test_rollups_of_open_months_go_on(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    closed(acme, last)

    for _ in range(2):
        used(acme, on(today(acme)))

    assert of_rollups(acme) == of_ledger(acme)
    assert UsageRollup.objects.filter(day__gte=following(last)).get().requests == 2


def test_a_transaction_that_does_not_see_closings_may_not_book(acme: Tenant, last: date) -> None:
    """It would not learn of a month that was closed since it began."""
    entry = used(acme, on(last))

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(IntegrityError, match="read committed"):
            copy_of(entry)
        transaction.set_rollback(True)


# Two at the same time


@contextmanager
def another_transaction(do: Callable[[], Any]) -> Iterator[Future[Any]]:
    """What somebody else does, on a connection of their own, and has not committed before the block ends."""
    done, commit = Event(), Event()

    def work() -> Any:
        try:
            with transaction.atomic():
                result = do()
                done.set()
                assert commit.wait(60)
                return result
        finally:
            done.set()
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(work)
        assert done.wait(60)
        try:
            yield running
        finally:
            commit.set()
        running.result()


@contextmanager
def a_closing_that_is_not_committed(
    tenant: Tenant, month: date, patch: pytest.MonkeyPatch
) -> Iterator[Future[ClosedMonth]]:
    """A closing by somebody else that has done its work when the block begins, and commits after it."""
    done, commit = Event(), Event()

    def record(**event: Any) -> None:
        audit.recording.record(**event)
        done.set()
        assert commit.wait(60)

    patch.setattr(month_closing, "record", record)
    with ThreadPoolExecutor(1) as pool:
        closing = in_a_thread(pool, lambda: closed(tenant, month))
        assert done.wait(60)
        try:
            yield closing
        finally:
            commit.set()
        closing.result()


def in_a_thread(pool: ThreadPoolExecutor, do: Callable[[], Any]) -> Future[Any]:
    def work() -> Any:
        try:
            return do()
        finally:
            connection.close()

    return pool.submit(work)


def somebody_waits() -> bool:
    """Whether a connection to this database waits for a lock that we have given a number."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)"
        )
        return bool(cursor.fetchone()[0])


def test_a_closing_waits_for_who_books_in_the_month_and_has_it_in_its_statement(
    acme: Tenant, last: date
) -> None:
    entry = used(acme, on(last))

    with ThreadPoolExecutor(1) as pool:
        with another_transaction(lambda: copy_of(entry, partition_of_now())):
            closing = in_a_thread(pool, lambda: closed(acme, last))
            eventually(somebody_waits)
            assert not closing.done()
        statement = closing.result(60).statement

    assert statement.requests == 2
    assert same_as_closed(statement.closing)


def test_who_books_in_the_month_waits_for_its_closing_and_is_refused(
    acme: Tenant, last: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = used(acme, on(last))

    with ThreadPoolExecutor(1) as pool:
        with a_closing_that_is_not_committed(acme, last, monkeypatch) as closing:
            booking = in_a_thread(pool, lambda: copy_of(entry))
            eventually(somebody_waits)
            copy_of(entry, day=following(last))
            assert not booking.done()
        with pytest.raises(IntegrityError, match="is closed"):
            booking.result(60)

    assert same_as_closed(closing.result())


def test_a_drain_waits_for_the_closing_of_the_month_and_books_in_the_open_one(
    acme: Tenant, last: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(acme, on(last))

    with ThreadPoolExecutor(1) as pool:
        with a_closing_that_is_not_committed(acme, last, monkeypatch):
            late = settled(acme, on(last))
            drain = in_a_thread(pool, ledger.drain)
            eventually(somebody_waits)
        assert drain.result(60) == 1

    entry = LedgerEntry.objects.get(request_id=late)
    assert (entry.day, entry.closed_month) == (today(acme), last)
    assert not ParkedRecord.objects.exists()


def test_the_drain_of_others_does_not_wait_for_a_closing(
    acme: Tenant, last: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    globex = a_tenant("globex")
    used(acme, on(last))

    with a_closing_that_is_not_committed(acme, last, monkeypatch):
        settled(acme, on(today(acme)))
        settled(globex, on(today(globex)))
        assert ledger.drain() == 2


def test_a_tenant_is_suspended_while_its_month_is_being_closed(
    acme: Tenant, last: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_closing_that_is_not_committed(acme, last, monkeypatch), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '2s'")
        suspend_tenant(tenant=acme, actor="ada", reason="unpaid")

    assert Tenant.objects.get(pk=acme.pk).state == "suspended"


def test_two_who_close_at_once_close_once(acme: Tenant, last: date) -> None:
    used(acme, on(last))

    with ThreadPoolExecutor(2) as pool:
        closings = [in_a_thread(pool, lambda: closed(acme, last)) for _ in range(2)]
        refused = [closing.exception(60) for closing in closings]

    assert sorted(type(one).__name__ for one in refused) == ["NoneType", "ValidationError"]
    assert Statement.objects.count() == 1


# What comes too late


def test_late_usage_is_booked_today_and_says_to_which_month_it_belongs(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    closing = closed(acme, last)

    entry = used(acme, on(last), output_tokens=5)

    assert (entry.kind, entry.day, entry.closed_month) == ("usage", today(acme), last)
    assert entry.ended_at == on(last)
    assert of_rollups(acme) == of_ledger(acme)
    assert UsageRollup.objects.get(day=today(acme)).output_tokens == 5
    assert same_as_closed(closing)
    assert not ParkedRecord.objects.exists()


def test_the_adjustment_of_an_entry_in_a_closed_month_refers_to_it(acme: Tenant, last: date) -> None:
    """The sweep booked the call, the month was closed, then its process turned up."""
    orphan = used(acme, on(last), outcome="orphaned", output_tokens=100, exact=False)
    closing = closed(acme, last)

    settled(
        acme, now(), request_id=orphan.request_id, kind="adjustment",
        output_tokens=60, first={"output_tokens": 100},
    )  # fmt: skip
    ledger.drain()

    adjustment = LedgerEntry.objects.get(kind="adjustment")
    assert (adjustment.output_tokens, adjustment.day, adjustment.closed_month) == (-40, today(acme), last)
    assert same_as_closed(closing)


def test_an_orphan_whose_owner_settles_without_knowing_is_adjusted_in_the_open_month(
    acme: Tenant, last: date
) -> None:
    orphan = used(acme, on(last), outcome="orphaned", output_tokens=100, exact=False)
    closing = closed(acme, last)

    settled(acme, now(), request_id=orphan.request_id, output_tokens=60)
    ledger.drain()

    adjustment = LedgerEntry.objects.get(kind="adjustment")
    assert (adjustment.output_tokens, adjustment.day, adjustment.closed_month) == (-40, today(acme), last)
    assert same_as_closed(closing)


def test_an_adjustment_in_the_same_open_month_refers_to_nothing(acme: Tenant) -> None:
    orphan = used(acme, on(today(acme)), outcome="orphaned", output_tokens=100)

    settled(acme, now(), request_id=orphan.request_id, output_tokens=60)
    ledger.drain()

    assert LedgerEntry.objects.get(kind="adjustment").closed_month is None


def test_records_read_again_after_the_closing_change_nothing(acme: Tenant, last: date) -> None:
    entry = used(acme, on(last))
    closing = closed(acme, last)

    settled(acme, on(last), request_id=entry.request_id)
    ledger.drain()

    assert LedgerEntry.objects.count() == 1
    assert same_as_closed(closing)
    assert not ParkedRecord.objects.exists()


def test_late_usage_is_booked_in_the_first_open_month_where_the_present_one_is_closed_too(
    acme: Tenant, last: date
) -> None:
    """A clock ran ahead when the month was closed."""
    present = first_of(today(acme))
    for month in (last, present):
        ClosedMonth.objects.create(
            tenant_id=acme.pk, tenant="acme", tenant_name="ACME", month=month, time_zone="Europe/Berlin",
            entries=0, export_sha256="", closed_by="ada",
        )  # fmt: skip

    entry = used(acme, on(last))

    assert (entry.day, entry.closed_month) == (following(present), last)


# Opening again


def test_a_month_is_opened_again_by_two_people_and_replaced_by_another_statement(
    acme: Tenant, last: date
) -> None:
    entry = used(acme, on(last))
    first = closed(acme, last)

    request_reopening(closing=first, actor="ada", reason="a wrong price")
    opened = confirm_reopening(closing=first, actor="bob")
    correct_usage(
        request_id=entry.request_id, changes={"cost_micro_usd": 7}, reason="a wrong price", actor="ada"
    )
    second = closed(acme, last)

    assert (opened.reopening_asked_by, opened.reopened_by) == ("ada", "bob")
    statement = second.statement
    assert (statement.number[5:], statement.revision, statement.replaces) == ("000002", 2, first.statement)
    assert statement.cost_micro_usd == first.statement.cost_micro_usd + 7
    assert [
        event.action for event in AuditEvent.objects.filter(action__startswith="month").order_by("id")
    ] == [
        "month.closed",
        "month.reopening_asked",
        "month.reopened",
        "month.closed",
    ]


def test_until_the_second_agrees_the_month_is_closed(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    request_reopening(closing=closed(acme, last), actor="ada", reason="a wrong price")

    assert used(acme, on(last)).closed_month == last


@pytest.mark.parametrize(
    ("asks", "agrees"),
    [("ada", "ada"), ("ada (manage.py)", "ada"), ("ada", "Ada (manage.py)"), ("manage.py", "manage.py")],
)
def test_nobody_agrees_with_themselves_whichever_door_they_take(
    acme: Tenant, last: date, asks: str, agrees: str
) -> None:
    closing = closed(acme, last)
    request_reopening(closing=closing, actor=asks, reason="a wrong price")

    with pytest.raises(ValidationError, match="Another person"):
        confirm_reopening(closing=closing, actor=agrees)

    assert not ClosedMonth.objects.exclude(reopened_at=None).exists()


def test_a_question_is_void_after_a_day_and_may_be_asked_again(acme: Tenant) -> None:
    with time_machine.travel(now() - timedelta(hours=24, seconds=1)):
        # On the first of this month, the last one was not over a day ago.
        closing = closed(acme, ago(2))
        request_reopening(closing=closing, actor="ada", reason="a wrong price")
        with pytest.raises(ValidationError, match="ada has asked"):
            request_reopening(closing=closing, actor="bob", reason="me too")

    with pytest.raises(ValidationError, match="Nobody has asked"):
        confirm_reopening(closing=closing, actor="bob")

    request_reopening(closing=closing, actor="bob", reason="me too")
    assert confirm_reopening(closing=closing, actor="ada").reopened_by == "ada"


def test_what_is_open_is_not_opened(acme: Tenant, last: date) -> None:
    closing = reopened(closed(acme, last))

    with pytest.raises(ValidationError, match="is open"):
        request_reopening(closing=closing, actor="ada", reason="once more")
    with pytest.raises(ValidationError, match="is open"):
        confirm_reopening(closing=closing, actor="bob")


def test_a_question_has_a_reason(acme: Tenant, last: date) -> None:
    with pytest.raises(ValidationError, match="Say why"):
        request_reopening(closing=closed(acme, last), actor="ada", reason="")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param("reopened_at = now(), reopened_by = 'bob'", id="nobody asked"),
        pytest.param(
            "reopening_asked_at = now(), reopening_asked_by = 'bob', reopening_reason = 'x', "
            "reopened_at = now(), reopened_by = 'bob'",
            id="the same person",
        ),
        pytest.param(
            "reopening_asked_at = now() - interval '25 hours', reopening_asked_by = 'ada', "
            "reopening_reason = 'x', reopened_at = now(), reopened_by = 'bob'",
            id="too late",
        ),
        pytest.param(
            "reopening_asked_at = now(), reopening_asked_by = 'ada', reopening_reason = ''", id="no reason"
        ),
    ],
)
def test_plain_sql_opens_no_month_without_two_people(acme: Tenant, last: date, changes: str) -> None:
    closed(acme, last)

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE budgets_closedmonth SET {changes}")  # noqa: S608


def test_a_reopened_closing_stays_as_it_is(acme: Tenant, last: date) -> None:
    reopened(closed(acme, last))

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE budgets_closedmonth SET reopened_at = NULL, reopened_by = ''")


def test_two_who_agree_at_once_open_it_once(acme: Tenant, last: date) -> None:
    closing = closed(acme, last)
    request_reopening(closing=closing, actor="ada", reason="a wrong price")

    with ThreadPoolExecutor(2) as pool:
        agreed = [
            in_a_thread(pool, lambda who=who: confirm_reopening(closing=closing, actor=who))  # type: ignore[misc]
            for who in ("bob", "eve")
        ]
        refused = [one.exception(60) for one in agreed]

    assert sum(one is None for one in refused) == 1
    assert AuditEvent.objects.filter(action="month.reopened").count() == 1


# The same again


def test_a_closed_month_is_written_byte_for_byte_the_same_again(acme: Tenant, last: date) -> None:
    for number in range(3):
        used(acme, on(last, f"1{number}:00"), key=f'odd "name", {number}\n', exact=number != 1)
    closing = closed(acme, last)
    first = b"".join(canonical.lines(acme.pk, last))

    used(acme, on(last))
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'Asia/Tokyo'; SET DateStyle = 'German'; SET extra_float_digits = 0")
        try:
            again = b"".join(canonical.lines(acme.pk, last))
        finally:
            cursor.execute("SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; RESET extra_float_digits")

    assert again == first
    assert first.count(b"\n") > closing.entries == 3
    assert same_as_closed(closing)


def test_a_month_that_somebody_tampered_with_is_not_the_same(acme: Tenant, last: date) -> None:
    entry = used(acme, on(last))
    closing = closed(acme, last)

    with connection.cursor() as cursor:
        # What only the owner of the table can do.
        cursor.execute("ALTER TABLE budgets_ledgerentry DISABLE TRIGGER USER")
        try:
            cursor.execute(
                "UPDATE budgets_ledgerentry SET output_tokens = output_tokens + 1 WHERE request_id = %s",
                [entry.request_id],
            )
        finally:
            cursor.execute("ALTER TABLE budgets_ledgerentry ENABLE TRIGGER USER")

    assert not same_as_closed(closing)


def test_the_zone_of_a_statement_is_the_one_the_month_ended_in(acme: Tenant) -> None:
    month, moved = ago(2), on(ago(2) + timedelta(days=14))
    with time_machine.travel(moved):
        a_moved = a_tenant("globex", zone="Asia/Tokyo")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenants_calendarchange "
            "(tenant_id, at, time_zone_before, week_start_before, time_zone, week_start) "
            "VALUES (%s, %s, 'Asia/Tokyo', 1, 'Europe/Berlin', 1)",
            [a_moved.pk, moved],
        )
    Tenant.objects.filter(pk=a_moved.pk).update(time_zone="Europe/Berlin")

    assert closed(a_moved, ago(3)).time_zone == "Asia/Tokyo"
    assert closed(a_moved, month).time_zone == "Europe/Berlin"
