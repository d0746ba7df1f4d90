"""Many callers at one barrier: each has its connection, and all send their request at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 100
# While a machine opens hundreds of connections it has no ear for more.
CONNECTED_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Question:
    """One POST: ``url`` with its path, the secret of the key, and the body."""

    url: str
    secret: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """``content`` is what came after the head, chunk sizes included, up to where the caller left."""

    status: int
    content: bytes


def ask_at_once(questions: Sequence[Question], *, leave_good: bool = False) -> list[Answer]:
    """The answers, in the order of the questions.

    With ``leave_good``, those who are answered well stay until all others have
    been refused, and hang up then: nothing that one has used is free before
    everybody has asked.
    """
    return asyncio.run(asyncio.wait_for(_all(questions, leave_good), PATIENCE_SECONDS))


async def _all(questions: Sequence[Question], leave_good: bool) -> list[Answer]:
    few = asyncio.Semaphore(CONNECTED_AT_ONCE)
    connected = asyncio.Barrier(len(questions))
    good_or_gone = asyncio.Barrier(len(questions))

    async def one(question: Question) -> Answer:
        where = urlsplit(question.url)
        async with few:
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            await connected.wait()
            writer.write(_request(question))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ")[1])
            content = b"" if leave_good and status == 200 else await reader.read()
            if leave_good:
                await good_or_gone.wait()
            return Answer(status, content)
        finally:
            writer.transport.abort()

    return await asyncio.gather(*map(one, questions))


def _request(question: Question) -> bytes:
    where = urlsplit(question.url)
    body = json.dumps(question.body).encode()
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {question.secret}\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
