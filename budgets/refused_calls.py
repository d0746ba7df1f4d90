"""Writing down the refused calls that were noted; those lost on the way are nobody's usage."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from django.db import transaction
from django.utils.timezone import now

from audit.models import RequestEvent
from budgets.booking import count_refusals, ensure_months, nobody_else_drains
from budgets.counters import REFUSALS, redis_in_bytes
from budgets.models import RefusedCall
from budgets.records import RefusedBy, instant, position, refused_by_in, uuid_or_none
from budgets.refusal_reasons import Reason, reason_of

logger = logging.getLogger(__name__)

BATCH = 500
# What the values were is of use while people ask why; that a call was refused is kept with the books.
KEPT = timedelta(days=90)
FORGOTTEN_AT_ONE_TIME = 5000


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
        explained: dict[UUID, RefusedCall] = {}
        for stream_id, fields in entries:
            try:
                noted = orjson.loads(fields[b"event"])
                event = _event_of(stream_id, noted)
                refused_by = refused_by_in(noted.get("refused_by", []))
            except (ValueError, KeyError, TypeError):
                logger.exception("refusal %s cannot be read", stream_id)
                continue
            event.refused_by = [name for name, _ in refused_by]
            explained.setdefault(event.request_id, _explained(event, noted))
            events.setdefault(event.request_id, event)
            refused.setdefault(event.request_id, refused_by)
        ensure_months(events)
        # A drain that died may have written them and not said so to Redis.
        written = set(RequestEvent.objects.filter(pk__in=events).values_list("pk", flat=True))
        new = [request_id for request_id in events if request_id not in written]
        RequestEvent.objects.bulk_create([events[request_id] for request_id in new], ignore_conflicts=True)
        RefusedCall.objects.bulk_create([explained[request_id] for request_id in new], ignore_conflicts=True)
        count_refusals(one for request_id in new for one in refused[request_id])
    if entries:
        redis.xdel(REFUSALS, *(stream_id for stream_id, _ in entries))
    return len(entries)


def newest_refusals(tenant_id: UUID, member_id: UUID | None, most: int) -> list[tuple[RequestEvent, Reason]]:
    """The last calls of a tenant that were refused before they were admitted, and why, the newest first.

    With ``member_id`` only those by this member's own keys.
    """
    kept = RefusedCall.objects.filter(tenant_id=tenant_id)
    if member_id is not None:
        kept = kept.filter(member_id=member_id)
    ids = list(kept.order_by("-at").values_list("pk", flat=True)[:most])
    events = RequestEvent.objects.in_bulk(ids)
    return [(events[one], reason_of(events[one].refusal)) for one in ids if one in events]


def forget() -> int:
    """Delete what is kept of refusals older than ``KEPT``; return how many; a repeat deletes the rest."""
    old = RefusedCall.objects.filter(at__lt=now() - KEPT).order_by("at").values("pk")
    return RefusedCall.objects.filter(pk__in=old[:FORGOTTEN_AT_ONE_TIME]).delete()[0]


def _explained(event: RequestEvent, noted: dict[str, Any]) -> RefusedCall:
    # A process of the release before notes neither.
    facts = noted.get("facts")
    return RefusedCall(
        request_id=event.request_id,
        at=event.at,
        tenant_id=event.tenant_id,
        key_id=event.key_id,
        member_id=uuid_or_none(noted.get("member_id")),
        refusal=event.refusal,
        facts=_storable(facts) if isinstance(facts, dict) else {},
    )


def _storable(value: Any) -> Any:
    """The same without what PostgreSQL takes in no text: a client may have written it."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, list):
        return [_storable(one) for one in value]
    if isinstance(value, dict):
        return {name: _storable(one) for name, one in value.items()}
    return value


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
