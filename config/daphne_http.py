"""HTTP as Daphne's server speaks it here: one client's connection, and one request with its answer.

What plain Daphne 4.2.3 does, and what is done here instead:

* it leaves the client hanging, and stops its own housekeeping, when an
  application fails in the middle of an answer: we abort the connection;
* it buffers a whole request before anybody looks at it: we refuse by size
  while it arrives;
* it holds in memory whatever a slow client does not read: we make the
  application wait;
* it trusts a header, ``Daphne-Root-Path``, which any client can send: the
  scope is built here, without it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.server import twisted_loop
from twisted.web.http import NO_BODY_CODES, RESPONSES, HTTPChannel
from twisted.web.http import HTTPFactory as TwistedFactory
from twisted.web.http import Request as TwistedRequest

from proxy.errors import answer_for
from proxy.exceptions import BadRequest, BodyTooLarge, Draining, RouteRefused
from proxy.handler import TELLS_OF_LEAVING
from tenants.exceptions import Refusal
from tenants.quick_settings import settings

if TYPE_CHECKING:
    from config.daphne_server import GatewayServer

logger = logging.getLogger(__name__)

METHODS = frozenset([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
# Two of one of these let two readers of the same request see two different callers or hosts.
ONCE = (b"Host", b"Authorization", b"X-Api-Key", b"Content-Type", b"Content-Encoding")
_BEFORE_PATH = re.compile(rb"\Ahttps?://[^/?]*/?", re.IGNORECASE)

# How long and how much of what a refused client still sends is thrown away. A
# socket closed on unread bytes is reset, and the reset may overtake the answer.
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 2**20

# Bodies that are still arriving may hold as much as this many of the largest.
ARRIVING_BODIES = 16


class Channel(HTTPChannel):  # type: ignore[misc]  # the server's packages have no types
    """One client's connection: checks each request's head, and holds the client to its deadlines."""

    server: GatewayServer
    deadline: float | None
    refused = False
    # The target of a request, as Twisted calls it.
    _path: bytes
    _asked = b"/"
    _idle = True
    _thrown_away = 0

    def connectionMade(self) -> None:  # noqa: N802
        self.server = self.factory.server
        # Both are asked for again with every request, and cost a system call.
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        self.deadline = time.monotonic() + settings.CLIENT_IDLE_SECONDS
        self.server.channels.add(self)
        super().connectionMade()

    def getPeer(self) -> Any:  # noqa: N802
        return self._peer

    def getHost(self) -> Any:  # noqa: N802
        return self._host

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        if self.refused:
            self._throw_away(data)
            return
        if self._idle:
            self._idle = False
            self.deadline = time.monotonic() + settings.CLIENT_HEADER_SECONDS
        super().dataReceived(data)

    def _throw_away(self, data: bytes) -> None:
        self._thrown_away += len(data)
        if self._thrown_away > LINGER_BYTES:
            self.transport.abortConnection()

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: N802
        self.refuse(431)

    def allHeadersReceived(self) -> None:  # noqa: N802
        # The form that proxies are asked in, which servers have to understand as well.
        if self._path[:1] != b"/":
            self._path = _BEFORE_PATH.sub(b"/", self._path)
        self._asked = self._path.partition(b"?")[0]
        refusal = self._trouble_with_head()
        if refusal is None:
            self.deadline = time.monotonic() + settings.CLIENT_BODY_SECONDS
            super().allHeadersReceived()
        else:
            self.refuse_for(refusal)

    def _trouble_with_head(self) -> Refusal | None:
        """Why this request is refused before its body is read, if it is."""
        headers = self.requests[-1].requestHeaders
        if self._command not in METHODS:
            return RouteRefused()
        if self._path[:1] != b"/":
            return BadRequest("The path does not begin with a slash.")
        if not self._path.isascii():
            return BadRequest("The path has characters that are not ASCII.")
        for name in ONCE:
            if len(headers.getRawHeaders(name, ())) > 1:
                return BadRequest(f"There is more than one {name.decode()} header.")
        if self._version == b"HTTP/1.1" and not headers.hasHeader(b"Host"):
            return BadRequest("There is no Host header.")
        encodings = headers.getRawHeaders(b"Transfer-Encoding")
        # Twisted takes "identity" for no encoding, also behind a first line that says "chunked".
        if encodings and [encoding.lower() for encoding in encodings] != [b"chunked"]:
            return BadRequest("The transfer encoding is not understood.")
        if self.length is not None and self.length > settings.MAX_BODY_BYTES:
            return BodyTooLarge()
        return None

    def allContentReceived(self) -> None:  # noqa: N802
        if not self.refused:
            self.deadline = None
            super().allContentReceived()

    def checkPersistence(self, request: Any, version: bytes) -> bool:  # noqa: N802
        return not self.server.draining and bool(super().checkPersistence(request, version))

    def requestDone(self, request: Any) -> None:  # noqa: N802
        self._idle = True
        self.deadline = time.monotonic() + settings.CLIENT_IDLE_SECONDS
        super().requestDone(request)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        self.server.channels.discard(self)
        super().connectionLost(reason)

    def refuse_for(self, reason: BaseException) -> None:
        """Refuse the request that is under way, in the words of its path."""
        answer = answer_for(unquote(self._asked.decode("ascii", "replace")), reason)
        assert isinstance(answer.body, bytes)  # noqa: S101 - tells the type checker: a refusal is whole
        self._answer_and_close(answer.status, answer.headers, answer.body)

    def refuse(self, status: int) -> None:
        """Refuse what may not even be a request."""
        body = orjson.dumps({"error": HTTPStatus(status).phrase.lower()})
        self._answer_and_close(status, {"Content-Type": "application/json"}, body)

    def _answer_and_close(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer, read nothing more, and close when the client has, or a little later."""
        headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(head.encode("latin-1") + b"\r\n" + body)
        self.transport.loseWriteConnection()
        self.refused = True
        self.clearLineBuffer()
        self.deadline = time.monotonic() + LINGER_SECONDS

    def overdue(self) -> None:
        """The deadline has passed: close an idle connection, refuse a slow request, cut what lingers."""
        if self.refused or self.transport.disconnecting:
            self.transport.abortConnection()
        elif self._idle:
            self.deadline = time.monotonic() + LINGER_SECONDS
            self.loseConnection()
        else:
            self.refuse(408)

    def wind_up(self) -> None:
        """Close now if no request is under way, else after the one that is."""
        self.persistent = False
        if self._idle:
            self.deadline = time.monotonic() + LINGER_SECONDS
            self.loseConnection()


