"""What waits for the ledger, for people who look: how much, since when, and what needs a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from budgets.counters import DRAINED, DRAINED_AT, SETTLED, USAGE, redis_in_bytes
from budgets.ledger import GROUP
from budgets.models import ParkedRecord, SpooledSettlement


@dataclass(frozen=True, slots=True)
class Backlog:
    """Records by where they wait. Ages are in seconds, None where nothing waits or nobody has drained yet."""

    waiting: int
    oldest_age: float | None
    drained_age: float | None
    spooled: int
    parked: int


def backlog() -> Backlog:
    """What waits now. Raises ``RedisError`` and Django's ``db.Error``."""
    redis = redis_in_bytes()
    seconds, microseconds = redis.time()
    now = seconds + microseconds / 1e6
    settled, drained, drained_at = redis.mget(SETTLED, DRAINED, DRAINED_AT)
    waiting = max(0, int(settled or 0) - int(drained or 0))
    return Backlog(
        waiting=waiting,
        oldest_age=_oldest_age(redis, now) if waiting else None,
        drained_age=None if drained_at is None else max(0.0, now - int(drained_at)),
        spooled=SpooledSettlement.objects.count(),
        parked=ParkedRecord.objects.count(),
    )


def _oldest_age(redis: Any, now: float) -> float | None:
    try:
        oldest = redis.xpending(USAGE, GROUP)["min"]
        taken = redis.xinfo_groups(USAGE)[0]["last-delivered-id"]
    except ResponseError:  # nobody has drained yet
        oldest, taken = None, b"0"
    if oldest is None:
        entries = redis.xrange(USAGE, min=b"(" + taken, count=1)
        if not entries:
            return None
        oldest = entries[0][0]
    return max(0.0, now - int(oldest.split(b"-")[0]) / 1000)
