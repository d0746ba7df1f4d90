"""Views that behave well or badly on command, for the tests of the server and the handler."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import orjson
from django.http import HttpRequest
from django.urls import path, re_path

from proxy.replies import Reply
from proxy.views import Door


def json(value: object, status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, orjson.dumps(value))


def note(request: HttpRequest, word: str) -> None:
    """Add a word to the file that the caller named, where the test reads it."""
    with Path(request.headers["x-notes"]).open("a") as notes:
        notes.write(word + "\n")


async def echo(request: HttpRequest) -> Reply:
    return json(
        {
            "path": request.path,
            "script_name": request.META["SCRIPT_NAME"],
            "query": request.META["QUERY_STRING"],
            "length": len(request.body),
            "pid": os.getpid(),
        }
    )


async def stream(request: HttpRequest) -> Reply:
    """``n`` chunks, ``pause`` seconds apart, with an end that takes ``cleanup`` seconds."""
    count, pause = int(request.GET.get("n", "3")), float(request.GET.get("pause", "0"))
    cleanup = float(request.GET.get("cleanup", "0"))

    async def chunks() -> AsyncGenerator[bytes, None]:
        note(request, "began")
        try:
            for number in range(count):
                yield b"chunk %d\n" % number
                await asyncio.sleep(pause)
        finally:
            await asyncio.sleep(cleanup)
            note(request, "cleaned up")

    return Reply(200, {"Content-Type": "text/plain"}, chunks())


async def flood(request: HttpRequest) -> Reply:
    """As much as the client takes."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        note(request, "began")
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            note(request, "cleaned up")

    return Reply(200, {"Content-Type": "text/plain"}, chunks())


async def wait(request: HttpRequest) -> Reply:
    """A view that would answer in ten minutes."""
    note(request, "began")
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(float(request.GET.get("cleanup", "0")))
        note(request, "cleaned up")
    return Reply(200, {}, b"")


async def breaks_before(request: HttpRequest) -> Reply:
    raise RuntimeError("a secret thing")


async def breaks_after(request: HttpRequest) -> Reply:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"good so far\n"
        await asyncio.sleep(0.05)
        raise RuntimeError("a secret thing")

    return Reply(200, {"Content-Type": "text/plain"}, chunks())


async def breaks_a_header(request: HttpRequest) -> Reply:
    return Reply(200, {"X-Model": "tiny\r\nSet-Cookie: a=b"}, b"fine")


async def open_tasks(request: HttpRequest) -> Reply:
    """How many applications are running, this one included."""
    running = [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "Gateway.__call__"
    ]
    return json({"tasks": len(running)})


async def loop(request: HttpRequest) -> Reply:
    return json({"loop": type(asyncio.get_running_loop()).__module__.partition(".")[0]})


async def refuse_route(request: HttpRequest) -> Reply:
    return json({"refused": request.path}, 404)


VIEWS: dict[str, Door] = {
    "v1/open": open_tasks,
    "v1/loop": loop,
    "v1/echo": echo,
    "v1/stream": stream,
    "v1/flood": flood,
    "v1/wait": wait,
    "v1/breaks-before": breaks_before,
    "v1/breaks-after": breaks_after,
    "v1/breaks-a-header": breaks_a_header,
}
REFUSE: Door = refuse_route

urlpatterns = [*(path(where, view) for where, view in VIEWS.items()), re_path("", REFUSE)]
