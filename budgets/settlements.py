"""How a call ended, ready to be booked: by whoever admitted it, the spool, or the sweep.

A settlement is two JSON texts. ``call`` is what was known when the call was
admitted, kept in its hold and sent along again; ``end`` is how it ended. The
ledger is written from these two and nothing else.
"""

from __future__ import annotations

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
        keys = [HOLDS, USAGE, SETTLED, STOPS, *(hold_key(call.request_id) for call in calls)]
        arguments: list[Any] = [packed((len(calls), MARK_SECONDS, MARK_OF_VOID_SECONDS))]
        for _, kindred in groupby(calls, key=lambda call: call.kin):
            group = list(kindred)
            counters = group[0].counters
            about = [len(group), len(counters)]
            for counter in counters:
                keys.append(counter.key)
                about += (NUMBERS_OF_KINDS[counter.kind], counter.expires or NONE)
            arguments.append(packed(about + _sums(group)))
            for call in group:
                begins = "" if call.held is None else first_line(call.held)
                numbers = packed([call.admitted_ms, *call.amounts])
                arguments += (call.request_id, call.mode, call.call, call.end, begins, numbers)
        return keys, arguments

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


def _sums(group: Sequence[Settlement]) -> list[int]:
    """What the calls of a group used and hold on each counter, all together, by the second of admission.

    Three parts for each: the second, what was used, what was held. Empty if one
    of them has to be looked at alone.
    """
    if any(call.mode != "settle" or call.held is None for call in group):
        return []
    sums: list[int] = []
    for second, several in groupby(group, key=lambda call: call.admitted_ms // 1000):
        those = list(several)
        sums += (
            second,
            *_columns(call.amounts for call in those),
            *_columns(call.held or () for call in those),
        )
    return sums


def _columns(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


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
