"""N worker processes on one port, looked after by their parent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable

from django.conf import settings

from config import children
from config.serve import bind, family_of

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
WELL_AFTER_SECONDS = 60.0
# What a worker may take on top of its drain: the clean-up, and coming to its end.
END_SECONDS = 25.0


class PortTaken(Exception):
    """Somebody else listens at the address."""


class NotStarted(Exception):
    """A worker ended before it took connections; its own words are on standard error."""


def hold_port(host: str, port: int) -> socket.socket:
    """A socket, not listening, that keeps the port for our workers; port 0 takes any that is free.

    Raises ``PortTaken``. It is tried without sharing first: another server of
    the same user that shares its port would let us in without a word, and the
    two would be sent every other client.
    """
    try:
        if port:
            with socket.socket(family_of(host), socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
        return bind(host, port)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(f"{host} port {port} is in use") from exc


class Workers:
    """Starts the workers, starts a crashed one again, and stops them all in good order."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self._host, self._count = host, count
        self._held = hold_port(host, port)
        self.port: int = self._held.getsockname()[1]
        self._running: set[Process] = set()
        self._stopping = asyncio.Event()
        self._clean = True

    async def run(self, ready: Callable[[], None]) -> bool:
        """Run until a signal says stop; ``ready`` is called once all take connections.

        Returns whether every worker ended well. Raises ``NotStarted``.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            started = [await self._start() for _ in range(self._count)]
            if not all(await asyncio.gather(*(_is_ready(pipe) for _, pipe in started))):
                if self._stopping.is_set():
                    return True
                raise NotStarted
            ready()
            await asyncio.gather(*(self._look_after(process) for process, _ in started))
            return self._clean
        finally:
            await self._end()

    async def _start(self) -> tuple[Process, int]:
        """A new worker, and the pipe through which it tells that it is ready."""
        pipe, ready_fd = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "config.serve", self._host, str(self.port), str(ready_fd),
            cwd=settings.BASE_DIR,
            pass_fds=[ready_fd],
            # Ctrl-C in a terminal goes to the parent alone, which passes it on once.
            process_group=0,
            preexec_fn=children.tether(signal.SIGKILL),
        )  # fmt: skip
        os.close(ready_fd)
        self._running.add(process)
        return process, pipe

    async def _look_after(self, process: Process) -> None:
        """Keep one place filled until we stop."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = loop.time()
            status = await process.wait()
            self._running.discard(process)
            if self._stopping.is_set():
                # One that dies of our signal had not begun to serve, or was through with its drain.
                self._clean = self._clean and status in (0, -signal.SIGTERM)
                return
            logger.error("worker %d ended with status %d; another takes its place", process.pid, status)
            if loop.time() - began > WELL_AFTER_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            process, pipe = await self._start()
            await _is_ready(pipe)

    def _stop(self) -> None:
        """Tell all workers to drain; told a second time, they do not wait for anybody."""
        if not self._stopping.is_set():
            self._stopping.set()
            # Whoever comes next may have the port while our last streams run out.
            self._held.close()
            asyncio.get_running_loop().call_later(settings.DRAIN_SECONDS + END_SECONDS, self._kill)
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._running:
            logger.error("worker %d did not end and is killed", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _end(self) -> None:
        if self._running:
            self._stop()
            await asyncio.gather(*(process.wait() for process in self._running))


async def _is_ready(pipe: int) -> bool:
    """Wait until a worker tells that it is ready, or is gone."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[bool] = loop.create_future()

    def read() -> None:
        loop.remove_reader(pipe)
        told.set_result(os.read(pipe, 1) != b"")

    loop.add_reader(pipe, read)
    try:
        return await told
    finally:
        os.close(pipe)
