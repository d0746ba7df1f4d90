"""httpx' way to a server, as short as it can be: HTTP/1.1 over asyncio's own protocols.

For servers that are trusted and may fail. There is no limit of connections
(admission bounds the calls), no redirect, no proxy, no cookie and no unpacking;
a request is written in one piece and never a second time. Packets are handed
on as they come, without a task or a timer for any of them.

Raises httpx' own exceptions: ``ConnectError`` and ``ConnectTimeout`` when
nothing was sent, any other ``TransportError`` for what went wrong after that.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator
from typing import cast

import httpx

from proxy.http1 import AnswerReader, Head

# How long a connection is kept for the next request.
IDLE_SECONDS = 30.0
# Beyond this many bytes that nobody has taken yet, no more is read from upstream.
MAX_UNREAD_BYTES = 256 * 1024

# Scheme, host and port, by which connections are kept.
_Origin = tuple[str, str, int | None]
_PORTS = {"http": 80, "https": 443}


class Transport(httpx.AsyncBaseTransport):
    """The connections of one event loop, those that wait for the next request included."""

    def __init__(self) -> None:
        # Those used last are used next, so that the others grow old and are closed.
        self._idle: dict[_Origin, list[_Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._open: set[_Connection] = set()
        self._closed = False
        self._emptied = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` and return its answer as soon as its head has come.

        Waits for the head without end. The answer has to be closed; one that is
        closed before its end has its connection closed at once.
        """
        packed = _packed(request)
        url = request.url
        origin = (url.scheme, url.host, url.port)
        connection = self._take(origin)
        if connection is None:
            seconds = request.extensions.get("timeout", {}).get("connect")
            connection = await self._connect(origin, seconds)
        answer = _Answer(self, connection, request.method)
        try:
            connection.transport.write(packed)
            head = await answer.head()
        except BaseException:
            answer.close()
            raise
        return httpx.Response(head.status, headers=head.headers, stream=answer)

    async def aclose(self) -> None:
        """Close all connections, those in use too; returns when they are closed."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in self._open:
            connection.transport.abort()
        if self._open:
            await self._emptied.wait()

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next request to the same server."""
        transport = connection.transport
        if self._closed or transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
            return
        transport.resume_reading()
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(IDLE_SECONDS, self._sweep)

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if self._closed and not self._open:
            self._emptied.set()

    def _take(self, origin: _Origin) -> _Connection | None:
        """A connection that waits for a request, unless the server has closed them all."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self, origin: _Origin, seconds: float | None) -> _Connection:
        scheme, host, port = origin
        if scheme not in _PORTS:
            raise httpx.UnsupportedProtocol(f"{scheme} is not spoken here")
        connection = _Connection(self, origin)
        try:
            async with asyncio.timeout(seconds):
                # Both loops, asyncio's and uvloop's, switch Nagle's algorithm off by themselves.
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    host,
                    port or _PORTS[scheme],
                    ssl=_tls() if scheme == "https" else None,
                )
        except TimeoutError as exc:
            raise httpx.ConnectTimeout(f"{host} does not answer") from exc
        except (OSError, OverflowError, UnicodeError) as exc:
            # The latter two for a port and a name that cannot be.
            raise httpx.ConnectError(f"{host} cannot be reached: {exc}") from exc
        if self._closed or connection.transport.is_closing():
            connection.transport.abort()
            raise httpx.ConnectError(f"the connection to {host} was closed at once")
        return connection

    def _sweep(self) -> None:
        """Close what has waited too long, and come back when the next one will have."""
        loop = asyncio.get_running_loop()
        self._sweeping = None
        oldest = loop.time() - IDLE_SECONDS
        for origin, idle in list(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.idle_since <= oldest:
                    connection.transport.abort()
                elif not connection.transport.is_closing():
                    kept.append(connection)
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            first = min(idle[0].idle_since for idle in self._idle.values())
            self._sweeping = loop.call_at(first + IDLE_SECONDS, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection; ``answer`` is the one that is awaited or read from it."""

    __slots__ = ("_owner", "answer", "idle_since", "origin", "transport")

    transport: asyncio.Transport

    def __init__(self, owner: Transport, origin: _Origin) -> None:
        self._owner = owner
        self.origin = origin
        self.answer: _Answer | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What TCP and TLS give, though uvloop's are not declared as such.
        self.transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.answer is not None:
            self.answer.received(data)
        else:
            # Nobody asked for anything, so nobody can tell what it belongs to.
            self.transport.abort()

    def eof_received(self) -> None:
        # The loop itself would first send on what nobody is going to answer.
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)
        if self.answer is not None:
            self.answer.lost(exc)


