"""Daphne's WebSockets, bounded: nobody may send us much, hold much of ours, or stay without being there."""

from __future__ import annotations

import asyncio
from typing import Any

from daphne.server import twisted_loop
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

from tenants.live import RESTARTS

# Clients have nothing to say. What is longer is not even read to its end.
LONGEST_MESSAGE_BYTES = 1024
# Who does not answer a ping is gone, whatever the network says.
PING_SECONDS = 10
PONG_SECONDS = 5
# Who may see what is asked of the database, which may be busy.
HANDSHAKE_SECONDS = 20
REASON_BYTES = 123
TEXT = 1


class WebSocket(WebSocketProtocol):  # type: ignore[misc]  # the server's packages have no types
    """One client's socket: waits for a reader who is behind, closes with a reason, says no while draining."""

    server: Any = None
    _paused = False
    _room: asyncio.Future[None] | None = None

    def connectionMade(self) -> None:  # noqa: N802
        # It is still the HTTP channel that is told of a full buffer.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().connectionMade()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: N802, N803
        self.resumeProducing()
        # Without a server the handshake was refused before Daphne entered us into its books.
        if self.server is not None:
            super().onClose(wasClean, code, reason)

    def handle_reply(self, message: dict[str, Any]) -> None:
        if self.state == self.STATE_CONNECTING:
            super().handle_reply(message)
        elif self.state == self.STATE_OPEN and message["type"] == "websocket.send":
            # Autobahn's own way would hold our messages to the size of those that clients may send.
            self.sendFrame(opcode=TEXT, payload=message["text"].encode())
        elif self.state == self.STATE_OPEN:
            self.end(message["code"], message["reason"])

    def serverAccept(self, subprotocol: str | None = None) -> None:  # noqa: N802
        super().serverAccept(subprotocol)
        if self.server.draining:
            self.end(RESTARTS.code, RESTARTS.reason)

    def end(self, code: int, reason: str) -> None:
        """Close with any code; Daphne's and autobahn's own ways take no code of the protocol's own."""
        self.sendCloseFrame(code=code, reasonUtf8=_cut(reason.encode()))

    def pauseProducing(self) -> None:  # noqa: N802
        """The connection holds more than 64 KiB that the client has not taken."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """All that was written is on its way, or nobody is left to read it."""
        self._paused = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def stopProducing(self) -> None:  # noqa: N802
        """``onClose`` follows."""

    async def room(self) -> None:
        """Wait while the client is behind with reading; one that stops answers no ping, and is cut off."""
        if self._paused:
            self._room = twisted_loop.create_future()
            await self._room


def _cut(text: bytes) -> bytes:
    """As much of a text as a closing frame takes, in whole characters."""
    return text[:REASON_BYTES].decode(errors="ignore").encode()


class SocketFactory(WebSocketFactory):  # type: ignore[misc]  # the server's packages have no types
    """Makes sockets of ours, and tells autobahn what they bear."""

    protocol = WebSocket

    def __init__(self, server: Any) -> None:
        super().__init__(server, server="")
        self.setProtocolOptions(
            maxFramePayloadSize=LONGEST_MESSAGE_BYTES,
            maxMessagePayloadSize=LONGEST_MESSAGE_BYTES,
            # With a code, so that whoever writes clients learns why.
            failByDrop=False,
            autoPingTimeout=PONG_SECONDS,
            openHandshakeTimeout=HANDSHAKE_SECONDS,
        )