class Request(WebRequest):  # type: ignore[misc]  # the server's packages have no types
    """One request, and the ``receive`` and ``send`` of the application that answers it."""

    def __init__(self, channel: Channel, queued: int = 0) -> None:
        # Not Daphne's: it enters us into a list that is swept once a second,
        # and lets Twisted parse forms, which reads the body twice.
        TwistedRequest.__init__(self, channel, queued, parsePOSTFormSubmission=False)
        self.server = channel.server
        # Daphne's part for WebSockets looks at these three.
        self.client_addr = self.server_addr = self.application_queue = None
        self.gone = False
        self._arrived = 0
        self._body: bytes | None = None
        self._listeners: list[Callable[[], None]] = []
        self._start: dict[str, Any] | None = None
        self._response_started = False
        self.chunked: bool = False
        self._sends_body = True
        self._paused = False
        self._room: asyncio.Future[None] | None = None
        self._leaving: asyncio.Future[None] | None = None

    def parseCookies(self) -> None:  # noqa: N802
        """Cookies are the site's to read."""

    def gotLength(self, length: int | None) -> None:  # noqa: N802
        # Twisted's own goes to a temporary file, and no prompt of ours may touch a disk.
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802
        if self.channel.refused:
            return
        self._arrived += len(data)
        self.server.arriving_bytes += len(data)
        if self._arrived > settings.MAX_BODY_BYTES:
            self._drop_body()
            self.channel.refuse_for(BodyTooLarge())
        elif self.server.arriving_bytes > ARRIVING_BODIES * settings.MAX_BODY_BYTES:
            self._drop_body()
            self.channel.refuse(503)
        else:
            self.content.write(data)

    def _drop_body(self) -> None:
        self.server.arriving_bytes -= self._arrived
        self._arrived = 0
        self.content = io.BytesIO()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: N802
        self.method, self.uri, self.clientproto = command, path, version
        self.path, _, self.query_string = path.partition(b"?")
        self.process()

    def process(self) -> None:
        """Start the application on a request that is whole."""
        body = self.content.getvalue()
        self._drop_body()
        if self.requestHeaders.getRawHeaders(b"Upgrade", [b""])[0].lower() == b"websocket":
            # Daphne gives the connection to another protocol; it is no channel of ours any more.
            self.server.channels.discard(self.channel)
            super().process()
            return
        self._body = body
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1" if self.clientproto == b"HTTP/1.1" else "1.0",
            "method": self.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(self.path.decode("ascii")),
            "raw_path": self.path,
            "query_string": self.query_string,
            "root_path": "",
            "headers": [
                (name.lower(), value)
                for name, values in self.requestHeaders.getAllRawHeaders()
                # An underscore and a hyphen are one and the same to whoever reads headers as CGI does.
                if b"_" not in name
                for value in values
            ],
            "client": (self.client.host, self.client.port),
            "server": (self.host.host, self.host.port),
            "extensions": {TELLS_OF_LEAVING: self._listeners},
        }
        task = twisted_loop.create_task(self.server.application(scope, self.receive, self.send))
        self.server.tasks[task] = self
        task.add_done_callback(self._application_ended)

    async def receive(self) -> dict[str, Any]:
        """The whole body first, then nothing until the client has left or has its answer."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self.gone and not self.finished:
            self._leaving = twisted_loop.create_future()
            await self._leaving
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Write a part of the answer, and wait while the client is behind with reading.

        A client that does not read for ``CLIENT_STALL_SECONDS`` is cut off. What
        is sent to a client that has left is dropped.
        """
        if self.gone or self.finished:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        more = message.get("more_body", False)
        data = b"" if self._response_started else self._head(more)
        data += self._packed(message.get("body", b""))
        if not more:
            # What Twisted would send by itself goes along.
            data += b"0\r\n\r\n" if self.chunked else b""
            self.chunked = False
        self._write(data)
        if not more:
            if self.producer is not None:
                self.unregisterProducer()
            self.finish()
        elif self._paused:
            await self._wait_for_room()

    def _head(self, more: bool) -> bytes:
        """The head of the answer, which is sent with its first part."""
        assert self._start is not None  # noqa: S101 - ASGI has applications start before they go on
        status, headers = self._start["status"], self._start.get("headers", ())
        lines = [b"%b %d %b" % (self.clientproto, status, RESPONSES.get(status, b"Unknown"))]
        lines += [b"%b: %b" % header for header in headers]
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        self._sends_body = self.method != b"HEAD" and status not in NO_BODY_CODES
        if self._sends_body and not has_length and self.clientproto == b"HTTP/1.1":
            self.chunked = True
            lines.append(b"Transfer-Encoding: chunked")
        if not self.channel.persistent:
            lines.append(b"Connection: close")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            raise ValueError("a header of the answer has a line break")
        self._response_started, self.startedWriting = True, 1
        if more:
            self.registerProducer(self, True)
        return head + b"\r\n\r\n"

    def _packed(self, data: bytes) -> bytes:
        if not data or not self._sends_body:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def _write(self, data: bytes) -> None:
        """Give data to the socket at once if nothing waits before it, and the rest to Twisted.

        Twisted itself writes in the next turn of the loop, and asks the kernel
        to be told when it may, each time.
        """
        transport = self.transport
        if not data:
            return
        if not (transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting):  # noqa: SLF001
            sent = transport.writeSomeData(data)
            if not isinstance(sent, int):
                # The connection is broken, which Twisted finds out by itself.
                sent = 0
            data = data[sent:]
        if data:
            transport.write(data)

    async def _wait_for_room(self) -> None:
        self._room = twisted_loop.create_future()
        try:
            async with asyncio.timeout(settings.CLIENT_STALL_SECONDS):
                await self._room
        except TimeoutError:
            logger.info("a client that stopped reading was cut off")
            self.transport.abortConnection()

    def pauseProducing(self) -> None:  # noqa: N802
        """The connection holds more than 64 KiB that the client has not taken."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """All that was written is on its way."""
        self._paused = False
        _wake(self._room)

    def stopProducing(self) -> None:  # noqa: N802
        """``connectionLost`` follows."""

    def finish(self) -> None:
        TwistedRequest.finish(self)
        _wake(self._leaving)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        self.gone = True
        self._drop_body()
        _wake(self._room)
        _wake(self._leaving)
        for listener in self._listeners:
            listener()
        TwistedRequest.connectionLost(self, reason)

    def _application_ended(self, task: asyncio.Task[None]) -> None:
        del self.server.tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an answer broke: %s", error, exc_info=error)
        if self.gone or self.finished:
            return
        if self._response_started:
            # Not closed, but reset: whatever the protocol, this cannot be taken for a whole answer.
            self.transport.abortConnection()
        else:
            self.channel.refuse_for(
                Draining() if self.server.draining else RuntimeError("there was no answer")
            )


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


Channel.requestFactory = Request


class Factory(HTTPFactory):  # type: ignore[misc]  # the server's packages have no types
    """Makes a channel of ours for each connection."""

    protocol = Channel

    def __init__(self, server: GatewayServer) -> None:
        super().__init__(server)
        # The channel keeps its own deadlines; Twisted's begin anew with every byte.
        self.timeOut = None

    def buildProtocol(self, addr: Any) -> Channel:  # noqa: N802
        channel: Channel = TwistedFactory.buildProtocol(self, addr)
        return channel

    def log(self, request: Any) -> None:
        """There is no access log: what was asked and answered is in the request events."""
