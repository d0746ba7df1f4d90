"""The calls that run in all processes, as Redis knows them, and the request to end one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import orjson

from budgets.counters import HOLDS, STOP, STOPS, Counter, hold_key, redis_in_bytes, run_now
from budgets.holds import Hold, holds_of
from budgets.models import RunningCall

BATCH = 200

One = TypeVar("One")


def running_calls(*, tenant_id: UUID | None = None, key_id: UUID | None = None) -> Iterator[RunningCall]:
    """The running calls of everybody, of a tenant, or of a key, in no order.

    Redis is asked for some at a time, so that nobody waits for a long list. A
    call that runs from the first question to the last is among them; one that
    began or ended meanwhile may be. Raises ``RedisError``.
    """
    redis = redis_in_bytes()
    seen: set[bytes] = set()
    for batch in _batches(redis.zscan_iter(HOLDS, count=BATCH)):
        names = [name for name, _ in batch if name not in seen]
        seen.update(names)
        if not names:
            continue
        holds = holds_of([name.decode() for name in names])
        for hold, reason in zip(holds, redis.hmget(STOPS, names), strict=True):
            call = None if hold is None else _call_in(hold, reason)
            if call is not None and tenant_id in (None, call.tenant_id) and key_id in (None, call.key_id):
                yield call


def found_calls(query: str) -> list[RunningCall]:
    """The running calls with ``query`` in one of their names, the oldest first. Raises ``RedisError``."""
    return sorted(
        (call for call in running_calls() if _mentions(call, query)), key=lambda call: call.admitted_at
    )


def _mentions(call: RunningCall, query: str) -> bool:
    names = (call.tenant, call.key, call.model, call.upstream, call.client, str(call.request_id))
    return not query or any(query.lower() in name.lower() for name in names)


def running_of_keys(key_ids: Collection[UUID]) -> int:
    """How many calls run with these keys. Raises ``RedisError``."""
    wanted = frozenset(key_ids)
    return sum(call.key_id in wanted for call in running_calls())


def running_call(request_id: UUID) -> RunningCall | None:
    """One running call; None if there is none with this id. Raises ``RedisError``."""
    (hold,) = holds_of([request_id])
    return None if hold is None else _call_in(hold, redis_in_bytes().hget(STOPS, str(request_id)))


def _call_in(hold: Hold, reason: bytes | None) -> RunningCall:
    """A call by its hold."""
    call = orjson.loads(hold.call)
    return RunningCall(
        request_id=UUID(call["request_id"]),
        tenant_id=UUID(call["tenant_id"]),
        key_id=UUID(call["key_id"]),
        **{name: call[name] for name in ("tenant", "key", "member", "model", "upstream", "route", "stream")},
        admitted_at=datetime.fromtimestamp(hold.admitted_ms / 1000, UTC),
        output_tokens=hold.output_tokens,
        output_cap=hold.output_cap,
        started=hold.phase == "started",
        stopping=reason is not None,
        # A call that an earlier release admitted has not told.
        client=call.get("client", ""),
        held_tokens=call["input_bound"] + hold.output_cap,
        held_micro_usd=_held_money(call["counters"], hold.amounts),
    )


def _held_money(counters: list[list[Any]], amounts: Sequence[int]) -> int | None:
    """What is held on the budgets in money; each of them holds the same."""
    units = (Counter(*counter).unit for counter in counters)
    held = (amount for unit, amount in zip(units, amounts, strict=True) if unit == "micro_usd")
    return next(held, None)


def ask_to_end(request_ids: Iterable[UUID], message: str) -> list[UUID]:
    """Have the next heartbeat of each of these calls end it; returns those that are running.

    ``message`` is told to their callers. Raises ``RedisError``.
    """
    found: list[UUID] = []
    for batch in _batches(map(str, request_ids)):
        keys = [STOPS, *map(hold_key, batch)]
        found += [UUID(name.decode()) for name in run_now(STOP, keys, _as_reason(message), *batch)]
    return found


def _batches(items: Iterable[One]) -> Iterator[list[One]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch


OPERATOR = "operator"


def _as_reason(message: str) -> str:
    return f"{OPERATOR}\n{message}"


def message_in(reason: bytes) -> str:
    """What a caller is told, of a reason as it lies in Redis."""
    return reason.decode().partition("\n")[2]
