"""What the tests of the counting core share: callers, demands and limits made up on the spot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import orjson
import pytest
from django.conf import settings
from django.test import override_settings

from benchmarks.counting import Relay, RespRequests
from benchmarks.run import through
from budgets import epochs, ledger, limits
from budgets.charges import Usage
from budgets.counters import EPOCH, GENERATIONS, HOLDS, SETTLED, TALLIES, USAGE, Counter, hold_key
from budgets.holds import granted_text, holds_of
from budgets.limits import Limit, Limits
from budgets.models import CounterEpoch
from budgets.periods import Calendar, Schedule
from budgets.pricing import PinnedPrice
from budgets.records import told_in
from budgets.reservations import Demand, Reservation, asking, reserve, settle
from budgets.settlements import Moments
from keys.verification import Caller, identify, reload
from tenants import clock
from tenants.ids import new_id
from tenants.redis import redis_now

MODEL, UPSTREAM = "llama3.2:latest", "main"
TEST_EPOCH = "the-epoch-of-the-tests"
# For ``settings.CACHES``: no Redis is there.
NOWHERE = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}}


def redis() -> Any:
    """The blocking connection, without types."""
    return redis_now()


def empty_redis() -> None:
    """Counters that nobody has used and everybody believes."""
    redis().flushdb()
    redis().set(EPOCH, TEST_EPOCH)
    redis().zadd(GENERATIONS, {"platform": 1})
    epochs.expected.epoch, epochs.expected.admitted_ms = TEST_EPOCH, 0


def mistake_the_time(monkeypatch: pytest.MonkeyPatch, ahead_ms: float) -> None:
    """Let this process be wrong about the time, by more than it would be let."""
    monkeypatch.setattr(asking, "TOLERANCE_MS", 10**12)
    monkeypatch.setattr(clock, "TOLERANCE_MS", 10**12)
    monkeypatch.setattr(clock.clock, "_ahead_ms", clock.clock._ahead_ms + ahead_ms)


@contextmanager
def with_redis_at(url: str) -> Iterator[None]:
    """Count in the Redis there; gateways that run already stay with theirs."""
    caches = {"default": {**settings.CACHES["default"], "LOCATION": url}}
    with override_settings(REDIS_URL=url, CACHES=caches):
        yield


@contextmanager
def without_redis() -> Iterator[None]:
    """Nobody listens where this process looks for Redis; other processes still have theirs."""
    with override_settings(CACHES=NOWHERE):
        yield


@contextmanager
def relayed() -> Iterator[dict[str, Relay]]:
    """Lead the path of requests through a relay, for ``counted``.

    What Redis counts itself is of all who use the server: other workers of the tests too.
    """
    real = urlsplit(settings.REDIS_URL)
    assert real.hostname is not None
    assert real.port is not None
    with (
        Relay(real.hostname, real.port, RespRequests) as relay,
        override_settings(REDIS_URL=through(settings.REDIS_URL, relay.port)),
    ):
        yield {"redis": relay}


def drain_and_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drain, and die between the commit and the acknowledgement."""

    def die(*_: Any) -> None:
        raise ConnectionError("killed")

    with monkeypatch.context() as patched:
        # The one script that a drain runs is the acknowledgement.
        patched.setattr(ledger, "run_now", die)
        with pytest.raises(ConnectionError):
            ledger.drain()


Backup = dict[bytes, tuple[int, bytes]]


def take_backup() -> Backup:
    """All that Redis holds, for ``put_back``: content and what is left of its time, in ms."""
    return {key: (max(0, redis().pttl(key)), redis().dump(key)) for key in redis().keys("*")}


def put_back(backup: Backup) -> None:
    """Make Redis what it was."""
    redis().flushdb()
    for key, (left_ms, content) in backup.items():
        redis().restore(key, left_ms, content)


def believed_by_postgres() -> None:
    """The same epoch in PostgreSQL, for what asks there."""
    CounterEpoch.objects.update_or_create(id=1, defaults={"epoch": TEST_EPOCH})


def ada(
    *limiting: Limit, prices: dict[str, PinnedPrice] | None = None, credit_tokens: int = 0, **changes: Any
) -> Caller:
    """A caller whose calls ``limiting`` limits, known to Redis."""
    fields: dict[str, Any] = {
        "public_id": "ada000000000",
        "digest": "",
        "key_id": uuid4(),
        "key": "ada's key",
        "tenant_id": uuid4(),
        "tenant": "acme",
        "tenant_active": True,
        "team_id": None,
        "team": "",
        "member_id": None,
        "member": "",
        "time_zone": "Europe/Berlin",
        "week_start": 1,
        "allow_all_models": True,
        "models": None,
        "expires_at_ms": None,
        "revoked": False,
        "policy": {},
        "tenant_generation": 1,
        "platform_generation": 1,
    }
    caller = Caller(**(fields | changes))
    redis().zadd(GENERATIONS, {caller.tenant_id.hex: 1})
    priced = {model: [(0, price)] for model, price in (prices or {}).items()}
    limits._cache.put(caller, Limits(tuple(limiting), priced, credit_tokens))
    return caller


def a_budget(limit: int | None, unit: str = "tokens", **changes: Any) -> Limit:
    fields: dict[str, Any] = {
        "kind": "budget",
        "id": uuid4().hex,
        "name": f"key-{unit}-day",
        "scope": "key",
        "unit": unit,
        "limit": limit,
        "hard": True,
        "window": "day",
        "model": "",
        "upstream": "",
    }
    fields |= changes
    if fields["kind"] == "budget":
        fields.setdefault("schedule", always(fields["window"]))
    return Limit(**fields)


