"""Views that stay live: a page's parts, sent again over a socket when they have changed.

A view says who may see what (``subject``) and how that looks now (``parts``).
The rest is done here, once for all views:

* Whoever connects is asked for as a page would ask, and again every
  ``CHECK_SECONDS``: rights that were taken close the socket.
* What several people look at in one process is read once for all of them, in
  threads of its own, at most every ``TICK_SECONDS``. It is read because
  somebody looks, not told by those who change it: the path of a request has
  nothing to do for a page that is open somewhere.
* A socket is sent what has changed since it was sent something last, at most
  twice a second. A reader who is slow gets the newest, not all that was.
* When something cannot be read, the page is told since when it is old.

The messages are JSON: ``at``, and ``stale`` (since when, or null), both
moments in UTC, and ``parts``, HTML by the names of what it replaces. One that
says no more than ``at`` shows that somebody is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

import orjson
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.urls import URLPattern, path
from django.utils import translation

from audit.walls import across, within
from tenants.access import Access, access_to, is_operator
from tenants.database import DatabaseError, read_aside
from tenants.models import User
from tenants.preferences import language_for
from tenants.quick_settings import settings
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

# Two messages a second, at most.
TICK_SECONDS = 0.5
# A reading that takes long is done as seldom as leaves most of the time to others.
REST = 4
CHECK_SECONDS = 2.0
# A page that hears nothing for longer than twice this takes the socket for lost.
SIGN_OF_LIFE_SECONDS = 15.0
MOST_PER_PERSON = 20

# Of their own, and few: many viewers make views slower, and nothing else. What
# waits for a server that hangs must not keep people from being asked for.
_for_reading = ThreadPoolExecutor(max_workers=2, thread_name_prefix="live views")
_for_checking = ThreadPoolExecutor(max_workers=2, thread_name_prefix="live viewers")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Parts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Closing:
    """Why a socket is closed. ``live.js`` has a sentence for each code."""

    code: int
    reason: str


LEFT = Closing(1000, "The client has left.")
NOTHING_TO_SAY = Closing(1008, "There is nothing to be said here.")
RESTARTS = Closing(1012, "The server restarts.")
TRY_LATER = Closing(1013, "Try again later.")
SIGNED_OUT = Closing(4401, "Sign in first.")
FORBIDDEN = Closing(4403, "You may not see this.")
NOTHING_HERE = Closing(4404, "There is no such thing.")
CHANGED = Closing(4409, "What you may see here has changed.")
TOO_MANY = Closing(4429, "You have too many live pages open.")


class SignedOut(Exception):
    """There is nobody behind the cookies of a socket, or no longer."""


@dataclass(eq=False, slots=True)
class Feed:
    """What some people look at in this process: read again and again while somebody does."""

    key: Hashable
    read: Callable[[], Parts]
    viewers: set[Viewer] = field(default_factory=set)
    parts: Parts = field(default_factory=dict)
    stale: datetime | None = None

    async def keep_reading(self) -> None:
        """Read, and tell the viewers when something has changed, until there is none."""
        clock = asyncio.get_running_loop().time
        while self.viewers:
            began, before = clock(), (self.parts, self.stale)
            await self._look()
            if before != (self.parts, self.stale):
                for viewer in self.viewers:
                    viewer.news.set()
            await asyncio.sleep(max(TICK_SECONDS, REST * (clock() - began)))
        # In the same turn: whoever comes next begins another.
        del _feeds[self.key]

    async def _look(self) -> None:
        try:
            self.parts = await read_aside(self.read, threads=_for_reading)
        except (RedisError, DatabaseError, TimeoutError):
            self.stale = self.stale or datetime.now(UTC)
        except Exception:
            # A fault of ours. The page is told the same, and it may go well again.
            self.stale = self.stale or datetime.now(UTC)
            logger.exception("a live view could not be read")
        else:
            self.stale = None


@dataclass(eq=False, slots=True)
class Viewer:
    """One socket at a feed, and what it has been sent."""

    feed: Feed
    news: asyncio.Event = field(default_factory=asyncio.Event)
    parts: dict[str, str] = field(default_factory=dict)
    stale: datetime | None = None

    async def keep_telling(self, send: Send) -> Closing:
        """Send what is new, for ever."""
        while True:
            try:
                async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                    await self.news.wait()
                self.news.clear()
                message = self._news()
            except TimeoutError:
                message = {}
            if message is not None:
                message["at"] = datetime.now(UTC)
                text = orjson.dumps(message, option=orjson.OPT_UTC_Z).decode()
                await send({"type": "websocket.send", "text": text})
                await asyncio.sleep(TICK_SECONDS)

    def _news(self) -> dict[str, Any] | None:
        """What the feed says and the socket has not been sent; None: nothing."""
        changed = {name: html for name, html in self.feed.parts.items() if self.parts.get(name) != html}
        if not changed and self.stale == self.feed.stale:
            return None
        self.parts |= changed
        self.stale = self.feed.stale
        return {"parts": changed, "stale": self.stale}


_feeds: dict[Hashable, Feed] = {}
_reading: set[asyncio.Task[None]] = set()
_sockets: Counter[UUID] = Counter()


def _join(key: Hashable, read: Callable[[], Parts]) -> Viewer:
    """A viewer at the feed with this key, which this process begins to read if it does not yet."""
    feed = _feeds.get(key)
    if feed is None:
        feed = _feeds[key] = Feed(key, read)
        task = asyncio.get_running_loop().create_task(feed.keep_reading(), name="live view")
        _reading.add(task)
        task.add_done_callback(_reading.discard)
    viewer = Viewer(feed)
    viewer.news.set()
    feed.viewers.add(viewer)
    return viewer


class LiveView:
    """A view that stays live: an ASGI application for the sockets of one address.

    ``scope["visit"]`` gives the request that a page would get from the same
    browser now; it asks the database and raises ``SignedOut``, or
    ``PermissionDenied`` with the reason.
    """

    _open: ClassVar[int] = 0

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        """What of all that the view can show this person gets to see; ``parts`` are those of the address.

        Two with the same one see the same. Raises ``Http404`` and
        ``PermissionDenied`` as a page would. Called in a thread.
        """
        raise NotImplementedError

    def place(self, subject: Any) -> AbstractContextManager[None]:
        """Whose rows the parts are made of (``audit.walls``)."""
        raise NotImplementedError

    def parts(self, subject: Any) -> Parts:
        """What there is to be seen now: HTML by the names of what it replaces. Called in a thread."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        LiveView._open += 1
        try:
            closing = await self._serve(scope, receive, send)
        finally:
            LiveView._open -= 1
        if closing is not LEFT:
            await send({"type": "websocket.close", "code": closing.code, "reason": closing.reason})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Closing:
        """Whatever ends the socket."""
        found = TRY_LATER if LiveView._open > settings.LIVE_SOCKETS else await self._look(scope)
        # Accepted in any case: a browser tells a page no reason of a socket that was not.
        await send({"type": "websocket.accept"})
        if isinstance(found, Closing):
            return found
        person, key = found
        if _sockets[person] >= MOST_PER_PERSON:
            return TOO_MANY
        _sockets[person] += 1
        viewer = _join(key, lambda: self._read(key))
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                _until_it_speaks(receive),
                self._keep_checking(scope, found),
                viewer.keep_telling(send),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            viewer.feed.viewers.discard(viewer)
            _sockets[person] -= 1
            if not _sockets[person]:
                del _sockets[person]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_checking(self, scope: Scope, found: tuple[UUID, Hashable]) -> Closing:
        """Wait until the person may no longer see what they see, or would see something else."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = await self._look(scope)
            if now != found:
                return now if isinstance(now, Closing) else CHANGED

    async def _look(self, scope: Scope) -> tuple[UUID, Hashable] | Closing:
        """Who is there and what they get to see, or why nothing."""
        try:
            return await read_aside(lambda: self._decide(scope), threads=_for_checking)
        except SignedOut:
            return SIGNED_OUT
        except PermissionDenied as exc:
            return Closing(FORBIDDEN.code, str(exc) or FORBIDDEN.reason)
        except Http404:
            return NOTHING_HERE
        except (DatabaseError, TimeoutError):
            # Nobody knows. Nothing is shown on the word of a while ago.
            return TRY_LATER

    def _decide(self, scope: Scope) -> tuple[UUID, Hashable]:
        request: HttpRequest = scope["visit"]()
        assert isinstance(request.user, User)  # noqa: S101 - tells the type checker: others are signed out
        subject = self.subject(request, **scope["url_route"]["kwargs"])
        return request.user.pk, (type(self), language_for(request), subject)

    def _read(self, key: Any) -> Parts:
        _, language, subject = key
        with translation.override(language), self.place(subject):
            return self.parts(subject)


class OperatorView(LiveView):
    """A live view of the admin, for those on the staff who have ``permission``."""

    permission: ClassVar[str]

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        if not is_operator(request.user, self.permission):
            raise PermissionDenied
        return ()

    def place(self, subject: Any) -> AbstractContextManager[None]:
        return across()


class TenantView(LiveView):
    """A live view of the portal, at an address with the ``slug`` of a tenant."""

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        access = access_to(request.user, parts.pop("slug"))
        if access is None:
            raise Http404
        with within(access.tenant.pk):
            found = self.subject_of(access, **parts)
        # What stands around the live parts depends on these.
        return access.tenant.pk, access.tenant.state, access.role, found

    def place(self, subject: Any) -> AbstractContextManager[None]:
        return within(subject[0])

    def parts(self, subject: Any) -> Parts:
        return self.parts_of(subject[-1])

    def subject_of(self, access: Access, **parts: Any) -> Hashable:
        """``subject``, for somebody who may know of the tenant."""
        raise NotImplementedError

    def parts_of(self, subject: Any) -> Parts:
        """``parts``, by what ``subject_of`` said."""
        raise NotImplementedError


def live(address: str, view: LiveView) -> URLPattern:
    """The route of a live view to ``/live/<address>``, for ``urlpatterns``; ``config.live`` collects them."""
    return path(f"live/{address}", view)  # type: ignore[arg-type]  # answered with messages, not with a response


async def _until_it_speaks(receive: Receive) -> Closing:
    message = await receive()
    return LEFT if message["type"] == "websocket.disconnect" else NOTHING_TO_SAY
