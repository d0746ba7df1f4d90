"""The work that every web process does beside its requests: one task per job and event loop."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

Job = Callable[[], Awaitable[None]]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A job that has run for so long was well; its next crash is a new trouble.
WELL_AFTER_SECONDS = 60.0


class Background:
    """Jobs that run for ever, and last things to do when the process stops.

    ``add`` before the first request. ``start`` is called by the server, or by
    the first request or lifespan event under a server that is not ours.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._last_things: dict[str, Job] = {}
        self._running: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[asyncio.Task[None]]] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, name: str, job: Job) -> None:
        """Run ``job`` as long as the process runs: when it ends or fails, it begins again after a pause."""
        self._jobs[name] = job

    def add_last(self, name: str, job: Job) -> None:
        """Wait for ``job`` once, when no request is left and the jobs still run."""
        self._last_things[name] = job

    def start(self) -> None:
        """Start all jobs in the running loop; a repeat changes nothing."""
        loop = asyncio.get_running_loop()
        if loop not in self._running:
            self._running[loop] = [
                loop.create_task(_keep_running(name, job), name=f"background {name}")
                for name, job in self._jobs.items()
            ]

    async def stop(self) -> None:
        """Do the last things, then cancel the jobs of the running loop and wait until they are gone."""
        for name, job in self._last_things.items():
            try:
                await job()
            except Exception:
                # One that fails must not keep the next from being done.
                logger.exception("%s failed while stopping", name)
        tasks = self._running.pop(asyncio.get_running_loop(), [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(name: str, job: Job) -> None:
    loop = asyncio.get_running_loop()
    pause = FIRST_PAUSE_SECONDS
    while True:
        began = loop.time()
        try:
            await job()
            logger.error("background work %s ended by itself", name)
        except Exception:
            # The whole point: whatever broke it, the next round may go well.
            logger.exception("background work %s failed", name)
        if loop.time() - began > WELL_AFTER_SECONDS:
            pause = FIRST_PAUSE_SECONDS
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


background = Background()
