"""Noting refused calls, without making anybody wait for it.

A note is worth something and never more than the service: past the bound of
the queue it is dropped and counted, and so it is when Redis cannot take it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

import orjson

from budgets.counters import REFUSALS
from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)

WAITING = 2000
BATCH = 200
FLUSH_SECONDS = 0.5
# In Redis, until the drain has written them down.
KEPT_IN_REDIS = 20_000


class Notes:
    """The refused calls of this process that Redis has not been told of yet.

    ``dropped`` counts those nobody will hear of.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._waiting: deque[bytes] = deque()
        self._flushing: asyncio.Task[None] | None = None

    def note(self, event: dict[str, Any]) -> None:
        """Remember a refused call; never blocks, never raises.

        ``event``: ``request_id`` and ``status``, and as far as known ``tenant_id``,
        ``tenant``, ``key_id``, ``key`` (the label), ``route``, ``dialect``,
        ``model``, ``upstream``, ``stream``, ``refusal`` (the code), ``refused_by``
        (name and counter of each limit that did), ``outcome``, ``member_id`` and
        ``facts``, which ``RefusedCall`` keeps.
        """
        try:
            text = orjson.dumps(event)
        except TypeError:  # as for half a surrogate pair in a model name
            self.dropped += 1
            return
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return
        self._waiting.append(text)
        loop = asyncio.get_running_loop()
        if self._flushing is None or self._flushing.done() or self._flushing.get_loop() is not loop:
            self._flushing = loop.create_task(self._flush_soon(), name="refusals")

    async def flush(self) -> None:
        """Hand the notes that wait to Redis; a process calls this before it ends."""
        redis = redis_async()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            results = await asyncio.gather(
                *(
                    redis.call("XADD", REFUSALS, "MAXLEN", "~", KEPT_IN_REDIS, "*", "event", text)
                    for text in batch
                ),
                return_exceptions=True,
            )
            failed = [result for result in results if isinstance(result, RedisError)]
            if failed:
                self.dropped += len(failed)
                logger.warning("%d notes of refused calls dropped: %s", len(failed), failed[0])

    async def _flush_soon(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)
        await self.flush()


notes = Notes()
note = notes.note
