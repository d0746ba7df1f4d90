"""Pass an answer on as it comes, and settle its call when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson

from budgets.exceptions import CallStopped
from budgets.tallies import tallies
from proxy import upstream
from proxy.errors import code_of, last_frame
from proxy.exceptions import GpuTimeOver, OutputCapPassed, UpstreamFailed
from proxy.framing import Frames
from proxy.metering import Meter, counters_in, frame_end, text_in
from proxy.running import RunningCall, heartbeats, keep
from tenants.exceptions import Refusal
from tenants.quick_settings import settings

logger = logging.getLogger(__name__)

# Behind the end mark only the end of the answer itself is due.
LAST_BYTES_SECONDS = 1.0


class Stream:
    """A streamed answer whose beginning is read apart, while it may still be refused."""

    def __init__(self, running: RunningCall, meter: Meter, response: httpx.Response) -> None:
        self._running = running
        self._meter = meter
        self._route = running.call.route
        self._frames = Frames(frame_end(self._route.framing), settings.UPSTREAM_MAX_LINE_BYTES)
        self._response = response
        self._packets = upstream.packets(response)
        self._beginning = b""
        self._trouble: Refusal | None = None
        self._settling: asyncio.Task[None] | None = None
        self._transcript = running.transcript

    async def begin(self) -> None:
        """Read until there is something to pass on.

        Raises what makes the whole answer a refusal, with upstream closed: older
        versions of Ollama tell an error as the first line of a good answer.
        """
        try:
            async for packet in self._packets:
                self._beginning = self._take(packet)
                if self._beginning:
                    return
            self._check_whole()
        except BaseException as exc:
            await close_quietly(self._response)
            if isinstance(exc, Refusal) and self._running.stopped_by is not None:
                raise self._running.stopped_by from exc
            raise

    async def relay(self) -> AsyncGenerator[bytes, None]:
        """Pass the answer on, frame by whole frame, and settle when it ends.

        Never raises for trouble upstream: the status line has been sent, so
        trouble is told as a last frame, and no end mark follows it. If the
        client leaves, we are cancelled or closed: the upstream is closed, so
        that it stops generating, and what went by is settled.
        """
        outcome, code = "client_left", ""
        try:
            if self._meter.ended:
                self._settle("completed")
            if heartbeats.overslept():
                await self._running.still_runs()
            if self._beginning:
                yield self._beginning
            while self._goes_on() and (packet := await anext(self._packets, None)) is not None:
                passed = self._take(packet)
                if heartbeats.overslept():
                    await self._running.still_runs()
                if self._meter.ended:
                    # Begun before the client sees the end, so that its next call finds the room free.
                    self._settle("completed")
                if passed:
                    yield passed
            self._check_whole()
            outcome = "completed"
            await self._see_the_end()
        except Refusal as refusal:
            told = self._running.stopped_by or refusal
            outcome, code = outcome_of(told), code_of(told)
            yield last_frame(told, self._route)
        except Exception:
            # Whatever it is, the client has to learn that its answer is not whole.
            logger.exception("the answer to request %s broke", self._running.reservation.request_id)
            told = UpstreamFailed("the gateway failed")
            outcome, code = "failed", code_of(told)
            yield last_frame(told, self._route)
        finally:
            if code:
                tallies.refused(self._running.reservation.caller.tenant, code)
            self._settle(outcome, code)
            await close_quietly(self._response)
            await asyncio.shield(self._settle(outcome, code))

    def _take(self, packet: bytes) -> bytes:
        """What of a packet is passed on; frames before one that is trouble still are."""
        self._running.heard()
        passed: list[bytes] = []
        try:
            for frame in self._frames.feed(packet):
                passed.append(self._meter.take(frame))
                if self._meter.ended:
                    # What follows is no part of the answer, and nobody would count it.
                    break
        except Refusal as refusal:
            if not any(passed):
                raise
            self._trouble = refusal
        if self._transcript is not None:
            self._transcript.add_frames(passed)
        return b"".join(passed)

    def _goes_on(self) -> bool:
        return self._trouble is None and not self._meter.ended

    async def _see_the_end(self) -> None:
        """Let upstream end the whole answer, so that its connection can be used again."""
        with contextlib.suppress(TimeoutError, UpstreamFailed):
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                await anext(self._packets, None)

    def _check_whole(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        if not self._meter.ended:
            raise UpstreamFailed("the answer ended before it was whole")

    def _settle(self, outcome: str, refusal: str = "") -> asyncio.Task[None]:
        """Begin to settle the call; a repeat returns what was begun."""
        if self._settling is None:
            meter = self._meter
            self._settling = keep(
                self._running.end(
                    outcome, 200, meter.counters, meter.output_estimate, refusal, meter.output_bytes
                )
            )
        return self._settling


async def whole_answer(running: RunningCall, response: httpx.Response) -> bytes:
    """Read an answer that is not streamed and settle its call; return the body.

    Raises ``UpstreamFailed`` when it breaks off, and what stopped the call when
    it was stopped.
    """
    try:
        body = await upstream.read(response, settings.UPSTREAM_MAX_ANSWER_BYTES)
        answer = _parsed(body)
        await running.still_runs()
    except UpstreamFailed as refusal:
        raise running.stopped_by or refusal from refusal
    finally:
        await close_quietly(response)
    if running.transcript is not None:
        running.transcript.add(answer)
    size = text_in(answer)
    estimate = running.estimator.answer_tokens(size)
    await running.end("completed", 200, counters_in(answer), estimate, output_bytes=size)
    return body


def outcome_of(refusal: Refusal) -> str:
    """The word under which the books keep why a call did not run to its end."""
    if isinstance(refusal, (OutputCapPassed, GpuTimeOver)):
        return "cut"
    return "stopped" if isinstance(refusal, CallStopped) else "upstream_failed"


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise UpstreamFailed("the answer was not JSON") from exc
    if not isinstance(answer, dict) or answer.get("error") is not None:
        raise UpstreamFailed("the answer was an error")
    return answer


async def close_quietly(response: httpx.Response) -> None:
    """Close an answer; that upstream closed it first is no trouble any more."""
    try:
        await response.aclose()
    except httpx.HTTPError:
        logger.debug("upstream was closed already")
