"""What the ledger says was used: the one source of totals for pages, commands, exports and statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from django.db.models import F, Func, Q, QuerySet, Sum
from django.db.models.functions import TruncHour, TruncMonth

from budgets.models import LedgerEntry

# What every entry tells, and what is known of several besides: input and output of those not exact.
SUMS = (
    "requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "thinking_tokens",
    "gpu_ms",
    "cost_micro_usd",
)
FIGURES = (*SUMS[:5], "estimated_tokens", *SUMS[5:])

# By what usage is told apart: its columns, the last one to be read by people.
PARTS = {
    "tenant": ("tenant_id", "tenant"),
    "team": ("team_id", "team"),
    "member": ("member_id", "member"),
    "key": ("key_id", "key"),
    "model": ("model",),
    "upstream": ("upstream",),
    "operation": ("operation",),
    "route": ("route",),
    "run": ("run",),
    "hour": ("hour",),
    "day": ("day",),
    "month": ("month",),
}
# What a selection compares as it is.
SAME = ("tenant_id", "team_id", "member_id", "key_id", "model", "upstream", "operation", "route", "run")
_WORKED_OUT: dict[str, Func] = {"hour": TruncHour("ended_at"), "month": TruncMonth("day")}


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries of the ledger: whose, of what, and of when; what is None selects nothing out.

    Days are accounting days, ``[from_day, before_day)``; instants are those at
    which calls ended, ``[since, until)``. ``run`` empty: calls that belong to none.
    """

    tenant_id: UUID | None = None
    from_day: date | None = None
    before_day: date | None = None
    since: datetime | None = None
    until: datetime | None = None
    team_id: UUID | None = None
    member_id: UUID | None = None
    key_id: UUID | None = None
    model: str | None = None
    upstream: str | None = None
    operation: str | None = None
    route: str | None = None
    run: str | None = None

    def entries(self) -> QuerySet[LedgerEntry]:
        """The entries, in no particular order."""
        bounds = {
            "day__gte": self.from_day,
            "day__lt": self.before_day,
            "ended_at__gte": self.since,
            "ended_at__lt": self.until,
        }
        same = {name: getattr(self, name) for name in SAME}
        wanted = {name: value for name, value in (bounds | same).items() if value is not None}
        return LedgerEntry.objects.filter(**wanted).order_by()


def _sums() -> dict[str, Sum]:
    sums = {f"sum_{figure}": Sum(figure) for figure in SUMS}
    estimated = Sum(F("input_tokens") + F("output_tokens"), filter=Q(exact=False))
    return sums | {"sum_estimated_tokens": estimated}


def totals(selection: Selection) -> dict[str, int]:
    """The sums over a selection."""
    sums = selection.entries().aggregate(**_sums())
    return {figure: int(sums[f"sum_{figure}"] or 0) for figure in FIGURES}


def by_part(selection: Selection, part: str) -> list[dict[str, Any]]:
    """The sums for each of ``PARTS``, in its order; what has no name is empty, as a call of no run."""
    columns = PARTS[part]
    entries = selection.entries()
    if part in _WORKED_OUT:
        entries = entries.annotate(**{part: _WORKED_OUT[part]})
    rows = entries.values(*columns).annotate(**_sums()).order_by(*reversed(columns))
    return [
        {column: _text(row[column]) for column in columns}
        | {figure: int(row[f"sum_{figure}"] or 0) for figure in FIGURES}
        for row in rows
    ]


def estimated_share(figures: Mapping[str, Any]) -> int:
    """How much of the tokens of a sum is estimated, in per mille, rounded up: 0 means none.

    A sum that adjustments or corrections made odd is told as 0 to 1000 all the same.
    """
    tokens, estimated = figures["input_tokens"] + figures["output_tokens"], figures["estimated_tokens"]
    if estimated <= 0:
        return 0
    return 1000 if estimated >= tokens else -(-estimated * 1000 // tokens)


def in_percent(per_mille: int) -> str:
    """Per mille as people read it, such as ``12.5 %``."""
    return f"{per_mille // 10}.{per_mille % 10} %"


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, date) else str(value)
