"""Bringing the counters back from the ledger when Redis has lost them.

Until then nothing is admitted: the scripts refuse while the mark in Redis, the
epoch, is not the one in PostgreSQL. A Redis restored from an old backup has an
old mark, or forgot calls that a process or the ledger knows of.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils.timezone import now

from budgets import ledger, spool
from budgets.alone import alone
from budgets.counters import (
    CLOCK,
    DRAINED,
    EPOCH,
    GRACE_SECONDS,
    REBUILD,
    SETTLED,
    USAGE,
    Counter,
    redis_in_bytes,
    run_now,
)
from budgets.models import BudgetPeriod, CounterEpoch, LedgerEntry
from budgets.sweeping import sweep
from tenants import generations
from tenants.redis import PARTITION, redis_now

logger = logging.getLogger(__name__)

# Any number; only rebuilds take this advisory lock.
LOCK = 0x544F4C4C02
ATTEMPTS = 100
PAUSE_SECONDS = 0.1


def ensure_epoch(*, force: bool = False) -> bool:
    """Rebuild the counters if they cannot be believed, or with ``force``; return whether it was done.

    Waits two heartbeats first, so that running calls put their holds back and
    processes send again what Redis may have lost; a database that never had
    counters needs no waiting. Returns False while another process does the
    same. Raises ``RedisError`` and Django's ``db.Error``; nothing is admitted
    until a repeat succeeds.
    """
    with alone(LOCK) as only:
        if not only:
            return False
        known = CounterEpoch.objects.values_list("epoch", flat=True).first()
        if not force and known is not None and redis_now().get(EPOCH) == known.encode() and not _went_back():
            return False
        # Whatever it is: nothing is admitted from now on.
        redis_now().delete(EPOCH)
        logger.warning("rebuilding the counters from the ledger")
        generations.project_again()
        if known is not None:
            time.sleep(2 * settings.HEARTBEAT_SECONDS)
        _rebuild()
        return True


def _went_back() -> bool:
    """Whether Redis has forgotten calls that it admitted and the ledger has: it is an old backup."""
    newest = LedgerEntry.objects.filter(on_credit=False).order_by("-ended_at").first()
    latest_ms = int(redis_in_bytes().get(CLOCK) or 0)
    return newest is not None and newest.admitted_at.timestamp() * 1000 > latest_ms + 1


def _rebuild() -> None:
    epoch = uuid4().hex
    # First here: should the rest fail, Redis still has another, and nothing is admitted.
    CounterEpoch.objects.update_or_create(id=1, defaults={"epoch": epoch, "since": now()})
    for _ in range(ATTEMPTS):
        spool.replay()
        sweep()
        ledger.drain()
        position = ledger.last_taken()
        if position is not None and _set_counters(epoch, position):
            logger.warning("the counters are rebuilt")
            return
        time.sleep(PAUSE_SECONDS)
    logger.error("the counters could not be rebuilt: records keep coming")


def _set_counters(epoch: str, position: str) -> bool:
    """Set what was used, unless records came after ``position``."""
    used: dict[str, tuple[int, int | str]] = {
        key.decode(): (0, "") for key in redis_now().scan_iter(match=f"{PARTITION}:budget:*", count=1000)
    }
    for row in present_periods().iterator():
        counter = counter_of(row)
        used[counter.key] = (row.used, counter.expires or "")
    arguments: list[Any] = [epoch, position]
    for figures in used.values():
        arguments += figures
    return bool(run_now(REBUILD, [EPOCH, USAGE, SETTLED, DRAINED, CLOCK, *used], *arguments))


def present_periods() -> QuerySet[BudgetPeriod]:
    """The periods whose counters matter; not those of runs without an end that nobody uses any more."""
    forgotten = Q(period_end=None, last_at__lt=now() - timedelta(seconds=GRACE_SECONDS)) & ~Q(run="")
    return BudgetPeriod.objects.filter(Q(period_end=None) | Q(period_end__gt=now())).exclude(forgotten)


def counter_of(row: BudgetPeriod) -> Counter:
    """The counter that must say what a period does."""
    end = None if row.period_end is None else int(row.period_end.timestamp())
    return Counter("budget", row.budget_id.hex, "", int(row.period_start.timestamp()), end, row.run)
