"""Handing exports over as answers: while they are written, or from their files.

An answer under ASGI that is made by an ordinary iterator is collected whole
before its first byte goes out; so these are made in a thread of their own,
piece by piece, as fast as the client reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path

from django.http import Http404, StreamingHttpResponse

from budgets.exports.jobs import file_of, keep_streamed, note_download, note_export
from budgets.exports.lines import CHUNK_BYTES
from budgets.exports.orders import Order
from budgets.exports.own_thread import OwnThread
from budgets.exports.sizes import Size
from budgets.exports.writing import Writing, file_name
from budgets.models import Export
from tenants.models import User

# What nobody minds waiting for; what is larger, the worker makes.
MOST_STREAMED_ROWS = 50_000
MOST_STREAMED_SHEET_ROWS = 5_000
MOST_STREAMED_ENTRIES = 500_000

# Each holds a database connection as long as its client reads. Others wait their turn.
_streams = asyncio.Semaphore(2)


class Pieces:
    """The body of an answer."""

    def __init__(self, pieces: Generator[bytes], turns: asyncio.Semaphore) -> None:
        self._thread = OwnThread(pieces)
        self._turns = turns

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._turns:
            try:
                async for piece in self._thread:
                    yield piece
            finally:
                self.close()

    def close(self) -> None:
        """For an answer of which nothing was sent, too; Django calls it at the end of each."""
        self._thread.close()


def is_small(order: Order, size: Size) -> bool:
    """Whether an export is written while its client waits."""
    most = MOST_STREAMED_SHEET_ROWS if order.layout == "xlsx" else MOST_STREAMED_ROWS
    return size.rows <= most and size.entries <= MOST_STREAMED_ENTRIES


def streamed(order: Order, user: User) -> StreamingHttpResponse:
    """An answer that is written while it is read. When it is whole, its sidecar is kept as that of a file."""
    note_export(order=order, actor=str(user))
    return _attachment(order, file_name(order), Pieces(_kept(order, user), _streams))


def _kept(order: Order, user: User) -> Generator[bytes]:
    writing = Writing(order)
    yield from writing
    keep_streamed(writing=writing, user=user)


def from_file(export: Export) -> StreamingHttpResponse:
    """The file of an export as an answer; raises ``Http404`` when there is none."""
    path = file_of(export)
    if path is None:
        raise Http404
    order = Order.from_json(export.order)
    note_download(export=export)
    # A file takes no connection to the database, so there are turns for all.
    response = _attachment(order, file_name(order), Pieces(_read(path), asyncio.Semaphore()))
    response["Content-Length"] = str(path.stat().st_size)
    return response


def _read(path: Path) -> Generator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _attachment(order: Order, name: str, pieces: Pieces) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        pieces,
        content_type=order.content_type,
        headers={
            # Slugs, words and days: nothing in it has to be escaped.
            "Content-Disposition": f'attachment; filename="{name}"',
            "Cache-Control": "no-store",
        },
    )
