"""Asking others how they are, seldom and with patience that ends, for those who may ask us at any rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

GOOD_FOR_SECONDS = 1.0
PATIENCE_SECONDS = 2.0


class TooSlow(Exception):
    """There is no answer yet."""


class Asked(Generic[Answer]):
    """A question that is asked at most once a second, whoever wants to know."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[Answer] | None = None
        self._asked_at = 0.0

    async def answer(self) -> Answer:
        """The answer of this second.

        Raises what ``ask`` raised, and ``TooSlow`` after ``PATIENCE_SECONDS``.
        """
        asking = self._asking
        known = asking is not None and asking.get_loop() is asyncio.get_running_loop()
        # One that hangs is not asked again beside it: each would hold one more thread.
        if (
            asking is None
            or not known
            or (asking.done() and time.monotonic() - self._asked_at > GOOD_FOR_SECONDS)
        ):
            self._asked_at = time.monotonic()
            asking = self._asking = asyncio.create_task(self._ask())
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        if not asking.done():
            raise TooSlow
        return asking.result()
