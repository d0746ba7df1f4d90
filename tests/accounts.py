"""What the tests of months share: tenants with usage on the days that a test wants, booked by the drain."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db import connection
from django.utils.timezone import now

from audit import months
from budgets import booking, ledger
from budgets.counters import SETTLED, USAGE
from budgets.models import LedgerEntry, UsageRollup
from budgets.usage import FIGURES, Selection, totals
from tenants.ids import new_id
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.counting import as_fields, believed_by_postgres, empty_redis, redis

PRICE_ID = UUID(int=7)


def a_tenant(slug: str = "acme", zone: str = "Europe/Berlin", name: str = "ACME Laboratories") -> Tenant:
    return create_tenant(slug=slug, name=name, actor="test", time_zone=zone)


def quiet_counters() -> None:
    """Counters that everybody believes, PostgreSQL too."""
    empty_redis()
    believed_by_postgres()


def without_old_months() -> None:
    """Take away the partitions of months before this one, which tests before have left in the database."""
    for table in booking.BY_MONTH:
        for month, partition in months.partitions(table).items():
            if month < ago(0):
                with connection.cursor() as cursor:
                    cursor.execute(f'DROP TABLE "{partition}"')
    months.forget_what_is_known()


def ago(count: int) -> date:
    """The first day of the month so many months before the present one (UTC)."""
    number = now().year * 12 + now().month - 1 - count
    return date(number // 12, number % 12 + 1, 1)


def on(day: date, clock: str = "12:00", zone: str = "Europe/Berlin") -> datetime:
    """A moment of a day on the clocks of a zone."""
    return datetime.combine(day, time.fromisoformat(clock), ZoneInfo(zone))


def settled(
    tenant: Tenant,
    ended_at: datetime,
    *,
    request_id: UUID | None = None,
    kind: str = "usage",
    first: dict[str, Any] | None = None,
    outcome: str = "completed",
    key_id: UUID | None = None,
    key: str = "nightly",
    model: str = "tiny:1b",
    route: str = "chat",
    exact: bool = True,
    **figures: int,
) -> UUID:
    """Put the record of a call that ended then behind the others that wait for the ledger."""
    request_id = request_id or new_id()
    moment = int(ended_at.timestamp() * 1000)
    call = {
        "request_id": str(request_id), "tenant_id": str(tenant.pk), "tenant": tenant.slug,
        "team_id": None, "team": "", "member_id": None, "member": "",
        "key_id": str(key_id or UUID(int=1)), "key": key, "model": model, "upstream": "main",
        "route": route, "operation": "chat", "dialect": "OLLAMA", "stream": True, "run": "",
        "time_zone": tenant.time_zone, "price": [str(PRICE_ID), 300_000, 30_000, 1_000_000, 5],
        "counters": [],
    }  # fmt: skip
    worth = {
        "requests": 1, "input_tokens": 10, "cached_tokens": 0, "output_tokens": 20, "thinking_tokens": 0,
        "gpu_ms": 1500, "cost_micro_usd": 23,
    }  # fmt: skip
    end = {
        "outcome": outcome, "status": 200, "refusal": "", **worth, **figures, "exact": exact,
        "load_ns": None, "prompt_ns": None, "output_ns": None,
        "admitted_ms": moment - 1000, "started_ms": None, "first_byte_ms": None,
    }  # fmt: skip
    told = {"kind": kind, "at": moment, "call": call, "end": end}
    if first is not None:
        told["first"] = worth | dict.fromkeys(("load_ns", "prompt_ns", "output_ns")) | first
    redis().xadd(USAGE, as_fields(told))
    redis().incr(SETTLED)
    return request_id


def used(tenant: Tenant, ended_at: datetime, **what: Any) -> LedgerEntry:
    """A call that ended then, in the ledger."""
    request_id = settled(tenant, ended_at, **what)
    ledger.drain()
    return LedgerEntry.objects.get(request_id=request_id, kind=what.get("kind", "usage"))


def of_ledger(tenant: Tenant) -> dict[str, int]:
    return totals(Selection(tenant_id=tenant.pk))


def of_rollups(tenant: Tenant) -> dict[str, int]:
    rows = UsageRollup.objects.filter(tenant_id=tenant.pk)
    return {figure: sum(getattr(row, figure) for row in rows) for figure in FIGURES}


def today(tenant: Tenant) -> date:
    """The tenant's date."""
    return now().astimezone(ZoneInfo(tenant.time_zone)).date()
