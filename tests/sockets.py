"""Sockets of live views, as a browser opens them, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.typing import Origin

from tests.conftest import PATIENCE_SECONDS
from tests.gateway import Gateway

CALLS = "/live/admin/running-calls/"


@contextmanager
def opened(
    gateway: Gateway, path: str, browser: Client | None = None, origin: str | None = None, **options: Any
) -> Iterator[Connection]:
    """A socket at ``path``, opened by a page of the gateway, or of ``origin``, in this browser.

    ``options`` are those of ``websockets``.
    """
    cookie = browser.cookies.get(settings.SESSION_COOKIE_NAME) if browser else None
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie.value}"} if cookie else {}
    with connect(
        gateway.url.replace("http", "ws") + path,
        origin=Origin(gateway.url if origin is None else origin) if origin != "" else None,
        additional_headers=headers,
        open_timeout=PATIENCE_SECONDS,
        proxy=None,
        **options,
    ) as socket:
        yield socket


def message(socket: Connection) -> dict[str, Any]:
    """The next message that says something."""
    while True:
        said: dict[str, Any] = json.loads(socket.recv(timeout=PATIENCE_SECONDS))
        if "parts" in said:
            return said


def message_until(socket: Connection, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The first message for which ``condition`` holds."""
    while not condition(said := message(socket)):
        pass
    return said


def messages_during(socket: Connection, work: Callable[[], Any]) -> list[dict[str, Any]]:
    """What the server says while ``work`` is done; ``at`` in seconds since 1970."""
    with ThreadPoolExecutor(1) as worker:
        done = worker.submit(work)
        said = []
        while not done.done():
            with suppress(TimeoutError):
                said.append(json.loads(socket.recv(timeout=0.1)))
        done.result()
    return [one | {"at": datetime.fromisoformat(one["at"]).timestamp()} for one in said if "parts" in one]


def closing_of(socket: Connection) -> int:
    """The code with which the server closes the socket, whatever it says before; 1006: it just goes."""
    try:
        while True:
            socket.recv(timeout=PATIENCE_SECONDS)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


def refusal_of(gateway: Gateway, path: str, browser: Client | None = None, origin: str | None = None) -> int:
    """The status that a socket is refused with before it is one."""
    with pytest.raises(InvalidStatus) as refused, opened(gateway, path, browser, origin):
        pass
    return refused.value.response.status_code
