"""Pages of ledger entries, the newest first: each begins where the one before it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from budgets.models import LedgerEntry
from budgets.usage import Selection

USUAL = 100
MOST = 1000
_SINCE = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some entries, and the ``after`` of the next page; empty: there is none."""

    entries: list[LedgerEntry]
    next: str


def page_of(selection: Selection, after: str = "", size: int = USUAL) -> EntryPage:
    """``size`` entries of a selection, at most ``MOST``, that come after those of the page before.

    Raises ``ValueError`` for an ``after`` that no page gave.
    """
    found = selection.entries().order_by("-ended_at", "-id")
    if after:
        ended_at, number = _read(after)
        found = found.filter(ended_at__lte=ended_at).exclude(ended_at=ended_at, id__gte=number)
    size = min(size, MOST)
    entries = list(found[: size + 1])
    return EntryPage(entries[:size], _written(entries[size - 1]) if len(entries) > size else "")


def _written(entry: LedgerEntry) -> str:
    return f"{(entry.ended_at - _SINCE) // timedelta(microseconds=1)}-{entry.pk}"


def _read(after: str) -> tuple[datetime, int]:
    microseconds, _, number = after.partition("-")
    try:
        return _SINCE + timedelta(microseconds=int(microseconds)), int(number)
    except OverflowError as exc:
        raise ValueError(f"no page ended at {after!r}") from exc
