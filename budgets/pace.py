"""The pace of calls: what all processes have counted (``budgets.tallies``), noted again and again.

The tallies only grow, so two notes tell what came between them. Beat has one
written every ``EVERY_SECONDS``; the last ``KEPT`` stay in Redis. Where none was
written, or Redis has lost what it knew, there is no data, which is not zero.
"""

from __future__ import annotations

import time
from collections import Counter as Sums
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from budgets import tallies
from budgets.counters import PACES, redis_in_bytes

EVERY_SECONDS = 15
KEPT = 4 * 61
# A note that is missing may have been late; one that is older says nothing of a minute.
LATE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Note:
    """What had been counted at a moment (seconds since 1970); ``first_bytes`` by the names of the buckets."""

    at: float
    requests: int = 0
    refusals: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    first_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """What came between two notes, ``seconds`` apart, the second of them written at ``until``."""

    until: float
    seconds: float
    requests: int
    refusals: int
    input_tokens: int
    output_tokens: int
    first_bytes: Mapping[str, int]

    def a_minute(self, count: int) -> float:
        """A count of this pace as so many a minute."""
        return count * 60 / self.seconds


def note() -> None:
    """Write down what has been counted by now. Raises ``RedisError``; a repeat writes another note."""
    counted = tallies.sums_now()
    totals: Sums[str] = Sums()
    first_bytes: Sums[str] = Sums()
    for (name, *labels), amount in counted.items():
        if name == tallies.FIRST_BYTES:
            first_bytes[labels[1]] += amount
        else:
            totals[f"{labels[1]}_{name}" if name == tallies.TOKENS else name] += amount
    written = Note(
        at=time.time(),
        requests=totals[tallies.REQUESTS],
        refusals=totals[tallies.REFUSALS],
        input_tokens=totals["input_tokens"],
        output_tokens=totals["output_tokens"],
        first_bytes=dict(first_bytes),
    )
    pipeline = redis_in_bytes().pipeline(transaction=True)
    pipeline.lpush(PACES, orjson.dumps(written))
    pipeline.ltrim(PACES, 0, KEPT - 1)
    pipeline.execute()


def notes() -> list[Note]:
    """The last hour's notes, the newest first. Raises ``RedisError``."""
    return [Note(**orjson.loads(text)) for text in redis_in_bytes().lrange(PACES, 0, -1)]


def between(earlier: Note, later: Note) -> Pace | None:
    """What came between two notes; None if the tallies began anew between them."""
    buckets = {bound: count - earlier.first_bytes.get(bound, 0) for bound, count in later.first_bytes.items()}
    pace = Pace(
        until=later.at,
        seconds=later.at - earlier.at,
        requests=later.requests - earlier.requests,
        refusals=later.refusals - earlier.refusals,
        input_tokens=later.input_tokens - earlier.input_tokens,
        output_tokens=later.output_tokens - earlier.output_tokens,
        first_bytes=buckets,
    )
    counts = (pace.requests, pace.refusals, pace.input_tokens, pace.output_tokens, *buckets.values())
    return pace if pace.seconds > 0 and min(counts) >= 0 else None


def of_the_last(seconds: int, written: Sequence[Note]) -> Pace | None:
    """The pace of the last so many seconds of ``written`` notes, newest first; None if there is no data."""
    if not written:
        return None
    newest = written[0]
    reaching = [one for one in written if newest.at - one.at >= seconds - EVERY_SECONDS / 2]
    if not reaching or newest.at - reaching[0].at > seconds + LATE_SECONDS:
        return None
    return between(reaching[0], newest)


def by_minute(minutes: Sequence[int], written: Sequence[Note]) -> list[Pace | None]:
    """The pace of each of ``minutes`` (since 1970), from notes near its two ends; None without data."""
    return [_of_minute(minute, written) for minute in minutes]


def _of_minute(minute: int, written: Sequence[Note]) -> Pace | None:
    begin, end = (_near(edge * 60, written) for edge in (minute, minute + 1))
    return between(begin, end) if begin and end else None


def _near(moment: float, written: Sequence[Note]) -> Note | None:
    nearest = min(written, key=lambda one: abs(one.at - moment), default=None)
    return nearest if nearest and abs(nearest.at - moment) <= EVERY_SECONDS else None


def quantile(share: float, first_bytes: Mapping[str, int]) -> float | None:
    """The seconds within which that share of first bytes came, evened out within a bucket.

    None if there were none; what came in the last bucket counts as its lower end.
    """
    total = sum(first_bytes.values())
    if not total:
        return None
    wanted, below, lower = share * total, 0, 0.0
    for bound, upper in zip(tallies.BUCKET_NAMES, (*tallies.BUCKETS, None), strict=True):
        count = first_bytes.get(bound, 0)
        if count and below + count >= wanted:
            return lower if upper is None else lower + (upper - lower) * (wanted - below) / count
        below += count
        lower = lower if upper is None else upper
    return lower
