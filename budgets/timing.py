"""Where the time of a call went: waiting here, waiting for upstream, and streaming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from audit.models import RequestEvent
from budgets.models import LedgerEntry


@dataclass(frozen=True, slots=True)
class Stretch:
    """One part of a call's time: from so many per cent of the whole on, and how long in milliseconds."""

    name: str
    begins: float
    share: float
    milliseconds: int


def stretches(event: RequestEvent, entry: LedgerEntry | None) -> list[Stretch]:
    """The parts of a call's time in their order; none for a call that was not admitted or has not ended.

    When it was sent upstream only its ``entry`` knows. What nobody wrote down is
    part of the stretch that follows.
    """
    if event.admitted_at is None or event.ended_at is None or event.ended_at <= event.admitted_at:
        return []
    return list(_between(event.admitted_at, event.ended_at, event, entry))


def _between(
    begun: datetime, ended: datetime, event: RequestEvent, entry: LedgerEntry | None
) -> Iterator[Stretch]:
    marks = [
        ("queued here", entry.started_at if entry else None),
        ("waiting for upstream", event.first_byte_at),
        ("streaming" if event.first_byte_at else "waiting for upstream", ended),
    ]
    whole, before = (ended - begun).total_seconds(), begun
    for name, until in marks:
        if until is None:
            continue
        # Clocks of several processes may differ.
        after = min(max(until, before), ended)
        seconds = (after - before).total_seconds()
        begins = (before - begun).total_seconds() / whole * 100
        yield Stretch(name, round(begins, 2), round(seconds / whole * 100, 2), round(seconds * 1000))
        before = after
