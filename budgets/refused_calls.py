"""Writing down the refused calls that were noted; those lost on the way are nobody's usage."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

import orjson
from django.db import transaction

from audit.models import RequestEvent
from budgets.booking import count_refusals, ensure_months, nobody_else_drains
from budgets.counters import REFUSALS, redis_in_bytes
from budgets.records import RefusedBy, instant, position, refused_by_in, uuid_or_none

logger = logging.getLogger(__name__)

BATCH = 500


def drain() -> None:
    """Write down the refused calls that were noted; those lost on the way are nobody's usage."""
    started = time.monotonic()
    while time.monotonic() - started < 5 and _drain_some():
        pass


def _drain_some() -> int:
    """Write down a batch of refused calls, each once; return how many were read."""
    redis = redis_in_bytes()
    with transaction.atomic():
        if not nobody_else_drains():
            return 0
        entries = redis.xrange(REFUSALS, count=BATCH)
        events: dict[UUID, RequestEvent] = {}
        refused: dict[UUID, tuple[RefusedBy, ...]] = {}
        for stream_id, fields in entries:
            try:
                noted = orjson.loads(fields[b"event"])
                event = _event_of(stream_id, noted)
                refused_by = refused_by_in(noted.get("refused_by", []))
            except (ValueError, KeyError, TypeError):
                logger.exception("refusal %s cannot be read", stream_id)
                continue
            event.refused_by = [name for name, _ in refused_by]
            events.setdefault(event.request_id, event)
            refused.setdefault(event.request_id, refused_by)
        ensure_months(events)
        # A drain that died may have written them and not said so to Redis.
        written = set(RequestEvent.objects.filter(pk__in=events).values_list("pk", flat=True))
        new = [request_id for request_id in events if request_id not in written]
        RequestEvent.objects.bulk_create([events[request_id] for request_id in new], ignore_conflicts=True)
        count_refusals(one for request_id in new for one in refused[request_id])
    if entries:
        redis.xdel(REFUSALS, *(stream_id for stream_id, _ in entries))
    return len(entries)


def _event_of(stream_id: bytes, noted: dict[str, Any]) -> RequestEvent:
    def text(name: str) -> str:
        # A client's words: the model name of a refused call can be anything.
        return str(noted.get(name) or "").replace("\x00", "")[:200]

    return RequestEvent(
        request_id=UUID(noted["request_id"]),
        at=instant(position(stream_id)[0]),
        tenant_id=uuid_or_none(noted.get("tenant_id")),
        key_id=uuid_or_none(noted.get("key_id")),
        **{
            name: text(name)
            for name in ("tenant", "key", "route", "dialect", "model", "upstream", "run", "refusal")
        },
        outcome=text("outcome") or "refused",
        stream=bool(noted.get("stream")),
        status=int(noted["status"]),
    )
