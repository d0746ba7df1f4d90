"""How a call ended, ready to be booked: by whoever admitted it, the spool, or the sweep.

A settlement is two JSON texts. ``call`` is what was known when the call was
admitted, kept in its hold and sent along again; ``end`` is how it ended. The
ledger is written from these two and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import orjson

from budgets.charges import NOTHING, Usage, used, within
from budgets.counters import (
    HOLDS,
    NONE,
    NUMBERS_OF_KINDS,
    SETTLE,
    SETTLED,
    STOPS,
    USAGE,
    CallOfScript,
    Counter,
    Script,
    hold_key,
    packed,
)
from budgets.holds import first_line
from budgets.pricing import PinnedPrice

# How long a repeat still finds that the call has ended.
MARK_SECONDS = 2 * 3600
MARK_OF_VOID_SECONDS = 300

Mode = Literal["settle", "sweep", "void"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Milliseconds since 1970 at which the upstream was called and its first byte came; None: never."""

    started_ms: int | None = None
    first_byte_ms: int | None = None


# Made for every call: a frozen one takes three times as long.
@dataclass(slots=True, eq=False)
class Settlement(CallOfScript):
    """One call's end and the counters it changes, in the order in which its hold names them."""

    script: ClassVar[Script] = SETTLE

    request_id: str
    mode: Mode
    call: bytes
    end: bytes
    admitted_ms: int
    counters: tuple[Counter, ...]
    amounts: tuple[int, ...]
    # What is held on each counter as far as whoever admitted it knows; None: nobody knows.
    held: tuple[int, ...] | None = None

    async def book(self) -> str:
        """Book it; returns what the script says. A repeat changes nothing. Raises ``RedisError``."""
        answer: bytes = await self.run()
        return answer.decode()

    def book_now(self) -> str:
        """``book`` for code that may block."""
        answer: bytes = self.run_now()
        return answer.decode()

    @property
    def kin(self) -> int:
        """Calls that were counted on the same counters are kin."""
        return id(self.counters)

    @classmethod
    def keys_and_arguments(cls, calls: Sequence[Settlement]) -> tuple[list[str], list[Any]]:
        groups = [list(kindred) for _, kindred in groupby(calls, key=lambda call: call.kin)]
        counters = {counter.key: counter for group in groups for counter in group[0].counters}
        places = {key: place for place, key in enumerate(counters, start=1)}
        keys = [HOLDS, USAGE, SETTLED, STOPS, *(hold_key(call.request_id) for call in calls), *counters]
        known, sums = _all_are_known(calls), _Sums(places)
        arguments: list[Any] = []
        for group in groups:
            own = [places[counter.key] for counter in group[0].counters]
            if known:
                sums.add(group, own)
            placed = packed(own)
            for call in group:
                begins = "" if call.held is None else first_line(call.held)
                numbers = placed + packed([call.admitted_ms, *call.amounts])
                arguments += (call.request_id, call.mode, call.call, call.end, begins, numbers)
        about = [len(calls), MARK_SECONDS, MARK_OF_VOID_SECONDS, known, len(counters)]
        for place, counter in enumerate(counters.values(), start=1):
            about += (NUMBERS_OF_KINDS[counter.kind], counter.expires or NONE)
            about += (sums.used[place], -sums.held[place])
        for (place, second), difference in sums.corrections.items():
            if difference:
                about += (place, second, difference)
        return keys, [packed(about), *arguments]

    @classmethod
    def replies(cls, parts: Sequence[Settlement], reply: Any) -> Sequence[bytes]:
        told: list[bytes] = reply
        return told

    def as_json(self) -> dict[str, Any]:
        """For the spool; ``from_json`` reads it back."""
        return {"mode": self.mode, "call": self.call.decode(), "end": self.end.decode()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Settlement:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what ``as_json`` has not written."""
        call, end = orjson.loads(stored["call"]), orjson.loads(stored["end"])
        return cls(
            request_id=call["request_id"],
            mode=stored["mode"],
            call=stored["call"].encode(),
            end=stored["end"].encode(),
            admitted_ms=end["admitted_ms"],
            counters=tuple(Counter(*fields) for fields in call["counters"]),
            amounts=tuple(end["amounts"]),
        )


def _all_are_known(calls: Sequence[Settlement]) -> bool:
    """Whether each is ended once, by an owner who knows what is held for it."""
    known = all(call.mode == "settle" and call.held is not None for call in calls)
    return known and len({call.request_id for call in calls}) == len(calls)


class _Sums:
    """What calls that end together used and hold, by the place of the counter.

    ``corrections``: by how much a rate has counted too much or too little, by its
    place and the second in which calls were admitted.
    """

    def __init__(self, places: dict[str, int]) -> None:
        self.used = dict.fromkeys(places.values(), 0)
        self.held = dict.fromkeys(places.values(), 0)
        self.corrections: defaultdict[tuple[int, int], int] = defaultdict(int)

    def add(self, group: Sequence[Settlement], places: Sequence[int]) -> None:
        """Add calls that are counted on the counters at these places."""
        used = zip(*[call.amounts for call in group], strict=True)
        held = zip(*[call.held or () for call in group], strict=True)
        for place, counter, amounts, before in zip(places, group[0].counters, used, held, strict=True):
            self.used[place] += sum(amounts)
            self.held[place] += sum(before)
            if counter.kind == "rate" and amounts != before:
                for call, amount, most in zip(group, amounts, before, strict=True):
                    self.corrections[place, call.admitted_ms // 1000] += amount - most


def settlement(
    *,
    request_id: str,
    mode: Mode,
    call: bytes,
    counters: Iterable[Counter],
    price: PinnedPrice | None,
    input_bound: int,
    output_cap: int,
    gpu_cap_ms: int | None,
    admitted_ms: int,
    usage: Usage | None,
    outcome: str,
    status: int,
    moments: Moments,
    refused_by: list[list[Any]] | None = None,
    refusal: str = "",
    held: tuple[int, ...] | None = None,
) -> Settlement:
    """The settlement of a call that used ``usage``; None: no model worked on it, and nothing is counted.

    ``refused_by``: name and counter of each shadow limit that would have refused the call.
    ``held``: what is held for it on each counter, where that is known.
    """
    spent = NOTHING if usage is None else within(usage, input_bound, output_cap, gpu_cap_ms)
    worked = usage is not None
    counters = tuple(counters)
    spent_in = {
        unit: used(unit, spent, price, worked=worked) for unit in {counter.unit for counter in counters}
    }
    amounts = tuple([spent_in[counter.unit] for counter in counters])
    end = {
        "outcome": outcome,
        "status": status,
        "refusal": refusal,
        "requests": int(worked),
        "input_tokens": spent.input_tokens,
        "cached_tokens": spent.cached_tokens,
        "output_tokens": spent.output_tokens,
        "thinking_tokens": spent.thinking_tokens,
        "input_bytes": spent.input_bytes,
        "output_bytes": spent.output_bytes,
        "load_ns": spent.load_ns,
        "prompt_ns": spent.prompt_ns,
        "output_ns": spent.output_ns,
        "gpu_ms": spent.gpu_ms,
        "cost_micro_usd": used("micro_usd", spent, price, worked=worked),
        "exact": spent.exact,
        "estimator": spent.estimator,
        "admitted_ms": admitted_ms,
        "started_ms": moments.started_ms,
        "first_byte_ms": moments.first_byte_ms,
        "amounts": amounts,
        "refused_by": refused_by or [],
    }
    return Settlement(request_id, mode, call, orjson.dumps(end), admitted_ms, counters, amounts, held)
