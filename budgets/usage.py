"""What the ledger says was used: the one source of totals for pages, commands, exports and statements.

The drain adds to the rollups in the transaction that inserts the entries, so
both say the same. Whoever shows usage asks for a ``breakdown``, which reads the
rollups where they know enough; ``totals`` and ``by_part`` always add up entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db.models import BigIntegerField, DecimalField, F, Func, Max, Min, Q, QuerySet, Sum, Window
from django.db.models.functions import Coalesce, TruncHour, TruncMonth
from django.utils.formats import number_format

from budgets.models import LedgerEntry, UsageRollup
from keys.models import ApiKey
from tenants.models import Member, Team, Tenant

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
    "request": ("request",),
}
# What rollups do not know.
ONLY_ENTRIES = frozenset({"run", "request"})
# Of what has an id: where it stands while it exists.
_LIVE: dict[str, Any] = {"tenant": Tenant, "team": Team, "member": Member, "key": ApiKey}

# What a selection compares as it is.
SAME = ("tenant_id", "team_id", "member_id", "key_id", "model", "upstream", "operation", "route", "run")
# The id of no team or member: selects what belongs to none.
NONE = UUID(int=0)

Figures = dict[str, int]
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries of the ledger: whose, of what, and of when; what is None selects nothing out.

    Days are accounting days, ``[from_day, before_day)``; instants are those at
    which calls ended, ``[since, until)``. ``run`` empty, and a team or member
    of ``NONE``: calls that belong to none; ``route`` empty: those of which nobody
    knows it any more. ``request_id``: what was booked of a request, and what was
    corrected of it.
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
    request_id: UUID | None = None

    def entries(self) -> QuerySet[LedgerEntry]:
        """The entries, in no particular order."""
        entries = LedgerEntry.objects.filter(**self._wanted("ended_at"))
        if self.request_id is not None:
            entries = entries.filter(
                Q(request_id=self.request_id, corrects=None) | Q(corrects=self.request_id)
            )
        return entries.order_by()

    def rollups(self) -> QuerySet[UsageRollup] | None:
        """Rollups that add up to the same, in no particular order; None if there are none such."""
        unknown = (self.run, self.request_id)
        if any(value is not None for value in unknown) or not all(
            at is None or at.timestamp() % 3600 == 0 for at in (self.since, self.until)
        ):
            return None
        return UsageRollup.objects.filter(**self._wanted("hour_start")).order_by()

    def _wanted(self, instant: str) -> dict[str, Any]:
        bounds = {
            "day__gte": self.from_day,
            "day__lt": self.before_day,
            f"{instant}__gte": self.since,
            f"{instant}__lt": self.until,
        }
        same: dict[str, Any] = {name: getattr(self, name) for name in SAME}
        none = {f"{name}__isnull": True for name, value in same.items() if value == NONE}
        wanted = (bounds | same).items()
        return none | {name: value for name, value in wanted if value is not None and value != NONE}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A selection and its parts, read at one moment, so that the parts add up to the whole.

    Each row has the columns of each part in ``by``, as text, and ``FIGURES``;
    ``deleted`` lists those of its parts that do not exist any more. A thing has
    the name that it had last among what was selected. ``rest`` is what is not
    in ``rows``: that of ``left_out`` further parts.
    """

    by: tuple[str, ...]
    rows: Rows
    total: Figures
    left_out: int = 0

    @property
    def rest(self) -> Figures:
        return {figure: self.total[figure] - sum(row[figure] for row in self.rows) for figure in FIGURES}


def breakdown(
    selection: Selection,
    by: Sequence[str],
    *,
    order: str = "",
    limit: int | None = None,
    from_ledger: bool = False,
) -> Breakdown:
    """The sums for each combination of ``by``, of which there may be any number.

    ``order`` is one of ``FIGURES``, with ``-`` before it from the largest down;
    without it rows come in the order of their parts. ``limit``: that many rows
    at most. Raises ``ValueError`` for a part or an order that there is not.
    """
    by = tuple(dict.fromkeys(by))
    if unknown := [part for part in by if part not in PARTS]:
        raise ValueError(f"no such part: {', '.join(unknown)}")
    if order and order.removeprefix("-") not in FIGURES:
        raise ValueError(f"no such figure: {order}")
    rollups = None if from_ledger or ONLY_ENTRIES & set(by) else selection.rollups()
    source: QuerySet[Any] = selection.entries() if rollups is None else rollups
    sums = _sums(estimates_known=rollups is not None)
    if not by:
        found = source.aggregate(**sums)
        return Breakdown(by, [], _figures(found, "sum"))
    groups = _grouped(source, by, _worked_out(from_rollups=rollups is not None), sums, order)
    return _as_breakdown(selection, by, list(groups[:limit] if limit else groups))


