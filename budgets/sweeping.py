"""Settling calls whose process died.

What is booked for such an orphan: the bound of its input and the output its
process last told of, marked as not exact, and the time that had gone by then. If
the process never told anything, the upstream may have been called all the same,
so the input is booked; if its last word was that the upstream had not been
called, nothing is. Should the process turn up after all, an adjustment makes up
for the difference.
"""

from __future__ import annotations

import logging
from uuid import UUID

import orjson
from django.conf import settings

from budgets.charges import BOUND, Usage
from budgets.counters import HOLDS, Counter, redis_in_bytes
from budgets.holds import Hold, holds_of
from budgets.models import SpooledSettlement
from budgets.pricing import PinnedPrice
from budgets.settlements import Moments, Settlement, settlement

logger = logging.getLogger(__name__)

BATCH = 100
OUTCOME = "orphaned"


def sweep() -> int:
    """Book the calls whose hold has run out; return how many.

    A call whose settlement waits in the spool is left to that. Raises
    ``RedisError`` and Django's ``db.Error``; a repeat books nothing twice.
    """
    redis = redis_in_bytes()
    swept = skipped = 0
    while True:
        now = int(redis.time()[0] * 1000)
        expired = redis.zrange(HOLDS, "-inf", now, byscore=True, offset=skipped, num=BATCH)
        if not expired:
            return swept
        request_ids = [request_id.decode() for request_id in expired]
        spooled = set(
            SpooledSettlement.objects.filter(request_id__in=map(UUID, request_ids)).values_list(
                "request_id", flat=True
            )
        )
        for request_id in request_ids:
            if UUID(request_id) not in spooled and _sweep(request_id):
                swept += 1
            else:
                skipped += 1


def _sweep(request_id: str) -> bool:
    redis = redis_in_bytes()
    (hold,) = holds_of([request_id])
    if hold is None:
        redis.zrem(HOLDS, request_id)
        return False
    deadline_ms = int(redis.zscore(HOLDS, request_id) or 0)
    booked = _orphan(request_id, hold, deadline_ms).book_now()
    if booked == "usage":
        logger.warning("the process of %s is gone; booked what it last told of", request_id)
    return booked == "usage"


def _orphan(request_id: str, hold: Hold, deadline_ms: int) -> Settlement:
    call = orjson.loads(hold.call)
    # The hold was last prolonged one lease before it ran out.
    told_ms = max(0, deadline_ms - settings.LEASE_SECONDS * 1000 - hold.admitted_ms)
    usage = Usage(call["input_bound"], 0, hold.output_tokens, 0, None, None, None, BOUND, told_ms)
    return settlement(
        request_id=request_id,
        mode="sweep",
        call=hold.call,
        counters=(Counter(*counter) for counter in call["counters"]),
        price=None if call["price"] is None else PinnedPrice(*call["price"]),
        input_bound=call["input_bound"],
        output_cap=hold.output_cap,
        gpu_cap_ms=hold.gpu_ms or None,
        admitted_ms=hold.admitted_ms,
        usage=None if hold.phase == "reserved" else usage,
        outcome=OUTCOME,
        status=0,
        moments=Moments(),
    )
