"""What becomes of running calls, and of new ones, when a part dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from django.conf import settings

from budgets import spool
from budgets.holds import holds_of
from budgets.models import LedgerEntry, SpooledSettlement, Unit
from budgets.services import set_budget
from budgets.sweeping import sweep
from keys.services import revoke_key
from tenants.redis import PARTITION, redis_now
from tests.conftest import House, eventually
from tests.counting import expire_hold, open_holds
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway

# Nearly each starts a gateway, and waits for its end.
pytestmark = pytest.mark.slow

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "How is the weather?"}]}


@contextlib.contextmanager
def streams(house: House, url: str, count: int) -> Iterator[list[socket.socket]]:
    """``count`` open chats of which each has already got something."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(CHAT | {"options": {"num_predict": 5000}}).encode()
    head = (
        f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {house.ada.secret}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(count)
        ]
        for one in opened:
            one.sendall(head + body)
        for one in opened:
            received = b""
            # Byte by byte: what comes later, the end too, is for the test to read.
            while received.count(b"\n{") < 3:
                received += one.recv(1)
        yield opened


def ready(url: str, secret: str, looks: int = 1) -> None:
    """Wait until a new gateway knows which models there are.

    With several workers look a dozen times, each by a new connection, so that
    the kernel shows us all of them.
    """
    headers = {"Authorization": f"Bearer {secret}", "Connection": "close"}

    def knows() -> bool:
        return httpx.get(f"{url}/v1/models", headers=headers, trust_env=False, timeout=30).status_code == 200

    eventually(lambda: all(knows() for _ in range(looks)))


def progress_told() -> list[int]:
    """Output tokens of each running call of which a heartbeat has told some."""
    return [hold.output_tokens for hold in holds_of(open_holds()) if hold and hold.output_tokens]


def test_a_killed_gateway_loses_no_booking(house):
    set_budget(scope="key", key=house.ada.key, unit=Unit.TOKENS, period="day", limit=10**6, actor="test")
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-10000")

    with Gateway(HEARTBEAT_SECONDS="0.3") as doomed:
        ready(doomed.url, house.ada.secret)
        with streams(house, doomed.url, 10):
            eventually(lambda: len(progress_told()) == 10)
            doomed.kill()
    for request_id in open_holds():
        # As if its lease had run out. A short one might do so while the calls begin.
        expire_hold(UUID(request_id))

    def swept() -> bool:
        sweep()
        return not redis_now().zcard(f"{PARTITION}:holds")

    eventually(swept)
    entries = house.booked(10)
    assert {entry.outcome for entry in entries} == {"orphaned"}
    assert all(entry.input_tokens > 0 and entry.output_tokens > 0 and not entry.exact for entry in entries)
    [counter] = redis_now().keys(f"{PARTITION}:budget:*")
    figures = redis_now().hgetall(counter)
    assert int(figures[b"held"]) == 0
    assert int(figures[b"used"]) == sum(entry.input_tokens + entry.output_tokens for entry in entries)


def test_a_stopping_gateway_lets_its_streams_finish_and_books_them(house):
    house.ollama.settings.piece_delay = 0.5
    house.ollama.fault("pieces-50")

    with Gateway() as leaving:
        ready(leaving.url, house.ada.secret)
        with streams(house, leaving.url, 10) as opened:
            leaving.process.terminate()
            house.ollama.settings.piece_delay = 0.02
            endings = []
            for one in opened:
                received = b""
                while b'"done":true' not in received and (part := one.recv(65536)):
                    received += part
                endings.append(received)
        assert leaving.process.wait(timeout=60) == 0

    assert all(b'"done":true' in ending for ending in endings)
    assert {(entry.outcome, entry.exact) for entry in house.booked(10)} == {("completed", True)}


def test_a_gateway_that_may_not_wait_cuts_its_streams_visibly_and_books_them(house):
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-10000")

    with Gateway(DRAIN_SECONDS="0.5") as leaving:
        ready(leaving.url, house.ada.secret)
        with streams(house, leaving.url, 5) as opened:
            leaving.process.terminate()
            for one in opened:
                received = b""
                with contextlib.suppress(ConnectionError):
                    while part := one.recv(65536):
                        received += part
                assert b'"done":true' not in received
                assert not received.endswith(b"0\r\n\r\n") or b'"error"' in received

    entries = house.booked(5)
    assert all(entry.output_tokens > 0 and not entry.exact for entry in entries)
    eventually(lambda: all(call.state == "aborted" for call in house.ollama.calls))


@pytest.fixture
def fragile(house: House) -> Iterator[tuple[Gateway, FaultProxy]]:
    """A gateway of its own, and the line between it and Redis."""
    with (
        line_to(settings.REDIS_URL) as (line, url),
        Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS="1") as other,
    ):
        ready(other.url, house.ada.secret)
        yield other, line
        line.thaw()


