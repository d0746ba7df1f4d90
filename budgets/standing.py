"""How budgets stand now: their present period, what is used, held and left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from budgets.counters import Counter, redis_in_bytes
from budgets.limits import limit_now
from budgets.models import Budget
from budgets.periods import Calendar, in_words
from budgets.schedules import schedules_of


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget in its present period, by the clock of Redis.

    Instants are in the zone of the calendar that is followed; ``ends_at`` None:
    never. ``limit`` is the one that holds now, raises included. ``left`` is
    negative when the limit was lowered below what is used and held, None
    without a limit. ``follows`` is the calendar that is followed from
    ``ends_at`` on, if another was set.
    """

    budget: Budget
    calendar: Calendar
    starts_at: datetime
    ends_at: datetime | None
    limit: int | None
    used: int
    held: int
    left: int | None
    follows: Calendar | None

    @property
    def length(self) -> str:
        """The present period as people write it; it may be cut off where the calendar was changed."""
        return in_words(self.calendar.kind, self.calendar.seconds)


def standings(budgets: Sequence[Budget]) -> list[Standing]:
    """How ``budgets`` stand, in their order. Raises ``RedisError`` if Redis cannot be reached."""
    redis = redis_in_bytes()
    seconds, microseconds = redis.time()
    moment = seconds + microseconds / 1_000_000
    schedules = schedules_of(budgets)
    periods = [schedules[row.pk].period(moment) for row in budgets]
    pipeline = redis.pipeline(transaction=False)
    for row, period in zip(budgets, periods, strict=True):
        pipeline.hmget(Counter("budget", row.pk.hex, row.unit, period.start, period.end).key, "used", "held")
    found = []
    for row, period, figures in zip(budgets, periods, pipeline.execute(), strict=True):
        used, held = (int(figure or 0) for figure in figures)
        schedule, limit = schedules[row.pk], limit_now(row)
        calendar, follows = schedule.calendar(moment), schedule.next_change(moment)
        found.append(
            Standing(
                budget=row,
                calendar=calendar,
                starts_at=period.starts_at.astimezone(calendar.zone),
                ends_at=None if period.ends_at is None else period.ends_at.astimezone(calendar.zone),
                used=used,
                held=held,
                limit=limit,
                left=None if limit is None else limit - used - held,
                follows=follows and follows[1],
            )
        )
    return found
