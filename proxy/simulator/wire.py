"""HTTP/1.1 on one connection, down to single packets.

A library would be shorter but hides what tests have to steer: where a packet
ends, how a connection breaks, and the moment the client's close arrives.
"""

import asyncio
import http
import itertools
import logging
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from proxy.simulator.frames import http_date

Headers = Sequence[tuple[str, str]]

# Go answers in one piece when it can see the whole body in its buffer, and in chunks beyond that.
_GO_BUFFER = 2048
logger = logging.getLogger(__name__)
_serials = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of that (lower case) name."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def keeps_alive(self) -> bool:
        connection = (self.header("connection") or "").lower()
        return "close" not in connection and (self.version == "HTTP/1.1" or "keep-alive" in connection)


class Broken(Exception):
    """The connection was broken on purpose; nothing more can be sent on it."""


class BadRequest(Exception):
    """What was received is not HTTP/1.1."""


class Connection(asyncio.Protocol):
    """Reads requests one after another and hands each to ``serve`` in a task of its own.

    A client that closes, or only shuts down its sending side, cancels the task
    at once, as Go does: reading goes on while an answer is being made.
    """

    def __init__(
        self, serve: "Callable[[Request, Reply], Awaitable[None]]", open_: "set[Connection]"
    ) -> None:
        self.serial = next(_serials)
        self.closed = False
        self._serve = serve
        self._open = open_
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.socket: socket.socket = transport.get_extra_info("socket")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(self)

    def eof_received(self) -> None:
        self._client_left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._client_left()

    def _client_left(self) -> None:
        self.closed = True
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._take_request()

    async def write(self, data: bytes) -> None:
        """Send ``data`` and let the loop turn, so that it is a packet of its own and a close is noticed."""
        if self.closed:
            raise asyncio.CancelledError
        self.transport.write(data)
        await asyncio.sleep(0)
        await self._writable.wait()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._task = None
        self.transport.abort()

    def close(self) -> None:
        self._task = None
        self.transport.close()

    def drop(self) -> asyncio.Task[None] | None:
        """Break the connection and cancel the answer that is being made; return its task."""
        task = self._task
        self._client_left()
        self.transport.abort()
        return task

    def _take_request(self) -> None:
        try:
            request = self._parse()
        except (BadRequest, ValueError):
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
            self.close()
            return
        if request is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(request))

    async def _run(self, request: Request) -> None:
        try:
            await self._serve(request, Reply(self, request))
        except Exception:
            logger.exception("the simulator failed at %s %s", request.method, request.target)
            self.close()
        self._task = None
        if not request.keeps_alive:
            self.close()
        elif self._buffer and not self.closed:
            self._take_request()

    def _parse(self) -> Request | None:
        """The next whole request in the buffer, taken out of it."""
        head_size = self._buffer.find(b"\r\n\r\n")
        if head_size < 0:
            return None
        first, *lines = self._buffer[:head_size].decode("latin-1").split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise BadRequest
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        known = {name.lower(): value for name, value in headers}
        start = head_size + 4
        if "chunked" in known.get("transfer-encoding", "").lower():
            body, end = self._chunked(start)
        else:
            end = start + int(known.get("content-length", "0"))
            body = bytes(self._buffer[start:end]) if len(self._buffer) >= end else None
        if body is None:
            if known.get("expect", "").lower() == "100-continue" and len(self._buffer) == start:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        del self._buffer[:end]
        return Request(parts[0], parts[1], parts[2], headers, body)

    def _chunked(self, position: int) -> tuple[bytes | None, int]:
        """A chunked body from ``position`` on and where it ends; ``None`` while it is incomplete."""
        body = bytearray()
        while (line_end := self._buffer.find(b"\r\n", position)) >= 0:
            size = int(self._buffer[position:line_end].partition(b";")[0], 16)
            position = line_end + 2
            if len(self._buffer) < position + size + 2:
                break
            body += self._buffer[position : position + size]
            position += size + 2
            if size == 0:
                return bytes(body), position
        return None, position


class Reply:
    """The answer to one request: whole, or begun, sent in pieces and ended.

    ``packet`` regroups a body into packets of so many bytes, each a chunk of
    its own; ``split`` sends each piece in two, cut inside a character where
    there is one; ``gzip`` compresses; ``extra`` are more headers.

    ``ending`` is called with finished or broken right before the last bytes go,
    so that whoever has the whole answer finds it noted.
    """

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.begun = False
        self.packet: int | None = None
        self.split = False
        self.gzip = False
        self.extra: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.first_byte_at: float | None = None
        self.ending: Callable[[str], None] = lambda how: None
        self._request = request
        self._waiting = bytearray()
        self._compressor = zlib.compressobj(wbits=31)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete answer."""
        if self.packet or self.split or self.gzip or len(body) > _GO_BUFFER:
            await self.begin(status, headers)
            await self.send(body)
            await self.end()
            return
        self.begun = True
        head = self._head(status, [*headers, ("Content-Length", str(len(body)))])
        if self._request.method == "HEAD" or status in (204, 304):
            body = b""
        await self._write(head + body, last="finished")

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head of an answer whose end is not known yet."""
        self.begun = True
        await self._write(self._head(status, [*headers, ("Transfer-Encoding", "chunked")]))

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body, as one packet unless told otherwise."""
        if self.gzip:
            piece = self._compressor.compress(piece) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if self.packet:
            self._waiting += piece
            while len(self._waiting) >= self.packet:
                await self._chunk(bytes(self._waiting[: self.packet]))
                del self._waiting[: self.packet]
        elif self.split and len(piece) > 1:
            middle = next((n for n, byte in enumerate(piece) if byte & 0xC0 == 0x80), len(piece) // 2)
            await self._chunk(piece[:middle])
            await self._chunk(piece[middle:])
        else:
            await self._chunk(piece)

    async def end(self) -> None:
        """End a begun answer cleanly."""
        if self.gzip:
            self._waiting += self._compressor.flush()
        if self._waiting:
            await self._chunk(bytes(self._waiting))
        await self._write(b"" if self._request.method == "HEAD" else b"0\r\n\r\n", last="finished")

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        self.ending("broken")
        self.connection.reset()
        raise Broken

    def cut(self) -> None:
        """Break the connection with an ordinary close in the middle of the answer."""
        self.ending("broken")
        self.connection.close()
        raise Broken

    async def half(self, status: int, headers: Headers, body: bytes) -> None:
        """Promise the whole of ``body`` and send half of it."""
        self.begun = True
        head = self._head(status, [*headers, ("Content-Length", str(len(body)))])
        await self._write(head + body[: len(body) // 2])

    async def _chunk(self, data: bytes) -> None:
        if self._request.method != "HEAD" and data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def _write(self, data: bytes, *, last: str = "") -> Awaitable[None]:
        if self.first_byte_at is None:
            self.first_byte_at = time.time()
        self.sent_bytes += len(data)
        if last and not self.connection.closed:
            self.ending(last)
        return self.connection.write(data)

    def _head(self, status: int, headers: Headers) -> bytes:
        lines = [f"HTTP/1.1 {status} {_reason(status)}"]
        lines += [f"{name}: {value}" for name, value in (*headers, *self.extra)]
        if self.gzip:
            lines.append("Content-Encoding: gzip")
        lines.append(f"Date: {http_date()}")
        if not self._request.keeps_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Status"
