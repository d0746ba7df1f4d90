"""Keeping the holds of running calls alive, and learning which calls must end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import orjson

from budgets.counters import EPOCH, GENERATIONS, HEARTBEAT, HOLDS, RESTORE, STOPS, hold_key, run
from budgets.epochs import expected
from budgets.gpu_time import prolong
from budgets.reservations import Reservation, book_recent_again
from keys import verification
from keys.exceptions import InvalidKey, KeysUnavailable
from tenants.quick_settings import settings
from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)

# So many at one time, so that calls that begin meanwhile need not wait for all of them.
BATCH = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is; ``started`` from the moment on at which the upstream was called."""

    output_tokens: int
    phase: Literal["reserved", "started"]


@dataclass(slots=True)
class _Watched:
    reservation: Reservation
    progress: Callable[[], Progress]
    generations: tuple[int, int]


class Heartbeats:
    """Tells Redis, every few seconds, that the calls of this process are still running.

    It runs in the background from the first call on, off the path of chunks. A
    call whose hold is gone for good, whose key is no longer valid, or that an
    operator stopped, is asked to end through ``Reservation.stop``.
    """

    def __init__(self) -> None:
        self._watched: dict[UUID, _Watched] = {}
        self._task: asyncio.Task[None] | None = None
        # The mark of the counters at the last beat; empty when it was missing.
        self._epoch = ""

    def watch(self, reservation: Reservation, progress: Callable[[], Progress]) -> None:
        """Keep a call's hold alive from now on; ``progress`` is asked at every beat."""
        caller = reservation.caller
        self._watched[reservation.request_id] = _Watched(
            reservation, progress, (caller.tenant_generation, caller.platform_generation)
        )
        self._epoch = self._epoch or expected.epoch
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.create_task(self._beat_for_ever(), name="heartbeats")

    def unwatch(self, reservation: Reservation) -> None:
        """Forget a call; one that is not watched is fine."""
        self._watched.pop(reservation.request_id, None)

    async def beat(self) -> None:
        """Send one heartbeat for every call. Raises ``RedisError``."""
        await self._notice_a_loss()
        watched = list(self._watched.values())
        for start in range(0, len(watched), BATCH):
            await asyncio.gather(*(self._beat_one(one) for one in watched[start : start + BATCH]))

    async def aclose(self) -> None:
        """Stop the background task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(settings.HEARTBEAT_SECONDS)
            try:
                await self.beat()
            except RedisError as exc:
                logger.warning("heartbeats were not taken: %s", exc)
            except Exception:
                # Without heartbeats every running call would lose its hold.
                logger.exception("heartbeats failed")

    async def _notice_a_loss(self) -> None:
        """Send again what was settled lately if Redis has lost it: its mark is gone, or another one."""
        found = await redis_async().call("GET", EPOCH)
        epoch = found.decode() if found else ""
        if expected.epoch and (not epoch or self._epoch not in ("", epoch)):
            sent = await book_recent_again()
            # If they are rebuilt already, what the ledger had is counted twice until the drain meets it.
            logger.warning("Redis has lost the counters; %d settlements sent again", sent)
        self._epoch = epoch

    async def _beat_one(self, one: _Watched) -> None:
        reservation = one.reservation
        if reservation.ended:
            self.unwatch(reservation)
            return
        request_id = str(reservation.request_id)
        progress = one.progress()
        leases = [counter.key for counter in reservation.counters if counter.kind == "leases"]
        reply = await run(
            HEARTBEAT,
            [hold_key(request_id), HOLDS, STOPS, GENERATIONS, *leases],
            request_id,
            settings.LEASE_SECONDS * 1000,
            progress.output_tokens,
            progress.phase,
            reservation.caller.tenant_id.hex,
        )
        state, echoed, reason, tenant_generation, platform_generation = reply
        if echoed.decode() != request_id:
            raise RedisError(f"the heartbeat of {request_id} was answered with another's")
        if state == b"missing":
            await _restore(reservation, progress)
        elif state == b"held":
            await prolong(reservation)
        elif not reservation.ended:
            # Swept while this process slept: what it still delivers has no room set aside.
            reservation.stop("hold_lost")
        if reason:
            reservation.stop(reason.decode())
        if -1 not in (tenant_generation, platform_generation):
            await self._check_again(one, (tenant_generation, platform_generation))

    async def _check_again(self, one: _Watched, generations: tuple[int, int]) -> None:
        """See whether a change of settings ends the key; other changes let a running call end in peace."""
        if generations == one.generations:
            return
        try:
            caller = await verification.reload(one.reservation.caller.public_id)
        except InvalidKey:
            one.reservation.stop("key_no_longer_valid")
        except KeysUnavailable:
            return  # asked again at the next beat
        else:
            one.generations = (caller.tenant_generation, caller.platform_generation)


async def _restore(reservation: Reservation, progress: Progress) -> None:
    request_id = str(reservation.request_id)
    terms = {
        "lease_ms": settings.LEASE_SECONDS * 1000,
        "cap": reservation.output_cap,
        "gpu_ms": reservation.gpu_cap_ms or 0,
        "admitted_ms": reservation.admitted_at_ms,
        "output": progress.output_tokens,
        "phase": progress.phase,
        "counters": [
            (counter.kind, amount, counter.expires)
            for counter, amount in zip(reservation.counters, reservation.held(), strict=True)
        ],
    }
    keys = [hold_key(request_id), HOLDS, *(counter.key for counter in reservation.counters)]
    if await run(RESTORE, keys, request_id, reservation.call, orjson.dumps(terms)):
        logger.warning("the hold of %s was lost and is back", request_id)
