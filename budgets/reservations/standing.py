"""How the limits of a call stand, for headers and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from budgets.counters import Counter
from budgets.limits import Counting, Limit


class Standing(NamedTuple):
    """How one limit stands, for headers and refusals.

    ``unit`` is one of ``budgets.models.Unit``.
    ``remaining`` is what is neither used nor held, negative when the limit was
    lowered below that. ``reset_seconds``: until some of it comes back, None for
    never or for nobody knows. ``window`` is ``minute``, ``now`` (how many at one
    time) or the kind of a budget's period; ``window_seconds`` its length, None
    if it has none. ``held`` is what running calls may use of it yet.
    """

    name: str
    scope: str
    unit: str
    limit: int
    remaining: int
    reset_seconds: float | None
    window: str
    window_seconds: int | None
    held: int = 0


@dataclass(slots=True, eq=False)
class Figures:
    """What the counters of a call said at one moment, by Redis' clock.

    ``values`` are what is used and held of each, and its wait in ms (-1: never), one counter after
    the other; empty if nobody looked. Calls that were admitted as one share theirs, so what is
    made of it is made once for all of them.
    """

    counting: Counting
    values: Sequence[int]
    now_ms: int
    _standing: list[Standing] | None = None

    @property
    def standing(self) -> list[Standing]:
        """How the limits that may refuse stand."""
        if self._standing is None:
            self._standing = standing_of(self)
        return self._standing


def standing_of(told: Figures, first: Sequence[int] = ()) -> list[Standing]:
    """How the limits that may refuse stand, those numbered in ``first`` (from 1 on) before the others."""
    limits, counters = told.counting.limits, told.counting.counters
    figures, now_ms = told.values, told.now_ms
    every: Sequence[int] = range(1, len(limits) + 1)
    standing = []
    # Said with every answer for every limit, so they are made without Python's part of a named tuple.
    make = tuple.__new__
    for number in [*first, *(number for number in every if number not in first)] if first else every:
        limit, counter = limits[number - 1], counters[number - 1]
        if limit.limit is None or not limit.hard or not limit.told:
            continue
        reset: float | None = None
        length: int | None = None
        if limit.kind == "budget":
            if counter.end is not None and counter.start is not None:
                reset, length = max(0.0, counter.end - now_ms / 1000), counter.end - counter.start
        elif limit.kind == "rate":
            wait_ms = figures[3 * number - 1]
            reset, length = (None if wait_ms < 0 else wait_ms / 1000), 60
        remaining = limit.limit - figures[3 * number - 3] - figures[3 * number - 2]
        standing.append(
            make(
                Standing,
                (
                    limit.name, limit.scope, limit.unit, limit.limit, remaining, reset, limit.window, length,
                    figures[3 * number - 2],
                ),
            )
        )  # fmt: skip
    return standing


def named(limit: Limit, counter: Counter, *, fits: bool = True) -> list[Any]:
    """A limit that refused a call, as the drain reads it: its name, and its counter.

    Without the counter if the call is larger than the whole limit: that says
    nothing about how much of it is left.
    """
    return [limit.name, *counter.as_list()] if fits else [limit.name]
