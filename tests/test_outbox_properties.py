"""The outbox: whatever is read again, twice, in another order or in other pieces, the books stay the same."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter as Tally
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from unittest import mock
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from django.db import DatabaseError
from django.test import TransactionTestCase
from django.utils.timezone import now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.models import RequestEvent
from budgets import booking, ledger, services, verification
from budgets.counters import DRAINED, SETTLED, USAGE, Counter
from budgets.models import BudgetPeriod, LedgerEntry, ParkedRecord, UsageRollup
from budgets.pricing import PinnedPrice
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, release, reserve, settle
from budgets.rollups import Part
from budgets.settlements import Moments
from budgets.sweeping import sweep
from budgets.usage import SUMS, Selection, totals
from keys.services import issue_key
from keys.verification import Caller, identify, reload
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.conftest import eventually
from tests.counting import (
    MODEL,
    Backup,
    a_budget,
    a_demand,
    ada,
    as_fields,
    as_fields_of_the_release_before,
    change_record,
    empty_redis,
    expire_hold,
    put_back,
    records,
    redis,
    some_usage,
    take_backup,
    told_by,
)
from tests.emptying import empty_tables
from tests.fault_proxy import line_to
from tests.gateway import ROOT, database_url, environment

pytestmark = pytest.mark.django_db(transaction=True)

PRICE = PinnedPrice(uuid4().hex, 300_000, 30_000, 1_000_000, 7)


def admit(caller: Caller, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(**demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


class Outbox(NamedTuple):
    """Entries of a stream as the scripts wrote them, and all of Redis at that moment but the stream."""

    entries: list[dict[bytes, bytes]]
    redis: Backup


@cache
def outbox() -> Outbox:
    """Calls that ended in every way there is; the moments of their ends are moved over hours and days.

    Every other one is told as the release before told them.
    """
    empty_redis()
    caller = ada(
        a_budget(None), a_budget(None, "micro_usd"), a_budget(None, "requests"), prices={MODEL: PRICE}
    )
    for number in range(4):
        end(
            admit(caller),
            output_tokens=number,
            cached_tokens=number,
            estimator="default" if number % 2 else "",
        )
    asyncio.run(release(admit(caller), "upstream_failed", 502))
    swept, adjusted, mark_lost = admit(caller), admit(caller), admit(ada(a_budget(None)))
    for reservation in (swept, adjusted, mark_lost):
        expire_hold(reservation.request_id)
    sweep()
    end(adjusted, output_tokens=40)
    # Its owner's settlement has the name of the sweep's, and counts instead of it.
    redis().delete(f"{{p0}}:hold:{mark_lost.request_id}")
    end(mark_lost, output_tokens=50)
    told = records()
    assert Tally(one["kind"] for one in told) == {"usage": 8, "adjustment": 1, "late": 1}
    entries = [
        (as_fields, as_fields_of_the_release_before)[number % 2](
            one | {"at": one["at"] - number * 5 * 3_600_000}
        )
        for number, one in enumerate(told)
    ]
    redis().delete(USAGE)
    return Outbox(entries, take_backup())


class Books(NamedTuple):
    entries: Tally[str]
    rollups: Tally[str]
    periods: dict[str, int]
    events: set[UUID]


def as_they_must_be(entries: list[dict[bytes, bytes]]) -> Books:
    """What these records come to: for each call its owner's word, else the sweep's; each adjustment."""
    finals: dict[str, tuple[Any, Any]] = {}
    sums: Tally[str] = Tally()
    periods: Tally[str] = Tally()
    for fields in entries:
        one = told_by(fields)
        call, told = one["call"], one["end"]
        if one["kind"] == "adjustment":
            first = one["first"]
            sums.update({name: told[name] - first[name] for name in SUMS})
            amounts = [used - before for used, before in zip(told["amounts"], first["amounts"], strict=True)]
            count(periods, call, amounts)
        elif told["outcome"] != "orphaned" or call["request_id"] not in finals:
            finals[call["request_id"]] = call, told
    for call, told in finals.values():
        sums.update({name: told[name] for name in SUMS})
        count(periods, call, told["amounts"])
    # Tallies leave out what is nothing when they are compared.
    return Books(sums, sums, dict(periods), {UUID(request_id) for request_id in finals})


def count(periods: Tally[str], call: dict[str, Any], amounts: list[int]) -> None:
    for counter, amount in zip(call["counters"], amounts, strict=True):
        periods[Counter(*counter).key] += amount


def books() -> Books:
    rows = list(LedgerEntry.objects.all())
    assert by_hour_and_key(UsageRollup.objects.all(), "hour_start") == by_hour_and_key(rows, "ended_at")
    return Books(
        added_up(rows),
        added_up(UsageRollup.objects.all()),
        {
            f"{{p0}}:budget:{row.budget_id.hex}:{int(row.period_start.timestamp())}": row.used
            for row in BudgetPeriod.objects.all()
        },
        set(RequestEvent.objects.values_list("request_id", flat=True)),
    )


def added_up(rows: Any) -> Tally[str]:
    sums: Tally[str] = Tally()
    for row in rows:
        sums.update({name: getattr(row, name) for name in SUMS})
    return sums


def by_hour_and_key(rows: Any, instant: str) -> dict[Any, Tally[str]]:
    sums: dict[Any, Tally[str]] = {}
    for row in rows:
        hour = getattr(row, instant).replace(minute=0, second=0, microsecond=0)
        sums.setdefault((row.tenant_id, row.day, hour, row.key_id), Tally()).update(
            {name: getattr(row, name) for name in SUMS}
        )
    return sums


def hand_over(entries: list[dict[bytes, bytes]]) -> None:
    for fields in entries:
        redis().xadd(USAGE, fields)
    redis().incrby(SETTLED, len(entries))


@contextlib.contextmanager
def dying(how: str) -> Iterator[None]:
    """A drain that dies before its commit, or after it and before the stream is told; or lives."""
    parts = {"before": (booking, "_add_to_periods"), "after": (ledger, "run_now")}
    if how not in parts:
        yield
        return
    with (
        mock.patch.object(*parts[how], side_effect=DatabaseError("killed")),
        contextlib.suppress(DatabaseError),
    ):
        yield


PIECES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=14),
        st.integers(1, 6),
        st.sampled_from(["not", "before", "after"]),
    ),
    max_size=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, order=st.permutations(range(10)), batch=st.integers(1, 12))
def test_replaying_shuffling_repeating_and_splitting_the_outbox_changes_nothing(
    pieces: list[tuple[list[int], int, str]], order: list[int], batch: int
) -> None:
    """INV9: any prefix in any order and any number of times, by drains that die; at last all of it."""
    entries, backup = outbox()
    empty_tables(TransactionTestCase())
    put_back(backup)
    redis().delete(SETTLED, DRAINED)

    for numbers, size, how in pieces:
        hand_over([entries[number] for number in numbers])
        with mock.patch.object(ledger, "BATCH", size), dying(how):
            ledger.drain()
    hand_over([entries[number] for number in order])
    with mock.patch.object(ledger, "BATCH", batch):
        # One drain takes so many batches at most.
        while ledger.drain():
            pass

    assert books() == as_they_must_be(entries)
    assert not ParkedRecord.objects.exists()
    assert ledger.backlog() == 0
    hand_over(entries[:5])
    ledger.drain()
    assert books() == as_they_must_be(entries)


@pytest.fixture
def acme() -> Tenant:
    redis().flushdb()
    ensure_epoch()
    services.set_price(
        model=MODEL,
        input_price=300_000,
        cached_price=30_000,
        output_price=1_000_000,
        gpu_price=7,
        actor="test",
    )
    acme = create_tenant(slug="acme", name="ACME", actor="test", time_zone="Asia/Kathmandu")
    for unit in ("tokens", "micro_usd"):
        services.set_budget(scope="tenant", tenant=acme, unit=unit, period="year", limit=10**9, actor="test")
    return acme


@pytest.fixture
def secret(acme: Tenant) -> str:
    return issue_key(tenant=acme, label="nightly", actor="test")[1]


def admit_with(secret: str) -> Reservation:
    async def ask() -> Reservation:
        caller = await identify({"authorization": f"Bearer {secret}"})
        return await reserve(await reload(caller.public_id), a_demand(10, 100))

    return asyncio.run(ask())


def agree(part: Part = Part()) -> bool:  # noqa: B008, it is frozen
    result = verification.verify(part)
    assert (result.differences, result.unasked) == ((), {})
    return True


def drain_elsewhere(script: str, **changes: str) -> subprocess.Popen[str]:
    """A process of its own that runs ``script`` with the ledger at hand."""
    return subprocess.Popen(
        [sys.executable, ROOT / "manage.py", "shell", "--no-imports", "-c", script],
        env={**environment(), **changes},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_commit_that_was_sent_and_whose_answer_was_cut_off_books_everything_once(secret: str) -> None:
    for number in range(3):
        end(admit_with(secret), output_tokens=number)

    with line_to(database_url()) as (line, url):
        line.lose_reply(b"COMMIT")
        drain = drain_elsewhere("from budgets import ledger; ledger.drain()", DATABASE_URL=url)
        _, said = drain.communicate(timeout=60)

    assert drain.returncode != 0, said
    # PostgreSQL has it, and the stream does not know.
    assert LedgerEntry.objects.count() == 3
    assert ledger.backlog() == 3
    assert agree()
    end(admit_with(secret), output_tokens=50)
    ledger.drain()
    assert LedgerEntry.objects.count() == 4
    assert ledger.backlog() == 0
    assert totals(Selection())["output_tokens"] == 0 + 1 + 2 + 50
    assert agree()


DRAIN_UNTIL_TOLD = """
import select, sys
from budgets import ledger
ledger.BATCH = 7
while not select.select([sys.stdin], [], [], 0)[0] or ledger.backlog():
    ledger.drain()
