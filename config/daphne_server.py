"""Daphne's server, made safe for long streams: it drains.

Plain Daphne 4.2.3 cuts every stream on SIGTERM and runs no clean-up. What is
done differently with each connection and request is told in
``config.daphne_http``; WebSockets are left to Daphne, within the bounds of
``config.daphne_sockets``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from daphne.server import Server, twisted_loop
from twisted.internet import reactor
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    STDLibLogObserver,
    globalLogBeginner,
)

from config.background import background
from config.daphne_http import Channel, Factory, Request
from config.daphne_sockets import PING_SECONDS, PONG_SECONDS, SocketFactory, WebSocket
from config.health import readiness
from tenants.live import RESTARTS
from tenants.quick_settings import settings

logger = logging.getLogger(__name__)

GC_THRESHOLDS = (10_000, 20, 50)

SWEEP_SECONDS = 0.5

# What the clean-up of cancelled requests may take when the time to drain is over.
CLEANUP_SECONDS = 10.0


class GatewayServer(Server):  # type: ignore[misc]  # the server's packages have no types
    """Serves ``application`` on a listening socket until it is told to stop, then drains."""

    def __init__(self, application: Any, listener: socket.socket) -> None:
        super().__init__(
            application,
            endpoints=["the listener"],
            server_name="",
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
        )
        self.channels: set[Channel] = set()
        self.tasks: dict[asyncio.Task[None], Request] = {}
        self.arriving_bytes = 0
        self.draining = False
        self._listener = listener
        self._failed = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def run(self, ready: Callable[[], None]) -> bool:
        """Serve; ``ready`` is called once connections are taken. Returns whether all went well."""
        errors_only = LogLevelFilterPredicate(defaultLogLevel=LogLevel.error)
        observer = FilteringLogObserver(STDLibLogObserver("twisted"), [errors_only])
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)
        # Daphne's books of WebSockets, and what it makes them with.
        self.connections: dict[WebSocket, dict[str, Any]] = {}
        self.ws_factory = SocketFactory(self)
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        asyncio.set_event_loop(twisted_loop)
        main = twisted_loop.create_task(self._main(ready))
        main.add_done_callback(self._main_ended)
        reactor.run(installSignalHandlers=False)
        return not self._failed

    async def _main(self, ready: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            twisted_loop.add_signal_handler(number, self._told_to_stop)
        port = reactor.adoptStreamPort(self._listener.fileno(), self._listener.family, Factory(self))
        self._listener.close()
        background.start()
        sweeping = twisted_loop.create_task(self._sweep())
        # What was loaded by now stays for ever: no collection need look at it again.
        gc.collect()
        gc.freeze()
        # What a request makes is freed by its counts of references; there is little to collect.
        gc.set_threshold(*GC_THRESHOLDS)
        ready()
        await self._stop.wait()
        readiness.draining = self.draining = True
        await port.stopListening().asFuture(twisted_loop)
        await self._drain()
        sweeping.cancel()
        async with asyncio.timeout(CLEANUP_SECONDS):
            await background.stop()

    def _main_ended(self, main: asyncio.Task[None]) -> None:
        if not main.cancelled() and (error := main.exception()) is not None:
            logger.error("the server failed: %s", error, exc_info=error)
            self._failed = True
        reactor.stop()

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _drain(self) -> None:
        """Let what runs come to its end.

        What is left after ``DRAIN_SECONDS``, or when we are told again, is
        cancelled and has ``CLEANUP_SECONDS`` to clean up.
        """
        for channel in tuple(self.channels):
            channel.wind_up()
        for socket_ in tuple(self.connections):
            # Nothing is lost with them: pages ask again, and are answered by another process.
            if socket_.state == socket_.STATE_OPEN:
                socket_.end(RESTARTS.code, RESTARTS.reason)
        await self._quiet(settings.DRAIN_SECONDS, self._hurry)
        for task, request in tuple(self.tasks.items()):
            # One whose client has left is cleaning up already; a second cancellation would break that off.
            if not request.gone:
                task.cancel()
        await self._quiet(CLEANUP_SECONDS, asyncio.Event())
        if self.tasks:
            logger.error("%d requests did not clean up in time", len(self.tasks))
        for channel in tuple(self.channels):
            channel.transport.abortConnection()

    async def _quiet(self, seconds: float, enough: asyncio.Event) -> None:
        """Wait until nothing is under way or connected, ``seconds`` have passed, or it is ``enough``."""
        deadline = twisted_loop.time() + seconds
        # Only while stopping: an event would have to be kept up with every request.
        while (  # noqa: ASYNC110
            (self.tasks or self.channels or self._has_sockets())
            and twisted_loop.time() < deadline
            and not enough.is_set()
        ):
            # Looked at so seldom, and only while stopping, that no event is worth its upkeep per request.
            await asyncio.sleep(0.02)

    def _has_sockets(self) -> bool:
        return any("disconnected" not in details for details in self.connections.values())

    async def _sweep(self) -> None:
        """Hold every connection to its deadline."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for channel in tuple(self.channels):
                try:
                    if channel.deadline is not None and channel.deadline < now:
                        channel.overdue()
                except Exception:
                    # One odd connection must not end the watch over all others.
                    logger.exception("a connection could not be closed")

    def protocol_disconnected(self, protocol: Any) -> None:
        # Requests of ours that became a WebSocket are in no list.
        if protocol in self.connections:
            super().protocol_disconnected(protocol)

    async def handle_reply(self, protocol: WebSocket, message: dict[str, Any]) -> None:
        """Give a message to a WebSocket, and wait while its client is behind with reading."""
        await super().handle_reply(protocol, message)
        await protocol.room()

    def application_checker(self) -> None:
        try:
            super().application_checker()
        except Exception:
            # Daphne goes on only when all went well.
            logger.exception("looking after WebSockets failed")
            reactor.callLater(1, self.application_checker)

    def timeout_checker(self) -> None:
        try:
            super().timeout_checker()
        except Exception:
            # The same.
            logger.exception("holding WebSockets to their time failed")
            reactor.callLater(2, self.timeout_checker)
