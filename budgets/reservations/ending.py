"""Booking what a call used, whatever happens to Redis meanwhile.

One round trip to Redis; what it cannot take is kept and booked later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

from asgiref.sync import sync_to_async

from budgets import spool
from budgets.charges import Usage
from budgets.credit import Loan, credit
from budgets.reservations.calls import Reservation
from budgets.settlements import Moments, Settlement, settlement
from budgets.tallies import tallies
from tenants.quick_settings import settings
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

SETTLE_ATTEMPTS = 2
SPOOL_SECONDS = 1.2
# When to try again to take back a reserve whose answer never came; together, a lease.
VOID_PAUSES = (0.1, 0.5, 1, 2, 4, 8, 15)
MOST_VOIDS = 1000
# What is sent again when Redis has lost its data before the ledger had it.
RECENT_SECONDS = 60
MOST_RECENT = 5000
BATCH = 64


async def settle(
    reservation: Reservation, usage: Usage, outcome: str, moments: Moments, status: int, refusal: str = ""
) -> None:
    """Book what an admitted call used, once; it may not be asked twice, and need not.

    ``outcome`` says how the call ended, ``status`` what the client was told,
    and ``refusal`` the code it was told if that was trouble.
    Never raises: what Redis cannot take now is kept in PostgreSQL or on disk,
    and booked as soon as Redis can. Takes two seconds at most.
    """
    await _end(reservation, usage, outcome, moments, status, refusal)


async def release(
    reservation: Reservation, outcome: str, status: int, moments: Moments | None = None, refusal: str = ""
) -> None:
    """Give the room of a call back on which no model worked: it counts nothing, and has its entry.

    Never raises, as ``settle``.
    """
    await _end(reservation, None, outcome, moments or Moments(), status, refusal)


async def _end(
    reservation: Reservation, usage: Usage | None, outcome: str, moments: Moments, status: int, refusal: str
) -> None:
    if reservation.ended:
        return
    reservation.ended = True
    end = settlement(
        request_id=str(reservation.request_id),
        mode="settle",
        call=reservation.call,
        counters=reservation.counters,
        price=reservation.price,
        input_bound=reservation.demand.input_tokens,
        output_cap=reservation.output_cap,
        gpu_cap_ms=reservation.gpu_cap_ms,
        admitted_ms=reservation.admitted_at_ms,
        usage=usage,
        outcome=outcome,
        status=status,
        moments=moments,
        refused_by=reservation.would_have_refused(),
        refusal=refusal,
        held=reservation.held(),
    )
    reservation.booked = end.amounts
    if usage is not None:
        tallies.used(
            reservation.caller.tenant,
            min(usage.input_tokens, reservation.demand.input_tokens),
            min(usage.output_tokens, reservation.output_cap),
        )
    if reservation.loan is not None:
        credit.used(reservation.loan, end)
    _remember(end)
    try:
        await _book(end, reservation.loan)
    except asyncio.CancelledError:
        # Nobody knows how far it came; a repeat books it once.
        _in_background(_book(end, reservation.loan))
        raise


async def _book(end: Settlement, loan: Loan | None) -> None:
    """Book a settlement in Redis, else keep it. Never raises."""
    for _ in range(SETTLE_ATTEMPTS):
        try:
            await end.book()
        except RedisError as exc:
            trouble = exc
        else:
            if loan is not None:
                credit.repaid(loan)
            return
    if loan is not None:
        credit.repay_later()
    logger.warning("Redis cannot take the settlement of %s: %s", end.request_id, trouble)
    try:
        async with asyncio.timeout(SPOOL_SECONDS):
            await sync_to_async(spool.keep_in_database, thread_sensitive=False)(end)
    except Exception as exc:  # noqa: BLE001, whatever keeps PostgreSQL from it, the disk is left
        logger.warning("PostgreSQL cannot take it either: %s", exc)
        spool.keep_on_disk(end)


_recent: deque[tuple[float, Settlement]] = deque(maxlen=MOST_RECENT)


def _remember(end: Settlement) -> None:
    now = time.monotonic()
    _recent.append((now, end))
    while _recent[0][0] < now - RECENT_SECONDS:
        _recent.popleft()


async def book_recent_again() -> int:
    """Send what was settled in the last minute once more, because Redis has lost its data.

    Returns how many. What the ledger has already is not booked a second time.
    Raises ``RedisError``; a repeat sends all of them again.
    """
    since = time.monotonic() - RECENT_SECONDS
    recent = [end for at, end in _recent if at >= since]
    for start in range(0, len(recent), BATCH):
        await asyncio.gather(*(end.book() for end in recent[start : start + BATCH]))
    return len(recent)


_background: set[asyncio.Task[None]] = set()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def finish() -> None:
    """Wait for the bookings that go on in the background; a process calls this before it ends."""
    running = [task for task in _background if task.get_loop() is asyncio.get_running_loop()]
    if running:
        await asyncio.wait(running, timeout=SPOOL_SECONDS + 2 * settings.REDIS_TIMEOUT_SECONDS)


def take_back(void: Settlement) -> None:
    """Take back, in the background, a reserve whose answer was lost.

    Past the last attempt, and past the most at one time, it is left to the sweep.
    """
    if len(_background) < MOST_VOIDS:
        _in_background(_void(void))


async def _void(void: Settlement) -> None:
    for pause in VOID_PAUSES:
        await asyncio.sleep(pause)
        try:
            await void.book()
        except RedisError:
            continue
        return
