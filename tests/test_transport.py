"""The way to upstream, against servers that say exactly what a test wants said."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from proxy import transport, upstream
from proxy.exceptions import UpstreamFailed, UpstreamUnreachable
from proxy.http1 import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, AnswerReader
from proxy.transport import MAX_UNREAD_BYTES, Transport

OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKS = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS
UNFINISHED = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

Runs = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runs:
    """Runs a test's work to its end, in either event loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(work, 30))

    return run


async def soon(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` is true; fail when that takes too long."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in sockets, and tells nobody
            await asyncio.sleep(0.001)


class Connection:
    """The server's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests: list[bytes] = []
        self.gone = False

    async def request(self) -> bytes:
        """The next request, head and body. Raises ``IncompleteReadError`` when none comes."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        whole = head + await self.reader.readexactly(int(length or 0))
        self.requests.append(whole)
        return whole

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_gone(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        self.gone = True

    def reset(self) -> None:
        """Let the client's kernel learn of the end by a reset."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Connection], Awaitable[None]]


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.connections: list[Connection] = []

    @property
    def requests(self) -> list[bytes]:
        return [request for connection in self.connections for request in connection.requests]


@contextlib.asynccontextmanager
async def served(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server that plays ``script`` on each connection and closes it then."""
    playing: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        playing.add(task)
        connection = Connection(reader, writer)
        server.connections.append(connection)
        try:
            await script(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            connection.gone = True
        finally:
            playing.discard(task)
            writer.close()

    listening = await asyncio.start_server(play, "127.0.0.1", 0, ssl=tls, backlog=1000)
    scheme = "https" if tls else "http"
    server = Server(f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    try:
        yield server
    finally:
        listening.close()
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        await listening.wait_closed()


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Transport]:
    one = Transport()
    try:
        yield one
    finally:
        await one.aclose()
        assert not one._open
        assert one._sweeping is None or one._sweeping.cancelled()


def always(answer: bytes) -> Script:
    """Give each request the same answer."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.say(answer)

    return script


def once(answer: bytes) -> Script:
    """Give the first request an answer and close the connection."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(answer)

    return script


def begun(answer: bytes) -> Script:
    """Begin to answer the first request and wait for the client to go."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(answer)
        await connection.until_gone()

    return script


async def send(
    client: Transport, server: Server, method: str = "POST", content: bytes = b"{}", connect: float = 20
) -> httpx.Response:
    extensions = {"timeout": {"connect": connect}}
    request = httpx.Request(method, f"{server.url}/api/chat", content=content, extensions=extensions)
    return await client.handle_async_request(request)


def packets(response: httpx.Response) -> AsyncIterator[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def read_into(received: list[bytes], response: httpx.Response) -> None:
    """Read to the end, and keep what came when there is none."""
    async for packet in packets(response):
        received.append(packet)  # noqa: PERF401 - a comprehension would keep nothing


async def body_of(response: httpx.Response) -> bytes:
    return b"".join([packet async for packet in packets(response)])


async def ask(client: Transport, server: Server, method: str = "POST") -> tuple[int, bytes]:
    response = await send(client, server, method)
    try:
        return response.status_code, await body_of(response)
    finally:
        await response.aclose()


# What is sent


def test_a_request_is_sent_as_it_was_built(run):
    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            url = httpx.URL(f"{server.url}/api/chat?a=b%20c")
            headers = {"Host": "ollama", "X-One": "1"}
            await client.handle_async_request(httpx.Request("POST", url, headers=headers, content=b"whole"))

            [request] = server.requests
            head, _, body = request.partition(b"\r\n\r\n")
            assert body == b"whole"
            assert head.split(b"\r\n") == [
                b"POST /api/chat?a=b%20c HTTP/1.1", b"Host: ollama", b"X-One: 1", b"Content-Length: 5",
            ]  # fmt: skip

    run(work())


@pytest.mark.parametrize("headers", [{"X": "1\r\nY: 2"}, {"X": "1\nY: 2"}, {"X\r": "1"}, {"X": "1\r2"}])
def test_a_header_with_a_line_end_is_not_sent(run, headers):
    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.handle_async_request(httpx.Request("GET", server.url, headers=headers))
            assert server.connections == []

    run(work())


def test_a_body_that_comes_bit_by_bit_is_not_sent(run):
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"

    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.handle_async_request(httpx.Request("POST", server.url, content=pieces()))
            assert server.connections == []

    run(work())


def test_small_packets_are_not_held_back(run):
    async def work() -> None:
        async with served(begun(UNFINISHED)) as server, opened() as client:
            await send(client, server)
            [connection] = client._open
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(work())


# How an answer ends, and whether its connection serves again

WHOLE = [
    pytest.param(SIZED, b"hello", True, id="sized"),
    pytest.param(OK + b"content-length:\t5 \r\n\r\nhello", b"hello", True, id="spaces around the length"),
    pytest.param(
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", b"hello", True, id="told twice alike"
    ),
    pytest.param(OK + b"Content-Length: 0\r\n\r\n", b"", True, id="empty"),
    pytest.param(CHUNKED, b"hello", True, id="chunked"),
    pytest.param(
        OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n00A ;x=y;z\r\n0123456789\r\n0;a\r\nX: 1\r\nY: 2\r\n\r\n",
        b"0123456789",
        True,
        id="extensions and trailers",
    ),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"", True, id="no chunk"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, id="no content"),
    pytest.param(b"HTTP/1.1 304\r\nContent-Length: 5\r\n\r\n", b"", True, id="not modified"),
    pytest.param(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + SIZED,
        b"hello",
        True,
        id="announced twice",
    ),
    pytest.param(
        OK + b"Connection: X, close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False, id="to be closed"
    ),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
        False,
        id="of HTTP/1.0",
    ),
    pytest.param(SIZED + b"HTTP/1.1 200 OK\r\n", b"hello", False, id="garbage behind it"),
    pytest.param(CHUNKED + b"\r\n", b"hello", False, id="garbage behind chunks"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\nx", b"", False, id="garbage behind nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "body", "reused"), WHOLE)
def test_an_answer_ends_where_it_says_and_its_connection_serves_again_if_it_may(run, answer, body, reused):
    async def work() -> None:
        async with served(always(answer)) as server, opened() as client:
            for _ in range(3):
                status, received = await ask(client, server)
                assert received == body
                assert status in (200, 204, 304)
            assert len(server.connections) == (1 if reused else 3)
            assert len(server.requests) == 3

    run(work())


@pytest.mark.parametrize(("answer", "body", "reused"), WHOLE)
def test_a_byte_at_a_time_gives_the_same_answer(answer, body, reused):
    assert read_in(answer, range(len(answer) + 1))[1:] == (body, True, reused, False)


def test_an_answer_to_head_has_no_body(run):
    async def work() -> None:
        async with served(always(OK + b"Content-Length: 5\r\n\r\n")) as server, opened() as client:
            assert [await ask(client, server, "HEAD") for _ in range(2)] == [(200, b"")] * 2
            assert len(server.connections) == 1

    run(work())


def test_an_answer_without_length_ends_with_its_connection(run):
    async def work() -> None:
        async with served(once(OK + b"\r\nhello")) as server, opened() as client:
            assert [await ask(client, server) for _ in range(2)] == [(200, b"hello")] * 2
            assert len(server.connections) == 2

    run(work())


def test_headers_keep_their_order_and_spelling(run):
    async def work() -> None:
        head = OK + b"B: 1\r\na:2\r\nB: \r\nC: x \xe9\r\nContent-Length: 0\r\n\r\n"
        async with served(always(head)) as server, opened() as client:
            response = await send(client, server)
            assert response.headers.raw[:4] == [(b"B", b"1"), (b"a", b"2"), (b"B", b""), (b"C", b"x \xe9")]

    run(work())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, id="both"),
        pytest.param(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", id="two lengths"),
        pytest.param(OK + b"Content-Length: 5, 5\r\n\r\nhello", id="a list of lengths"),
        pytest.param(OK + b"Content-Length: -5\r\n\r\nhello", id="negative"),
        pytest.param(OK + b"Content-Length: +5\r\n\r\nhello", id="signed"),
        pytest.param(OK + b"Content-Length: 1_0\r\n\r\nhello12345", id="as Python writes it"),
        pytest.param(OK + b"Content-Length: \r\n\r\nhello", id="no length"),
        pytest.param(OK + b"Content-Length: 9999999999999999\r\n\r\nhello", id="too long"),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS, id="packed"),
        pytest.param(OK + b"Transfer-Encoding: identity\r\n\r\nhello", id="unknown coding"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", id="twice"),
        pytest.param(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, id="1.0 in chunks"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", id="another version"),
        pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="short status"),
        pytest.param(b"HTTP/1.1 999 OK\r\n\r\n", id="no such status"),
        pytest.param(b"\r\n" + SIZED, id="an empty line first"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="another protocol"),
        pytest.param(OK + b"A: 1\r\n folded\r\n\r\n", id="a folded header"),
        pytest.param(OK + b"A : 1\r\n\r\n", id="a space before the colon"),
        pytest.param(OK + b": 1\r\n\r\n", id="no name"),
        pytest.param(OK + b"nothing\r\n\r\n", id="no colon"),
        pytest.param(OK + b"A: 1\n\r\n\r\n", id="a bare line feed"),
        pytest.param(OK + b"A: 1\rB: 2\r\n\r\n", id="a bare carriage return"),
        pytest.param(OK + b"A: \0\r\n\r\n", id="a null"),
        pytest.param(OK + b"A: 1\r\n" * (MAX_HEADERS + 1) + b"\r\n", id="too many headers"),
        pytest.param(OK + b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", id="a long head"),
        pytest.param(OK + b"A: " + b"x" * MAX_HEAD_BYTES, id="a head without end"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, id="announced without end"),
    ],
)
def test_an_answer_that_can_be_read_in_two_ways_is_no_answer(run, answer):
    async def work() -> None:
        async with served(begun(answer)) as server, opened() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await send(client, server)
            await soon(lambda: server.connections[0].gone)
            assert not client._open

    run(work())


def test_an_answer_without_length_that_is_reset_is_not_whole(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.say(OK + b"\r\nhello")
            await read.wait()
            connection.reset()

        read = asyncio.Event()
        async with served(script) as server, opened() as client:
            reading = packets(await send(client, server))
            assert await anext(reading) == b"hello"
            read.set()
            with pytest.raises(httpx.ReadError):
                await anext(reading)

    run(work())


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"g\r\n", id="not hexadecimal"),
        pytest.param(b"0x5\r\nhello\r\n", id="a prefix"),
        pytest.param(b"-5\r\nhello\r\n", id="negative"),
        pytest.param(b"5_0\r\n", id="as Python writes it"),
        pytest.param(b" 5\r\nhello\r\n", id="a space first"),
        pytest.param(b"5\nhello\n", id="bare line feeds"),
        pytest.param(b"\r\n", id="no size"),
        pytest.param(b"1000000000000000\r\n", id="too big"),
        pytest.param(b"5\r\nhello!\r\n", id="longer than its size"),
        pytest.param(b"5\r\nhello5\r\n", id="no end"),
        pytest.param(b"5;" + b"x" * (MAX_FRAMING_BYTES + 1), id="an extension without end"),
        pytest.param(b"0\r\n" + b"X: 1\r\n" * MAX_FRAMING_BYTES, id="trailers without end"),
        pytest.param(b"0\r\n\n", id="no empty line"),
    ],
)
def test_broken_chunks_are_a_broken_answer_and_what_came_before_is_delivered(run, chunks):
    async def work() -> None:
        async with served(begun(UNFINISHED + chunks)) as server, opened() as client:
            response = await send(client, server)
            received: list[bytes] = []
            with pytest.raises(httpx.RemoteProtocolError):
                await read_into(received, response)
            assert b"".join(received).startswith(b"hello")
            await soon(lambda: server.connections[0].gone)

    run(work())


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
@pytest.mark.parametrize("reset", [False, True])
def test_an_answer_that_breaks_off_anywhere_is_never_taken_for_a_whole_one(run, answer, reset):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            length = len(server.connections) - 1
            await connection.request()
            await connection.say(answer[:length])
            if reset:
                connection.reset()

        async def call(received: list[bytes]) -> None:
            await read_into(received, await send(client, server))

        async with served(script) as server, opened() as client:
            for length in range(len(answer)):
                received: list[bytes] = []
                with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                    await call(received)
                assert b"hello".startswith(b"".join(received))
                assert len(server.requests) == length + 1
            await soon(lambda: not client._open)

    run(work())


# Reading without sockets


def read_in(answer: bytes, cuts: Any) -> tuple[Any, bytes, bool, bool, bool]:
    """Status and headers, body, whether it ended, whether it may be followed, whether it was refused."""
    reader = AnswerReader("POST")
    pieces: list[bytes] = []
    places = sorted({0, len(answer), *(cut for cut in cuts if cut <= len(answer))})
    refused = False
    try:
        for begin, end in itertools.pairwise(places):
            reader.feed(answer[begin:end], pieces)
    except httpx.RemoteProtocolError:
        refused = True
    head = None if reader.head is None else (reader.head.status, reader.head.headers)
    return head, b"".join(pieces), reader.ended, reader.reusable, refused


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A well-formed answer and its body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    head = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2)) + OK + b"Server: x\r\n"
    body = b"".join(pieces)
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    extension = st.sampled_from([b"", b";a", b" ;a=b"])
    chunks = [b"%x%b\r\n%b\r\n" % (len(piece), draw(extension), piece) for piece in pieces]
    trailers = b"T: 1\r\n" * draw(st.integers(0, 2))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(
        chunks
    ) + b"0\r\n" + trailers + b"\r\n", body


@given(answers(), st.sets(st.integers(0, 600)))
def test_however_an_answer_is_split_it_is_the_same(answer, cuts):
    data, body = answer

    head, received, *rest = read_in(data, cuts)

    assert head[0] == 200
    assert (received, rest) == (body, [True, True, False])
    assert head == read_in(data, ())[0]


@given(answers(), st.sets(st.integers(0, 600)), st.integers(0, 600), st.binary(max_size=4), st.integers(0, 4))
def test_however_a_damaged_answer_is_split_the_same_is_made_of_it(answer, cuts, place, put_in, left_out):
    data = answer[0][:place] + put_in + answer[0][place + left_out :]

    assert read_in(data, cuts)[:2] == read_in(data, ())[:2]
    assert read_in(data, cuts)[2:] == read_in(data, ())[2:]


# Connections


def test_each_packet_is_handed_on_alone_and_at_once(run):
    async def work() -> None:
        taken = asyncio.Event()

        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.say(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            for number in range(20):
                await connection.say(b"2\r\n%02d\r\n" % number)
                await taken.wait()
                taken.clear()
            await connection.say(b"0\r\n\r\n")

        async with served(script) as server, opened() as client:
            received = []
            async for packet in packets(await send(client, server)):
                received.append(packet)
                taken.set()
            assert received == [b"%02d" % number for number in range(20)]

    run(work())


def test_any_number_of_calls_run_at_once_and_the_connection_used_last_is_used_next(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            while True:
                await connection.request()
                await soon(lambda: len(server.connections) == 300)
                await connection.say(SIZED)

        async with served(script) as server, opened() as client:
            answers = await asyncio.gather(*(ask(client, server) for _ in range(300)))
            assert answers == [(200, b"hello")] * 300
            for _ in range(5):
                await ask(client, server)
            assert sorted(len(connection.requests) for connection in server.connections)[-2:] == [1, 6]

    run(work())


@pytest.mark.parametrize("ending", ["close", "reset", "speak"])
def test_a_connection_that_ended_while_it_was_idle_is_not_used(run, ending):
    async def work() -> None:
        end = asyncio.Event()

        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.say(SIZED)
            await end.wait()
            if ending == "reset":
                connection.reset()
            elif ending == "speak":
                await connection.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
                await connection.until_gone()

        async with served(script) as server, opened() as client:
            await ask(client, server)
            end.set()
            await soon(lambda: not client._open)
            assert await ask(client, server) == (200, b"hello")
            assert [len(connection.requests) for connection in server.connections] == [1, 1]

    run(work())


def test_a_connection_that_was_idle_for_its_time_is_closed_and_a_younger_one_is_not(run):
    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            await asyncio.gather(*(ask(client, server) for _ in range(3)))
            [[*old, young]] = client._idle.values()
            for connection in old:
                connection.idle_since -= transport.IDLE_SECONDS
            young.idle_since += transport.IDLE_SECONDS
            client._sweep()
            await soon(lambda: client._open == {young})
            assert list(client._idle.values()) == [[young]]
            assert await ask(client, server) == (200, b"hello")
            assert len(server.connections) == 3

    run(work())


def test_idle_connections_are_closed_though_nothing_else_happens(run, monkeypatch):
    monkeypatch.setattr(transport, "IDLE_SECONDS", 0.2)

    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            await asyncio.gather(*(ask(client, server) for _ in range(3)))
            await soon(lambda: not client._open)
            assert not any(client._idle.values())

    run(work())


def test_a_request_is_never_sent_a_second_time(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.say(SIZED)
            await connection.request()

        async with served(script) as server, opened() as client:
            await ask(client, server)
            with pytest.raises(httpx.RemoteProtocolError):
                await send(client, server)
            assert [len(connection.requests) for connection in server.connections] == [2]

    run(work())


def test_an_answer_that_comes_before_the_request_was_taken_uses_its_connection_up(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            await connection.reader.readuntil(b"\r\n\r\n")
            await connection.say(SIZED)
            await done.wait()

        done = asyncio.Event()
        async with served(script) as server, opened() as client:
            response = await send(client, server, content=b"x" * 2**24)
            assert await body_of(response) == b"hello"
            assert not client._idle
            await soon(lambda: not client._open)
            done.set()

    run(work())


def test_a_server_that_ends_while_it_is_still_sent_to_is_not_waited_for(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            await connection.reader.readuntil(b"\r\n\r\n")
            connection.writer.write_eof()
            await done.wait()

        done = asyncio.Event()
        async with served(script) as server, opened() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.wait_for(send(client, server, content=b"x" * 2**24), 20)
            done.set()

    run(work())


def test_an_answer_closed_before_its_end_is_seen_by_the_server_at_once(run):
    async def work() -> None:
        async with served(begun(UNFINISHED)) as server, opened() as client:
            response = await send(client, server)
            assert await anext(packets(response)) == b"hello"
            await response.aclose()
            await soon(lambda: server.connections[0].gone)
            assert not client._open

    run(work())


def test_an_answer_that_had_come_whole_when_it_was_closed_keeps_its_connection(run):
    async def work() -> None:
        async with served(always(OK + b"Content-Length: 0\r\n\r\n")) as server, opened() as client:
            for _ in range(3):
                await (await send(client, server)).aclose()
            assert len(server.connections) == 1

    run(work())


def test_a_connection_whose_reading_was_paused_serves_again(run):
    head = OK + b"Content-Length: %d\r\n\r\n"
    # The byte that is too many is the last one.
    length = MAX_UNREAD_BYTES + 1 - len(head % 100_000)
    answer = head % length + b"x" * length

    async def work() -> None:
        async with served(always(answer)) as server, opened() as client:
            for _ in range(2):
                response = await send(client, server)
                [connection] = client._open
                await soon(lambda: not connection.transport.is_reading())  # noqa: B023 - asked in this round only
                await response.aclose()
            assert len(server.connections) == 1

    run(work())


def test_a_closed_answer_has_no_say_in_what_its_connection_does_next(run):
    async def work() -> None:
        async with served(always(SIZED)) as server, opened() as client:
            first = await send(client, server)
            assert await body_of(first) == b"hello"
            second = await send(client, server)
            await first.aclose()
            assert await body_of(second) == b"hello"
            assert len(server.connections) == 1

    run(work())


def test_a_reader_fails_at_once_when_another_task_closes_its_answer(run):
    async def work() -> None:
        async with served(begun(UNFINISHED)) as server, opened() as client:
            response = await send(client, server)
            reading = asyncio.create_task(body_of(response))
            await asyncio.sleep(0.01)
            await response.aclose()
            with pytest.raises(httpx.ReadError):
                await asyncio.wait_for(reading, 30)
            with pytest.raises(httpx.ReadError):
                await anext(packets(response))
            await soon(lambda: server.connections[0].gone)

    run(work())


def test_nothing_is_read_from_an_answer_that_was_closed(run):
    async def work() -> None:
        async with served(begun(UNFINISHED)) as server, opened() as client:
            response = await send(client, server)
            answer: Any = response.stream
            await soon(lambda: answer._pieces)
            await response.aclose()
            with pytest.raises(httpx.ReadError):
                await anext(packets(response))

    run(work())


def test_a_reader_that_is_cancelled_takes_its_answer_with_it(run):
    async def work() -> None:
        async with served(begun(UNFINISHED)) as server, opened() as client:
            reading = packets(await send(client, server))
            assert await anext(reading) == b"hello"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(reading), 0.01)
            await soon(lambda: server.connections[0].gone)
            assert not client._open

    run(work())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", UNFINISHED])
def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing(run, said):
    async def work() -> None:
        async with served(begun(said)) as server, opened() as client:
            call = asyncio.create_task(ask(client, server))
            await soon(lambda: server.requests)
            await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await soon(lambda: server.connections[0].gone)
            assert not client._open

    run(work())


def test_a_call_may_be_cancelled_at_any_turn_of_the_loop(run):
    async def work() -> None:
        async with served(always(CHUNKED)) as server, opened() as client:
            for turns in range(40):
                call = asyncio.create_task(ask(client, server))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await call == (200, b"hello")
                assert await ask(client, server) == (200, b"hello")
            idle = sum(len(idle) for idle in client._idle.values())
            await soon(lambda: len(client._open) == idle)

    run(work())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of its own for 127.0.0.1, with its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl here to make a certificate with")
    made = tmp_path / "certificate.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=ollama", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", tmp_path / "key.pem", "-out", made],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    made.write_text(made.read_text() + (tmp_path / "key.pem").read_text())
    return made


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_https_is_spoken_to_a_server_whose_certificate_is_trusted(run, certificate, monkeypatch):
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(certificate)
    monkeypatch.setattr(transport, "_tls", lambda: trusting)

    async def work() -> None:
        async with served(always(CHUNKED), server_side(certificate)) as server, opened() as client:
            assert [await ask(client, server) for _ in range(3)] == [(200, b"hello")] * 3
            assert len(server.connections) == 1

    run(work())


def test_a_server_whose_certificate_is_not_trusted_is_told_nothing(run, certificate, monkeypatch):
    monkeypatch.setattr(transport, "_tls", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    async def work() -> None:
        async with served(always(CHUNKED), server_side(certificate)) as server, opened() as client:
            with pytest.raises(httpx.ConnectError):
                await send(client, server)
            assert server.requests == []
            assert not client._open

    run(work())


async def silent(connection: Connection) -> None:
    await connection.until_gone()


@pytest.mark.parametrize("how", ["too late", "cancelled"])
def test_connecting_that_takes_too_long_or_is_cancelled_leaves_nothing(run, how):
    """A server that does not answer the first words of TLS is connected to without end."""

    async def work() -> None:
        async with served(silent) as server, opened() as client:
            server.url = server.url.replace("http:", "https:")
            if how == "too late":
                with pytest.raises(httpx.ConnectTimeout):
                    await send(client, server, connect=0.2)
            else:
                call = asyncio.create_task(send(client, server))
                await soon(lambda: server.connections)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            await soon(lambda: all(connection.gone for connection in server.connections))
            await soon(lambda: not client._open)
            assert server.requests == []

    run(work())


def test_closing_the_transport_ends_every_call_and_closes_every_connection(run):
    async def work() -> None:
        async def script(connection: Connection) -> None:
            request = await connection.request()
            await connection.say(SIZED if request.startswith(b"GET") else UNFINISHED)
            await connection.until_gone()

        async with served(script) as server:
            client = Transport()
            calls = [asyncio.create_task(ask(client, server)) for _ in range(5)]
            await soon(lambda: len(server.requests) == 5)
            await ask(client, server, "GET")
            await client.aclose()
            for call in calls:
                with pytest.raises(httpx.TransportError):
                    await call
            await soon(lambda: all(connection.gone for connection in server.connections))
            with pytest.raises(httpx.ConnectError):
                await send(client, server)
            await client.aclose()

    run(work())


def test_what_nobody_reads_stays_with_the_server(run):
    size = 2**25

    async def work() -> None:
        big = begun(OK + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        async with served(big) as server, opened() as client:
            response = await send(client, server)
            [connection] = client._open
            answer: Any = response.stream
            await soon(lambda: not connection.transport.is_reading())
            held = sum(map(len, answer._pieces))
            # One packet may come on top of what is allowed; a packet has at most as many bytes.
            assert MAX_UNREAD_BYTES < held <= 2 * MAX_UNREAD_BYTES
            received = most = 0
            async for packet in packets(response):
                received += len(packet)
                most = max(most, len(packet))
            assert received == size
            assert most <= 2 * MAX_UNREAD_BYTES
            assert connection.transport.is_reading()

    run(work())


# What the rest of the gateway is told


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://127.0.0.1:70000", "http://127.0.0.1:port", "http://a..b"]
)
def test_an_upstream_that_cannot_be_connected_to_is_unreachable(run, address):
    async def work() -> None:
        with pytest.raises(UpstreamUnreachable):
            await upstream.open_stream(address, "/api/chat", b"{}")
        await upstream.close()

    run(work())


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", OK + b"Content-Encoding: gzip\r\n\r\n"])
def test_an_upstream_that_gives_no_answer_has_failed(run, answer):
    async def work() -> None:
        async with served(once(answer)) as server:
            with pytest.raises(UpstreamFailed):
                await upstream.open_stream(server.url, "/api/chat", b"{}")
            await upstream.close()

    run(work())


def test_an_upstream_whose_answer_breaks_off_has_failed(run):
    async def work() -> None:
        async with served(once(UNFINISHED)) as server:
            response = await upstream.open_stream(server.url, "/api/chat", b"{}")
            with pytest.raises(UpstreamFailed):
                await upstream.read(response, 100)
            await upstream.close()

    run(work())
