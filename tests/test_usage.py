"""Usage: told apart by anything, from rollups and from the ledger alike, with names that outlive things."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets import usage
from budgets.models import LedgerEntry, UsageRollup
from budgets.usage import FIGURES, NONE, PARTS, Breakdown, Selection, breakdown, estimated_share, in_percent
from keys.services import issue_key
from tenants.ids import new_id
from tenants.services import create_team, create_tenant, delete_team
from tests import ledgers
from tests.ledgers import NOON, an_entry, book, taken_back

pytestmark = pytest.mark.django_db

ACME, KEY = UUID(int=1), UUID(int=6)
ALL = Selection()
some_ledger = st.lists(ledgers.entries(), max_size=12)
in_rollups = sorted(PARTS.keys() - usage.ONLY_ENTRIES)


def summed(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {figure: sum(row[figure] for row in rows) for figure in FIGURES}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    booked=some_ledger,
    by=st.lists(st.sampled_from(in_rollups), max_size=3, unique=True),
    whose=st.sampled_from(
        [{}, {"tenant_id": ACME}, {"team_id": NONE}, {"key_id": KEY, "model": "one"}, {"route": "two"}]
    ),
    days=st.sampled_from([{}, {"from_day": date(2026, 3, 1), "before_day": date(2026, 4, 1)}]),
    hours=st.sampled_from([{}, {"since": NOON}, {"until": NOON + timedelta(days=9)}]),
)
def test_rollups_and_ledger_give_the_same(db, booked, by, whose, days, hours):
    selection = Selection(**whose, **days, **hours)

    with taken_back():
        book(*booked)
        from_rollups = breakdown(selection, by)
        from_ledger = breakdown(selection, by, from_ledger=True)

    assert from_rollups.total == from_ledger.total
    assert without_names(from_rollups) == without_names(from_ledger)
    assert summed(from_rollups.rows) == (from_rollups.total if by else dict.fromkeys(FIGURES, 0))


def without_names(found: Breakdown) -> list[tuple[Any, ...]]:
    """Rows by what tells them apart; a rollup has one name for all that happened in its hour."""
    columns = [PARTS[part][0] for part in found.by]
    return sorted(tuple(row[name] for name in (*columns, *FIGURES)) for row in found.rows)


@pytest.mark.parametrize(
    ("by", "selection", "from_rollups"),
    [
        pytest.param(["key", "day"], ALL, True, id="what rollups know"),
        pytest.param(["key"], Selection(since=NOON), True, id="from a whole hour on"),
        pytest.param(["key"], Selection(until=NOON + timedelta(milliseconds=1)), False, id="within an hour"),
        pytest.param(["key", "run"], ALL, False, id="by run"),
        pytest.param(["route"], ALL, True, id="by route"),
        pytest.param(["request"], ALL, False, id="by request"),
        pytest.param(["key"], Selection(run=""), False, id="of no run"),
        pytest.param(["key"], Selection(route="/api/chat"), True, id="of a route"),
    ],
)
def test_rollups_are_read_where_they_know_enough(by, selection, from_rollups):
    [entry] = book(an_entry())
    UsageRollup.objects.update(requests=5)

    found = breakdown(selection, by)

    assert found.total["requests"] == (5 if from_rollups else entry.requests)


@pytest.mark.parametrize("by", list(permutations(["tenant", "day", "run"])), ids="-".join)
def test_any_dimensions_stand_beside_each_other_in_the_order_asked_for(by):
    book(
        an_entry(run="one"),
        an_entry(run="one"),
        an_entry(run="two", ended_at=NOON + timedelta(days=1)),
        an_entry(tenant_id=UUID(int=9), tenant="globex", run="two"),
    )

    found = breakdown(ALL, by)

    told = [tuple(row[PARTS[part][-1]] for part in by) for row in found.rows]
    assert told == sorted(told)
    assert sorted(row["requests"] for row in found.rows) == [1, 1, 2]
    assert (found.total["requests"], found.left_out) == (4, 0)


def test_what_is_renamed_is_one_thing_with_its_latest_name():
    earlier, later = NOON, NOON + timedelta(days=1)
    book(an_entry(key="zeta", ended_at=earlier), an_entry(key="alpha", ended_at=later))

    by_key = breakdown(ALL, ["key"]).rows
    by_day = breakdown(ALL, ["day", "key"]).rows
    first_only = breakdown(ALL, ["day", "key"], limit=1).rows
    before = breakdown(Selection(before_day=later.date()), ["key"]).rows

    assert [(row["key"], row["requests"]) for row in by_key] == [("alpha", 2)]
    assert [row["key"] for row in by_day] == ["alpha", "alpha"]
    assert [row["key"] for row in first_only] == ["alpha"]
    # What is over stays as it was told.
    assert [row["key"] for row in before] == ["zeta"]


def test_deleted_things_are_named_still_and_flagged():
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    team = create_team(tenant=acme, name="Research", actor="test")
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")
    book(ledgers.of(acme, key_id=key.pk, key="nightly", team_id=team.pk, team="Research"))
    by = ["tenant", "team", "key", "member"]

    before = breakdown(ALL, by).rows
    delete_team(team=team, actor="test")
    key.delete()
    after = breakdown(ALL, by).rows

    assert [row["deleted"] for row in before] == [[]]
    assert [(row["team"], row["key"], row["member"], row["deleted"]) for row in after] == [
        ("Research", "nightly", "", ["team", "key"])
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("", ["a", "b", "c"], id="by name"),
        pytest.param("output_tokens", ["c", "a", "b"], id="from the smallest up"),
        pytest.param("-output_tokens", ["b", "a", "c"], id="from the largest down"),
    ],
)
def test_rows_come_in_the_order_asked_for_and_the_rest_is_told(order, expected):
    for model, tokens in (("a", 20), ("b", 30), ("c", 10)):
        book(an_entry(model=model, output_tokens=tokens))

    whole = breakdown(ALL, ["model"], order=order)
    found = breakdown(ALL, ["model"], order=order, limit=2)

    assert [row["model"] for row in whole.rows] == expected
    assert [row["model"] for row in found.rows] == expected[:2]
    assert (found.left_out, whole.left_out) == (1, 0)
    assert found.total == whole.total
    assert found.rest == summed(whole.rows[2:])


@pytest.mark.parametrize(("by", "order"), [(["planet"], ""), (["key"], "price"), (["key"], "--requests")])
def test_what_there_is_not_cannot_be_asked_for(by, order):
    with pytest.raises(ValueError, match="no such"):
        breakdown(ALL, by, order=order)


def test_what_belongs_to_no_team_or_member_can_be_selected():
    book(an_entry(), an_entry(team_id=UUID(int=3), team="Research"), an_entry(member_id=UUID(int=4)))

    assert usage.totals(Selection(team_id=NONE))["requests"] == 2
    assert usage.totals(Selection(team_id=NONE, member_id=NONE))["requests"] == 1
    assert usage.totals(Selection(team_id=UUID(int=3)))["requests"] == 1


def test_a_request_is_all_that_was_booked_about_it():
    request_id = new_id()
    book(an_entry(request_id=request_id, exact=False, output_tokens=30))
    book(
        an_entry(request_id=request_id, kind="adjustment", requests=0, output_tokens=-10, cost_micro_usd=-10)
    )
    book(
        an_entry(
            kind="correction", corrects=request_id, actor="olga", reason="wrong rate", requests=0,
            output_tokens=0, input_tokens=0, cached_tokens=0, gpu_ms=0, cost_micro_usd=-3,
        ),
        an_entry(),
    )  # fmt: skip

    found = breakdown(ALL, ["request"])
    total = usage.totals(Selection(request_id=request_id))

    assert {row["request"]: row["output_tokens"] for row in found.rows}[str(request_id)] == 20
    assert len(found.rows) == 2
    assert (total["requests"], total["output_tokens"]) == (1, 20)


@pytest.mark.parametrize(
    ("tokens", "estimated", "share"),
    [
        pytest.param(0, 0, "0.0 %", id="nothing was used"),
        pytest.param(100, 0, "0.0 %", id="all is exact"),
        pytest.param(1_000_000, 1, "0.1 %", id="a little is never told as none"),
        pytest.param(3, 1, "33.4 %", id="rounded up"),
        pytest.param(50, 50, "100.0 %", id="all is estimated"),
        pytest.param(10, 90, "100.0 %", id="an exact adjustment took most of it back"),
        pytest.param(10, -5, "0.0 %", id="an adjustment that is an estimate itself"),
    ],
)
def test_the_share_of_estimates_is_told_in_percent(tokens, estimated, share):
    figures = {"input_tokens": tokens, "output_tokens": 0, "estimated_tokens": estimated}

    assert in_percent(estimated_share(figures)) == share


def test_estimates_are_summed_beside_all_tokens():
    book(an_entry(exact=False, input_tokens=3, cached_tokens=0, output_tokens=4), an_entry())

    for from_ledger in (True, False):
        assert breakdown(ALL, ["key"], from_ledger=from_ledger).total["estimated_tokens"] == 7


def test_hours_and_months_are_those_of_utc_and_of_the_accounting_day():
    at = datetime(2026, 3, 31, 23, 30, tzinfo=UTC)
    book(an_entry(time_zone="Asia/Kathmandu", ended_at=at))

    for from_ledger in (True, False):
        [row] = breakdown(ALL, ["hour", "day", "month"], from_ledger=from_ledger).rows
        assert (row["hour"], row["day"], row["month"]) == (
            "2026-03-31T23:00:00+00:00",
            "2026-04-01",
            "2026-04-01",
        )


def test_nothing_is_no_row_and_no_figure():
    found = breakdown(replace(ALL, tenant_id=ACME), ["key"])

    assert found == Breakdown(("key",), [], dict.fromkeys(FIGURES, 0))
    assert not LedgerEntry.objects.exists()
