"""A TCP proxy that can go wrong, so that one client's server does and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

TURNS_TO_BEGIN = 10


@dataclass(eq=False, slots=True)
class _Connection:
    task: asyncio.Task[None]
    loses_reply: bool = False


class FaultProxy:
    """Forwards to ``host:port`` until told to do otherwise.

    Frozen, it takes connections and bytes and passes nothing on. Faults are
    asked for from any thread.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[_Connection] = set()
        self._mark: bytes | None = None
        self._refusing = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def freeze(self) -> None:
        """Pass nothing on until ``thaw``."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def thaw(self) -> None:
        """Pass on everything, also what came meanwhile."""
        self._loop.call_soon_threadsafe(self._passing.set)

    def cut(self) -> None:
        """Break every connection there is; new ones are taken."""
        self._loop.call_soon_threadsafe(self._break_all)

    def refuse(self) -> None:
        """Break every connection, and new ones as they come, until ``take_again``."""
        self._refusing = True
        self.cut()

    def take_again(self) -> None:
        """Undo ``refuse``."""
        self._refusing = False

    def lose_reply(self, mark: bytes) -> None:
        """Keep the answer to the next request that has ``mark`` in it, and break its connection."""
        self._loop.call_soon_threadsafe(setattr, self, "_mark", mark)

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _open(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        # What was accepted last begins within a few turns, and only what has begun closes its socket.
        for _ in range(TURNS_TO_BEGIN):
            await asyncio.sleep(0)
        self._break_all()
        await asyncio.gather(*(one.task for one in self._connections), return_exceptions=True)

    def _break_all(self) -> None:
        for one in tuple(self._connections):
            one.task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(task)
        self._connections.add(connection)
        task.add_done_callback(lambda _: self._connections.discard(connection))
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            if self._refusing:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            with contextlib.closing(upstream_writer):
                await asyncio.gather(
                    self._pass_requests(connection, reader, upstream_writer),
                    self._pass_replies(connection, upstream_reader, writer),
                )

    async def _pass_requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while part := await reader.read(65536):
            await self._passing.wait()
            if self._mark is not None and self._mark in part:
                self._mark, connection.loses_reply = None, True
            writer.write(part)
            await writer.drain()
        writer.close()

    async def _pass_replies(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while part := await reader.read(65536):
            await self._passing.wait()
            if connection.loses_reply:
                connection.task.cancel()
                return
            writer.write(part)
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def line_to(url: str) -> Iterator[tuple[FaultProxy, str]]:
    """A line to the server at ``url``, and its address through the line."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with FaultProxy(address.hostname, address.port) as line:
        userinfo, at, _ = address.netloc.rpartition("@")
        yield line, urlunsplit(address._replace(netloc=f"{userinfo}{at}127.0.0.1:{line.port}"))
