"""When the accounting days of tenants begin and end, for queries that join them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from budgets.exports.queries import bounds_of
from budgets.periods import Days
from budgets.schedules import accounting_days
from budgets.usage import Selection
from tenants.models import Tenant

ALWAYS_UTC = Days(((0, ZoneInfo("UTC")),))

# Tenants by the calendar they share with others, and each day of each calendar. What the ledger
# knows of a tenant that is gone has the first calendar, UTC.
CTE = """
of_tenant AS (SELECT * FROM unnest(%s::uuid[], %s::int[]) AS of_tenant (tenant_id, calendar)),
of_day AS (
  SELECT * FROM unnest(%s::int[], %s::date[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
  AS of_day (calendar, day, time_zone, day_start, day_end, month_start, month_end)
)"""
JOIN = """
LEFT JOIN of_tenant ON of_tenant.tenant_id = e.tenant_id
LEFT JOIN of_day ON of_day.calendar = coalesce(of_tenant.calendar, 0) AND of_day.day = e.day"""


@dataclass(frozen=True, slots=True)
class Calendars:
    """The days of an export, and the calendars that its tenants follow, in the order of their numbers."""

    days: tuple[date, ...]
    number_of: dict[Tenant, int]
    calendars: tuple[Days, ...]

    def parameters(self) -> list[Any]:
        """What ``CTE`` asks for."""
        rows = [
            (number, day, *_described(calendar, day))
            for number, calendar in enumerate(self.calendars)
            for day in self.days
        ]
        tenant_ids = [tenant.pk for tenant in self.number_of]
        return [tenant_ids, list(self.number_of.values()), *map(list, zip(*rows, strict=True))]

    def zones(self) -> dict[str, list[str]]:
        """The zones that the days of each tenant followed, by its slug, in their order."""
        of_calendar = [
            list(dict.fromkeys(calendar.begin(day)[1].key for day in self.days))
            for calendar in self.calendars
        ]
        return {tenant.slug: of_calendar[number] for tenant, number in self.number_of.items()}


def calendars_for(selection: Selection) -> Calendars:
    """The calendars of the tenant of ``selection``, or of all, for each of its days."""
    from_day, before_day = bounds_of(selection)
    tenants = Tenant.objects.order_by("slug")
    if selection.tenant_id is not None:
        tenants = tenants.filter(pk=selection.tenant_id)
    found = list(tenants)
    days = accounting_days([tenant.pk for tenant in found])
    numbers = {ALWAYS_UTC: 0}
    number_of = {tenant: numbers.setdefault(days[tenant.pk], len(numbers)) for tenant in found}
    dates = tuple(from_day + timedelta(days=number) for number in range((before_day - from_day).days))
    return Calendars(dates, number_of, tuple(numbers))


def _described(calendar: Days, day: date) -> tuple[str, str, str, str, str]:
    """Zone, and in UTC begin and end of the day and of its month."""
    first = day.replace(day=1)
    begin, zone = calendar.begin(day)
    others = (day + timedelta(days=1), first, (first + timedelta(days=31)).replace(day=1))
    day_end, month_start, month_end = (_utc(calendar.begin(other)[0]) for other in others)
    return zone.key, _utc(begin), day_end, month_start, month_end


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
