"""The application and the handler of the doors, driven by hand as any ASGI server would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from config.background import Background
from proxy.exceptions import BodyTooLarge
from proxy.handler import ProxyHandler, read_body
from tests import server_app

pytestmark = pytest.mark.filterwarnings("ignore:No directory at:UserWarning")

Message = Mapping[str, Any]


class Client:
    """One request to an ASGI application, and what the application sent."""

    def __init__(
        self, path: str = "/v1/echo", *, notes: Path | None = None, query: str = "", **scope: Any
    ) -> None:
        headers = [(b"host", b"x")]
        if notes is not None:
            headers.append((b"x-notes", str(notes).encode()))
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            **scope,
        }
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.accepts: Callable[[Message], Awaitable[None]] | None = None

    async def ask(self, application: Any, *body: bytes) -> None:
        """Run the application on the request whose body comes in these parts."""
        parts = body or (b"",)
        for number, part in enumerate(parts, 1):
            self.incoming.put_nowait({"type": "http.request", "body": part, "more_body": number < len(parts)})
        await application(self.scope, self.incoming.get, self._send)

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if self.accepts is not None:
            await self.accepts(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def ended(self) -> bool:
        """Whether the application sent the end of its answer."""
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


@pytest.fixture(autouse=True)
def _no_background_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a server starts the real jobs; here they would poll beside the tests."""
    monkeypatch.setattr("config.asgi.background", Background())


@pytest.fixture
def handler() -> ProxyHandler:
    return ProxyHandler("tests.server_urls")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


async def begun(notes: Path) -> None:
    """Wait until a view noted that it began."""
    async with asyncio.timeout(30):
        while not notes.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.005)


def test_answers_in_pieces_what_came_in_parts(handler):
    client = Client(query="a=b")

    asyncio.run(client.ask(handler, b"one", b"two", b""))

    assert client.status == 200
    assert b'"length":6' in client.body
    assert int(client.headers[b"content-length"]) == len(client.body)
    assert client.ended


def test_a_stream_is_sent_chunk_by_chunk_and_ended(handler, notes):
    client = Client("/v1/stream", notes=notes)

    asyncio.run(client.ask(handler))

    assert [message["body"] for message in client.sent[1:]] == [b"chunk 0\n", b"chunk 1\n", b"chunk 2\n", b""]
    assert client.ended
    assert notes.read_text() == "began\ncleaned up\n"


@pytest.mark.parametrize(
    ("path", "query"), [("/v1/wait", "cleanup=0.2"), ("/v1/stream", "pause=600&cleanup=0.2")]
)
def test_a_client_that_leaves_cancels_the_view_and_its_cleanup_is_awaited(handler, notes, path, query):
    client = Client(path, notes=notes, query=query)

    async def leave_early() -> None:
        answering = asyncio.create_task(client.ask(handler))
        await begun(notes)
        client.leave()
        await answering

    asyncio.run(leave_early())

    assert notes.read_text() == "began\ncleaned up\n"
    assert not client.ended


def test_a_client_that_leaves_while_a_chunk_is_sent_has_its_stream_closed_at_once(handler, notes):
    client = Client("/v1/stream", notes=notes, query="cleanup=0.2")

    async def never(message: Message) -> None:
        if message["type"] == "http.response.body":
            client.leave()
            await asyncio.sleep(600)

    client.accepts = never
    asyncio.run(client.ask(handler))

    assert notes.read_text() == "began\ncleaned up\n"


@pytest.mark.parametrize("leaves", [False, True], ids=["client stays", "client leaves too"])
def test_a_server_that_cancels_waits_for_the_cleanup_and_learns_of_it(handler, notes, leaves):
    client = Client("/v1/wait", notes=notes, query="cleanup=0.2")

    async def stop_server() -> None:
        answering = asyncio.create_task(client.ask(handler))
        await begun(notes)
        answering.cancel()
        if leaves:
            await asyncio.sleep(0.05)
            client.leave()
        with pytest.raises(asyncio.CancelledError):
            await answering

    asyncio.run(stop_server())

    assert notes.read_text() == "began\ncleaned up\n"


def test_a_client_that_leaves_before_its_request_is_whole_is_not_answered(handler):
    client = Client()

    async def leave_early() -> None:
        client.incoming.put_nowait({"type": "http.request", "body": b"a", "more_body": True})
        client.leave()
        await handler(client.scope, client.incoming.get, client._send)

    asyncio.run(leave_early())

    assert client.sent == []


def test_a_body_is_refused_by_its_declared_length_before_it_is_read(settings):
    settings.MAX_BODY_BYTES = 10
    client = Client(headers=[(b"content-length", b"11")])

    with pytest.raises(BodyTooLarge):
        asyncio.run(read_body(client.scope, client.incoming.get))


def test_a_body_is_refused_by_count_whatever_was_declared(handler, settings):
    settings.MAX_BODY_BYTES = 10
    client = Client(headers=[(b"content-length", b"3")])

    asyncio.run(client.ask(handler, b"12345", b"123456", b"never read"))

    assert client.status == 413
    assert client.headers[b"connection"] == b"close"
    assert client.incoming.qsize() == 1


def test_a_body_of_just_the_limit_is_read(handler, settings):
    settings.MAX_BODY_BYTES = 10
    client = Client()

    asyncio.run(client.ask(handler, b"12345", b"12345"))

    assert client.status == 200


def test_an_error_before_the_start_is_a_neutral_answer(handler, caplog):
    client = Client("/v1/breaks-before")

    asyncio.run(client.ask(handler))

    assert client.status == 500
    assert b"secret" not in client.body
    assert "GET '/v1/breaks-before' failed" in caplog.text


def test_an_error_after_the_start_reaches_the_server_and_no_end_is_sent(handler):
    client = Client("/v1/breaks-after")

    with pytest.raises(RuntimeError):
        asyncio.run(client.ask(handler))

    assert client.body == b"good so far\n"
    assert not client.ended


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/echo/",
        "/v1//echo",
        "//v1/echo",
        "/v1/../v1/echo",
        "/../v1/echo",
        "/./v1/echo",
        "/api",
    ],
)
def test_no_other_spelling_of_a_path_is_a_door_or_a_redirect(path):
    client = Client(path)

    asyncio.run(client.ask(server_app.application))

    assert client.status == 404


def test_a_root_path_is_ignored():
    client = Client("/v1/echo", root_path="/v1")

    asyncio.run(client.ask(server_app.application))

    assert b'"script_name":""' in client.body


def test_the_site_answers_what_is_no_door():
    client = Client("/nowhere/", headers=[(b"host", b"localhost")])

    asyncio.run(client.ask(server_app.application))

    assert client.status == 404
    assert client.headers[b"content-type"].startswith(b"text/html")


def test_a_websocket_is_closed_before_it_is_accepted():
    client = Client("/v1/echo", type="websocket")
    client.incoming.put_nowait({"type": "websocket.connect"})

    asyncio.run(server_app.application(client.scope, client.incoming.get, client._send))

    assert [message["type"] for message in client.sent] == ["websocket.close"]


@pytest.mark.parametrize(("path", "method", "status"), [("/livez", "GET", 200), ("/livez", "POST", 405)])
def test_a_probe_is_answered(path, method, status):
    client = Client(path, method=method)

    asyncio.run(client.ask(server_app.application))

    assert client.status == status
