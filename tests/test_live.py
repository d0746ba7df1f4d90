"""Live views: who may open a socket, what it says, and what closes it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.test import Client, RequestFactory
from websockets.exceptions import ConnectionClosed

from audit.walls import across
from budgets.services import arm_kill_switch, lift_kill_switch
from config.live import routes
from config.second_factor import WHY
from tenants import live
from tenants.live import MOST_PER_PERSON, LiveView
from tenants.models import User
from tests.conftest import House, eventually
from tests.fault_proxy import line_to
from tests.gateway import Gateway
from tests.people import EVERYBODY, a_browser, a_person
from tests.sockets import CALLS, closing_of, message, message_until, messages_during, opened, refusal_of
from tests.test_streams import open_raw

# Together they wait for more than a minute: for sockets that are silent, and for a Redis that hangs.
pytestmark = pytest.mark.slow

SWITCHES = "/live/admin/kill-switches/"
LIVE = Path(__file__).resolve().parent.parent / "docs" / "live.md"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def has_switch(name: str, told: dict[str, Any]) -> bool:
    return name in told["parts"]["switches"]


@pytest.fixture
def olga(house: House) -> Client:
    """An operator who may do everything."""
    return a_browser(User.objects.create_superuser("olga"))


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        pytest.param(CALLS, "http://evil.example", id="a page of somebody else"),
        pytest.param(CALLS, "http://127.0.0.1:1", id="another server of this machine"),
        pytest.param(CALLS, "null", id="a page of nobody"),
        pytest.param(CALLS, "", id="no browser"),
        pytest.param("/live/admin/nothing/", None, id="no live view"),
        pytest.param("/live/", None, id="no path"),
        pytest.param("/admin/", None, id="a page"),
        pytest.param("/v1/chat/completions", None, id="a door"),
    ],
)
def test_a_socket_is_refused_before_it_is_one(
    house: House, olga: Client, path: str, origin: str | None
) -> None:
    # One that is no origin at all is none of the protocol's either.
    assert refusal_of(house.gateway, path, olga, origin) == (400 if origin == "null" else 403)


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_running_calls_are_shown_to_those_who_may_see_them(house: House, who: str) -> None:
    person = a_person(who, house.acme)
    if isinstance(person, User) and who == "operator":
        person.user_permissions.add(Permission.objects.get(codename="view_runningcall"))

    with opened(house.gateway, CALLS, a_browser(person)) as socket:
        if who in ("operator", "superuser"):
            assert "No call is running." in message(socket)["parts"]["calls"]
        else:
            signed_out = who == "stranger" or "inactive" in who
            assert closing_of(socket) == (4401 if signed_out else 4403)


def sign_out(browser: Client) -> None:
    browser.post("/account/logout/")


@pytest.mark.parametrize(
    ("taken", "code"),
    [
        pytest.param(sign_out, 4401, id="signed out"),
        pytest.param(lambda _: Session.objects.all().delete(), 4401, id="signed out everywhere"),
        pytest.param(lambda _: User.objects.update(is_active=False), 4401, id="made inactive"),
        pytest.param(lambda _: User.objects.update(password="another"), 4401, id="given another password"),
        pytest.param(lambda _: User.objects.update(is_superuser=False), 4403, id="no longer superuser"),
        pytest.param(lambda _: User.objects.update(is_staff=False), 4403, id="no longer on the staff"),
    ],
)
def test_rights_that_are_taken_close_the_socket(
    house: House, olga: Client, taken: Callable[[Client], object], code: int
) -> None:
    with opened(house.gateway, CALLS, olga) as socket:
        message(socket)

        taken(olga)

        assert closing_of(socket) == code


def test_another_right_asks_for_the_page_to_be_made_anew(house: House) -> None:
    operator = User.objects.create(username="olaf", is_staff=True)
    operator.user_permissions.add(Permission.objects.get(codename="view_runningcall"))

    with opened(house.gateway, CALLS, a_browser(operator)) as socket:
        message(socket)
        operator.user_permissions.add(Permission.objects.get(codename="stop_runningcall"))

        assert closing_of(socket) == 4409


def test_a_call_appears_and_goes(house: House, olga: Client) -> None:
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    with opened(house.gateway, CALLS, olga) as socket:
        assert "No call is running." in message(socket)["parts"]["calls"]

        with open_raw(house, "/api/chat"):
            message_until(socket, lambda said: "tiny:1b" in said["parts"]["calls"])

        message_until(socket, lambda said: "No call is running." in said["parts"]["calls"])


def test_a_kill_switch_appears_and_goes(house: House, olga: Client) -> None:
    with opened(house.gateway, SWITCHES, olga) as socket:
        assert "No kill switch is on." in message(socket)["parts"]["switches"]

        switch = arm_kill_switch(scope="tenant", tenant=house.acme, actor="otto", reason="fire")
        message_until(socket, lambda said: "tenant acme" in said["parts"]["switches"])

        lift_kill_switch(switch=switch, actor="otto", reason="out")
        message_until(socket, lambda said: "No kill switch is on." in said["parts"]["switches"])


def test_what_stays_as_it_is_is_not_sent_again(house: House, olga: Client) -> None:
    with opened(house.gateway, CALLS, olga) as socket:
        message(socket)

        # Nothing but a sign of life, after a while in which others would have been sent.
        assert json.loads(socket.recv(timeout=60)).keys() == {"at"}


def test_what_changes_is_sent_twice_a_second_at_most(house: House, olga: Client) -> None:
    house.ollama.settings.piece_delay = 0.001
    with opened(house.gateway, CALLS, olga) as socket, ThreadPoolExecutor(8) as callers:
        said = messages_during(socket, lambda: list(callers.map(lambda _: house.ada.chat(), range(200))))

    # By the server's own clock, which is as coarse as that: how quick anything is makes no difference.
    moments = [one["at"] for one in said]
    assert len(moments) > 1
    assert all(later - earlier > 0.49 for earlier, later in pairwise(moments))


@pytest.mark.parametrize(
    ("goes", "comes_back"), [("refuse", "take_again"), ("freeze", "thaw")], ids=["gone", "hangs"]
)
def test_without_redis_a_view_says_since_when_it_is_old(
    house: House, olga: Client, goes: str, comes_back: str
) -> None:
    with (
        line_to(settings.REDIS_URL) as (line, url),
        Gateway(REDIS_URL=url) as gateway,
        opened(gateway, CALLS, olga) as socket,
    ):
        assert message(socket)["stale"] is None

        getattr(line, goes)()
        stale = message_until(socket, lambda said: said["stale"])
        getattr(line, comes_back)()

        assert stale["parts"] == {}
        assert stale["stale"] <= stale["at"]
        message_until(socket, lambda said: said["stale"] is None)


def test_whoever_needs_a_second_factor_and_has_none_sees_nothing(house: House, olga: Client) -> None:
    with Gateway(OPERATORS_NEED_SECOND_FACTOR="true") as gateway, opened(gateway, CALLS, olga) as socket:
        assert closing_of(socket) == 4403
        assert socket.close_reason == str(WHY)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        pytest.param("hello", 1008, id="words"),
        pytest.param(b"\x00\xff", 1008, id="bytes"),
        pytest.param("x" * 5000, 1009, id="too much"),
    ],
)
def test_a_client_has_nothing_to_say(house: House, olga: Client, said: str | bytes, code: int) -> None:
    with opened(house.gateway, CALLS, olga) as socket:
        message(socket)

        socket.send(said)

        assert closing_of(socket) == code


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\x81\x05hello", id="not masked"),
        pytest.param(b"\x8f\x80\x00\x00\x00\x00", id="no such kind"),
        pytest.param(b"\xf1\x80\x00\x00\x00\x00", id="reserved bits"),
        pytest.param(b"\x01\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", id="endless"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another language"),
    ],
)
def test_garbage_ends_its_own_socket_and_no_other(house: House, olga: Client, frame: bytes) -> None:
    with opened(house.gateway, SWITCHES, olga) as other, opened(house.gateway, CALLS, olga) as bad:
        message(bad)
        bad.socket.sendall(frame)
        closing_of(bad)

        arm_kill_switch(scope="platform", actor="otto", reason="fire")

        message_until(other, lambda said: "platform" in said["parts"]["switches"])


def narrow_line(gateway: Gateway) -> socket.socket:
    """A connection on which the system holds little for a client that does not read."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.socket()
    # Before it connects: later it would have been promised more.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    return connection