def always(kind: str, zone: str = "Europe/Berlin", seconds: int | None = None) -> Schedule:
    """A schedule of one calendar."""
    return Schedule(((0, Calendar(kind, seconds, ZoneInfo(zone), 1)),))


def a_rate(limit: int | None, unit: str = "requests") -> Limit:
    return a_budget(limit, unit, kind="rate", name=f"key-{unit}-minute", window="minute")


def concurrency(limit: int | None) -> Limit:
    return a_budget(limit, "requests", kind="leases", name="key-concurrent-requests", window="now")


def a_demand(input_tokens: int = 10, output_tokens: int = 100, **changes: Any) -> Demand:
    fields: dict[str, Any] = {
        "request_id": new_id(),
        "route": "chat",
        "dialect": "OLLAMA",
        "operation": "chat",
        "stream": True,
        "model": MODEL,
        "upstream": UPSTREAM,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "least_output": min(1, output_tokens),
    }
    return Demand(**(fields | changes))


def some_usage(input_tokens: int = 7, output_tokens: int = 20, **changes: Any) -> Usage:
    fields: dict[str, Any] = {
        "input_tokens": input_tokens,
        "cached_tokens": 0,
        "output_tokens": output_tokens,
        "thinking_tokens": 0,
        "load_ns": 1_000_000,
        "prompt_ns": 2_000_000,
        "output_ns": 3_500_000,
        "estimator": "",
    }
    return Usage(**(fields | changes))


def admit(secret: str, **demand: Any) -> Reservation:
    """Room for a call with this secret, under the limits in the database."""

    async def ask() -> Reservation:
        caller = await identify({"authorization": f"Bearer {secret}"})
        return await reserve(await reload(caller.public_id), a_demand(**demand))

    return asyncio.run(ask())


def end(reservation: Reservation, **used: Any) -> None:
    """The end of such a call, which used ``some_usage``."""
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def counter_of(limit: Limit) -> Counter:
    return limit.counter(time.time() * 1000)


def figures(limit: Limit) -> tuple[int, int]:
    """What the counter of a budget says is used and held; of a rate or concurrency limit, what counts now."""
    key = counter_of(limit).key
    if limit.kind == "budget":
        used, held = redis().hmget(key, "used", "held")
        return int(used or 0), int(held or 0)
    if limit.kind == "rate":
        seconds = {name.decode(): int(value) for name, value in redis().hgetall(key).items()}
        sum_kept, oldest = seconds.pop("sum", 0), seconds.pop("oldest", None)
        # Without the oldest second the sum is not believed.
        assert oldest is None or (sum_kept, oldest) == (sum(seconds.values()), min(map(int, seconds)))
        return sum(seconds.values()), 0
    return redis().zcard(key), 0


def everything() -> dict[str, Any]:
    """All that Redis holds but what gateways tell of themselves, to see whether something was written."""
    readers = {b"hash": "hgetall", b"zset": "zrange", b"string": "get", b"stream": "xrange"}
    content = {}
    for key in redis().keys("*"):
        if key.startswith(TALLIES.encode()):
            continue
        reader = readers[redis().type(key)]
        arguments = (0, -1, True) if reader == "zrange" else ()
        content[key.decode()] = getattr(redis(), reader)(key, *arguments)
    return content


def open_holds() -> list[str]:
    return [request_id.decode() for request_id in redis().zrange(HOLDS, 0, -1)]


def change_hold(request_id: UUID, **changes: Any) -> None:
    """Have the hold of a running call say something else: any of what ``Hold`` has."""
    (known,) = holds_of([request_id])
    assert known is not None
    hold = replace(known, **changes)
    granted = granted_text(hold.amounts, hold.output_cap, hold.gpu_ms)
    told = f"{hold.admitted_ms} {hold.output_tokens} {hold.phase}"
    redis().set(hold_key(request_id), f"held {granted} {told}\n{hold.call.decode()}")


def records() -> list[dict[str, Any]]:
    """What the usage records in the stream tell."""
    return [told_by(fields) for _, fields in redis().xrange(USAGE)]


def told_by(fields: dict[bytes, bytes]) -> dict[str, Any]:
    return told_in({name.decode(): text.decode() for name, text in fields.items()})


def as_fields(told: dict[str, Any]) -> dict[bytes, bytes]:
    """A usage record as settle.lua writes it into the stream."""
    texts = {name.encode(): orjson.dumps(told[name]) for name in ("call", "end", "first") if name in told}
    return {told["kind"].encode(): str(told["at"]).encode()} | texts


def as_fields_of_the_release_before(told: dict[str, Any]) -> dict[bytes, bytes]:
    """A usage record as a release wrote it that had a field for each of what it tells."""
    texts = {
        name.encode(): orjson.dumps(told[name]) for name in ("at", "call", "end", "first") if name in told
    }
    return {b"request": told["call"]["request_id"].encode(), b"kind": told["kind"].encode()} | texts


def change_record(change: Callable[[dict[str, Any]], Any]) -> None:
    """Have the only record in the stream tell something else."""
    ((stream_id, fields),) = redis().xrange(USAGE)
    told = told_by(fields)
    change(told)
    redis().xdel(USAGE, stream_id)
    redis().xadd(USAGE, as_fields(told))


def records_counted() -> int:
    return int(redis().get(SETTLED) or 0)


def expire_hold(request_id: UUID) -> None:
    """Move the deadline of a hold into the past, as if its process had been silent for so long."""
    redis().zadd(HOLDS, {str(request_id): 1})
