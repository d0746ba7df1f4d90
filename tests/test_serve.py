"""``manage.py serve`` as a process, through real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from django.db import connection

from budgets.counters import EPOCH
from budgets.models import CounterEpoch
from tenants.redis import redis_now

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until ``condition`` is true, and return what it gave; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return result


class Served:
    """A running ``manage.py serve``."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.notes = directory / "notes"
        self.errors = directory / "stderr"
        self._connections: list[socket.socket] = []
        self._client = httpx.Client(timeout=30, limits=httpx.Limits(max_connections=None))
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--trial", "--port", "0", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.server_settings", **environment},
            )

    def wait_until_ready(self) -> None:
        """Wait until it serves; its first line says where."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving http://"), self.errors.read_text()
        self.url = line.split()[1]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def rss(self) -> int:
        """Resident bytes of the only worker."""
        [worker] = self.workers
        pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def noted(self) -> list[str]:
        """What the views noted so far."""
        return self.notes.read_text().split("\n")[:-1] if self.notes.exists() else []

    @property
    def headers(self) -> dict[str, str]:
        return {"x-notes": str(self.notes)}

    def get(self, path: str) -> httpx.Response:
        """The answer to a GET on a connection of its own."""
        return self._client.get(self.url + path, headers={**self.headers, "connection": "close"})

    def connect(self) -> socket.socket:
        """A new connection, closed with us if not before."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self._connections.append(connection)
        return connection

    def ask(self, request: str | bytes) -> socket.socket:
        """A connection on which ``request`` has been sent, with CRLF for its line ends."""
        connection = self.connect()
        data = request.replace("\n", "\r\n").encode() if isinstance(request, str) else request
        connection.sendall(data)
        return connection

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def end(self) -> None:
        self._client.close()
        for opened in self._connections:
            opened.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


