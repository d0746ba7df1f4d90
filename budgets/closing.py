"""Closing periods: what a budget's period came to, once it is over and all its calls are booked.

Nothing waits for this: a period ends by the clock, whether it is closed or not.
Only periods that have a row in ``BudgetPeriod`` are closed, so of a period in
which nothing was used or refused there is no closing. Nor is there of single
runs: they are many, and nobody waits for the end of their day.

A period is closed when no call holds room in it any more and the ledger has
all that these calls settled. What turns up later still (a process was cut off
for longer than its lease, or its disk held settlements) is counted as ever,
leaves the closing as it is and is told beside it, as late usage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import F, QuerySet
from django.utils.timezone import now

from audit.models import AuditEvent
from audit.recording import record
from budgets import ledger
from budgets.counters import EPOCH, redis_in_bytes
from budgets.limits import Raise, raised
from budgets.models import (
    Budget,
    BudgetChange,
    BudgetPeriod,
    CounterEpoch,
    LateUsage,
    PeriodClosing,
    SpooledSettlement,
)
from budgets.periods import Schedule
from budgets.schedules import schedules_of
from budgets.visitors import FIRST_ID
from tenants.redis import PARTITION

ACTOR = "tollgate"
# Longer than the clock of Redis may go back unnoticed.
PATIENCE = timedelta(seconds=60)
BATCH = 500


def close_periods() -> int:
    """Close the periods that are over and booked; return how many.

    A repeat closes nothing twice, nor do two at the same time. Returns 0 while
    counters cannot be believed or settlements wait in the spool: they may
    belong to any period. Raises ``RedisError`` and Django's ``db.Error``.
    """
    redis = redis_in_bytes()
    known = CounterEpoch.objects.values_list("epoch", flat=True).first()
    if known is None or redis.get(EPOCH) != known.encode():
        return 0
    # Over by both clocks: one of them may have jumped.
    over = min(now(), datetime.fromtimestamp(redis.time()[0], UTC)) - PATIENCE
    # Nobody waits for what a visitor's day came to, nor a run.
    past = BudgetPeriod.objects.filter(told=None, run="", period_end__lte=over, budget_id__lt=FIRST_ID)
    quiet = _nothing_held(past.order_by("period_end"))
    if not quiet or SpooledSettlement.objects.exists():
        return 0
    # Nothing is held, so all that was settled stands before this in the stream.
    settled_to = ledger.newest()
    ledger.drain()
    if not ledger.has(settled_to):
        return 0
    return sum(_close(quiet[start : start + BATCH]) for start in range(0, len(quiet), BATCH))


@transaction.atomic
def note_late_usage() -> int:
    """Write down what was booked on periods after they were closed; return for how many that was."""
    late = BudgetPeriod.objects.exclude(told=None).exclude(told=F("used"))
    rows = list(late.select_for_update(skip_locked=True).order_by("period_end")[:BATCH])
    closings = {
        (closing.budget_id, closing.period_start): closing
        for closing in PeriodClosing.objects.filter(
            budget_id__in=[row.budget_id for row in rows],
            period_start__in=[row.period_start for row in rows],
        )
    }
    for row in rows:
        closing = closings[row.budget_id, row.period_start]
        used = row.used - (row.told or 0)
        LateUsage.objects.create(closing=closing, used=used)
        record(
            action="budget.late_usage",
            actor=ACTOR,
            subject=str(row.budget_id),
            tenant_id=closing.tenant_id,
            what=closing.budget,
            period_start=row.period_start,
            used=used,
        )
        row.told = row.used
    BudgetPeriod.objects.bulk_update(rows, ["told"])
    return len(rows)


def not_notified() -> QuerySet[PeriodClosing]:
    """The closings nobody has been told of, the oldest first."""
    return PeriodClosing.objects.filter(notified_at=None).order_by("closed_at")


def notified(closings: Iterable[PeriodClosing]) -> int:
    """Note that people have been told of these closings; return for how many that was new."""
    ids = [closing.pk for closing in closings]
    return PeriodClosing.objects.filter(pk__in=ids, notified_at=None).update(notified_at=now())


def _nothing_held(rows: QuerySet[BudgetPeriod]) -> list[int]:
    """The ids of those periods in which no call holds room."""
    quiet, redis = [], redis_in_bytes()
    every = list(rows.values_list("pk", "budget_id", "period_start"))
    for start in range(0, len(every), BATCH):
        batch = every[start : start + BATCH]
        pipeline = redis.pipeline(transaction=False)
        for _, budget_id, period_start in batch:
            pipeline.hget(f"{PARTITION}:budget:{budget_id.hex}:{int(period_start.timestamp())}", "held")
        held = pipeline.execute()
        quiet += [pk for (pk, _, _), number in zip(batch, held, strict=True) if not int(number or 0)]
    return quiet


@transaction.atomic
def _close(ids: Sequence[int]) -> int:
    rows = list(
        BudgetPeriod.objects.select_for_update(skip_locked=True).filter(pk__in=ids, told=None).order_by("pk")
    )
    budgets = _Budgets.of({row.budget_id for row in rows})
    PeriodClosing.objects.bulk_create([budgets.closing_of(row) for row in rows])
    for row in rows:
        row.told = row.used
    BudgetPeriod.objects.bulk_update(rows, ["told"])
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Budgets:
    """What is known of budgets whose periods are closed; of removed ones, what the audit says."""

    present: dict[UUID, Budget]
    schedules: dict[UUID, Schedule]
    changes: dict[UUID, list[BudgetChange]]
    removed: dict[UUID, AuditEvent]

    @classmethod
    def of(cls, ids: Collection[UUID]) -> _Budgets:
        rows = Budget.objects.filter(pk__in=ids).select_related("tenant", "team", "member__user", "key")
        present = {row.pk: row for row in rows.prefetch_related("raises")}
        changes: dict[UUID, list[BudgetChange]] = {}
        for change in BudgetChange.objects.filter(budget_id__in=present):
            changes.setdefault(change.budget_id, []).append(change)
        gone = [str(pk) for pk in ids if pk not in present]
        events = AuditEvent.objects.filter(action="budget.removed", subject__in=gone)
        removed = {UUID(event.subject): event for event in events}
        return cls(present, schedules_of(list(present.values())), changes, removed)

    def closing_of(self, row: BudgetPeriod) -> PeriodClosing:
        if row.period_end is None:
            raise ValueError("a period without an end is never over")
        closing = PeriodClosing(
            budget_id=row.budget_id,
            period_start=row.period_start,
            period_end=row.period_end,
            used=row.used,
            refused=row.refused,
            time_zone="UTC",
        )
        budget, removed = self.present.get(row.budget_id), self.removed.get(row.budget_id)
        if budget is not None:
            calendar = self.schedules[budget.pk].calendar(row.period_start.timestamp())
            closing.tenant_id, closing.budget, closing.unit = budget.tenant_id, str(budget), budget.unit
            closing.shadow, closing.time_zone = budget.shadow, calendar.zone.key
            closing.limit = self._limit_of(budget, row.period_end)
        elif removed is not None:
            closing.tenant_id = removed.tenant_id
            closing.budget, closing.limit = removed.details["what"], removed.details["limit"]
        return closing

    def _limit_of(self, budget: Budget, ended_at: datetime) -> int | None:
        """The limit that held when a period ended, raises included."""
        later = [change for change in self.changes.get(budget.pk, []) if change.at >= ended_at]
        limit = later[0].limit_before if later else budget.limit
        holding = [
            Raise(0, 0, one.to, one.by)
            for one in budget.raises.all()
            if one.starts_at < ended_at <= one.ends_at
            and (one.taken_back_at is None or one.taken_back_at >= ended_at)
        ]
        return raised(limit, holding)
