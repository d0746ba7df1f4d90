"""One task for many who wait for the same answer."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class SingleFlight(Generic[Answer]):
    """Runs a piece of work once for all who ask for it while it runs."""

    def __init__(self) -> None:
        self._running: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[Hashable, asyncio.Task[Answer]]
        ] = weakref.WeakKeyDictionary()

    async def do(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer of ``work``, begun now or by somebody else who asked for ``name``."""
        running = self._running.setdefault(asyncio.get_running_loop(), {})
        task = running.get(name)
        if task is None:
            task = running[name] = asyncio.create_task(work())
            task.add_done_callback(lambda _: running.pop(name, None))
        # Whoever leaves must not take the answer from the others.
        return await asyncio.shield(task)
