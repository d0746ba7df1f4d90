"""The two ways to Redis, and the names of what lies there.

Both reach the address in ``CACHES["default"]["LOCATION"]``. Blocking code
(services, commands, admin, tasks) takes ``redis_now()``, which is django-redis'
connection. The path of a request takes ``redis_async()``: django-redis has no
asynchronous client.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import hiredis
import redis
import redis.asyncio
from django.conf import settings
from django_redis import get_redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

__all__ = ["PARTITION", "AsyncRedis", "Part", "RedisError", "redis_async", "redis_now"]

# The hash tag that all keys of ours carry. There is one: a single script then
# sees every scope of a call, the platform's too.
PARTITION = "{p0}"


def redis_now() -> redis.Redis:
    """The blocking connection, for everything that is not the path of a request."""
    return get_redis_connection("default")


# Of the time that a call may cost, what a new connection may take.
CONNECT_SHARE = 0.4
LANES = 4
MOST_AT_ONCE = 64
# A command for so many parts keeps Redis from others for a fraction of a millisecond.
MOST_PARTS = 16
# An alarm that rings so late says that this process was busy, not that Redis was slow.
LATE_SECONDS = 0.02


class Part(ABC):
    """Work that one command can do together with other work of its class."""

    __slots__ = ()

    @property
    @abstractmethod
    def kin(self) -> int:
        """A number; parts with the same one stand side by side in a command."""

    @classmethod
    @abstractmethod
    def command(cls, parts: Sequence[Self]) -> tuple[Any, ...]:
        """One command for all of these."""

    @classmethod
    @abstractmethod
    def replies(cls, parts: Sequence[Self], reply: Any) -> Sequence[Any]:
        """What the reply to their command says of each of these."""


_Waiting = tuple[tuple[Any, ...] | Part, asyncio.Future[Any]]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A command and who waits for its reply; if it was made of ``parts``, each for what it says of one."""

    command: tuple[Any, ...]
    replies: Sequence[asyncio.Future[Any]]
    parts: Sequence[Part] = ()

    def answer(self, value: Any) -> None:
        values = type(self.parts[0]).replies(self.parts, value) if self.parts else [value]
        for reply, one in zip(self.replies, values, strict=True):
            if not reply.done():
                reply.set_result(one)

    def fail(self, exc: Exception) -> None:
        for reply in self.replies:
            if not reply.done():
                reply.set_exception(exc)


def _commands(batch: Sequence[_Waiting]) -> list[_Sent]:
    """The fewest commands for what waits."""
    sent: list[_Sent] = []
    parts: defaultdict[type[Part], list[tuple[Part, asyncio.Future[Any]]]] = defaultdict(list)
    for asked, reply in batch:
        if isinstance(asked, Part):
            parts[type(asked)].append((asked, reply))
        else:
            sent.append(_Sent(asked, (reply,)))
    for kind, several in parts.items():
        several.sort(key=lambda one: one[0].kin)
        for start in range(0, len(several), MOST_PARTS):
            together, replies = zip(*several[start : start + MOST_PARTS], strict=True)
            sent.append(_Sent(kind.command(together), replies, together))
    return sent


class AsyncRedis:
    """One event loop's way to Redis: a few connections, each with a task of its own.

    What is called in one turn of the loop, or while all connections are busy,
    is sent together. A caller that is cancelled does not cancel what was sent:
    its reply is read and dropped, so no later caller can be given it. Nothing is
    retried, because a command whose reply was lost may have been carried out.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        # There is no limit of the library's own while a reply is awaited: ours knows why it is late.
        self._pool = redis.asyncio.ConnectionPool.from_url(
            url,
            socket_connect_timeout=CONNECT_SHARE * timeout,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        self._waiting: deque[_Waiting] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._lanes: set[asyncio.Task[None]] = set()

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply, within the time a call may cost.

        Raises ``RedisError`` for a reply that is an error and for a server that
        is gone or too slow.
        """
        return await self._ask(command)

    async def call_with_others(self, part: Part) -> Any:
        """Have one part done, by one command with the others of its class that wait; as ``call`` otherwise.

        A reply that is an error is raised for all of them.
        """
        return await self._ask(part)

    async def _ask(self, asked: tuple[Any, ...] | Part) -> Any:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, reply))
        if self._idle:
            self._idle.pop().set_result(None)
        elif len(self._lanes) < LANES:
            lane = asyncio.create_task(self._serve(), name="redis")
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await reply

    async def _serve(self) -> None:
        """Take what waits, send it, hand out the replies; for ever."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has not typed it
        try:
            while True:
                while not self._waiting:
                    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._idle.append(called)
                    await called
                batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
                try:
                    await self._exchange(connection, batch)
                except BaseException as exc:
                    # Whatever it is, a caller that is told nothing would wait for ever.
                    self._fail(batch, exc)
                    await connection.disconnect(nowait=True)
                    if not isinstance(exc, Exception):
                        raise
        finally:
            await connection.disconnect(nowait=True)

    async def _exchange(self, connection: redis.asyncio.Connection, batch: list[_Waiting]) -> None:
        async with asyncio.timeout(None) as limit:
            alarm = _Alarm(limit, self._timeout)
            try:
                if not connection.is_connected:
                    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has not typed it
                sent = _commands(batch)
                packed = b"".join([hiredis.pack_command(one.command) for one in sent])
                await connection.send_packed_command(packed, check_health=False)
                for one in sent:
                    try:
                        value = await connection.read_response()
                    except redis.exceptions.ResponseError as exc:
                        one.fail(exc)
                    else:
                        one.answer(value)
            finally:
                alarm.off()

    def _fail(self, batch: list[_Waiting], exc: BaseException) -> None:
        """Tell everybody who waits, also those not sent yet: they would wait as long for the same answer."""
        trouble = exc if isinstance(exc, RedisError) else redis.exceptions.ConnectionError(f"Redis: {exc!r}")
        for _, reply in (*batch, *self._waiting):
            if not reply.done():
                reply.set_exception(trouble)
        self._waiting.clear()

    async def aclose(self) -> None:
        """Close the connections; replies still awaited fail."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._idle.clear()
        self._fail([], redis.exceptions.ConnectionError("closed"))


class _Alarm:
    """Ends a ``timeout`` after ``seconds``, unless it is we who had no time to look at the reply.

    A loop that was busy finds the reply and the end of the time in the same
    turn; the reply then gets one more turn.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + seconds
        self._handle = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if self._loop.time() - self._due > LATE_SECONDS:
            self._handle = self._loop.call_later(LATE_SECONDS, self._limit.reschedule, 0.0)
        else:
            self._limit.reschedule(0.0)

    def off(self) -> None:
        self._handle.cancel()


_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRedis] = weakref.WeakKeyDictionary()


def redis_async() -> AsyncRedis:
    """The connection of the running event loop, made on first use."""
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        client = _clients[loop] = AsyncRedis(settings.REDIS_URL, settings.REDIS_TIMEOUT_SECONDS)
    return client
