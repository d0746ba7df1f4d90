"""Tables with a partition for each month of their requests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from uuid import UUID, uuid4

import pytest
import time_machine
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from audit import months
from audit.models import RequestEvent
from budgets import booking, ledger, tasks
from budgets.models import LedgerEntry
from tenants.ids import new_id
from tests.counting import ada, empty_redis
from tests.test_ledger import call

EVENTS = "audit_requestevent"


def id_of(when: datetime) -> UUID:
    with time_machine.travel(when, tick=False):
        return new_id()


def an_event(request_id: UUID) -> RequestEvent:
    return RequestEvent.objects.create(
        request_id=request_id, at=now(), route="/api/chat", dialect="ollama", status=200, outcome="completed"
    )


def where_is(request_id: UUID) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tableoid::regclass::text FROM audit_requestevent WHERE request_id = %s", [request_id]
        )
        (name,) = cursor.fetchone()
        return str(name)


@pytest.mark.parametrize(
    ("when", "month"),
    [
        pytest.param(datetime(2026, 3, 1, tzinfo=UTC), date(2026, 3, 1), id="its first millisecond"),
        pytest.param(
            datetime(2026, 3, 31, 23, 59, 59, 999000, tzinfo=UTC), date(2026, 3, 1), id="its last one"
        ),
        pytest.param(datetime(2024, 2, 29, 12, tzinfo=UTC), date(2024, 2, 1), id="a leap day"),
        pytest.param(datetime(2019, 12, 31, 23, tzinfo=UTC), None, id="before there was a gateway"),
        pytest.param(datetime(2093, 1, 1, tzinfo=UTC), None, id="in a future that is not near"),
    ],
)
def test_an_id_tells_the_month_in_which_it_was_made(when, month):
    request_id = id_of(when)

    assert months.month_of(request_id) == month
    if month:
        following = months.months_from(month, 1)[1]
        assert months.first_id(month) <= request_id < months.first_id(following)


def test_an_id_of_another_kind_tells_no_month():
    assert months.month_of(uuid4()) is None
    assert months.month_of(UUID(int=(1 << 128) - 1)) is None


def test_months_follow_each_other_over_the_end_of_a_year():
    assert months.months_from(date(2026, 11, 27), 3) == [
        date(2026, 11, 1),
        date(2026, 12, 1),
        date(2027, 1, 1),
        date(2027, 2, 1),
    ]


@pytest.mark.django_db(transaction=True)
def test_this_month_and_the_next_three_are_there_and_the_task_makes_what_is_missing():
    wanted = months.months_from(datetime.now(UTC).date(), months.MONTHS_AHEAD)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {months.partition_of(EVENTS, wanted[-1])}")
    months.forget_what_is_known()

    tasks.make_months()

    for table in booking.BY_MONTH:
        assert set(wanted) <= set(months.partitions(table))
    assert months.ensure_ahead(booking.BY_MONTH) == 0


@pytest.mark.django_db(transaction=True)
def test_a_row_lies_in_the_partition_of_its_request_and_is_unique_there():
    here, elsewhere = new_id(), uuid4()
    an_event(here)
    an_event(elsewhere)

    assert where_is(here) == months.partition_of(EVENTS, datetime.now(UTC).date().replace(day=1))
    assert where_is(elsewhere) == f"{EVENTS}_rest"
    for request_id in (here, elsewhere):
        with pytest.raises(IntegrityError), transaction.atomic():
            an_event(request_id)


@pytest.mark.django_db(transaction=True)
def test_partitions_refuse_changes_too():
    request_id = new_id()
    an_event(request_id)

    for statement in ("UPDATE {} SET status = 0", "DELETE FROM {}"):
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement.format(where_is(request_id)))


@pytest.mark.django_db(transaction=True)
def test_a_record_of_a_month_without_a_partition_makes_one():
    """A settlement may have waited on a disk for long."""
    empty_redis()
    request_id = id_of(datetime(2021, 5, 5, tzinfo=UTC))

    call(ada(), request_id=request_id)
    ledger.drain()

    assert LedgerEntry.objects.get().request_id == request_id
    assert where_is(request_id) == f"{EVENTS}_y2021m05"


@pytest.mark.django_db(transaction=True)
def test_a_month_whose_rows_lie_in_the_rest_stays_there():
    early = id_of(datetime(2020, 7, 7, tzinfo=UTC))
    an_event(early)

    assert months.ensure(EVENTS, [date(2020, 7, 1)]) == 0

    assert where_is(early) == f"{EVENTS}_rest"


@pytest.mark.django_db(transaction=True)
def test_two_who_make_the_same_month_at_once_make_it_once():
    months.forget_what_is_known()
    both = threading.Barrier(2)

    def make() -> int:
        try:
            both.wait(10)
            return months.ensure(EVENTS, [date(2020, 8, 1)])
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as makers:
        made = [maker.result() for maker in [makers.submit(make) for _ in range(2)]]

    assert sorted(made) == [0, 1]
