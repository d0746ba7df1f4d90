"""``/livez``: this process runs. ``/readyz``: it may be sent requests.

What readiness asks of others is asked at most once a second, whoever asks, and
in a thread: neither a flood of probes nor a hanging database costs a request
anything. Upstream is not asked: without it the answers are still ours to give.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from django.db import connection

from budgets.counters import CLOCK, EPOCH
from budgets.epochs import expected
from budgets.exceptions import CountersUnavailable
from config.asking import Asked, TooSlow
from proxy.handler import Scope, Send
from tenants.clock import ClockError, clock
from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)


class Part:
    """Something that this process cannot do without; ``ask`` raises when it is not well."""

    def __init__(self, name: str, ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self.name = name
        self._asked = Asked(ask)

    async def is_well(self) -> bool:
        """The answer of this second; one that takes too long is no."""
        try:
            await self._asked.answer()
        except TooSlow:
            return False
        except Exception as exc:  # noqa: BLE001, whatever is wrong with it, it is not well
            logger.warning("not ready: %s: %s", self.name, exc)
            return False
        return True


class Readiness:
    """What keeps this process from being sent requests; ``draining`` is set by the server."""

    def __init__(self) -> None:
        self.draining = False
        self._parts = [
            Part("database", _ask_database),
            Part("counters", _ask_counters),
            Part("clock", _ask_clock),
        ]

    async def failing(self) -> list[str]:
        """Names of the parts that are not well; none when this process may be sent requests."""
        if self.draining:
            return ["draining"]
        well = await asyncio.gather(*(part.is_well() for part in self._parts))
        return [part.name for part, is_well in zip(self._parts, well, strict=True) if not is_well]


async def _ask_database() -> None:
    await asyncio.to_thread(_select_one)


def _select_one() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


async def _ask_counters() -> None:
    """Raises unless Redis answers, keeps what it has, and its counters belong to our ledger."""
    mark, memory = await asyncio.gather(
        redis_async().call("GET", EPOCH), redis_async().call("INFO", "memory")
    )
    if not await expected.confirms((mark or b"").decode()):
        raise CountersUnavailable("Redis' counters are not those of our ledger")
    told = dict(line.split(":", 1) for line in memory.decode().splitlines() if ":" in line)
    if told.get("maxmemory") != "0" and told.get("maxmemory_policy") != "noeviction":
        raise CountersUnavailable("Redis may evict counters: set maxmemory-policy to noeviction")


async def _ask_clock() -> None:
    """Raises unless the clock of Redis is where this process and the last call admitted have it."""
    try:
        now_ms = await clock.look()
        latest_ms = int(await redis_async().call("GET", CLOCK) or 0)
    except RedisError:
        return  # that is for the counters to tell
    if now_ms + 1000 < latest_ms:
        raise ClockError(f"Redis' clock went back by {(latest_ms - now_ms) / 1000:.1f} s")


readiness = Readiness()


async def answer(scope: Scope, send: Send) -> None:
    """Answer a probe: 200 or 503, and the names of the failing parts, never why they fail."""
    if scope["method"] not in ("GET", "HEAD"):
        await _send(send, 405, {"status": "method not allowed"})
    elif scope["path"] == "/livez":
        await _send(send, 200, {"status": "ok"})
    else:
        failing = await readiness.failing()
        if failing:
            await _send(send, 503, {"status": "not ready", "failing": failing})
        else:
            await _send(send, 200, {"status": "ok"})


async def _send(send: Send, status: int, content: dict[str, object]) -> None:
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
