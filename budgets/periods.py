"""Which period a moment belongs to.

A period is half-open, ``[start, end)``, and follows from the calendar and the
moment alone: nothing is remembered, so nothing can drift. The periods of one
kind follow each other without gap or overlap in every zone.

Days, weeks, months and years begin at the first instant whose local date has
been reached. Where clocks skip midnight that is the moment they are moved;
where midnight comes twice, the first one. A day may so have 23, 24 or 25 hours.
Hours are those of the local clock face, and an hour that clocks repeat is two.
Fixed periods are counted on from 1970-01-01 00:00 UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

HOUR = 3600


@dataclass(frozen=True, slots=True)
class Period:
    """``[start, end)`` in whole seconds since 1970; no ``end``: for ever."""

    start: int
    end: int | None

    def contains(self, moment: float) -> bool:
        return self.start <= moment and (self.end is None or moment < self.end)

    @property
    def starts_at(self) -> datetime:
        return datetime.fromtimestamp(self.start, UTC)

    @property
    def ends_at(self) -> datetime | None:
        return None if self.end is None else datetime.fromtimestamp(self.end, UTC)


def current(kind: str, seconds: int | None, zone: ZoneInfo, week_start: int, moment: float) -> Period:
    """The period of ``kind`` that contains ``moment`` (seconds since 1970).

    ``seconds`` is the length of a fixed period and unused otherwise;
    ``week_start`` is 1 for Monday to 7 for Sunday.
    """
    if kind == "lifetime":
        return Period(0, None)
    if kind == "fixed":
        if not seconds:
            raise ValueError("a fixed period has a length")
        start = int(moment // seconds) * seconds
        return Period(start, start + seconds)
    if kind == "hour":
        return _hour(zone, moment)
    first, following = _dates(kind, week_start, _local_date(zone, moment))
    return Period(_begin(zone, first), _begin(zone, following))


def _local_date(zone: ZoneInfo, moment: float) -> date:
    """The latest date that has begun; not the calendar's where clocks went back over midnight."""
    today = datetime.fromtimestamp(moment, zone).date()
    tomorrow = today + timedelta(days=1)
    return tomorrow if _begin(zone, tomorrow) <= moment else today


def _dates(kind: str, week_start: int, day: date) -> tuple[date, date]:
    """The first date of the period around ``day``, and of the one after."""
    if kind == "day":
        return day, day + timedelta(days=1)
    if kind == "week":
        first = day - timedelta(days=(day.isoweekday() - week_start) % 7)
        return first, first + timedelta(days=7)
    if kind == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=31)).replace(day=1)
    if kind == "year":
        return date(day.year, 1, 1), date(day.year + 1, 1, 1)
    raise ValueError(f"no such kind of period: {kind}")


def _begin(zone: ZoneInfo, day: date) -> int:
    """The first second whose local time is midnight of ``day`` or later."""
    before = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
    after = int(datetime(day.year, day.month, day.day, tzinfo=zone, fold=1).timestamp())
    if after >= before:
        return before
    # Midnight is skipped: it has the offset of before and of after the change, and the change is between.
    return _change(zone, after, before)


def _hour(zone: ZoneInfo, moment: float) -> Period:
    offset = _offset(zone, moment)
    start = int((moment + offset) // HOUR) * HOUR - offset
    end = start + HOUR
    # Where clocks move by other than whole hours, an hour ends or begins with the change.
    if (_offset(zone, start) - offset) % HOUR:
        start = _change(zone, start, int(moment))
    if (_offset(zone, end - 1) - offset) % HOUR:
        end = _change(zone, int(moment), end - 1)
    return Period(start, end)


def _offset(zone: ZoneInfo, moment: float) -> int:
    """Seconds by which the zone's clocks are ahead of UTC."""
    offset = datetime.fromtimestamp(moment, zone).utcoffset() or timedelta(0)
    return int(offset.total_seconds())


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The first second after ``low``, up to ``high``, at which the offset is no longer that of ``low``."""
    offset = _offset(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high
