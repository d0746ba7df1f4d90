"""Letting an export be written aside: in a thread of its own, on a database connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context

from django.db import connection


class OwnThread:
    """What a generator makes, made in a thread only when it is asked for; ``close`` it in any case.

    Whoever asks can wait for it on an event loop, or do something else
    meanwhile. An export that is closed before its end lets the database stop.
    """

    def __init__(self, pieces: Generator[bytes]) -> None:
        self._pieces = pieces
        # What is behind the walls where it is begun is so in the thread too.
        self._place = copy_context()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")

    def close(self) -> None:
        """End it, without waiting for that; a repeat changes nothing."""
        with suppress(RuntimeError):
            self._thread.submit(self._place.run, self._end)
        self._thread.shutdown(wait=False)

    def _end(self) -> None:
        try:
            self._pieces.close()
        finally:
            # Nobody but this thread could give it back.
            connection.close()

    def _next(self) -> Future[bytes | None]:
        return self._thread.submit(lambda: self._place.run(next, self._pieces, None))

    def with_pauses(self, seconds: float) -> Iterator[bytes]:
        """The pieces; an empty one whenever the next has not come after so many seconds."""
        coming = self._next()
        while True:
            try:
                piece = coming.result(timeout=seconds)
            except TimeoutError:
                if coming.done():
                    raise
                yield b""
                continue
            if piece is None:
                return
            yield piece
            coming = self._next()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await asyncio.wrap_future(self._next())) is not None:
            if piece:
                yield piece
