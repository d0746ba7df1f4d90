"""Sockets of live views: to which addresses they lead, from which pages, and who is behind them."""

from __future__ import annotations

import io
from functools import partial
from importlib import import_module

from channels.routing import URLRouter
from django.conf import settings
from django.contrib.auth import get_user
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import re_path

from audit.walls import across
from budgets import live as budgets
from config import dashboard_page
from config.second_factor import WHY, is_missing
from tenants.live import Receive, Scope, Send, SignedOut

BEGINNING = "/live/"


class _Forms(CsrfViewMiddleware):
    """Django's rules about the pages that forms may come from."""

    def comes_from_here(self, request: HttpRequest) -> bool:
        """Whether a page of this site opened the socket: sockets know no policy of the same origin."""
        return "HTTP_ORIGIN" in request.META and self._origin_verified(request)  # type: ignore[attr-defined]


_forms = _Forms(lambda request: HttpResponse())


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Close a socket before it is accepted, which makes the server answer 403."""
    await receive()
    await send({"type": "websocket.close"})


# Of all live views.
routes = [*budgets.urlpatterns, *dashboard_page.urlpatterns]
_elsewhere = re_path("", _refuse)  # type: ignore[arg-type]  # answered with messages, not with a response
_router = URLRouter([*routes, _elsewhere])  # type: ignore[no-untyped-call]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Give the socket to the live view of its path; others are closed before they are accepted."""
    scope["root_path"] = ""
    if scope["path"].startswith(BEGINNING) and _forms.comes_from_here(_request(scope)):
        scope["visit"] = partial(_visit, scope)
        await _router(scope, receive, send)
    else:
        await _refuse(scope, receive, send)


def _visit(scope: Scope) -> HttpRequest:
    """What ``tenants.live.LiveView`` asks for."""
    request = _request(scope)
    store = import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    request.user = get_user(request)
    if not request.user.is_authenticated:
        raise SignedOut
    # As for a page: before its door is closed.
    with across():
        missing = is_missing(request)
    if missing:
        raise PermissionDenied(WHY)
    return request


def _request(scope: Scope) -> ASGIRequest:
    return ASGIRequest({**scope, "method": "GET", "scheme": "http"}, io.BytesIO())
