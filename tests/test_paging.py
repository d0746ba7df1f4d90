"""Pages of entries: all of what was asked for, newest first, without a walk through everything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets.models import LedgerEntry, UsageRollup
from budgets.paging import page_of
from budgets.usage import NONE, Selection
from tests import ledgers
from tests.ledgers import NOON, an_entry, book, taken_back

pytestmark = pytest.mark.django_db

ACME, KEY, MINE, THEIRS = UUID(int=1), UUID(int=6), UUID(int=4), UUID(int=5)
# In few hours, so that several are in one, and not all of the newest are of what is asked for.
some_ledger = st.lists(ledgers.entries(), max_size=14).map(
    lambda entries: [_in_one_of_three_hours(number, entry) for number, entry in enumerate(entries)]
)


def _in_one_of_three_hours(number: int, entry: LedgerEntry) -> LedgerEntry:
    entry.ended_at = NOON + timedelta(hours=number % 3, minutes=7 * number)
    entry.day = entry.ended_at.date()
    return entry


def pages(selection: Selection, size: int) -> Iterator[list[LedgerEntry]]:
    page = page_of(selection, size=size)
    yield page.entries
    while page.next:
        page = page_of(selection, page.next, size)
        yield page.entries


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    booked=some_ledger,
    whose=st.sampled_from([{}, {"tenant_id": ACME}, {"member_id": MINE}, {"team_id": NONE}, {"key_id": KEY}]),
    what=st.sampled_from(
        [{}, {"model": "one"}, {"route": "two", "operation": "one"}, {"upstream": "one", "run": ""},
         {"model": "two", "run": "two"}, {"route": ""}]
    ),
    when=st.sampled_from(
        [{}, {"until": NOON + timedelta(minutes=95)}, {"since": NOON + timedelta(minutes=50)},
         {"from_day": NOON.date(), "before_day": NOON.date() + timedelta(days=1)}]
    ),
    size=st.integers(1, 4),
)  # fmt: skip
def test_pages_have_each_entry_once_newest_first(db, booked, whose, what, when, size):
    selection = Selection(**whose, **what, **when)

    with taken_back():
        book(*booked)
        told = list(pages(selection, size))
        expected = list(selection.entries().order_by("-ended_at", "-id"))

    assert [entry for page in told for entry in page] == expected
    assert all(len(page) == size for page in told[:-1])


def of_another(number: int, at: datetime) -> LedgerEntry:
    return an_entry(member_id=THEIRS, member="zoe", key_id=UUID(int=100 + number), ended_at=at)


def asked_for(selection: Selection, size: int = 2) -> tuple[list[LedgerEntry], list[str]]:
    """The first page, and what the database was asked about the ledger for it."""
    with CaptureQueriesContext(connection) as asked:
        entries = page_of(selection, size=size).entries
    return entries, [
        query["sql"] for query in asked.captured_queries if "budgets_ledgerentry" in query["sql"]
    ]


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(Selection(model="nobody's:1b"), id="a model that nobody used"),
        pytest.param(Selection(route="embed", member_id=THEIRS), id="a route that a member never used"),
        pytest.param(Selection(member_id=MINE, until=NOON), id="what somebody used later"),
        pytest.param(Selection(route="", run=""), id="a route that is not known"),
    ],
)
def test_the_ledger_is_not_asked_for_what_the_rollups_say_is_not_there(selection: Selection) -> None:
    book(an_entry(member_id=MINE, member="ada"), of_another(1, NOON), an_entry(route="embed"))

    assert asked_for(selection) == ([], [])


def test_of_what_is_rare_only_its_own_hours_are_looked_through() -> None:
    """Between two calls of hers a week apart lie those of everybody else."""
    week = timedelta(days=7)
    book(*(an_entry(member_id=MINE, member="ada", ended_at=at) for at in (NOON, NOON + week)))
    book(*(of_another(number, NOON + number * week / 50) for number in range(1, 50)))

    found, [asked] = asked_for(Selection(member_id=MINE))

    assert [entry.ended_at for entry in found] == [NOON + week, NOON]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; ANALYZE budgets_ledgerentry")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT TEXT, COSTS OFF, TIMING OFF) {asked}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert set(re.findall(r"Rows Removed by Filter: (\d+)", plan)) <= {"0"}, plan


def test_what_rollups_know_and_the_ledger_lost_hides_nothing_that_is_older() -> None:
    """As of an archived month that somebody asks for; the figures stay, the entries are in a file."""
    book(*(an_entry(ended_at=NOON + timedelta(hours=number)) for number in range(3)))
    for number in range(5):
        rollup = UsageRollup.objects.first()
        assert rollup is not None
        rollup.pk, rollup.hour_start = None, NOON + timedelta(days=1, hours=number)
        rollup.save(force_insert=True)

    newest = page_of(Selection(model="tiny:1b"), size=2).entries
    by_one = [entry for page in pages(Selection(model="tiny:1b"), 1) for entry in page]

    assert [(entry.ended_at - NOON) // timedelta(hours=1) for entry in newest] == [2, 1]
    assert [(entry.ended_at - NOON) // timedelta(hours=1) for entry in by_one] == [2, 1, 0]


def test_many_keys_that_have_some_in_an_hour_are_not_looked_up_one_by_one() -> None:
    book(*(of_another(number, NOON + timedelta(seconds=number)) for number in range(30)))

    found, [asked] = asked_for(Selection(member_id=THEIRS))

    assert [entry.ended_at.second for entry in found] == [29, 28]
    assert "LATERAL" not in asked