"""


def test_two_drains_in_two_processes_book_everything_once(secret: str) -> None:
    drains = [drain_elsewhere(DRAIN_UNTIL_TOLD) for _ in range(2)]
    made = 0

    def drained() -> bool:
        nonlocal made
        end(admit_with(secret), output_tokens=made % 90)
        made += 1
        return made >= 100 and LedgerEntry.objects.count() > 20

    try:
        eventually(drained, 60)
    finally:
        ends = [drain.communicate("\n", timeout=60) for drain in drains]

    assert [drain.returncode for drain in drains] == [0, 0], ends
    assert LedgerEntry.objects.count() == made
    assert totals(Selection())["output_tokens"] == sum(number % 90 for number in range(made))
    assert ledger.backlog() == 0
    assert agree()


def test_a_key_that_is_deleted_while_its_call_runs_pays_to_the_last_token(acme: Tenant, secret: str) -> None:
    key = acme.keys.get()
    key_id = key.pk
    reservation = admit_with(secret)

    key.secrets.all().delete()
    key.delete()
    end(reservation, output_tokens=33, cached_tokens=3)
    ledger.drain()

    entry = LedgerEntry.objects.get()
    assert (entry.key, entry.key_id, entry.output_tokens) == ("nightly", key_id, 33)
    assert agree()


def test_a_price_that_changes_while_a_call_runs_counts_from_the_next_call_on(secret: str) -> None:
    reservation = admit_with(secret)

    services.set_price(
        model=MODEL, input_price=3_000_000, cached_price=30_000, output_price=7_000_000, actor="test"
    )
    end(reservation, output_tokens=33, cached_tokens=3)
    end(admit_with(secret), output_tokens=33, cached_tokens=3)
    ledger.drain()

    before, after = LedgerEntry.objects.order_by("id")
    # 4 x 0.3 + 3 x 0.03 + 33 x 1 and 6 ms at 7 a second; then 4 x 3 + 3 x 0.03 + 33 x 7; each rounded up.
    assert (before.cost_micro_usd, before.output_price, before.gpu_price) == (35, 1_000_000, 7)
    assert (after.cost_micro_usd, after.output_price, after.gpu_price) == (244, 7_000_000, 0)
    assert agree()


def at_kathmandu(*moment: int) -> datetime:
    return datetime(*moment, tzinfo=ZoneInfo("Asia/Kathmandu"))  # type: ignore[arg-type, misc]


# A year in which none of the days is that of the test itself, nor in its month.
YEAR = now().year + 2
LAST_OF_FEBRUARY = date(YEAR, 3, 1) - timedelta(days=1)


@pytest.mark.parametrize(
    ("ended", "day"),
    [
        pytest.param(
            at_kathmandu(YEAR - 1, 12, 31, 23, 59, 59, 999_000), date(YEAR - 1, 12, 31), id="just before"
        ),
        pytest.param(at_kathmandu(YEAR, 1, 1), date(YEAR, 1, 1), id="at midnight, of month and year too"),
        pytest.param(at_kathmandu(YEAR, 1, 1, 0, 0, 0, 1_000), date(YEAR, 1, 1), id="just after"),
        pytest.param(
            at_kathmandu(YEAR, 2, LAST_OF_FEBRUARY.day, 23, 59, 59),
            LAST_OF_FEBRUARY,
            id="the last of February",
        ),
        pytest.param(at_kathmandu(YEAR, 3, 1, 5, 44), date(YEAR, 3, 1), id="the same night in UTC"),
    ],
)
def test_a_stream_over_midnight_counts_whole_for_the_day_and_month_in_which_it_ended(
    secret: str, ended: datetime, day: date
) -> None:
    """Its end is moved in its record: the clock of Redis cannot be set."""
    end(admit_with(secret), output_tokens=33)
    change_record(lambda told: told.update(at=int(ended.timestamp() * 1000)))
    end(admit_with(secret), output_tokens=1)

    ledger.drain()

    first = day.replace(day=1)
    month = verification.month_part(first)
    moved = totals(Selection(None, first, month.before_day))
    before = totals(Selection(None, first - timedelta(days=1), first))
    assert (moved["requests"], moved["output_tokens"]) == (1, 33)
    assert before["requests"] == 0
    assert UsageRollup.objects.get(output_tokens=33).day == day
    assert totals(Selection())["output_tokens"] == 34
    assert agree(month)
    assert agree()
