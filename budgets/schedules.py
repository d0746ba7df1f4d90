"""When the periods of budgets begin and end, changes of their calendars included.

A tenant's zone and week start and a budget's period may be changed at any
time, with plain SQL too: triggers keep what was before. Each change is followed
from the end of the period that was running when it was made, so it never hands
a budget out twice. That moment is worked out from the rows alone, so all
processes find the same.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.utils.timezone import now

from budgets.models import Budget, BudgetChange, BudgetPeriod
from budgets.periods import Calendar, Days, Period, Schedule
from tenants.models import CalendarChange, Tenant

logger = logging.getLogger(__name__)

# The zone and week start of budgets that belong to no tenant.
UTC_FROM_MONDAY = (ZoneInfo("UTC"), 1)

Change = tuple[datetime, dict[str, Any], dict[str, Any]]


def schedules_of(budgets: Collection[Budget]) -> dict[UUID, Schedule]:
    """The schedule of each budget by its id; their tenants are looked up unless they are selected too."""
    changes_of_tenants = _changes_of_tenants({row.tenant_id for row in budgets if row.tenant_id is not None})
    ids = [row.pk for row in budgets]
    changes_of_budgets: defaultdict[UUID, list[Change]] = defaultdict(list)
    for change in BudgetChange.objects.filter(budget_id__in=ids):
        changes_of_budgets[change.budget_id].append(
            (
                change.at,
                {"kind": change.period_before, "seconds": change.seconds_before},
                {"kind": change.period, "seconds": change.seconds},
            )
        )
    counted = _counted(ids)
    schedules = {}
    for row in budgets:
        # A budget that is made later than a change never followed what was before.
        changes = changes_of_tenants.get(row.tenant_id, []) if row.tenant_id is not None else []
        of_tenant = [change for change in changes if change[0] > row.created_at]
        schedule = _schedule(_present(row), of_tenant, changes_of_budgets[row.pk])
        schedules[row.pk] = replace(schedule, counted=counted.get(row.pk))
    return schedules


def days_of(tenant_ids: Collection[UUID]) -> dict[UUID, Days]:
    """The accounting days of those of the tenants that ever had another zone."""
    days = {}
    for tenant_id, changes in _changes_of_tenants(tenant_ids).items():
        schedule = _schedule(Calendar("day", None, **changes[-1][2]), changes)
        days[tenant_id] = Days(tuple((since, calendar.zone) for since, calendar in schedule.calendars))
    return days


def accounting_days(tenant_ids: Collection[UUID]) -> dict[UUID, Days]:
    """The accounting days of every one of the tenants; those of one that is gone are UTC's."""
    zones = dict(Tenant.objects.filter(pk__in=tenant_ids).values_list("pk", "time_zone"))
    always = {
        tenant_id: Days(((0, _zone(zones.get(tenant_id, "UTC"))),)) for tenant_id in tenant_ids
    }  # fmt: skip
    return always | days_of(tenant_ids)


def _present(row: Budget) -> Calendar:
    """The calendar that the settings of now name."""
    zone, week_start = UTC_FROM_MONDAY
    if row.tenant is not None:
        zone, week_start = _zone(row.tenant.time_zone), row.tenant.week_start
    return Calendar(row.period, row.seconds, zone, week_start)


def _schedule(present: Calendar, *histories: list[Change]) -> Schedule:
    """Follow the changes of all histories, each in its own order, from what was before them."""
    first = present
    for history in histories:
        if history:
            first = replace(first, **history[0][1])
    schedule, calendar = Schedule(((0, first),)), first
    for at, _, after in sorted(
        (change for history in histories for change in history), key=lambda one: one[0]
    ):
        calendar = replace(calendar, **after)
        schedule = schedule.changed(at.timestamp(), calendar)
    return schedule


def _changes_of_tenants(tenant_ids: Collection[UUID]) -> dict[UUID, list[Change]]:
    changes: dict[UUID, list[Change]] = {}
    if tenant_ids:
        for change in CalendarChange.objects.filter(tenant_id__in=tenant_ids):
            before = {"zone": _zone(change.time_zone_before), "week_start": change.week_start_before}
            after = {"zone": _zone(change.time_zone), "week_start": change.week_start}
            changes.setdefault(change.tenant_id, []).append((change.at, before, after))
    return changes


def _zone(name: str) -> ZoneInfo:
    """The zone of this name; UTC if there is none, which plain SQL can bring about."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        logger.error("there is no time zone %r, so UTC is taken", name)
        return ZoneInfo("UTC")


def _counted(budget_ids: list[UUID]) -> dict[UUID, Period]:
    """The present periods that the ledger knows; of several, which no calendar makes, the first."""
    moment = now()
    rows = (
        BudgetPeriod.objects.filter(budget_id__in=budget_ids, period_start__lte=moment, period_end__gt=moment)
        .order_by("-period_start")
        # One for all runs.
        .values_list("budget_id", "period_start", "period_end")
        .distinct()
    )
    return {
        budget_id: Period(int(start.timestamp()), int(end.timestamp()))
        for budget_id, start, end in rows
        if end is not None
    }
