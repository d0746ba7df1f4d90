"""Which period a moment belongs to.

A period is half-open, ``[start, end)``, and follows from the calendar and the
moment alone: nothing is remembered, so nothing can drift. The periods of one
kind follow each other without gap or overlap in every zone.

Days, weeks, months and years begin at the first instant whose local date has
been reached. Where clocks skip midnight that is the moment they are moved;
where midnight comes twice, the first one. A day may so have 23, 24 or 25 hours.
Hours are those of the local clock face, and an hour that clocks repeat is two.
Fixed periods are counted on from 1970-01-01 00:00 UTC.

When a budget gets another calendar, the period that is running ends when it
would have ended, and the next one is the first of the new calendar, cut off at
its front. So no period is counted anew, however often calendars are changed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

HOUR = 3600
KINDS = ("hour", "day", "week", "month", "year", "lifetime")
# Seconds that a fixed period may last.
LENGTHS = range(60, 10 * 366 * 86_400 + 1)
_LENGTH = re.compile(r"([1-9]\d{0,8})([smhd])", re.ASCII)
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


def kind_and_seconds(text: str) -> tuple[str, int | None]:
    """What people write for a period: ``day``, or a length such as ``90m``, ``36h``, ``30d``.

    Returns the kind, and the seconds of a fixed period. Raises ``ValueError``
    for anything else.
    """
    if text in KINDS:
        return text, None
    if length := _LENGTH.fullmatch(text):
        seconds = int(length[1]) * _SECONDS[length[2]]
        if seconds not in LENGTHS:
            raise ValueError(f"{text} is no length of a period: it lasts from a minute to ten years.")
        return "fixed", seconds
    raise ValueError(f"{text!r} is no period: {', '.join(KINDS)}, or a length such as 90m, 36h, 30d.")


def in_words(kind: str, seconds: int | None) -> str:
    """A period as ``kind_and_seconds`` reads it."""
    if kind != "fixed" or not seconds:
        return kind
    unit, size = next((unit, size) for unit, size in _SECONDS.items() if seconds % size == 0)
    return f"{seconds // size}{unit}"


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


@dataclass(frozen=True, slots=True)
class Calendar:
    """What periods follow: ``kind`` and ``seconds`` as in ``current``, a zone and the first day of a week."""

    kind: str
    seconds: int | None
    zone: ZoneInfo
    week_start: int

    def period(self, moment: float) -> Period:
        return current(self.kind, self.seconds, self.zone, self.week_start, moment)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The calendars of one budget in their order, each with the second since 1970 from which it is followed.

    The first has been followed ever since. ``counted`` is a period the ledger
    has usage of: it stays as it is until it ends, also when a new edition of
    the time zones says that it began at another moment.
    """

    calendars: tuple[tuple[int, Calendar], ...]
    counted: Period | None = None

    def period(self, moment: float) -> Period:
        """The period that contains ``moment``."""
        if self.counted is not None and self.counted.contains(moment):
            return self.counted
        period = self.calendar(moment).period(moment)
        start, end = period.start, period.end
        cuts = [since for since, _ in self.calendars[1:]]
        if self.counted is not None:
            cuts += [self.counted.start, *([] if self.counted.end is None else [self.counted.end])]
        for cut in cuts:
            if start < cut <= moment:
                start = cut
            elif moment < cut and (end is None or cut < end):
                end = cut
        return Period(start, end)

    def calendar(self, moment: float) -> Calendar:
        """The calendar that is followed at ``moment``."""
        followed = [calendar for since, calendar in self.calendars[1:] if since <= moment]
        return followed[-1] if followed else self.calendars[0][1]

    def changed(self, at: float, calendar: Calendar) -> Schedule:
        """The schedule after ``calendar`` was set at ``at``: it follows when the period running then ends.

        A calendar that waited for the same moment is forgotten. A lifetime
        does not end, so nothing follows it.
        """
        kept = (self.calendars[0], *(later for later in self.calendars[1:] if later[0] <= at))
        end = Schedule(kept).period(at).end
        if end is None or kept[-1][1] == calendar:
            return Schedule(kept)
        return Schedule((*kept, (end, calendar)))

    def next_change(self, moment: float) -> tuple[int, Calendar] | None:
        """The calendar that will be followed next, and from which second on; None if this one stays."""
        return next((later for later in self.calendars[1:] if later[0] > moment), None)


@dataclass(frozen=True, slots=True)
class Days:
    """The accounting days of a tenant: its zones in their order, each with the second it is followed from.

    A zone is left when a day ends. A date that is over does not come again:
    where the new zone is behind, the first day in it is the longer for that.
    """

    zones: tuple[tuple[int, ZoneInfo], ...]

    def date_of(self, moment: float) -> date:
        """The date under which what ended at ``moment`` is reported."""
        ends = [since for since, _ in self.zones[1:]] + [moment]
        return max(
            # The date that had begun when the zone was left, or now.
            _local_date(zone, min(moment, end))
            for number, ((since, zone), end) in enumerate(zip(self.zones, ends, strict=True))
            if number == 0 or since <= moment
        )

    def begin(self, day: date) -> tuple[int, ZoneInfo]:
        """The first second that is reported under ``day`` or a later date, and the zone followed then."""
        ends = [since for since, _ in self.zones[1:]]
        begins = [max(since, _begin(zone, day)) for since, zone in self.zones]
        # A zone is left with the end of a day, so the next one may begin in that very second.
        begin = next((begin for begin, end in zip(begins, ends, strict=False) if begin <= end), begins[-1])
        return begin, next(zone for since, zone in reversed(self.zones) if since <= max(begin, 0))


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
    # A datetime is rounded to microseconds, up too: the last moment of a day would be one of the next.
    today = datetime.fromtimestamp(math.floor(moment), zone).date()
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
    offset = datetime.fromtimestamp(math.floor(moment), zone).utcoffset() or timedelta(0)
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
