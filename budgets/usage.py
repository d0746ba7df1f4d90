"""What the ledger says was used."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import QuerySet, Sum

from budgets.models import LedgerEntry
from keys.models import ApiKey
from tenants.models import Tenant

FIGURES = (
    "requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "thinking_tokens",
    "gpu_ms",
    "cost_micro_usd",
)
PARTS = {"key": ("key_id", "key"), "model": ("model",), "run": ("run",), "day": ("day",)}


def entries(
    tenant: Tenant,
    *,
    key: ApiKey | None = None,
    run: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[LedgerEntry]:
    """The entries of calls of ``tenant`` that ended in ``[since, until)``; without a bound, all.

    ``run`` empty: those of calls that belong to none.
    """
    found = LedgerEntry.objects.filter(tenant_id=tenant.pk)
    if key is not None:
        found = found.filter(key_id=key.pk)
    if run is not None:
        found = found.filter(run=run)
    if since is not None:
        found = found.filter(ended_at__gte=since)
    if until is not None:
        found = found.filter(ended_at__lt=until)
    return found


def totals(found: QuerySet[LedgerEntry]) -> dict[str, int]:
    """The sums of some entries."""
    sums = found.aggregate(**{f"sum_{figure}": Sum(figure) for figure in FIGURES})
    return {figure: int(sums[f"sum_{figure}"] or 0) for figure in FIGURES}


def by_part(found: QuerySet[LedgerEntry], part: str) -> list[dict[str, Any]]:
    """The sums for each ``key``, ``model``, ``run`` (empty: none) or ``day``, in its order."""
    columns = PARTS[part]
    rows = (
        found.order_by()
        .values(*columns)
        .annotate(**{f"sum_{figure}": Sum(figure) for figure in FIGURES})
        .order_by(columns[-1])
    )
    return [
        {column: str(row[column]) for column in columns}
        | {figure: int(row[f"sum_{figure}"]) for figure in FIGURES}
        for row in rows
    ]
