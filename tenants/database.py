"""Asking PostgreSQL on the path of a request: in a few threads of its own, and only for so long.

A database that hangs holds the threads that ask it. These are held then and no
others, so everything that does not need it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from django.db import Error as DatabaseError
from django.db import connection

__all__ = ["DatabaseError", "read_aside"]

Rows = TypeVar("Rows")

READ_SECONDS = 3.0

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


async def read_aside(
    read: Callable[[], Rows], seconds: float = READ_SECONDS, threads: ThreadPoolExecutor = _threads
) -> Rows:
    """What ``read``, which asks the database, returns.

    Raises ``DatabaseError``, or ``TimeoutError`` when it took longer: it then
    runs to its end unless it had not begun, and nobody hears of it. ``threads``
    are others for what must not keep the path of a request waiting.
    """
    async with asyncio.timeout(seconds):
        # What is behind a wall here is so in the thread too.
        place = copy_context()
        return await asyncio.get_running_loop().run_in_executor(threads, place.run, _and_close, read)


def _and_close(read: Callable[[], Rows]) -> Rows:
    try:
        return read()
    finally:
        # The thread is lent; what it leaves open nobody would close.
        connection.close()