def totals(selection: Selection) -> Figures:
    """The sums over a selection."""
    return breakdown(selection, (), from_ledger=True).total


def by_part(selection: Selection, part: str) -> Rows:
    """The sums for each of one of ``PARTS``, in its order; what has no name is empty, as a call of no run."""
    return breakdown(selection, (part,), from_ledger=True).rows


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
    return f"{number_format(Decimal(per_mille).scaleb(-1), 1)} %"


class _Over(Func):
    """An aggregate of the sums of groups, over all of them."""

    window_compatible = True


def _sums(*, estimates_known: bool) -> dict[str, Any]:
    sums: dict[str, Any] = {f"sum_{figure}": Sum(figure) for figure in SUMS}
    if estimates_known:
        return sums | {"sum_estimated_tokens": Sum("estimated_tokens")}
    estimated = Sum(F("input_tokens") + F("output_tokens"), filter=Q(exact=False))
    return sums | {"sum_estimated_tokens": estimated}


def _worked_out(*, from_rollups: bool) -> dict[str, Any]:
    """The columns that are in no table, in UTC where that makes a difference."""
    if from_rollups:
        return {"hour": F("hour_start"), "month": TruncMonth("day")}
    return {
        "hour": TruncHour("ended_at", tzinfo=UTC),
        "month": TruncMonth("day"),
        "request": Coalesce("corrects", "request_id"),
    }


def _grouped(
    source: QuerySet[Any],
    by: tuple[str, ...],
    worked_out: dict[str, Any],
    sums: dict[str, Any],
    order: str,
) -> Any:
    """Rows with what tells each group apart, its sums, those of all groups, and how many groups there are."""
    named = [part for part in by if part in _LIVE]
    groups = source.annotate(**{part: worked_out[part] for part in by if part in worked_out})
    names: dict[str, Any] = {f"low_{part}": Min(part) for part in named}
    names |= {f"high_{part}": Max(part) for part in named}
    over: dict[str, Any] = {
        f"all_{figure}": Window(_Over(F(f"sum_{figure}"), function="SUM", output_field=DecimalField()))
        for figure in FIGURES
    }
    over["groups"] = Window(_Over(template="COUNT(*)"), output_field=BigIntegerField())
    for part in named:
        # A name is that of a thing, not that of a group: the same in each of its rows.
        thing = F(PARTS[part][0])
        over[f"first_{part}"] = Window(_Over(F(f"low_{part}"), function="MIN"), partition_by=thing)
        over[f"last_{part}"] = Window(_Over(F(f"high_{part}"), function="MAX"), partition_by=thing)
    in_order: list[Any] = []
    if order:
        figure = F(f"sum_{order.removeprefix('-')}")
        in_order.append(figure.desc(nulls_last=True) if order.startswith("-") else figure.asc())
    for part in by:
        in_order += [f"last_{part}"] if part in named else []
        in_order.append(PARTS[part][0])
    columns = [PARTS[part][0] for part in by]
    return groups.values(*columns).annotate(**names, **sums).annotate(**over).order_by(*in_order)


def _as_breakdown(selection: Selection, by: tuple[str, ...], groups: Rows) -> Breakdown:
    if not groups:
        return Breakdown(by, [], dict.fromkeys(FIGURES, 0))
    names = {part: _names(selection, part, groups) for part in by if part in _LIVE}
    gone = {part: _gone(part, set(known)) for part, known in names.items()}
    rows = [
        {PARTS[part][0]: _text(group[PARTS[part][0]]) for part in by}
        | {part: known[group[PARTS[part][0]]] for part, known in names.items()}
        | {"deleted": [part for part in names if group[PARTS[part][0]] in gone[part]]}
        | _figures(group, "sum")
        for group in groups
    ]
    return Breakdown(by, rows, _figures(groups[0], "all"), groups[0]["groups"] - len(groups))


def _names(selection: Selection, part: str, groups: Rows) -> dict[UUID | None, str]:
    """How each thing was called last; the empty name for none."""
    column = PARTS[part][0]
    names = {group[column]: group[f"last_{part}"] for group in groups}
    renamed = {group[column] for group in groups if group[f"first_{part}"] != group[f"last_{part}"]} - {None}
    if renamed:
        entries = selection.entries().filter(**{f"{column}__in": renamed})
        latest = entries.order_by(column, "-ended_at", "-id").distinct(column)
        names |= dict(latest.values_list(column, part))
    return names


def _gone(part: str, ids: set[UUID | None]) -> set[UUID | None]:
    """Those of these ids that name nothing any more."""
    there = _LIVE[part].objects.filter(pk__in=ids - {None}).values_list("pk", flat=True)
    return ids - set(there) - {None}


def _figures(found: Mapping[str, Any], prefix: str) -> Figures:
    return {figure: int(found[f"{prefix}_{figure}"] or 0) for figure in FIGURES}


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, date) else str(value)
