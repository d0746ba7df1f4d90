"""Keeping what calls of keys that opted in said, without making anybody wait for it.

A transcript waits in memory until its call has ended, and is written by a thread
that does nothing else. What is more than may wait, and what PostgreSQL does not
take, is dropped and counted: a prompt that is not kept is no reason to refuse,
to delay or to fail a call, and there is no second place where it may lie.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from django.db import Error as DatabaseError
from django.db import connection

from audit.prompts import Said, keep
from budgets.tallies import tallies
from proxy.transcripts import Transcript

logger = logging.getLogger(__name__)

WAITING = 1000
WAITING_CHARACTERS = 64 * 2**20
BATCH = 50
FLUSH_SECONDS = 0.5
# How long a process that ends waits for a database that hangs.
PATIENCE_SECONDS = 5.0


class PromptLog:
    """The transcripts of this process that are not kept yet; ``dropped`` counts those that never will be."""

    def __init__(self) -> None:
        self.dropped = 0
        # With what each takes in memory, about.
        self._waiting: deque[tuple[Transcript, int]] = deque()
        self._characters = 0
        self._flushing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompt log")

    def offer(self, transcript: Transcript) -> None:
        """Keep what a call that has ended said; never blocks, never raises."""
        size = transcript.size
        if len(self._waiting) >= WAITING or self._characters + size > WAITING_CHARACTERS:
            self._drop(1, "too many wait")
            return
        transcript.ended_at = datetime.now(UTC)
        self._waiting.append((transcript, size))
        self._characters += size
        loop = asyncio.get_running_loop()
        if self._flushing is None or self._flushing.done() or self._flushing.get_loop() is not loop:
            self._flushing = loop.create_task(self._flush_soon(), name="prompt log")

    async def flush(self) -> None:
        """Write what waits; a process calls this before it ends. Takes ``PATIENCE_SECONDS`` at most."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._write_all()
                # What somebody else has begun to write is written when the thread has time for us.
                await asyncio.get_running_loop().run_in_executor(self._thread, int)
        except TimeoutError:
            self._drop(len(self._waiting), "PostgreSQL hangs")
            self._waiting.clear()

    async def _flush_soon(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)
        await self._write_all()

    async def _write_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            dropped, trouble = len(batch), "the process ends"
            try:
                dropped, trouble = await asyncio.get_running_loop().run_in_executor(
                    self._thread, _write, [transcript for transcript, _ in batch]
                )
            finally:
                self._characters -= sum(size for _, size in batch)
                self._drop(dropped, trouble)

    def _drop(self, count: int, trouble: str) -> None:
        if count:
            self.dropped += count
            tallies.dropped_prompts(count)
            # Nothing of what was said, nor of an error that could quote it.
            logger.warning("%d calls are not in the prompt log: %s", count, trouble)


def _write(batch: list[Transcript]) -> tuple[int, str]:
    """Keep a batch; return how many could not be, and why."""
    entries: list[Said] = []
    failed, trouble = 0, ""
    for transcript in batch:
        try:
            entries.append(transcript.said())
        except Exception as exc:  # noqa: BLE001, whatever is odd about one of them, the others are kept
            failed, trouble = failed + 1, type(exc).__name__
    try:
        keep(entries)
    except DatabaseError as exc:
        return len(batch), type(exc).__name__
    finally:
        connection.close()
    return failed, trouble


prompt_log = PromptLog()
