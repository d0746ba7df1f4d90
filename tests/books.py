"""Whether the books add up: what must hold of Redis and PostgreSQL whenever no call runs."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from django.db.models import Sum

from audit.models import RequestEvent
from budgets import booking
from budgets.counters import DRAINED, HOLDS, SETTLED, redis_in_bytes
from budgets.holds import holds_of
from budgets.models import Budget, BudgetPeriod, LedgerEntry, ParkedRecord, SpooledSettlement, UsageRollup
from budgets.usage import SUMS
from tenants.models import Tenant
from tenants.redis import PARTITION


def what_is_underway() -> Iterator[str]:
    """Every hold, lease, settlement and record that has not ended yet, in words."""
    redis = redis_in_bytes()
    for key in redis.keys(f"{PARTITION}:budget:*"):
        if int(redis.hget(key, "held") or 0):
            yield f"{key.decode()} holds {redis.hgetall(key)}"
    for key in redis.keys(f"{PARTITION}:leases:*"):
        yield f"{key.decode()} has leases {redis.zrange(key, 0, -1)}"
    for key in redis.keys(f"{PARTITION}:hold:*"):
        if holds_of([key.decode().rpartition(":")[2]]) != [None]:
            yield f"{key.decode()} is open"
    if redis.zcard(HOLDS):
        yield f"open holds: {redis.zrange(HOLDS, 0, -1)}"
    if int(redis.get(SETTLED) or 0) != int(redis.get(DRAINED) or 0):
        yield f"{redis.get(SETTLED)} records settled, {redis.get(DRAINED)} drained"
    for parked in ParkedRecord.objects.all():
        yield f"parked: {parked.record}: {parked.reason}"
    for spooled in SpooledSettlement.objects.all():
        yield f"spooled: {spooled.settlement}"


def disagreements(tenants: Sequence[Tenant], *, flushed_at: float = 0.0) -> Iterator[str]:
    """Where entries, rollups and request events, or entries, budget periods and counters, differ.

    ``tenants`` are all whose calls there were. Counters of periods that were
    over when Redis was last flushed are not brought back and not looked at.
    """
    mine = {"tenant_id__in": [tenant.pk for tenant in tenants]}
    sums = {name: Sum(name) for name in SUMS}
    entries, rollups = (kind.objects.filter(**mine).aggregate(**sums) for kind in (LedgerEntry, UsageRollup))
    if entries != rollups:
        yield f"ledger {entries}, rollups {rollups}"
    booked = set(LedgerEntry.objects.filter(**mine, kind="usage").values_list("request_id", flat=True))
    events = {event.request_id for event in RequestEvent.objects.filter(**mine).exclude(outcome="refused")}
    if events != booked:
        yield f"entries without an event {booked - events}, events without an entry {events - booked}"
    redis = redis_in_bytes()
    counters = {
        key.decode(): int(redis.hget(key, "used") or 0) for key in redis.keys(f"{PARTITION}:budget:*")
    }
    periods = {
        f"{PARTITION}:budget:{row.budget_id.hex}:{int(row.period_start.timestamp())}"
        + (f":{row.run}" if row.run else ""): row.used
        for row in BudgetPeriod.objects.all()
    }
    gone = {
        int(row.period_start.timestamp())
        for row in BudgetPeriod.objects.exclude(period_end=None)
        if row.period_end is not None and row.period_end.timestamp() <= flushed_at
    }
    for key in counters.keys() | periods.keys():
        if int(key.split(":")[3]) in gone:
            continue
        if counters.get(key, 0) != periods.get(key, 0):
            yield f"{key}: counter {counters.get(key)}, ledger {periods.get(key)}"
    used: Tally[str] = Tally()
    for row in BudgetPeriod.objects.all():
        used[row.budget_id.hex] += row.used
    for budget in Budget.objects.exclude(scope__in=["model", "upstream", "run"]):
        whose = {"tenant": {"tenant_id": budget.tenant_id}, "key": {"key_id": budget.key_id}}
        found = LedgerEntry.objects.filter(**mine, **whose.get(budget.scope, {}))
        summed = sum(booking.amount_of(budget.unit, row) for row in found)
        if summed != used[budget.id.hex]:
            yield f"{budget}: entries {summed}, periods {used[budget.id.hex]}"