def asked_plainly(gateway: Gateway, path: str, lines: list[str]) -> socket.socket:
    """A connection that asks for a socket, without a library that knows how."""
    host = gateway.url.removeprefix("http://")
    connection = narrow_line(gateway)
    head = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    connection.sendall("\r\n".join([*head, *lines, "", ""]).encode())
    return connection


def handshake_of(gateway: Gateway, browser: Client) -> list[str]:
    """What ``asked_plainly`` has to send to be let in."""
    cookie = f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"
    return [
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        f"Origin: {gateway.url}",
        f"Cookie: {cookie}",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Sec-WebSocket-Version: 12", f"Sec-WebSocket-Key: {KEY}"], id="version"),
        pytest.param(["Sec-WebSocket-Version: 13"], id="no key"),
        pytest.param(["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x"], id="a key that is none"),
        pytest.param([], id="nothing else"),
    ],
)
def test_a_handshake_that_is_none_is_refused_without_a_trace(house: House, lines: list[str]) -> None:
    def leaves_no_trace() -> bool:
        written = house.gateway.log()
        with asked_plainly(house.gateway, CALLS, lines) as connection:
            answer = connection.recv(65536)
        assert answer.split()[1] in (b"400", b"426")
        return house.gateway.log() == written

    # What the gateway does beside may say something meanwhile.
    eventually(leaves_no_trace)


