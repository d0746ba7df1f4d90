"""Keeping the holds of running calls alive, and learning which calls must end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import orjson

from budgets.counters import EPOCH, GENERATIONS, HEARTBEAT, HOLDS, RESTORE, STOPS, hold_key, run
from budgets.epochs import expected
from budgets.exceptions import (
    BudgetCut,
    CountersUnavailable,
    HoldLost,
    KeyEnded,
    StoppedByOperator,
    TenantSuspended,
)
from budgets.gpu_time import prolong
from budgets.kill_switches import stopping
from budgets.limits import Limits, limits_for
from budgets.reservations import Reservation, book_recent_again
from budgets.running_calls import message_in
from budgets.single_flight import SingleFlight
from keys import verification
from keys.exceptions import SUSPENDED, InvalidKey, KeysUnavailable
from keys.verification import Caller
from tenants.clock import clock
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
    """A call, with its caller and, once they have changed, its limits as they were read last.

    ``unread`` says that the limits have changed and nobody has looked yet
    whether the call still fits into them.
    """

    reservation: Reservation
    progress: Callable[[], Progress]
    caller: Caller
    limits: Limits | None = None
    unread: bool = False

    @property
    def generations(self) -> tuple[int, int]:
        return self.caller.tenant_generation, self.caller.platform_generation

    def given_back(self, number: int) -> int:
        """What of the amount held on one counter is free again if the call ends now."""
        reservation = self.reservation
        output = min(self.progress().output_tokens, reservation.output_cap)
        gpu_ms = min(reservation.elapsed_ms(), reservation.gpu_cap_ms or 0)
        return reservation.held()[number] - reservation.charges[number].amount(output, gpu_ms)


class Heartbeats:
    """Tells Redis, every few seconds, that the calls of this process are still running.

    It runs in the background from the first call on, off the path of chunks. A
    call is asked to end through ``Reservation.stop`` when its hold is gone for
    good, its key or tenant is off, a kill switch is on, an operator stopped it,
    or a budget was lowered below what is used and held of it.
    """

    def __init__(self) -> None:
        self._watched: dict[UUID, _Watched] = {}
        self._task: asyncio.Task[None] | None = None
        # The mark of the counters at the last beat; empty when it was missing.
        self._epoch = ""
        self._waking: SingleFlight[None] = SingleFlight()
        # On the clock that only runs forward: past it, the leases have run out while nobody beat.
        self._awake_until = 0.0

    def watch(self, reservation: Reservation, progress: Callable[[], Progress]) -> None:
        """Keep a call's hold alive from now on; ``progress`` is asked at every beat."""
        self._watched[reservation.request_id] = _Watched(reservation, progress, reservation.caller)
        self._epoch = self._epoch or expected.epoch
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.create_task(self._beat_for_ever(), name="heartbeats")
            self._stay_awake()

    def unwatch(self, reservation: Reservation) -> None:
        """Forget a call; one that is not watched is fine."""
        self._watched.pop(reservation.request_id, None)

    async def beat(self) -> None:
        """Send one heartbeat for every call. Raises ``RedisError``."""
        await self._notice_a_loss()
        watched = list(self._watched.values())
        for start in range(0, len(watched), BATCH):
            await asyncio.gather(*(self._beat_one(one) for one in watched[start : start + BATCH]))
        await _stop_what_was_cut([one for one in watched if one.unread])

    def overslept(self) -> bool:
        """Whether no heartbeat was tried for longer than a lease: this process got no time."""
        return time.monotonic() > self._awake_until

    async def wake(self) -> None:
        """Learn which calls have lost their holds meanwhile; once for all who ask. Raises ``RedisError``."""
        await self._waking.do("beat", self._beat_and_stay_awake)

    async def _beat_and_stay_awake(self) -> None:
        await self.beat()
        self._stay_awake()

    def _stay_awake(self) -> None:
        self._awake_until = time.monotonic() + settings.LEASE_SECONDS

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
            # Also after trouble: without Redis running calls go on.
            self._stay_awake()

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
        state, echoed, reason, tenant_generation, platform_generation, now_ms = reply
        if echoed.decode() != request_id:
            raise RedisError(f"the heartbeat of {request_id} was answered with another's")
        if state == b"missing":
            await _restore(reservation, progress)
        elif state == b"held":
            await prolong(reservation)
        elif not reservation.ended:
            # Swept while this process slept: what it still delivers has no room set aside.
            reservation.stop(HoldLost())
        if reason:
            reservation.stop(StoppedByOperator(message_in(reason)))
        if -1 not in (tenant_generation, platform_generation):
            await _check_again(one, (tenant_generation, platform_generation), now_ms)


async def _check_again(one: _Watched, generations: tuple[int, int], now_ms: int) -> None:
    """See whether a change of settings, or time, ends a call; other changes let it end in peace."""
    reservation = one.reservation
    if generations != one.generations:
        try:
            caller = await verification.reload_running(one.caller.public_id)
            one.limits = await limits_for(caller)
        except InvalidKey as exc:
            reservation.stop(TenantSuspended() if exc.reason == SUSPENDED else KeyEnded())
            return
        except (KeysUnavailable, CountersUnavailable):
            return  # asked again at the next beat
        one.caller, one.unread = caller, True
    if one.caller.expires_at_ms is not None and one.caller.expires_at_ms <= now_ms:
        reservation.stop(KeyEnded())
    if one.limits is not None:
        demand = reservation.demand
        switch = stopping(one.limits.switches, now_ms, demand.model, demand.upstream)
        if switch is not None:
            reservation.stop(switch.refusal())


async def _stop_what_was_cut(watched: list[_Watched]) -> None:
    """Stop calls on budgets that were lowered below what is used and held, until the others fit.

    The newest go first. Each process sees to its own calls, so that together
    they may stop more than was needed, never less. Raises ``RedisError``; a
    repeat looks again.
    """
    cut: dict[str, int] = {}
    holding: defaultdict[str, list[tuple[_Watched, int]]] = defaultdict(list)
    for one in watched:
        assert one.limits is not None  # noqa: S101, it was read when it became unread
        limits = {limit.id: limit for limit in one.limits.limits if limit.kind == "budget" and limit.hard}
        for number, counter in enumerate(one.reservation.counters):
            if counter.id not in limits:
                continue
            before, most = one.reservation.limits[number].limit, limits[counter.id].at(clock.now_ms()).limit
            if most is not None and (before is None or before > most):
                cut[counter.key] = most
                holding[counter.key].append((one, number))
    for key, most in cut.items():
        used, held = await redis_async().call("HMGET", key, "used", "held")
        over = int(used or 0) + int(held or 0) - most
        newest_first = sorted(holding[key], key=lambda item: item[0].reservation.admitted_at_ms, reverse=True)
        # What ends anyway makes room as well.
        for one, number in sorted(newest_first, key=lambda item: item[0].reservation.stopped_by is None):
            if over <= 0:
                break
            one.reservation.stop(BudgetCut())
            over -= one.given_back(number)
    for one in watched:
        one.unread = False


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