# Each start costs the processor a second, so a test that needs no process of its own uses ``served``.
@contextlib.contextmanager
def serving(directory: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    served = Served(directory, *arguments, **environment)
    try:
        served.wait_until_ready()
        yield served
    finally:
        served.end()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One worker for all tests that leave it as it was; deadlines are as short as a busy machine allows."""
    deadlines = {"CLIENT_HEADER_SECONDS": "3", "CLIENT_BODY_SECONDS": "4", "CLIENT_STALL_SECONDS": "4"}
    with serving(tmp_path_factory.mktemp("served"), **deadlines) as running:
        yield running


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset raises ``ConnectionResetError``."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def database_url() -> str:
    """The address of the database that pytest-django made, for a process of its own."""
    at = connection.settings_dict
    host = f"{at['HOST']}:{at['PORT']}" if at["PORT"] else quote(at["HOST"], safe="")
    return f"postgres://{quote(at['USER'])}:{quote(at['PASSWORD'])}@{host}/{at['NAME']}"


def refuses_connections(served: Served) -> bool:
    try:
        served.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_drain_lets_twenty_streams_finish_and_takes_no_new_connections(tmp_path):
    with serving(tmp_path) as served, concurrent.futures.ThreadPoolExecutor(20) as threads:
        idle = served.ask("GET /livez HTTP/1.1\nHost: x\n\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        late = served.ask("GET /readyz HTTP/1.1\nHost: x\n")
        streams = [threads.submit(served.get, "/v1/stream?n=20&pause=0.15") for _ in range(20)]
        until(lambda: served.noted().count("began") == 20)

        served.process.send_signal(signal.SIGTERM)

        # Kept connections are closed, and whoever still asks is told that it is not ready.
        assert idle.recv(1) == b""
        late.sendall(b"\r\n")
        answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b'{"status":"not ready","failing":["draining"]}')
        until(lambda: refuses_connections(served))
        answers = [stream.result() for stream in streams]
        assert all(answer.text.endswith("chunk 19\n") for answer in answers)
        assert served.process.wait(30) == 0
        assert served.noted().count("cleaned up") == 20


def test_drain_ends_at_its_deadline_and_what_it_cuts_cleans_up(tmp_path):
    with serving(tmp_path, DRAIN_SECONDS="0.5") as served:
        began, unanswered = [
            [served.ask(f"GET {path} HTTP/1.1\nHost: x\nx-notes: {served.notes}\n\n") for path in paths]
            for paths in (CUT, ["/v1/wait?cleanup=1"])
        ]
        running = len(began) + len(unanswered)
        until(lambda: served.noted().count("began") == running)

        assert served.stop() == 0

        assert served.noted().count("cleaned up") == running
        for connection in began:
            with pytest.raises(ConnectionResetError):
                read_all(connection)
        # Nothing was sent yet, so it can be told.
        assert read_all(unanswered[0]).startswith(b"HTTP/1.1 503 ")


CUT = ["/v1/stream?n=2&pause=600&cleanup=1", "/v1/stream?n=2&pause=600&cleanup=1", "/v1/flood"]


def test_a_second_signal_does_not_wait_but_still_cleans_up(tmp_path):
    with serving(tmp_path, DRAIN_SECONDS="600") as served:
        served.ask(f"GET /v1/wait HTTP/1.1\nHost: x\nx-notes: {served.notes}\n\n")
        until(lambda: served.noted() == ["began"])

        served.process.send_signal(signal.SIGINT)
        until(lambda: refuses_connections(served))
        assert served.noted() == ["began"]
        served.process.send_signal(signal.SIGINT)

        assert served.process.wait(30) == 0
        assert served.noted() == ["began", "cleaned up"]


def test_readyz_is_well_only_with_the_counters_that_belong_to_the_ledger(tmp_path, transactional_db):
    CounterEpoch.objects.update_or_create(id=1, defaults={"epoch": "ours"})
    redis_now().set(EPOCH, "ours")

    with serving(tmp_path, DATABASE_URL=database_url()) as served:
        assert served.get("/readyz").json() == {"status": "ok"}
        redis_now().set(EPOCH, "another")
        until(lambda: served.get("/readyz").status_code == 503)

        assert served.get("/readyz").json() == {"status": "not ready", "failing": ["counters"]}


def test_readyz_names_what_fails_and_livez_goes_on(tmp_path):
    with serving(
        tmp_path, DATABASE_URL="postgres://x:y@127.0.0.1:1/z", REDIS_URL="redis://127.0.0.1:1/0"
    ) as served:
        answer = served.get("/readyz")

        assert answer.status_code == 503
        assert answer.json() == {"status": "not ready", "failing": ["database", "counters"]}
        assert served.get("/livez").status_code == 200


def test_a_declared_body_above_the_limit_is_refused_before_it_is_sent(served):
    connection = served.ask(
        "POST /v1/echo HTTP/1.1\nHost: x\nContent-Length: 1000000000\nExpect: 100-continue\n\n"
    )

    answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_an_endless_body_is_refused_at_the_limit_with_flat_memory(served):
    before = served.rss()
    connection = served.ask("POST /v1/echo HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    sent = 0

    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < 200 * MIB:
            connection.sendall(chunk)
            sent += len(chunk)

    assert sent < 40 * MIB
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert served.rss() - before < 12 * MIB


def test_a_body_a_little_above_the_limit_gets_its_answer_before_the_connection_closes(served):
    answer = httpx.post(served.url + "/v1/echo", content=b"x" * (3 * MIB), timeout=30)

    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/v1/echo", "/admin/login/"])
def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(served, path):
    def chunked(size: int) -> Iterator[bytes]:
        yield b"x" * (size - 1)
        yield b"x"

    assert httpx.post(served.url + path, content=chunked(2 * MIB), timeout=30).status_code != 413
    assert httpx.post(served.url + path, content=chunked(2 * MIB + 1), timeout=30).status_code == 413


def test_a_form_is_passed_on_unread(served):
    form = {"content-type": "application/x-www-form-urlencoded", **served.headers}

    answer = httpx.post(served.url + "/v1/echo", content=b"a=1&b=2", headers=form, timeout=30)

    assert answer.json()["length"] == 7


def test_a_body_that_raises_after_the_start_aborts_the_connection_and_is_reaped(served):
    for _ in range(100):
        # One that is left open is another error: the client waits in vain.
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            served.get("/v1/breaks-after")

    until(lambda: served.get("/v1/open").json() == {"tasks": 1})
    assert "a secret thing" in served.errors.read_text()


def test_a_view_that_raises_is_answered_without_the_reason(served):
    answer = served.get("/v1/breaks-before")

    assert answer.status_code == 500
    assert "error" in answer.json()
    assert "secret" not in answer.text


def test_a_header_with_a_line_break_in_it_is_not_sent(served):
    answer = served.get("/v1/breaks-a-header")

    assert answer.status_code == 500
    assert "set-cookie" not in answer.headers
    assert "fine" not in answer.text


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/stream"])
def test_a_head_is_answered_without_a_body_and_the_connection_goes_on(served, path):
    head = f"HEAD {path} HTTP/1.1\nHost: x\nx-notes: {served.notes}\n\n"
    get = "GET /v1/echo HTTP/1.1\nHost: x\nConnection: close\n\n"

    answers = read_all(served.ask(head + get)).decode()

    first, _, second = answers.partition("\r\n\r\n")
    assert first.startswith("HTTP/1.1 200 OK")
    assert second.startswith("HTTP/1.1 200 OK")


def test_a_stream_for_an_old_client_ends_with_its_connection(served):
    answer = read_all(served.ask(f"GET /v1/stream HTTP/1.0\nHost: x\nx-notes: {served.notes}\n\n"))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"chunked" not in head.lower()
    assert body == b"chunk 0\nchunk 1\nchunk 2\n"


def test_a_client_that_never_reads_holds_little_memory_and_is_cut_off(served):
    served.notes.unlink(missing_ok=True)
    before = served.rss()
    clients = [served.ask(f"GET /v1/flood HTTP/1.1\nHost: x\nx-notes: {served.notes}\n\n") for _ in range(8)]

    until(lambda: served.noted().count("cleaned up") == len(clients))

    assert served.rss() - before < len(clients) * MIB
    for client in clients:
        with pytest.raises(ConnectionResetError):
            read_all(client)


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/stream?n=9&pause=600", "/v1/flood"])
def test_a_client_that_leaves_cancels_its_view(served, path):
    served.notes.unlink(missing_ok=True)
    connection = served.ask(f"GET {path} HTTP/1.1\nHost: x\nx-notes: {served.notes}\n\n")
    # One that stalls is cut off after a while, so its view may have ended by itself.
    until(lambda: served.noted()[:1] == ["began"])

    connection.close()

    until(lambda: served.noted() == ["began", "cleaned up"])


def test_a_root_path_from_a_client_is_ignored(served):
    answer = httpx.get(served.url + "/v1/admin/login/", headers={"Daphne-Root-Path": "/v1"}, timeout=30)
    echo = httpx.get(served.url + "/v1/echo", headers={"Daphne-Root-Path": "/v1"}, timeout=30).json()

    assert answer.status_code == 404
    assert (echo["path"], echo["script_name"]) == ("/v1/echo", "")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param("GET / HTTP/1.1\nHost: x\nAuthorization: a\nAuthorization: b\n", 400, id="two callers"),
        pytest.param("GET / HTTP/1.1\nHost: x\nHost: y\n", 400, id="two hosts"),
        pytest.param("GET / HTTP/1.1\n", 400, id="no host"),
        pytest.param(
            "GET / HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 1\n", 400, id="two lengths"
        ),
        pytest.param(
            "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n",
            400,
            id="two encodings",
        ),
        pytest.param(
            "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nContent-Length: 1\n", 400, id="two ends"
        ),
        pytest.param("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: identity\n", 400, id="no encoding"),
        pytest.param("TRACE / HTTP/1.1\nHost: x\n", 403, id="trace"),
        pytest.param("FROB / HTTP/1.1\nHost: x\n", 403, id="unknown method"),
        pytest.param("GET /v1/\xe9 HTTP/1.1\nHost: x\n", 400, id="bytes in the path"),
        pytest.param("GET v1/echo HTTP/1.1\nHost: x\n", 400, id="no slash before the path"),
        pytest.param("OPTIONS * HTTP/1.1\nHost: x\n", 400, id="no path"),
        pytest.param("GET /" + "x" * 20_000 + " HTTP/1.1\nHost: x\n", 431, id="long line"),
        pytest.param("nonsense\n", 400, id="nonsense"),
    ],
)
def test_a_request_that_two_readers_could_read_differently_is_refused(served, head, status):
    answer = read_all(served.ask((head + "\n").replace("\n", "\r\n").encode("latin-1")))

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("target", ["http://x/v1/echo?a=b", "HTTPS://y:1/v1/echo?a=b"])
def test_a_target_with_a_host_in_it_means_its_path(served, target):
    answer = read_all(served.ask(f"GET {target} HTTP/1.1\nHost: x\nConnection: close\n\n"))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["path"] == "/v1/echo"


def test_two_pipelined_requests_are_answered_in_their_order(served):
    first, second = "GET /v1/echo?first HTTP/1.1\nHost: x\n\n", "GET /v1/echo?second HTTP/1.1\nHost: x\n"

    answer = read_all(served.ask(first + second + "Connection: close\n\n")).decode()

    assert answer.index('"first"') < answer.index('"second"')


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"GET /v1/echo HTTP/1.1\r\nHost: x\r\nX-Slow: ", id="head"),
        pytest.param(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", id="body"),
    ],
)
def test_a_request_that_trickles_in_is_ended_at_its_deadline(served, beginning):
    connection = served.ask(beginning)
    began = time.monotonic()
    connection.settimeout(0.1)
    answer = b""

    while not answer:
        assert time.monotonic() - began < 30
        connection.sendall(b"x")
        with contextlib.suppress(TimeoutError):
            answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/v1/echo", "/api/chat", "/", "/ws/live"])
def test_a_websocket_is_refused_without_a_trace(served, path):
    request = (
        f"GET {path} HTTP/1.1\nHost: x\nUpgrade: websocket\nConnection: Upgrade\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n\n"
    )

    def leaves_no_trace() -> bool:
        written = served.errors.stat().st_size
        assert read_all(served.ask(request)).startswith(b"HTTP/1.1 403 ")
        return bool(served.errors.stat().st_size == written)

    # Work in the background, for which this server has no tables, may say so meanwhile.
    until(leaves_no_trace)


def test_neither_the_server_nor_the_date_of_its_software_is_told(served):
    assert "server" not in served.get("/v1/echo").headers


def test_the_event_loop_is_uvloop(served):
    assert served.get("/v1/loop").json() == {"loop": "uvloop"}


def test_a_chunk_is_sent_when_it_is_there(served):
    with httpx.stream(
        "GET", served.url + "/v1/stream?n=2&pause=600", headers=served.headers, timeout=30
    ) as answer:
        assert next(answer.iter_raw()) == b"chunk 0\n"


def test_two_workers_share_the_connections_and_one_that_crashes_is_replaced(tmp_path):
    with serving(tmp_path, "--workers", "2") as served:

        def answered() -> set[int]:
            return {served.get("/v1/echo").json()["pid"] for _ in range(60)}

        first, other = served.workers
        assert answered() == {first, other}

        os.kill(first, signal.SIGKILL)

        [second] = until(lambda: set(served.workers) - {first, other})
        until(lambda: answered() == {second, other})
        assert served.stop() == 0


def test_the_parent_has_loaded_nothing_that_only_its_workers_need(served):
    def knows_a_database(pid: int) -> bool:
        return "/psycopg" in Path(f"/proc/{pid}/maps").read_text()

    assert [knows_a_database(worker) for worker in served.workers] == [True]
    assert not knows_a_database(served.process.pid)


def test_a_killed_parent_leaves_nobody(tmp_path):
    with serving(tmp_path, "--workers", "2") as served:
        workers = served.workers

        served.process.kill()

        until(lambda: not any(alive(worker) for worker in workers))


def test_a_port_that_somebody_listens_at_is_an_error(served):
    second = subprocess.run(
        [sys.executable, "manage.py", "serve", "--trial", "--port", str(served.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.server_settings"},
        check=False,
    )

    assert second.returncode == 1
    assert f"127.0.0.1 port {served.port} is in use" in second.stderr


def test_a_worker_that_cannot_start_ends_the_command(tmp_path):
    broken = subprocess.run(
        [sys.executable, "manage.py", "serve", "--trial", "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.server_settings_broken"},
        check=False,
    )

    assert broken.returncode == 1
    assert "A worker did not start." in broken.stderr
