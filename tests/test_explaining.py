"""How a number came about: parts add up to the whole, down to the lines of an entry."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets import usage
from budgets.corrections import correct_usage
from budgets.explaining import DOWN, Explained, entries_of, explain, explain_entry, open_parts
from budgets.pricing import PER_MILLION, PinnedPrice, usd_in_full
from budgets.usage import FIGURES, NONE, PARTS, Selection
from tenants.ids import new_id
from tests import ledgers
from tests.ledgers import NOON, an_entry, book, taken_back

pytestmark = pytest.mark.django_db

ALL = Selection()


def walk_down(selection: Selection, path: list[str], turns: list[int]) -> None:
    """Check that parts add up at this level, and go down into one of them."""
    whole = usage.totals(selection)
    explained = explain(selection, path[:1])

    assert explained.whole.total == whole
    for figure in FIGURES:
        if explained.whole.by:
            assert sum(part.row[figure] for part in explained.parts) == whole[figure]
    if explained.parts:
        part = explained.parts[turns[0] % len(explained.parts)]
        assert usage.totals(part.selection) == {figure: part.row[figure] for figure in FIGURES}
        walk_down(part.selection, path[1:], [*turns[1:], turns[0]])
    else:
        entries = entries_of(selection)
        assert sum(one.entry.cost_micro_usd for one in entries) == whole["cost_micro_usd"]
        assert all(one.entry.cost_micro_usd * PER_MILLION == millionths(one) for one in entries)


def millionths(explained: Explained) -> int:
    return sum(line.millionths for line in explained.lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    booked=st.lists(ledgers.entries(), max_size=8),
    path=st.lists(st.sampled_from([part for part in PARTS if part != "request"]), max_size=3),
    turns=st.lists(st.integers(0, 7), min_size=3, max_size=3),
)
def test_parts_add_up_to_the_whole_at_every_level(db, booked, path, turns):
    with taken_back():
        book(*booked)

        walk_down(ALL, path, turns)


@settings(max_examples=300)
@given(ledgers.entries())
def test_the_lines_of_an_entry_add_up_to_its_cost(entry):
    explained = explain_entry(entry)

    assert millionths(explained) == entry.cost_micro_usd * PER_MILLION
    for line in explained.lines:
        if line.quantity is not None and line.rate is not None:
            assert line.millionths == line.quantity * line.rate * (1000 if line.unit == "ms" else 1)
    if entry.kind == "usage":
        assert explained.by_rates


RATES = PinnedPrice(str(UUID(int=5)), 300_000, 30_000, 1_000_000, 55)


@pytest.mark.parametrize(
    ("price", "fields", "lines", "by_rates"),
    [
        pytest.param(
            RATES,
            {},
            [
                ("input", 5, 300_000, 1_500_000),
                ("cached input", 2, 30_000, 60_000),
                ("output", 20, 1_000_000, 20_000_000),
                ("GPU time", 6, 55, 330_000),
                ("rounded up to a whole micro-USD", None, None, 110_000),
            ],
            True,
            id="all that can be paid for",
        ),
        pytest.param(
            PinnedPrice(RATES.id, 1_000_000, 0, 0),
            {"cached_tokens": 0},
            [("input", 7, 1_000_000, 7_000_000), ("output", 20, 0, 0)],
            True,
            id="nothing to round",
        ),
        pytest.param(None, {}, [("no price was set", None, None, 0)], True, id="no price"),
        pytest.param(
            None,
            {"cost_micro_usd": 9},
            [("no price was set", None, None, 9_000_000)],
            False,
            id="a cost without a price",
        ),
        pytest.param(
            None,
            {"price_id": UUID(int=5), "cost_micro_usd": 9},
            [("rates not kept by the release that booked it", None, None, 9_000_000)],
            True,
            id="booked by an earlier release",
        ),
        pytest.param(
            RATES,
            {
                "kind": "adjustment",
                "cost_micro_usd": -3,
                "input_tokens": 0,
                "cached_tokens": 0,
                "output_tokens": -3,
                "gpu_ms": -6,
            },
            [
                ("input", 0, 300_000, 0),
                ("output", -3, 1_000_000, -3_000_000),
                ("GPU time", -6, 55, -330_000),
                ("difference of two amounts that were rounded up", None, None, 330_000),
            ],
            True,
            id="an adjustment",
        ),
        pytest.param(
            None,
            {
                "kind": "correction",
                "corrects": UUID(int=6),
                "actor": "olga",
                "reason": "x",
                "cost_micro_usd": -4,
            },
            [("corrected by olga", None, None, -4_000_000)],
            True,
            id="a correction",
        ),
    ],
)
def test_a_cost_is_told_line_by_line(price, fields, lines, by_rates):
    explained = explain_entry(an_entry(price, **fields))

    told = [(line.what, line.quantity, line.rate, line.millionths) for line in explained.lines]
    assert (told, explained.by_rates) == (lines, by_rates)


@pytest.mark.parametrize("cost", [-1, 21, 23, 10**9])
def test_a_cost_that_its_rates_do_not_give_is_told_as_such(cost):
    assert explain_entry(an_entry(RATES, cost_micro_usd=22)).by_rates
    assert not explain_entry(an_entry(RATES, cost_micro_usd=cost)).by_rates


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        pytest.param(ALL, "tenant", id="everything"),
        pytest.param(Selection(tenant_id=UUID(int=1)), "month", id="a tenant"),
        pytest.param(
            Selection(UUID(int=1), date(2026, 3, 1), date(2026, 4, 1)), "key", id="a month of a tenant"
        ),
        pytest.param(
            Selection(UUID(int=1), date(2026, 3, 1), date(2026, 4, 2)), "month", id="more than a month"
        ),
        pytest.param(
            Selection(UUID(int=1), date(2026, 12, 31), date(2027, 1, 1), key_id=UUID(int=2)),
            "model",
            id="a day of a key",
        ),
        pytest.param(
            Selection(UUID(int=1), date(2026, 3, 1), date(2026, 3, 2), key_id=UUID(int=2), model="tiny:1b"),
            "request",
            id="nothing but requests is left",
        ),
        pytest.param(Selection(request_id=UUID(int=1)), None, id="a request"),
    ],
)
def test_what_is_not_fixed_yet_is_told_apart_next(selection, expected):
    assert next(iter(open_parts(selection)), None) == expected


def test_the_way_down_leads_to_every_entry_of_a_request():
    request_id = new_id()
    differing: dict[str, Any] = {"requests": 0, "cached_tokens": 0, "gpu_ms": 0, "input_tokens": 0}
    book(an_entry(request_id=request_id, exact=False))
    book(an_entry(request_id=request_id, kind="adjustment", output_tokens=-5, **differing))
    book(
        an_entry(
            kind="correction", corrects=request_id, actor="olga", reason="wrong rate",
            output_tokens=0, cost_micro_usd=-2, **differing,
        )
    )  # fmt: skip
    book(an_entry(ended_at=NOON + timedelta(days=40)))

    selection, way = ALL, []
    while parts := open_parts(selection):
        way.append(parts[0])
        selection = explain(selection).parts[0].selection

    assert way == list(DOWN)
    assert [one.entry.kind for one in entries_of(selection)] == ["usage", "adjustment", "correction"]


def test_what_somebody_corrected_is_a_line_in_their_name_and_in_every_sum():
    [entry] = book(an_entry())
    changes = {"output_tokens": -5, "cost_micro_usd": -2}

    correct_usage(request_id=entry.request_id, changes=changes, reason="counted twice", actor="olga")

    _, correction = entries_of(Selection(request_id=entry.request_id))
    assert (correction.lines[-1].what, correction.by_rates) == ("corrected by olga", True)
    assert millionths(correction) == -2 * PER_MILLION
    [from_rollups], [from_ledger] = explain(ALL, ["key"]).parts, explain(ALL, ["key", "run"]).parts
    for part in (from_rollups, from_ledger):
        assert (part.row["output_tokens"], part.row["cost_micro_usd"]) == (15, 20)


def test_what_belongs_to_nothing_can_be_gone_into():
    book(an_entry(), an_entry(team_id=UUID(int=3), team="Research", run="nightly"))

    [nobodys, _] = explain(ALL, ["team", "run"]).parts

    assert (nobodys.selection.team_id, nobodys.selection.run) == (NONE, "")
    assert usage.totals(nobodys.selection)["requests"] == 1


@pytest.mark.parametrize(
    ("micro_usd", "expected"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (-12, "-0.000012"),
        (1_234_567, "1.234567"),
        (-(10**12), "-1000000.000000"),
    ],
)
def test_money_is_told_to_its_last_place(micro_usd, expected):
    assert usd_in_full(micro_usd) == expected