class _Answer(httpx.AsyncByteStream):
    """One answer: its head, and its body as it comes, for one reader."""

    def __init__(self, owner: Transport, connection: _Connection, method: str) -> None:
        self._owner = owner
        # None as soon as the connection is none of this answer's business any more.
        self._connection: _Connection | None = connection
        self._reader = AnswerReader(method)
        self._pieces: list[bytes] = []
        self._unread = 0
        self._trouble: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        connection.answer = self

    async def head(self) -> Head:
        while self._reader.head is None:
            await self._news()
        return self._reader.head

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """All that has come since, in one piece; waits for something to come."""
        while not self._pieces:
            if self._trouble is None and self._reader.ended:
                self._let_go()
                raise StopAsyncIteration
            try:
                await self._news()
            except BaseException:
                self.close()
                raise
        pieces, self._pieces = self._pieces, []
        if self._unread > MAX_UNREAD_BYTES and self._connection is not None:
            self._connection.transport.resume_reading()
        self._unread = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def aclose(self) -> None:
        """Close it at once; whoever waits for its next packet learns of it by a ``ReadError``."""
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._pieces.clear()
            self._trouble = httpx.ReadError("the answer was closed before its end")
            self._let_go()
            self._wake()

    def received(self, data: bytes) -> None:
        """Take a packet from the connection."""
        self._unread += len(data)
        try:
            self._reader.feed(data, self._pieces)
        except httpx.RemoteProtocolError as exc:
            self._trouble = exc
            self._let_go()
        else:
            if self._unread > MAX_UNREAD_BYTES and self._connection is not None:
                self._connection.transport.pause_reading()
        self._wake()

    def lost(self, exc: Exception | None) -> None:
        """Take note that the connection is gone."""
        self._connection = None
        if exc is None:
            self._reader.close()
        if not self._reader.ended:
            self._trouble = _trouble(exc)
        self._wake()

    async def _news(self) -> None:
        """Wait until something has happened; raises when nothing more is going to."""
        if self._trouble is not None:
            raise self._trouble
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _let_go(self) -> None:
        """Give the connection back if another request may follow; close it otherwise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.answer = None
            if self._reader.reusable:
                self._owner.give_back(connection)
            else:
                connection.transport.abort()


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the system's certificates takes long; they are read once."""
    return ssl.create_default_context()


def _packed(request: httpx.Request) -> bytes:
    """The request as it is sent."""
    if not isinstance(request.stream, httpx.ByteStream):
        raise httpx.LocalProtocolError("a body is sent whole or not at all")
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b\r\n" % header for header in request.headers.raw]
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise httpx.LocalProtocolError("a header has more than one line")
    return b"".join((head, b"\r\n", *request.stream))


def _trouble(exc: Exception | None) -> httpx.TransportError:
    """What it means that a connection was lost by ``exc`` in the middle of a call."""
    if exc is None:
        return httpx.RemoteProtocolError("upstream closed the connection before its answer was whole")
    kind = httpx.WriteError if isinstance(exc, BrokenPipeError) else httpx.ReadError
    return kind(f"the connection to upstream broke: {exc}")
