"""Views that behave well or badly on command, for the tests of the server and the handler."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, re_path


def note(request: HttpRequest, word: str) -> None:
    """Add a word to the file that the caller named, where the test reads it."""
    with Path(request.headers["x-notes"]).open("a") as notes:
        notes.write(word + "\n")


async def echo(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {
            "path": request.path,
            "script_name": request.META["SCRIPT_NAME"],
            "query": request.META["QUERY_STRING"],
            "length": len(request.body),
            "pid": os.getpid(),
        }
    )


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """``n`` chunks, ``pause`` seconds apart, with an end that takes ``cleanup`` seconds."""
    count, pause = int(request.GET.get("n", "3")), float(request.GET.get("pause", "0"))
    cleanup = float(request.GET.get("cleanup", "0"))

    async def chunks() -> AsyncIterator[bytes]:
        note(request, "began")
        try:
            for number in range(count):
                yield b"chunk %d\n" % number
                await asyncio.sleep(pause)
        finally:
            await asyncio.sleep(cleanup)
            note(request, "cleaned up")

    return StreamingHttpResponse(chunks(), content_type="text/plain")


async def flood(request: HttpRequest) -> StreamingHttpResponse:
    """As much as the client takes."""

    async def chunks() -> AsyncIterator[bytes]:
        note(request, "began")
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            note(request, "cleaned up")

    return StreamingHttpResponse(chunks(), content_type="text/plain")


async def wait(request: HttpRequest) -> HttpResponse:
    """A view that would answer in ten minutes."""
    note(request, "began")
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(float(request.GET.get("cleanup", "0")))
        note(request, "cleaned up")
    return HttpResponse()


async def breaks_before(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a secret thing")


async def breaks_after(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"good so far\n"
        await asyncio.sleep(0.05)
        raise RuntimeError("a secret thing")

    return StreamingHttpResponse(chunks(), content_type="text/plain")


async def streams_blocking(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"a"]))


async def open_tasks(request: HttpRequest) -> JsonResponse:
    """How many applications are running, this one included."""
    running = [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "Gateway.__call__"
    ]
    return JsonResponse({"tasks": len(running)})


async def loop(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"loop": type(asyncio.get_running_loop()).__module__.partition(".")[0]})


async def refuse_route(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"refused": request.path}, status=404)


urlpatterns = [
    path("v1/open", open_tasks),
    path("v1/loop", loop),
    path("v1/echo", echo),
    path("v1/stream", stream),
    path("v1/flood", flood),
    path("v1/wait", wait),
    path("v1/breaks-before", breaks_before),
    path("v1/breaks-after", breaks_after),
    path("v1/streams-blocking", streams_blocking),
    re_path("", refuse_route),
]
