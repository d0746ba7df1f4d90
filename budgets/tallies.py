"""What the metrics count: whole numbers, added up in each process and summed over all of them in Redis.

A call adds to a dictionary and does nothing else. Once a second a process hands
what came to Redis, in batches with a number, of which each is added once. So
whichever process is asked, on whichever machine, knows the sums of all. What a
process counted within its last second is lost if it is killed: the books are
right to the last call, these figures are for watching.

Labels come from settings and tables of ours only: nothing that a client chose
is ever part of one.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import defaultdict
from itertools import islice

import orjson

from budgets.counters import TALLIES, TALLY, redis_in_bytes, run
from tenants.ids import new_id
from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)

HAND_OVER_SECONDS = 1.0
BATCH = 500
# Nobody sends a batch again that is older.
REMEMBERED_SECONDS = 86_400

# What there is, and how many labels each has.
REQUESTS, REFUSALS, TOKENS = "requests", "refusals", "tokens"
FIRST_BYTES, FIRST_BYTE_MS = "first_bytes", "first_byte_ms"
DROPPED_PROMPTS = "dropped_prompts"
LABELS = {REQUESTS: 3, REFUSALS: 2, TOKENS: 2, FIRST_BYTES: 2, FIRST_BYTE_MS: 1, DROPPED_PROMPTS: 0}

# Upper bounds of the times to a first byte, in seconds, as they are told.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
BUCKET_NAMES = (*map(str, BUCKETS), "+Inf")
STATUSES = tuple(f"{first}xx" for first in range(10))

# A name out of ``LABELS`` and its labels.
Sum = tuple[str, ...]


class Tallies:
    """What this process has counted and Redis does not know of yet."""

    def __init__(self) -> None:
        self._process = new_id().hex
        self._counts: defaultdict[Sum, int] = defaultdict(int)
        self._batch: dict[Sum, int] = {}
        self._number = 0
        self._handing_over = asyncio.Lock()

    def answered(self, tenant: str, route: str, status: int) -> None:
        """Count an answer; ``tenant`` is the slug, empty where nobody is known, ``route`` of a fixed list."""
        self._counts[REQUESTS, tenant, route, STATUSES[status // 100]] += 1

    def refused(self, tenant: str, code: str) -> None:
        """Count a refusal, also one that was told within an answer."""
        self._counts[REFUSALS, tenant, code] += 1

    def used(self, tenant: str, input_tokens: int, output_tokens: int) -> None:
        """Count the tokens that a call was settled with."""
        self._counts[TOKENS, tenant, "input"] += input_tokens
        self._counts[TOKENS, tenant, "output"] += output_tokens

    def first_byte(self, upstream: str, seconds: float) -> None:
        """Count how long a call waited until its upstream answered."""
        self._counts[FIRST_BYTES, upstream, BUCKET_NAMES[bisect_left(BUCKETS, seconds)]] += 1
        self._counts[FIRST_BYTE_MS, upstream] += round(seconds * 1000)

    def dropped_prompts(self, count: int) -> None:
        """Count calls that the prompt log should have kept and could not."""
        self._counts[(DROPPED_PROMPTS,)] += count

    async def hand_over(self) -> None:
        """Give Redis all that was counted. Raises ``RedisError``; what was not taken is sent again."""
        async with self._handing_over:
            while self._batch or self._counts:
                if not self._batch:
                    self._number += 1
                    self._batch = dict(islice(self._counts.items(), BATCH))
                    for name in self._batch:
                        del self._counts[name]
                added = [
                    part for name, amount in self._batch.items() for part in (orjson.dumps(name), amount)
                ]
                keys = [TALLIES, f"{TALLIES}:{self._process}"]
                await run(TALLY, keys, self._number, REMEMBERED_SECONDS, *added)
                self._batch = {}

    async def keep_handing_over(self) -> None:
        """Hand over once a second, for ever."""
        while True:
            try:
                await self.hand_over()
            except RedisError as exc:
                logger.info("what was counted waits for Redis: %s", exc)
            await asyncio.sleep(HAND_OVER_SECONDS)


tallies = Tallies()


async def sums() -> dict[Sum, int]:
    """What all processes have counted. Raises ``RedisError``.

    Read in pieces, so that no call waits in Redis for a long list. What no
    release of ours has written there is left out.
    """
    found: dict[Sum, int] = {}
    cursor = b"0"
    while True:
        cursor, pairs = await redis_async().call("HSCAN", TALLIES, cursor, "COUNT", BATCH)
        for field, amount in zip(pairs[::2], pairs[1::2], strict=True):
            name = _sum_called(field)
            if name is not None and amount.isdigit():
                found[name] = int(amount)
        if cursor in (b"0", 0):
            return found


def sums_now() -> dict[Sum, int]:
    """The same for what is not on the path of a request. Raises ``RedisError``."""
    pairs = redis_in_bytes().hscan_iter(TALLIES, count=BATCH)
    return {
        name: int(amount)
        for field, amount in pairs
        if (name := _sum_called(field)) is not None and amount.isdigit()
    }


def _sum_called(field: bytes) -> Sum | None:
    try:
        parts = orjson.loads(field)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return None
    return tuple(parts) if parts and LABELS.get(parts[0]) == len(parts) - 1 else None
