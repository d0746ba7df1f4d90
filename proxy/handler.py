"""Django's handler for the doors for programs, without threads.

Django's own ``ASGIHandler`` starts a thread for every request, runs the site's
middleware through it, and leaves a streamed body to the garbage collector when
the client goes while a chunk is being sent. Here one task reads the body, calls
the asynchronous view and sends its ``Reply``. URLs, views and requests stay Django's.
Such a view must not touch the ORM in the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, QueryDict
from django.urls import get_resolver
from django.urls.resolvers import RoutePattern
from django.utils.functional import cached_property

from budgets.tallies import tallies
from proxy.errors import answer_for
from proxy.exceptions import BodyTooLarge
from proxy.replies import Reply
from tenants.exceptions import Refusal
from tenants.quick_settings import settings

# What an ASGI server calls an application with, as Django's handler has it.
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

# The extension of a server that calls what the application puts into this list when the client leaves.
TELLS_OF_LEAVING = "tollgate.leaving"

# What the metrics call every path that has parts or is no door.
OTHER_ROUTE = "other"

# How much of an answer is handed to the server at once; the server waits in between for a slow client.
PIECE_BYTES = 2**16


class ProxyRequest(HttpRequest):
    """A request whose body has been read: ``body`` is there without a copy and without a second limit.

    ``headers`` has names in lower case; one that came more than once has its
    values behind each other. They are not in ``META`` too.
    """

    def __init__(self, scope: Scope, body: bytes) -> None:
        # As in Django's own requests, what takes time to make is made when it is asked for.
        self.method = scope["method"]
        self.path = self.path_info = scope["path"]
        client = scope.get("client")
        self.META = {
            "QUERY_STRING": scope["query_string"].decode("latin-1"),
            "SCRIPT_NAME": "",
            "REMOTE_ADDR": client[0] if client else "",
            "wsgi.url_scheme": scope.get("scheme", "http"),
        }
        self._body = body
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        # In the place of Django's property, which reads them out of META.
        self.__dict__["headers"] = headers

    @cached_property
    def GET(self) -> QueryDict:  # type: ignore[override]  # noqa: N802 - Django's name
        return QueryDict(self.META["QUERY_STRING"])


class ProxyHandler(ASGIHandler):
    """Answers every request through the views of one urlconf, which must be asynchronous.

    When the client leaves, the view or its streamed body is cancelled where it
    waits, or closed if it waits for the client, and its cleanup runs to its end
    before the handler returns. The same happens when the server cancels the
    handler.
    """

    def __init__(self, urlconf: str = "proxy.urls") -> None:
        # Not Django's own: it would load the site's middleware.
        self._resolver = get_resolver(urlconf)
        # Most requests are for one of a few paths without parts, which need no search. Read
        # now: a door that cannot be built has to keep the process from starting.
        self._doors = {
            f"/{entry.pattern}": entry.callback
            for entry in self._resolver.url_patterns
            if isinstance(entry.pattern, RoutePattern) and not entry.pattern.converters
        }

    def _find(self, path: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The view for a path, and what it is told of the path; raises ``Resolver404``."""
        door = self._doors.get(path)
        if door is not None:
            return door, {}
        match = self._resolver.resolve(path)
        return match.func, match.kwargs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive)
        except ClientLeft:
            return
        except BodyTooLarge as exc:
            reply = answer_for(scope["path"], exc)
            # What is still coming of the body will not be read.
            reply.headers["Connection"] = "close"
            self._count(scope, reply)
            await send_answer(reply, send)
            return
        async with ends_with_client(scope, receive):
            reply = await self.answer(scope, body)
            self._count(scope, reply)
            await send_answer(reply, send)

    def _count(self, scope: Scope, reply: Reply) -> None:
        path = scope["path"]
        # Of a path that a client made up nothing is told but that it was another one.
        tallies.answered(reply.tenant, path if path in self._doors else OTHER_ROUTE, reply.status)
        if reply.refusal:
            tallies.refused(reply.tenant, reply.refusal)

    async def answer(self, scope: Scope, body: bytes) -> Reply:
        """The view's answer; an error's neutral answer when there is none."""
        try:
            request = ProxyRequest(scope, body)
            view, parts = self._find(request.path_info)
            reply: Reply = await view(request, **parts)
        except Refusal as refusal:
            return answer_for(scope["path"], refusal)
        except Exception as exc:
            # Whatever it is, the caller gets an answer, and nothing of the error in it.
            logger.exception("%s %r failed", scope["method"], scope["path"])
            return answer_for(scope["path"], exc)
        return reply


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body of a request.

    Raises ``BodyTooLarge`` as soon as its length is declared above
    ``MAX_BODY_BYTES`` or more than that has come, and ``ClientLeft``.
    """
    limit: int = settings.MAX_BODY_BYTES
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


class ends_with_client:  # noqa: N801 - used like ``asyncio.timeout``
    """Cancel the block when the client leaves, and return quietly once it has cleaned up.

    A block that is being cancelled already is let be: a second cancellation
    would break off its cleanup.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._listeners: list[Callable[[], None]] | None = scope.get("extensions", {}).get(TELLS_OF_LEAVING)
        self._receive = receive
        self._left = False

    async def __aenter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        if self._listeners is not None:
            self._listeners.append(self._leave)
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self._task.cancelling():
            self._left = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, exc: object, traceback: object) -> bool:
        if self._listeners is not None:
            self._listeners.clear()
        else:
            self._watcher.cancel()
        if not self._left:
            return False
        # The server may have cancelled us as well; that has to reach it.
        return self._task.uncancel() == 0 and kind is not None and issubclass(kind, asyncio.CancelledError)


async def send_answer(reply: Reply, send: Send) -> None:
    """Send an answer; raise if its body breaks, so that the server cuts it instead of ending it well."""
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in reply.headers.items()]
    start = {"type": "http.response.start", "status": reply.status, "headers": headers}
    body = reply.body
    if not isinstance(body, bytes):
        try:
            # Begun before anything is sent: only a generator that has begun runs its cleanup.
            part = await anext(body, None)
            await send(start)
            while part is not None:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                part = await anext(body, None)
        finally:
            await body.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    headers.append((b"Content-Length", b"%d" % len(body)))
    await send(start)
    position = 0
    while True:
        piece = body[position : position + PIECE_BYTES]
        position += PIECE_BYTES
        more = position < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        if not more:
            return
