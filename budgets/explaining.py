"""How a number came about: from any total down to requests, and from a cost to the rates behind it.

A selection has parts, by the next thing that it does not fix yet; each part is
a selection again. At the bottom are entries, whose cost is a sum of lines. At
every level the parts add up to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _

from budgets.models import LedgerEntry
from budgets.pricing import MILLIONTHS_PER_GPU_MS, PER_MILLION
from budgets.usage import NONE, PARTS, Breakdown, Selection, breakdown

# From the whole down to a request.
DOWN = ("tenant", "month", "key", "model", "day", "request")


@dataclass(frozen=True, slots=True)
class Line:
    """One part of the cost of an entry: so much of something at a rate.

    ``rate`` is in micro-USD for a million tokens or for a second of GPU time;
    None, as ``quantity`` then is: the line is no product. ``millionths`` of a
    micro-USD is what it comes to.
    """

    what: str
    millionths: int
    quantity: int | None = None
    unit: str = ""
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """An entry and the lines that its cost is the sum of, to the last millionth of a micro-USD.

    ``by_rates`` false: the pinned rates do not give this cost, or there are none
    and nobody says that he put it right. Something is wrong with such an entry.
    """

    entry: LedgerEntry
    lines: tuple[Line, ...]
    by_rates: bool


def explain_entry(entry: LedgerEntry) -> Explained:
    """How the cost of an entry came about."""
    priced = _priced(entry)
    rest = entry.cost_micro_usd * PER_MILLION - sum(line.millionths for line in priced)
    what, by_rates = _meaning_of(rest, entry, priced=bool(priced))
    if not rest and (priced or entry.price_id):
        return Explained(entry, priced, by_rates)
    return Explained(entry, (*priced, Line(what, rest)), by_rates)


def _priced(entry: LedgerEntry) -> tuple[Line, ...]:
    if entry.input_price is None or entry.cached_price is None or entry.output_price is None:
        return ()
    new_tokens = entry.input_tokens - entry.cached_tokens
    lines = [Line(_("input"), new_tokens * entry.input_price, new_tokens, "tokens", entry.input_price)]
    if entry.cached_tokens:
        cached = entry.cached_tokens * entry.cached_price
        lines.append(Line(_("cached input"), cached, entry.cached_tokens, "tokens", entry.cached_price))
    output = entry.output_tokens * entry.output_price
    lines.append(Line(_("output"), output, entry.output_tokens, "tokens", entry.output_price))
    if entry.gpu_price:
        gpu = entry.gpu_ms * entry.gpu_price * MILLIONTHS_PER_GPU_MS
        lines.append(Line(_("GPU time"), gpu, entry.gpu_ms, "ms", entry.gpu_price))
    return tuple(lines)


def _meaning_of(rest: int, entry: LedgerEntry, *, priced: bool) -> tuple[str, bool]:
    """What the difference between a cost and its products is, and whether it may be."""
    if entry.kind == LedgerEntry.Kind.CORRECTION:
        return _("corrected by %(actor)s") % {"actor": entry.actor}, True
    if not priced:
        if entry.price_id is not None:
            return _("rates not kept by the release that booked it"), True
        return _("no price was set"), not rest
    if entry.kind == LedgerEntry.Kind.ADJUSTMENT:
        return _("difference of two amounts that were rounded up"), abs(rest) < PER_MILLION
    return _("rounded up to a whole micro-USD"), 0 <= rest < PER_MILLION


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole: its row, and the selection that is the whole of its own parts."""

    row: dict[str, Any]
    selection: Selection


@dataclass(frozen=True, slots=True)
class Explanation:
    """A whole and its parts; what does not fit is in ``whole.rest``."""

    selection: Selection
    whole: Breakdown
    parts: tuple[Part, ...]


def open_parts(selection: Selection) -> tuple[str, ...]:
    """What a selection does not fix of the way ``DOWN``; nothing: it is one request."""
    if selection.request_id is not None:
        return ()
    fixed = {name for name in ("tenant", "key") if getattr(selection, f"{name}_id") is not None}
    if selection.model is not None:
        fixed.add("model")
    if selection.from_day is not None and selection.before_day is not None:
        if selection.before_day <= month_after(selection.from_day):
            fixed.add("month")
        if selection.before_day <= selection.from_day + timedelta(days=1):
            fixed.add("day")
    return tuple(part for part in DOWN if part not in fixed)


def explain(
    selection: Selection, by: Sequence[str] = (), *, order: str = "", limit: int | None = None
) -> Explanation:
    """A selection and its parts: by ``by``, else by the next thing that it does not fix."""
    chosen = tuple(by) or open_parts(selection)[:1]
    whole = breakdown(selection, chosen, order=order, limit=limit)
    return Explanation(
        selection, whole, tuple(Part(row, narrowed(selection, whole.by, row)) for row in whole.rows)
    )


def narrowed(selection: Selection, by: Sequence[str], row: dict[str, Any]) -> Selection:
    """What of a selection is in one row of its breakdown."""
    for part in by:
        selection = _narrowed(selection, part, row[PARTS[part][0]])
    return selection


def _narrowed(selection: Selection, part: str, value: str) -> Selection:
    match part:
        case "tenant" | "team" | "member" | "key":
            fixed: dict[str, Any] = {f"{part}_id": UUID(value) if value else NONE}
            return replace(selection, **fixed)
        case "request":
            return replace(selection, request_id=UUID(value))
        case "day":
            day = date.fromisoformat(value)
            return _within_days(selection, day, day + timedelta(days=1))
        case "month":
            month = date.fromisoformat(value)
            return _within_days(selection, month, month_after(month))
        case "hour":
            hour = datetime.fromisoformat(value)
            since, until = selection.since or hour, selection.until or hour + timedelta(hours=1)
            return replace(selection, since=max(since, hour), until=min(until, hour + timedelta(hours=1)))
        case _:
            as_it_is: dict[str, Any] = {part: value}
            return replace(selection, **as_it_is)


def _within_days(selection: Selection, from_day: date, before_day: date) -> Selection:
    return replace(
        selection,
        from_day=max(selection.from_day or from_day, from_day),
        before_day=min(selection.before_day or before_day, before_day),
    )


def month_after(day: date) -> date:
    """The first day of the month after that of ``day``."""
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


def entries_of(selection: Selection) -> list[Explained]:
    """The entries of a selection, each with its lines, in the order in which they were booked."""
    return [explain_entry(entry) for entry in selection.entries().order_by("id")]