def test_a_person_has_so_many_sockets_in_a_process(house: House, olga: Client) -> None:
    with contextlib.ExitStack() as several:
        for _ in range(MOST_PER_PERSON):
            message(several.enter_context(opened(house.gateway, CALLS, olga)))
        with opened(house.gateway, CALLS, olga) as one_more:
            assert closing_of(one_more) == 4429

    def let_in() -> bool:
        with opened(house.gateway, CALLS, olga) as socket, contextlib.suppress(ConnectionClosed):
            return bool(socket.recv(timeout=30))
        return False

    eventually(let_in)


def test_a_process_has_so_many_sockets(house: House, olga: Client) -> None:
    with Gateway(LIVE_SOCKETS="1") as gateway, opened(gateway, CALLS, olga) as only:
        message(only)
        with opened(gateway, CALLS, olga) as one_more:
            assert closing_of(one_more) == 1013


def test_a_process_that_stops_closes_its_sockets_at_once(house: House, olga: Client) -> None:
    with Gateway(DRAIN_SECONDS="600") as gateway, opened(gateway, CALLS, olga) as socket:
        message(socket)

        gateway.process.send_signal(signal.SIGTERM)

        assert closing_of(socket) == 1012
        assert gateway.process.wait(timeout=30) == 0


def test_whoever_is_behind_with_reading_gets_the_newest_and_not_all_that_was(
    house: House, olga: Client
) -> None:
    # More than the system holds for a client, in one message.
    for _ in range(50):
        arm_kill_switch(scope="tenant", tenant=house.acme, actor="otto", reason=120_000 * "x")
    with (
        opened(house.gateway, SWITCHES, olga, max_size=None) as quick,
        opened(
            house.gateway, SWITCHES, olga, max_size=None, max_queue=1, sock=narrow_line(house.gateway)
        ) as slow,
    ):
        message(slow)
        said: list[Any] = []
        for number in range(6):
            arm_kill_switch(scope="upstream", upstream=f"gpu-{number}", actor="otto", reason=120_000 * "x")
            message_until(quick, partial(has_switch, f"gpu-{number}"))
        while not any(has_switch("gpu-5", one) for one in said):
            said.append(message(slow))

    # One lay ready, and one was under way.
    assert len(said) < 5


class Counted(LiveView):
    """Waits with reading until it may, and counts how often it reads."""

    def __init__(self) -> None:
        self.may_read = threading.Event()
        self.readings = 0

    def subject(self, request: HttpRequest, **parts: Any) -> str:
        return "the same for everybody"

    def place(self, subject: str) -> AbstractContextManager[None]:
        return across()

    def parts(self, subject: str) -> dict[str, str]:
        self.may_read.wait(30)
        self.readings += 1
        return {"part": "the same for everybody"}


def test_what_several_see_is_read_once_for_all_and_no_more_when_they_have_left() -> None:
    view, sockets = Counted(), 5
    when_told: list[int] = []
    accepted: list[str] = []

    def visit() -> HttpRequest:
        request = RequestFactory().get("/")
        request.user = User(username="somebody")
        return request

    async def one_socket() -> None:
        told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        told.put_nowait({"type": "websocket.connect"})

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.accept":
                accepted.append("one")
            else:
                when_told.append(view.readings)
                told.put_nowait({"type": "websocket.disconnect"})
            if len(accepted) == sockets:
                view.may_read.set()

        await view({"visit": visit, "url_route": {"kwargs": {}}}, told.get, send)

    async def all_of_them() -> None:
        await asyncio.gather(*(one_socket() for _ in range(sockets)))
        await asyncio.gather(*live._reading)

    asyncio.run(all_of_them())

    assert when_told == [1] * sockets
    assert not live._feeds
    assert not live._sockets
    assert LiveView._open == 0


def test_a_client_that_is_gone_without_a_word_is_cut_off(house: House, olga: Client) -> None:
    with asked_plainly(house.gateway, CALLS, handshake_of(house.gateway, olga)) as gone:
        answer = b""
        while b"No call is running." not in answer:
            answer += gone.recv(65536)

        # It reads, and answers no question whether it is there.
        with contextlib.suppress(ConnectionResetError):
            while answer:
                answer = gone.recv(65536)


def test_every_live_view_is_in_the_docs() -> None:
    told = set(re.findall(r"^\| `(/live/[^`?]*)", LIVE.read_text(), re.MULTILINE))

    assert told == {"/" + re.sub(r"<\w+:", "<", str(route.pattern)) for route in routes}