def test_without_redis_nothing_is_admitted_and_no_good_key_is_called_bad(house, fragile):
    other, line = fragile
    with httpx.Client(
        base_url=other.url, headers=dict(house.ada.http.headers), trust_env=False, timeout=30
    ) as client:
        assert client.post("/api/chat", json=CHAT).status_code == 200
        calls = len(house.ollama.calls)
        line.freeze()
        answers = [client.post("/api/chat", json=CHAT) for _ in range(3)]
        answers.append(client.get("/v1/models"))
        line.thaw()
        eventually(lambda: client.post("/api/chat", json=CHAT).status_code == 200)

    assert {answer.status_code for answer in answers} == {503}
    assert all("retry-after" in answer.headers for answer in answers)
    assert len(house.ollama.calls) == calls + 1


def test_what_redis_cannot_take_is_booked_when_it_can(house, fragile):
    other, line = fragile
    house.ollama.settings.piece_delay = 0.5
    house.ollama.fault("pieces-40")

    with streams(house, other.url, 3) as opened:
        line.freeze()
        house.ollama.settings.piece_delay = 0.02
        for one in opened:
            received = b""
            while b'"done":true' not in received:
                part = one.recv(65536)
                assert part, "the stream broke with Redis"
                received += part
        # On disk, if PostgreSQL was too busy to take it in time.
        spool_dir = Path(settings.SPOOL_DIR)
        eventually(lambda: SpooledSettlement.objects.count() + len(list(spool_dir.glob("*.json"))) == 3)
        line.thaw()

    spool.replay()
    entries = house.booked(3)
    assert {(entry.outcome, entry.exact) for entry in entries} == {("completed", True)}
    assert sum(entry.output_tokens for entry in entries) == sum(
        call.output_tokens for call in house.ollama.calls
    )


@pytest.fixture(scope="module")
def pair(django_db_setup: None) -> Iterator[Gateway]:
    """A gateway of two workers."""
    with Gateway(workers=2) as running:
        yield running


def test_a_revoked_key_is_refused_by_every_process_at_once(house, pair):
    ready(pair.url, house.ada.secret, looks=12)
    callers = [house.caller() for _ in range(10)]
    urls = [pair.url, pair.url, pair.url, house.gateway.url]

    def status(url: str, secret: str) -> int:
        # A new connection each time, so that the kernel chooses among the workers.
        headers = {"Authorization": f"Bearer {secret}", "Connection": "close"}
        return httpx.get(f"{url}/api/tags", headers=headers, trust_env=False, timeout=30).status_code

    for caller in callers:
        assert {status(url, caller.secret) for url in urls} == {200}
        revoke_key(key=caller.key, actor="test", reason="")
        assert {status(url, caller.secret) for url in urls} == {401}


def test_both_workers_serve_and_book(house, pair):
    ready(pair.url, house.ada.secret, looks=12)

    def chat(_: int) -> int:
        headers = {"Authorization": f"Bearer {house.ada.secret}", "Connection": "close"}
        return httpx.post(
            f"{pair.url}/api/chat", json=CHAT, headers=headers, trust_env=False, timeout=30
        ).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(chat, range(30)))

    assert statuses == [200] * 30
    assert LedgerEntry.objects.count() == 0
    assert {entry.outcome for entry in house.booked(30)} == {"completed"}


def test_nobody_is_left_when_a_gateway_is_killed(house):
    with Gateway(workers=2) as doomed:
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(doomed.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        workers = [int(pid) for pid in found.stdout.split()]
        assert len(workers) >= 2
        os.kill(doomed.process.pid, signal.SIGKILL)

        def gone(pid: int) -> bool:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except FileNotFoundError:
                return True
            return stat.rpartition(")")[2].split()[0] == "Z"

        eventually(lambda: all(gone(pid) for pid in workers))


def test_a_gateway_that_overslept_its_lease_delivers_nothing_more(house):
    house.ollama.settings.piece_delay = 0.01
    house.ollama.fault("pieces-10000")

    with Gateway(LEASE_SECONDS="5", HEARTBEAT_SECONDS="0.3") as sleeper:
        ready(sleeper.url, house.ada.secret)
        with streams(house, sleeper.url, 5) as opened:
            eventually(lambda: len(progress_told()) == 5)
            sleeper.send(signal.SIGSTOP)
            eventually(lambda: sweep() == 5 or not redis_now().zcard(f"{PARTITION}:holds"))
            for one in opened:
                one.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    # What had left the gateway before it fell asleep.
                    while one.recv(65536):
                        pass
                one.settimeout(30)
            sleeper.send(signal.SIGCONT)
            endings = []
            for one in opened:
                received = b""
                with contextlib.suppress(ConnectionError):
                    while b'"error"' not in received and (part := one.recv(65536)):
                        received += part
                endings.append(received)

    assert all(b'"error"' in ending and b'"content"' not in ending for ending in endings)
    kinds = [entry.kind for entry in house.booked(10)]
    assert sorted(kinds) == ["adjustment"] * 5 + ["usage"] * 5
