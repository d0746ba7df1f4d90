"""When a budget will be empty at its present pace: the arithmetic, and when nothing is said."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from budgets.forecasts import Forecast, Outlook, forecast

START = 1_700_000_000
DAY, WEEK = 86_400, 7 * 86_400

LIMITS = st.integers(1, 2**53 - 1)
ELAPSED = st.integers(1, 400 * DAY)


@pytest.mark.parametrize(
    ("used", "elapsed", "length", "expected"),
    [
        pytest.param(0, 3 * DAY, WEEK, Outlook.UNUSED, id="nothing is used"),
        pytest.param(100, 3 * DAY, WEEK, Outlook.EMPTY, id="all of it is used"),
        pytest.param(120, 60, WEEK, Outlook.EMPTY, id="empty is no forecast and needs no time"),
        pytest.param(50, WEEK // 50 - 1, WEEK, Outlook.TOO_EARLY, id="a second before there is enough"),
        pytest.param(50, WEEK // 50, WEEK, Outlook.RUNS_OUT, id="from then on"),
        pytest.param(99, 599, 3600, Outlook.TOO_EARLY, id="an hour needs ten minutes"),
        pytest.param(99, 600, 3600, Outlook.RUNS_OUT, id="and has them"),
        pytest.param(99, 299, 300, Outlook.TOO_EARLY, id="a period shorter than that never has a forecast"),
        pytest.param(50, 6 * DAY, WEEK, Outlook.LASTS, id="half of it after most of the time"),
        pytest.param(50, DAY - 1, None, Outlook.TOO_EARLY, id="what never ends needs a day"),
        pytest.param(50, DAY, None, Outlook.RUNS_OUT, id="and runs out some day"),
    ],
)
def test_what_can_be_said(used: int, elapsed: int, length: int | None, expected: Outlook) -> None:
    end = None if length is None else START + length

    assert forecast(100, used, START, START + elapsed, end).outlook == expected


def test_a_quarter_in_a_day_is_all_of_it_in_four() -> None:
    found = forecast(400, 100, START, START + DAY, START + WEEK)

    assert found.outlook == Outlook.RUNS_OUT
    assert found.at is not None
    assert found.at.timestamp() == START + 4 * DAY


@given(LIMITS, LIMITS, ELAPSED, st.integers(1, 400 * DAY) | st.none())
def test_at_the_moment_told_and_not_a_second_before_the_pace_has_used_it_up(
    limit: int, used: int, elapsed: int, length: int | None
) -> None:
    end = None if length is None else START + length
    moment = START + elapsed
    assume(end is None or moment < end)

    found = forecast(limit, used, START, moment, end)

    if found.at is None:
        return
    pace, at = Fraction(used, elapsed), int(found.at.timestamp())
    assert moment < at
    assert end is None or at < end
    assert pace * (at - START) >= limit
    assert pace * (at - 1 - START) < limit


@given(LIMITS, LIMITS, ELAPSED, st.integers(1, 400 * DAY))
def test_what_lasts_is_not_used_up_when_its_period_ends(
    limit: int, used: int, elapsed: int, length: int
) -> None:
    assume(elapsed < length)

    if forecast(limit, used, START, START + elapsed, START + length) == Forecast(Outlook.LASTS):
        assert Fraction(used, elapsed) * (length - 1) < limit


@given(LIMITS, st.integers(1, 2**52), ELAPSED, st.integers(1, 400 * DAY))
def test_whoever_uses_more_has_it_for_less_long(limit: int, used: int, elapsed: int, length: int) -> None:
    assume(elapsed < length)
    end = START + length

    slow = forecast(limit, used, START, START + elapsed, end)
    fast = forecast(limit, used + 1, START, START + elapsed, end)

    if slow.at is not None and fast.at is not None:
        assert fast.at <= slow.at
    if slow.outlook == Outlook.RUNS_OUT:
        assert fast.outlook in (Outlook.RUNS_OUT, Outlook.EMPTY)


@given(LIMITS, st.integers(0, 2**53 - 1), st.integers(0, 599), st.integers(1, 400 * DAY) | st.none())
def test_nothing_is_foretold_of_a_period_that_has_just_begun(
    limit: int, used: int, elapsed: int, length: int | None
) -> None:
    end = None if length is None else START + length

    assert forecast(limit, used, START, START + elapsed, end).at is None
