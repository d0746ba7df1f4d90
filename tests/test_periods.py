"""Which period a moment belongs to: the calendar's cases, and what holds in every zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.periods import current

ZONES = sorted(available_timezones())
KINDS = ["hour", "day", "week", "month", "year"]


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("kind", "zone", "week_start", "moment", "start", "end"),
    [
        pytest.param(
            "day", "UTC", 1, "2026-03-01T23:59:59.999", "2026-03-01", "2026-03-02", id="the last of a day"
        ),
        pytest.param(
            "day", "UTC", 1, "2026-03-02T00:00", "2026-03-02", "2026-03-03", id="the first of a day"
        ),
        pytest.param(
            "day", "Asia/Kolkata", 1, "2026-03-02T00:10", "2026-03-02", "2026-03-03", id="half-hour zone"
        ),
        pytest.param(
            "hour",
            "Asia/Kolkata",
            1,
            "2026-03-02T10:10",
            "2026-03-02T10:00",
            "2026-03-02T11:00",
            id="its hour",
        ),
        pytest.param(
            "week", "UTC", 1, "2026-03-01T12:00", "2026-02-23", "2026-03-02", id="Sunday, from Monday"
        ),
        pytest.param(
            "week", "UTC", 7, "2026-03-01T12:00", "2026-03-01", "2026-03-08", id="Sunday, from Sunday"
        ),
        pytest.param("month", "UTC", 1, "2028-02-29T12:00", "2028-02-01", "2028-03-01", id="leap day"),
        pytest.param("month", "UTC", 1, "2026-12-31T23:59", "2026-12-01", "2027-01-01", id="December"),
        pytest.param("year", "Europe/Berlin", 1, "2026-12-31T23:59", "2026-01-01", "2027-01-01", id="year"),
    ],
)
def test_periods_follow_the_local_calendar(
    kind: str, zone: str, week_start: int, moment: str, start: str, end: str
) -> None:
    period = current(kind, None, ZoneInfo(zone), week_start, at(moment, zone).timestamp())

    assert (period.starts_at, period.ends_at) == (at(start, zone), at(end, zone))


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        pytest.param(
            "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00+00:00", 23, id="clocks go forward"
        ),
        pytest.param("Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00+00:00", 25, id="clocks go back"),
        pytest.param(
            "Africa/Cairo", "2024-04-26T12:00", "2024-04-25T22:00+00:00", 23, id="midnight is skipped"
        ),
        pytest.param(
            "Africa/Cairo", "2024-10-31T12:00", "2024-10-30T21:00+00:00", 25, id="midnight comes late"
        ),
        pytest.param(
            "America/Havana", "2026-11-01T12:00", "2026-11-01T04:00+00:00", 25, id="midnight comes twice"
        ),
        pytest.param(
            "America/St_Johns", "2006-10-29T12:00", "2006-10-29T02:30+00:00", 25, id="back over midnight"
        ),
        pytest.param(
            "Pacific/Apia", "2011-12-29T12:00", "2011-12-29T10:00+00:00", 24, id="before a skipped day"
        ),
        pytest.param(
            "Pacific/Apia", "2011-12-31T12:00", "2011-12-30T10:00+00:00", 24, id="after a skipped day"
        ),
    ],
)
def test_days_on_which_clocks_move(zone: str, moment: str, start: str, hours: int) -> None:
    period = current("day", None, ZoneInfo(zone), 1, at(moment, zone).timestamp())

    assert period.starts_at == datetime.fromisoformat(start)
    assert period.ends_at is not None
    assert period.ends_at - period.starts_at == timedelta(hours=hours)


def test_an_hour_that_clocks_repeat_is_two() -> None:
    first = current("hour", None, ZoneInfo("Europe/Berlin"), 1, at("2026-10-25T00:30").timestamp())
    second = current("hour", None, ZoneInfo("Europe/Berlin"), 1, at("2026-10-25T01:30").timestamp())

    assert (first.end, second.start) == (second.start, first.end)
    assert second.start - first.start == 3600


def test_a_lifetime_has_no_end() -> None:
    period = current("lifetime", None, ZoneInfo("UTC"), 1, 1e9)

    assert (period.start, period.end, period.ends_at) == (0, None, None)
    assert period.contains(1e12)


def test_fixed_periods_do_not_depend_on_when_they_are_asked_for() -> None:
    day = current("fixed", 86_400, ZoneInfo("Pacific/Apia"), 1, at("2026-03-02T23:00").timestamp())

    assert day.starts_at == at("2026-03-02")
    assert day.ends_at == at("2026-03-03")


@given(
    st.sampled_from(KINDS),
    st.sampled_from(ZONES),
    st.integers(1, 7),
    st.floats(0, datetime(2037, 1, 1, tzinfo=UTC).timestamp()),
)
def test_periods_follow_each_other_without_gap_or_overlap(
    kind: str, zone_name: str, week_start: int, moment: float
) -> None:
    zone = ZoneInfo(zone_name)

    period = current(kind, None, zone, week_start, moment)

    assert period.end is not None
    assert period.contains(moment)
    assert not period.contains(period.end)
    for second in (period.start, period.end - 1):
        assert current(kind, None, zone, week_start, second) == period
    assert current(kind, None, zone, week_start, period.end).start == period.end


@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "America/Havana", "Africa/Cairo", "Asia/Kathmandu"])
@pytest.mark.parametrize("kind", ["hour", "day", "week"])
def test_a_year_of_periods_is_the_whole_year(zone: str, kind: str) -> None:
    moment = start = int(datetime(2024, 1, 1, tzinfo=ZoneInfo(zone)).timestamp())

    lengths: list[int] = []
    while moment < start + 366 * 86_400:
        period = current(kind, None, ZoneInfo(zone), 1, moment)
        assert lengths == [] or period.start == moment
        assert period.end is not None
        lengths.append(period.end - period.start)
        moment = period.end

    usual = {"hour": 3600, "day": 86_400, "week": 7 * 86_400}[kind]
    assert sum(length != usual for length in lengths) <= 2
    assert all(abs(length - usual) <= 3600 for length in lengths)
