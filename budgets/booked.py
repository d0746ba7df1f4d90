"""How budgets stand by the ledger's sums, for while Redis cannot be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.utils.timezone import now

from budgets.limits import limit_at
from budgets.models import Budget, BudgetPeriod
from budgets.schedules import schedules_of


@dataclass(frozen=True, slots=True)
class Booked:
    """What is booked on a budget in its present period, by the clock here.

    Of what is held, and of what came within the last minute, it knows nothing.
    ``limit`` is the one that holds now, raises included. ``ends_at`` None: never;
    instants are in the zone of the calendar that is followed. ``as_of`` is when
    something was last booked, else when the period began.
    """

    budget: Budget
    limit: int | None
    used: int
    starts_at: datetime
    ends_at: datetime | None
    as_of: datetime


def booked(budgets: Sequence[Budget]) -> list[Booked]:
    """How ``budgets`` stand as far as their calls are booked, in their order; calls of runs are left out."""
    moment = now().timestamp()
    schedules = schedules_of(budgets)
    periods = {row.pk: schedules[row.pk].period(moment) for row in budgets}
    sums = {
        (one.budget_id, one.period_start): one
        for one in BudgetPeriod.objects.filter(
            budget_id__in=periods, period_start__in={period.starts_at for period in periods.values()}, run=""
        )
    }
    found = []
    for row in budgets:
        period, zone = periods[row.pk], schedules[row.pk].calendar(moment).zone
        of_period = sums.get((row.pk, period.starts_at))
        found.append(
            Booked(
                budget=row,
                limit=limit_at(row, moment * 1000),
                used=of_period.used if of_period else 0,
                starts_at=period.starts_at.astimezone(zone),
                ends_at=period.ends_at and period.ends_at.astimezone(zone),
                as_of=of_period.last_at if of_period else period.starts_at,
            )
        )
    return found
