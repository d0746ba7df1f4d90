"""The calls that are running in this process, and what may end one from outside.

A call ends from outside when the counters say stop (its key was revoked, an
operator stopped it), when the GPU time of a budget is over, when upstream is
silent for too long, and when it has taken all the time there is. It is ended by
closing its upstream: whoever reads from there then finds the reason in
``stopped_by``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import httpx

from budgets.estimators import Estimator
from budgets.exceptions import HoldLost
from budgets.heartbeats import Heartbeats, Progress
from budgets.reservations import finish, release, settle
from budgets.settlements import Moments
from budgets.tallies import tallies
from proxy.admission import Admission
from proxy.calls import Call
from proxy.catalog import catalog
from proxy.exceptions import GpuTimeOver, UpstreamTimeout
from proxy.metering import Counters, Meter, usage_of
from proxy.prompt_log import prompt_log
from proxy.transcripts import transcript_of
from tenants.exceptions import Refusal
from tenants.quick_settings import settings
from tenants.redis import RedisError

WATCH_SECONDS = 0.5

heartbeats = Heartbeats()
_running: set[RunningCall] = set()
_kept: set[asyncio.Task[None]] = set()


class RunningCall:
    """One admitted call, from its reservation to its settlement."""

    def __init__(self, call: Call, admission: Admission, meter: Meter | None, estimator: Estimator) -> None:
        self.call = call
        self.estimator = estimator
        self.reservation = admission.reservation
        self.target = admission.target
        self.meter = meter
        self.response: httpx.Response | None = None
        self.stopped_by: Refusal | None = None
        self._started = self._last = time.monotonic()
        self._first_byte: float | None = None
        self._waiting: asyncio.Timeout | None = None
        self._ended = False
        self.transcript = transcript_of(call, self.reservation)
        _running.add(self)
        catalog.started(self.target.upstream)
        heartbeats.watch(self.reservation, self.progress)

    def progress(self) -> Progress:
        """How far the call is, for the sweep that would have to settle it if this process died."""
        return Progress(self.meter.output_estimate if self.meter else 0, "started")

    def heard(self) -> None:
        """Note that upstream has just sent something."""
        self._last = time.monotonic()
        if self._first_byte is None:
            self._first_byte = self._last
            tallies.first_byte(self.target.upstream, self._last - self._started)

    async def still_runs(self) -> None:
        """Raise what has stopped the call, if this process slept for longer than a lease and something did.

        What was taken for dead may be swept, and its room be somebody else's.
        """
        if not heartbeats.overslept():
            return
        try:
            await heartbeats.wake()
        except RedisError as exc:
            raise HoldLost from exc
        self.look(time.monotonic())
        if self.stopped_by is not None:
            raise self.stopped_by

    def stop(self, reason: Refusal) -> None:
        """End the call; a call that has been stopped or has ended stays as it is."""
        if self.stopped_by is None and not self._ended:
            self.stopped_by = reason
            if self.response is not None:
                keep(self.response.aclose())
            elif self._waiting is not None:
                self._waiting.reschedule(asyncio.get_running_loop().time())

    async def answered(self, opening: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        """Wait for upstream's answer to begin, or for the call to be stopped meanwhile."""
        try:
            async with asyncio.timeout(settings.UPSTREAM_FIRST_BYTE_SECONDS) as self._waiting:
                self.response = await opening
        except TimeoutError:
            raise self.stopped_by or UpstreamTimeout from None
        finally:
            self._waiting = None
        self.heard()
        return self.response

    def look(self, now: float) -> None:
        """Stop the call if there is a reason to; ``now`` is monotonic, in seconds."""
        if self.reservation.stopped_by is not None:
            self.stop(self.reservation.stopped_by)
        granted_ms = self.reservation.gpu_cap_ms
        # Before the time is over: when it is looked at next, it would be too late.
        if granted_ms is not None and self.reservation.elapsed_ms() + WATCH_SECONDS * 1000 > granted_ms:
            self.stop(GpuTimeOver())
        silent = now - self._last if self._first_byte is not None else 0.0
        if (
            silent > settings.UPSTREAM_SILENCE_SECONDS
            or now - self._started > settings.UPSTREAM_TOTAL_SECONDS
        ):
            self.stop(UpstreamTimeout())

    async def end(
        self,
        outcome: str,
        status: int,
        counters: Counters | None,
        output_estimate: int,
        refusal: str = "",
        output_bytes: int | None = None,
    ) -> None:
        """Settle the call with what it used; a call that has ended stays as it is.

        ``refusal`` is the code of what the client was told, if that was trouble;
        ``output_bytes`` the text of the answer, where that is known.
        A cancellation comes out of here and does not keep the call from being settled.
        """
        if self._leave():
            wall_ms = self.reservation.elapsed_ms()
            usage = usage_of(self.call, counters, output_estimate, wall_ms, self.estimator, output_bytes)
            await settle(self.reservation, usage, outcome, self._moments(), status, refusal)

    async def give_back(self, outcome: str, status: int, refusal: str) -> None:
        """Release the call's room: upstream did no work for it. Otherwise as ``end``."""
        if self._leave():
            await release(self.reservation, outcome, status, self._moments(), refusal)

    def _leave(self) -> bool:
        """Stop being a running call; False for one that is none any more."""
        if self._ended:
            return False
        self._ended = True
        _running.discard(self)
        catalog.ended(self.target.upstream)
        heartbeats.unwatch(self.reservation)
        if self.transcript is not None:
            prompt_log.offer(self.transcript)
        return True

    def _moments(self) -> Moments:
        return Moments(
            started_ms=self._redis_ms(self._started),
            first_byte_ms=None if self._first_byte is None else self._redis_ms(self._first_byte),
        )

    def _redis_ms(self, instant: float) -> int:
        """A monotonic instant on the clock of Redis, which admitted the call."""
        return self.reservation.admitted_at_ms + round((instant - self._started) * 1000)


def keep(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Do ``work`` to its end, whatever becomes of the request that began it."""
    task = asyncio.ensure_future(work)
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    return task


def running() -> int:
    """How many calls run in this process."""
    return len(_running)


async def watch() -> None:
    """Look after every running call, for ever."""
    while True:
        now = time.monotonic()
        for call in tuple(_running):
            call.look(now)
        await asyncio.sleep(WATCH_SECONDS)


async def all_settled() -> None:
    """Wait until every call that has ended is settled; a process does so before it ends."""
    while _kept:
        await asyncio.wait(tuple(_kept))
    await finish()
