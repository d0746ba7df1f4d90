"""Which months are closed, and the lock that who books in a month and who closes it have to take.

Who books shares the lock of tenant and month until the end of the transaction,
by a trigger if not before; who closes has it alone. So while it is held, open
months stay open and closed ones closed.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date, datetime
from uuid import UUID

from django.db import connection
from django.utils.timezone import now

from budgets.models import ClosedMonth
from budgets.schedules import accounting_days

# A tenant's id, and the first day of a month.
Month = tuple[UUID, date]


def first_of(day: date) -> date:
    """The first day of the month of ``day``."""
    return day.replace(day=1)


def following(month: date) -> date:
    """The first day of the next month."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def month_written(text: str) -> date:
    """The first day of a month written like ``2026-10``; raises ``ValueError`` for anything else.

    A year before 2000 or after 2999 is a slip, and would get a statement with a number.
    """
    if not re.fullmatch(r"2\d{3}-\d{2}", text, re.ASCII):
        raise ValueError(f"{text!r} is no month. Example: 2026-10.")
    try:
        return date(int(text[:4]), int(text[5:]), 1)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no month. Example: 2026-10.") from exc


def share(months: Collection[Month]) -> set[Month]:
    """Keep these months as they are until the transaction ends; return those that are closed.

    Waits for a closing of one of them that runs.
    """
    if not months:
        return set()
    ordered = sorted(months)
    tenants, firsts = [tenant_id for tenant_id, _ in ordered], [month for _, month in ordered]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock_shared(tollgate_month_lock(tenant, month)) "
            "FROM unnest(%s::uuid[], %s::date[]) AS months (tenant, month)",
            [tenants, firsts],
        )
    closed = ClosedMonth.objects.filter(tenant_id__in=set(tenants), month__in=set(firsts), reopened_at=None)
    return set(closed.values_list("tenant_id", "month")) & set(ordered)


def take(tenant_id: UUID, month: date) -> None:
    """Let nobody book in a month until the transaction ends; waits for those who do."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(tollgate_month_lock(%s, %s))", [tenant_id, month])


def one_at_a_time(tenant_id: UUID) -> None:
    """Let nobody else close or open a month of a tenant until the transaction ends; waits for who does.

    Not a lock on the tenant's row: suspending a tenant must not wait for a closing.
    """
    # A month in which nobody books.
    take(tenant_id, date.min)


def open_days(tenant_ids: Collection[UUID], moment: datetime | None = None) -> dict[UUID, date]:
    """The day on which each tenant books what comes too late, in an open month that stays open.

    That is its accounting day of ``moment``, or of now; if that month is closed
    too, as after a clock was set, the first day of the next one that is not.
    """
    at = (moment or now()).timestamp()
    days = {tenant_id: one.date_of(at) for tenant_id, one in accounting_days(tenant_ids).items()}
    while closed := share({(tenant_id, first_of(day)) for tenant_id, day in days.items()}):
        days |= {tenant_id: following(month) for tenant_id, month in closed}
    return days
