"""Counting what the gateway asks of Redis and PostgreSQL, exactly and from outside.

A relay stands between the gateway and a server, passes all bytes on and reads
the requests in them. A *round trip* begins with the first bytes that go to the
server after some came back, on each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self


class RespRequests:
    """Names of the commands in what a client sends Redis, in order; a script is named by its digest.

    Clients send arrays of bulk strings only (RESP, "Sending commands to a Redis server").
    """

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[str]:
        self._buffer += data
        names: list[str] = []
        while (command := self._next()) is not None:
            name = command[0].decode("latin-1").upper()
            names.append(
                f"{name} {command[1][:8].decode('latin-1')}" if name in ("EVALSHA", "FCALL") else name
            )
        return names

    def _next(self) -> list[bytes] | None:
        """The first command in the buffer, taken out of it; None while it is incomplete."""
        head, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return None
        if not head.startswith(b"*"):
            raise ValueError(f"not a command: {head[:40]!r}")
        words = []
        for _ in range(int(head[1:])):
            size, found, rest = rest.partition(b"\r\n")
            if not found or len(rest) < int(size[1:]) + 2:
                return None
            words.append(rest[: int(size[1:])])
            rest = rest[int(size[1:]) + 2 :]
        self._buffer = rest
        return words


class PostgresRequests:
    """The statements that a client sends PostgreSQL: simple queries, and executions of prepared ones.

    Messages are a type, a length that counts itself, and a body; only the
    first has no type (PostgreSQL, "Message Formats"). The connection must not
    be encrypted.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._begun = False
        self._parsed = ""

    def feed(self, data: bytes) -> list[str]:
        self._buffer += data
        statements: list[str] = []
        while True:
            skip = 1 if self._begun else 0
            if len(self._buffer) < skip + 4:
                return statements
            (length,) = struct.unpack_from("!I", self._buffer, skip)
            if len(self._buffer) < skip + length:
                return statements
            kind, body = self._buffer[:skip], self._buffer[skip + 4 : skip + length]
            self._buffer = self._buffer[skip + length :]
            self._begun = True
            if kind == b"Q":
                statements.append(_text(body))
            elif kind == b"P":
                self._parsed = _text(body.partition(b"\0")[2])
            elif kind == b"E":
                statements.append(self._parsed or "a prepared statement")
                self._parsed = ""


def _text(body: bytes) -> str:
    return " ".join(body.partition(b"\0")[0].decode("utf-8", "replace").split())[:120]


@dataclass(slots=True)
class Count:
    """What went by: round trips, and requests by name."""

    round_trips: int = 0
    requests: Counter[str] = field(default_factory=Counter)

    def since(self, earlier: Count) -> Count:
        return Count(self.round_trips - earlier.round_trips, self.requests - earlier.requests)

    def copy(self) -> Count:
        return Count(self.round_trips, self.requests.copy())


class Relay:
    """Listens on a loopback port of its own and relays to ``host``:``port``, in a thread."""

    def __init__(self, host: str, port: int, requests: Callable[[], RespRequests | PostgresRequests]) -> None:
        self._target = (host, port)
        self._requests = requests
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.count = Count()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            requests = self._requests()
            answered = True

            def asked(data: bytes) -> None:
                nonlocal answered
                if answered:
                    self.count.round_trips += 1
                answered = False
                self.count.requests.update(requests.feed(data))

            def told(data: bytes) -> None:
                nonlocal answered
                answered = True

            await asyncio.gather(
                _pass_on(reader, server_writer, asked),
                _pass_on(server_reader, writer, told),
                return_exceptions=True,
            )


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], None]
) -> None:
    try:
        while data := await reader.read(2**20):
            look(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@contextlib.contextmanager
def counted(relays: dict[str, Relay]) -> Iterator[dict[str, Count]]:
    """Fill the dictionary it yields, when the block ends, with what went by in it."""
    before = {name: relay.count.copy() for name, relay in relays.items()}
    found: dict[str, Count] = {}
    yield found
    found.update({name: relay.count.since(before[name]) for name, relay in relays.items()})
