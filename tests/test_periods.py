"""Which period a moment belongs to: the calendar's cases, and what holds in every zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.periods import current, in_words, kind_and_seconds

ZONES = sorted(available_timezones())
KINDS = ["hour", "day", "week", "month", "year"]


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


# Kind, week start, zone, a moment, first and last but one instant of its period: all but the zone in UTC.
BOUNDARIES = [
    # Half-open: the last moment of one, the first of the next.
    ("day", 1, "UTC", "2026-03-01T23:59:59.999999", "2026-03-01T00:00", "2026-03-02T00:00"),
    ("day", 1, "UTC", "2026-03-02T00:00", "2026-03-02T00:00", "2026-03-03T00:00"),
    ("hour", 1, "UTC", "2026-03-01T23:59:59.999999", "2026-03-01T23:00", "2026-03-02T00:00"),
    ("hour", 1, "UTC", "2026-03-02T00:00", "2026-03-02T00:00", "2026-03-02T01:00"),
    # Weeks by their first day.
    ("week", 1, "UTC", "2026-03-01T12:00", "2026-02-23T00:00", "2026-03-02T00:00"),
    ("week", 7, "UTC", "2026-03-01T12:00", "2026-03-01T00:00", "2026-03-08T00:00"),
    ("week", 6, "UTC", "2026-03-01T12:00", "2026-02-28T00:00", "2026-03-07T00:00"),
    ("week", 1, "UTC", "2027-01-01T12:00", "2026-12-28T00:00", "2027-01-04T00:00"),
    ("week", 1, "Europe/Berlin", "2026-03-29T12:00", "2026-03-22T23:00", "2026-03-29T22:00"),
    ("week", 7, "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-31T23:00"),
    # Months and years of the calendar, leap years among them.
    ("month", 1, "UTC", "2026-02-28T23:59:59", "2026-02-01T00:00", "2026-03-01T00:00"),
    ("month", 1, "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
    ("month", 1, "UTC", "2100-02-28T12:00", "2100-02-01T00:00", "2100-03-01T00:00"),
    ("month", 1, "UTC", "2000-02-29T12:00", "2000-02-01T00:00", "2000-03-01T00:00"),
    ("month", 1, "UTC", "2026-01-31T00:00", "2026-01-01T00:00", "2026-02-01T00:00"),
    ("month", 1, "UTC", "2026-04-30T23:59", "2026-04-01T00:00", "2026-05-01T00:00"),
    ("month", 1, "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
    ("month", 1, "Europe/Berlin", "2026-03-15T12:00", "2026-02-28T23:00", "2026-03-31T22:00"),
    ("month", 1, "Pacific/Kiritimati", "2026-12-31T10:00", "2026-12-31T10:00", "2027-01-31T10:00"),
    ("month", 1, "Pacific/Pago_Pago", "2027-01-01T10:59:59", "2026-12-01T11:00", "2027-01-01T11:00"),
    ("year", 1, "UTC", "2028-12-31T23:59:59", "2028-01-01T00:00", "2029-01-01T00:00"),
    ("year", 1, "Europe/Berlin", "2026-12-31T23:00", "2026-12-31T23:00", "2027-12-31T23:00"),
    ("year", 1, "Pacific/Apia", "2011-06-01T00:00", "2011-01-01T10:00", "2011-12-31T10:00"),
    # Zones off the hour.
    ("day", 1, "Asia/Kolkata", "2026-03-01T18:30", "2026-03-01T18:30", "2026-03-02T18:30"),
    ("hour", 1, "Asia/Kolkata", "2026-03-02T10:29:59", "2026-03-02T09:30", "2026-03-02T10:30"),
    ("day", 1, "Asia/Kathmandu", "2026-03-01T18:14:59", "2026-02-28T18:15", "2026-03-01T18:15"),
    ("hour", 1, "Asia/Kathmandu", "2026-03-01T18:15", "2026-03-01T18:15", "2026-03-01T19:15"),
    ("hour", 1, "Australia/Eucla", "2026-03-01T00:15", "2026-03-01T00:15", "2026-03-01T01:15"),
    ("day", 1, "America/St_Johns", "2026-07-01T12:00", "2026-07-01T02:30", "2026-07-02T02:30"),
    ("day", 1, "Pacific/Chatham", "2026-01-01T12:00", "2026-01-01T10:15", "2026-01-02T10:15"),
    # 23 and 25 hours.
    ("day", 1, "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
    ("day", 1, "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
    ("day", 1, "America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00"),
    ("day", 1, "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
    ("day", 1, "America/New_York", "2026-11-02T04:59:59", "2026-11-01T04:00", "2026-11-02T05:00"),
    # Clocks that move by half an hour.
    ("day", 1, "Australia/Lord_Howe", "2026-04-05T00:00", "2026-04-04T13:00", "2026-04-05T13:30"),
    ("day", 1, "Australia/Lord_Howe", "2026-10-04T00:00", "2026-10-03T13:30", "2026-10-04T13:00"),
    ("hour", 1, "Australia/Lord_Howe", "2026-10-03T15:30", "2026-10-03T15:30", "2026-10-03T16:00"),
    # Midnight does not exist: the day begins when clocks are moved.
    ("day", 1, "Africa/Cairo", "2024-04-26T12:00", "2024-04-25T22:00", "2024-04-26T21:00"),
    ("day", 1, "America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),
    ("day", 1, "Asia/Beirut", "2026-03-29T12:00", "2026-03-28T22:00", "2026-03-29T21:00"),
    ("day", 1, "America/Santiago", "2026-09-06T12:00", "2026-09-06T04:00", "2026-09-07T03:00"),
    ("month", 1, "Asia/Amman", "2016-04-01T12:00", "2016-03-31T22:00", "2016-04-30T21:00"),
    # Midnight comes twice: the day begins with the first, and does not end at 23:00 for the second time.
    ("day", 1, "America/Havana", "2024-11-03T12:00", "2024-11-03T04:00", "2024-11-04T05:00"),
    ("day", 1, "America/St_Johns", "2006-10-29T12:00", "2006-10-29T02:30", "2006-10-30T03:30"),
    ("day", 1, "America/St_Johns", "2006-10-29T02:45", "2006-10-29T02:30", "2006-10-30T03:30"),
    ("day", 1, "Africa/Cairo", "2024-10-31T20:30", "2024-10-30T21:00", "2024-10-31T22:00"),
    # A day that a zone skipped, and one it had twice.
    ("day", 1, "Pacific/Apia", "2011-12-30T09:59:59", "2011-12-29T10:00", "2011-12-30T10:00"),
    ("day", 1, "Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00"),
    ("month", 1, "Pacific/Apia", "2011-12-30T10:00", "2011-12-01T10:00", "2011-12-31T10:00"),
    ("week", 1, "Pacific/Apia", "2011-12-30T10:00", "2011-12-26T10:00", "2012-01-01T10:00"),
    ("day", 1, "Pacific/Kwajalein", "1993-08-21T12:00", "1993-08-21T12:00", "1993-08-22T12:00"),
]  # fmt: skip


def test_the_table_has_the_cases_that_were_promised() -> None:
    assert len(BOUNDARIES) == len(set(BOUNDARIES)) >= 40


@pytest.mark.parametrize(("kind", "week_start", "zone", "moment", "start", "end"), BOUNDARIES)
def test_d4_periods_follow_the_local_calendar(
    kind: str, week_start: int, zone: str, moment: str, start: str, end: str
) -> None:
    period = current(kind, None, ZoneInfo(zone), week_start, at(moment).timestamp())

    assert (period.starts_at, period.ends_at) == (at(start), at(end))


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


@pytest.mark.parametrize("kind", ["day", "week", "month"])
def test_d3_a_year_in_every_zone_is_periods_without_gap_or_overlap(kind: str) -> None:
    for name in ZONES:
        zone = ZoneInfo(name)
        moment = start = int(datetime(2026, 1, 1, tzinfo=zone).timestamp())
        while moment < start + 366 * 86_400:
            period = current(kind, None, zone, 1, moment)
            assert period.start == moment or moment == start, (name, moment)
            assert period.end is not None
            assert period.end > moment, (name, moment)
            moment = period.end


@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "America/Havana", "Africa/Cairo", "Asia/Kathmandu"])
def test_a_year_of_hours_is_the_whole_year(zone: str) -> None:
    moment = start = int(datetime(2024, 1, 1, tzinfo=ZoneInfo(zone)).timestamp())

    lengths: list[int] = []
    while moment < start + 366 * 86_400:
        period = current("hour", None, ZoneInfo(zone), 1, moment)
        assert (period.start, period.contains(moment)) == (moment, True)
        assert period.end is not None
        lengths.append(period.end - period.start)
        moment = period.end

    assert set(lengths) <= {1800, 3600}


def test_d2_a_boundary_does_not_depend_on_when_it_is_asked_for() -> None:
    on_time = current("day", None, ZoneInfo("Asia/Tokyo"), 1, at("2026-03-02T15:00:00").timestamp())
    seven_hours_late = current("day", None, ZoneInfo("Asia/Tokyo"), 1, at("2026-03-02T22:00:00").timestamp())

    assert seven_hours_late == on_time


@pytest.mark.parametrize("day", [28, 29, 30, 31])
def test_d8_a_month_is_one_of_the_calendar_whichever_of_its_days_is_asked(day: int) -> None:
    for year in (2027, 2028):
        for month in range(1, 13):
            following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            last = following - timedelta(days=1)
            asked = last.replace(day=min(day, last.day), hour=12)

            period = current("month", None, ZoneInfo("UTC"), 1, asked.timestamp())

            assert (period.starts_at, period.ends_at) == (last.replace(day=1), following)


@pytest.mark.parametrize(
    ("text", "kind", "seconds"),
    [
        ("day", "day", None), ("lifetime", "lifetime", None), ("90m", "fixed", 5400),
        ("36h", "fixed", 129_600), ("30d", "fixed", 2_592_000), ("90s", "fixed", 90),
    ],
)  # fmt: skip
def test_people_write_periods_as_they_are_read(text: str, kind: str, seconds: int | None) -> None:
    assert kind_and_seconds(text) == (kind, seconds)
    assert in_words(kind, seconds) == text


@pytest.mark.parametrize(
    "text", ["", "fixed", "Day", "0h", "1.5h", "-1d", "1w", "h", "10", "59s", "9999d", "٣d", "1d 2h", "1d\n"]
)
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        kind_and_seconds(text)
