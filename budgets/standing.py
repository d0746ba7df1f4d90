"""How budgets stand now: their present period, what is used, held and left, and until when it lasts."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from budgets.counters import Counter, redis_in_bytes
from budgets.limits import Limits, limit_at
from budgets.models import Budget, BudgetPeriod
from budgets.periods import Calendar, Period, Schedule, in_words
from budgets.schedules import schedules_of
from keys.above import LimitAhead
from tenants.clock import clock

# Before that, a pace says nothing.
SHORTEST_PACE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget in its present period, by the clock of Redis.

    Instants are in the zone of the calendar that is followed; ``ends_at`` None:
    never. ``limit`` is the one that holds now, raises included. ``left`` is
    negative when the limit was lowered below what is used and held, None
    without a limit. ``follows`` is the calendar that is followed from
    ``ends_at`` on, if another was set. ``refused`` counts the calls it refused,
    or in shadow mode would have. ``empty_at``: see the function of this name.
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
    refused: int
    empty_at: datetime | None

    @property
    def length(self) -> str:
        """The present period as people write it; it may be cut off where the calendar was changed."""
        return in_words(self.calendar.kind, self.calendar.seconds)

    @property
    def percent(self) -> int | None:
        """How much is used or held; None without a limit."""
        return None if self.limit is None else percent_of(self.limit, self.used + self.held)


def percent_of(limit: int, taken: int) -> int:
    """How much of a limit is taken, in whole percent, rounded down, 100 at most; of 0 nothing is left."""
    return min(100, taken * 100 // limit) if limit else 100


def standings(budgets: Sequence[Budget], *, late_seconds: int = 0) -> list[Standing]:
    """How ``budgets`` stand, in their order. Raises ``RedisError`` if Redis cannot be reached.

    With ``late_seconds`` a budget whose period began within these has a standing
    for the period before, too, in front of the present one.
    """
    if not budgets:
        return []
    schedules = schedules_of(budgets)
    moment, asked, counted = _counted(budgets, schedules, late_seconds)
    refused = _refused(asked)
    found = []
    for (row, period), (used, held) in zip(asked, counted, strict=True):
        schedule, limit = schedules[row.pk], limit_at(row, moment * 1000)
        within = min(moment, period.end - 1) if period.end is not None else moment
        calendar, follows = schedule.calendar(within), schedule.next_change(within)
        since = max(period.start, int(row.created_at.timestamp()))
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
                refused=refused.get((row.pk, period.start), 0),
                empty_at=empty_at(limit, used, since, int(moment), period.end),
            )
        )
    return found


def _counted(
    budgets: Sequence[Budget], schedules: Mapping[UUID, Schedule], late_seconds: int
) -> tuple[float, list[tuple[Budget, Period]], list[tuple[int, int]]]:
    """What Redis' clock says, the periods that are present then, and what is used and held of each.

    The clock is asked together with the counters, of which the guess of it says
    where they are; only where a period began between the two they are asked again.
    """
    moment = clock.now_ms() / 1000
    while True:
        asked = list(_periods(budgets, schedules, moment, late_seconds))
        pipeline = redis_in_bytes().pipeline(transaction=False)
        pipeline.time()
        for row, period in asked:
            counter = Counter("budget", row.pk.hex, row.unit, period.start, period.end)
            pipeline.hmget(counter.key, "used", "held")
        (seconds, microseconds), *figures = pipeline.execute()
        moment = seconds + microseconds / 1_000_000
        if asked == list(_periods(budgets, schedules, moment, late_seconds)):
            return moment, asked, [(int(used or 0), int(held or 0)) for used, held in figures]


def _periods(
    budgets: Sequence[Budget], schedules: Mapping[UUID, Schedule], moment: float, late_seconds: int
) -> Iterator[tuple[Budget, Period]]:
    for row in budgets:
        period = schedules[row.pk].period(moment)
        if period.start > 0 and moment - period.start < late_seconds:
            yield row, schedules[row.pk].period(period.start - 1)
        yield row, period


def _refused(asked: Sequence[tuple[Budget, Period]]) -> dict[tuple[UUID, int], int]:
    """How many calls were refused, by budget and start of the period; of all runs together."""
    rows = BudgetPeriod.objects.filter(
        refused__gt=0,
        budget_id__in={row.pk for row, _ in asked},
        period_start__in={period.starts_at for _, period in asked},
    )
    refused: Tally[tuple[UUID, int]] = Tally()
    for row in rows:
        refused[row.budget_id, int(row.period_start.timestamp())] += row.refused
    return refused


def empty_at(limit: int | None, used: int, since: int, moment: int, end: int | None) -> datetime | None:
    """When a budget is empty if it goes on as it did ``since``; seconds since 1970.

    None when that cannot be said: there is no limit, nothing is used or nothing
    left, too little time has gone by, or the period ends before.
    """
    elapsed = moment - since
    if limit is None or used <= 0 or used >= limit or elapsed < SHORTEST_PACE_SECONDS:
        return None
    empty = moment - (-(limit - used) * elapsed // used)
    if end is not None and empty >= end:
        return None
    try:
        return datetime.fromtimestamp(empty, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def ahead(limits: Limits, now_ms: float, *, counted: bool = True) -> list[LimitAhead]:
    """The limits of a caller that refuse, with what is left of them; those that refuse first in front.

    Limits of runs are left out: each run has its own. If not ``counted``, Redis
    is not asked, so nothing is known of what is used. Raises ``RedisError``.
    """
    hard = [limit.at(now_ms) for limit in limits.limits if limit.hard and limit.scope != "run"]
    counters = [limit.counter(now_ms) for limit in hard]
    used_and_held: dict[str, tuple[int, int]] = {}
    if counted:
        # Of the other kinds nothing is left over that could be used up.
        keys = [counter.key for counter in counters if counter.kind == "budget"]
        pipeline = redis_in_bytes().pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(key, "used", "held")
        for key, (used, held) in zip(keys, pipeline.execute(), strict=True):
            used_and_held[key] = int(used or 0), int(held or 0)
    found = []
    for limit, counter in zip(hard, counters, strict=True):
        if limit.limit is None:
            continue
        taken = used_and_held.get(counter.key)
        since = counter.start or 0
        found.append(
            LimitAhead(
                name=limit.name,
                scope=limit.scope,
                unit=limit.unit,
                window=limit.window,
                model=limit.model,
                upstream=limit.upstream,
                limit=limit.limit,
                used=taken and taken[0],
                held=taken and taken[1],
                left=taken and limit.limit - sum(taken),
                resets_at=None if counter.end is None else datetime.fromtimestamp(counter.end, UTC),
                empty_at=taken and empty_at(limit.limit, taken[0], since, int(now_ms / 1000), counter.end),
            )
        )
    never = datetime.max.replace(tzinfo=UTC)
    return sorted(found, key=lambda one: (one.empty_at or never, one.left is None, one.share_left, one.name))
