"""Running calls that are ended from outside: what their clients see, and what is booked."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import httpx
import pytest
from django.core.management import call_command
from django.db import connection
from django.utils.timezone import now

from audit.models import AuditEvent, RequestEvent
from budgets.counters import STOPS, hold_key
from budgets.running_calls import running_calls
from budgets.services import arm_kill_switch, set_budget, stop_calls
from keys.lifetimes import Grace
from keys.services import change_key, disable_key, revoke_key, rotate_key
from tenants.services import create_tenant, suspend_tenant
from tests.conftest import House, eventually
from tests.counting import redis
from tests.deleting import delete_key
from tests.gateway import Gateway
from tests.test_crashes import ready
from tests.test_streams import DOORS, END_MARKS, last_json

DIALECTS = ["/api/chat", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
# A heartbeat of 2 seconds is what production has; whether the right thing is done does not depend on it.
QUICK = {"HEARTBEAT_SECONDS": "0.2", "LEASE_SECONDS": "10"}


@pytest.fixture(scope="module")
def quick(django_db_setup: None) -> Iterator[Gateway]:
    with Gateway(workers=1, **QUICK) as running:
        yield running


@pytest.fixture
def client(house: House, quick: Gateway) -> Iterator[httpx.Client]:
    ready(quick.url, house.ada.secret)
    with httpx.Client(
        base_url=quick.url, headers=dict(house.ada.http.headers), timeout=60, trust_env=False
    ) as one:
        yield one


def sql(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def only_call() -> Any:
    """The one call that is running."""
    return eventually(lambda: next(running_calls(), None))


def lower_the_budget(house: House) -> None:
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=5, actor="test")


SUBJECTS: dict[str, Callable[[House], dict[str, Any]]] = {
    "platform": lambda _: {},
    "tenant": lambda house: {"tenant": house.acme},
    "key": lambda house: {"key": house.ada.key},
    "upstream": lambda _: {"upstream": "sim"},
    "model": lambda _: {"model": "tiny:1b"},
}


def kill(scope: str) -> Callable[[House], Any]:
    return lambda house: arm_kill_switch(
        scope=scope, actor="olga", reason="fire", message="Try less.", **SUBJECTS[scope](house)
    )


# What an operator does, and the code under which it is told.
STOPS_BY_HAND: dict[str, tuple[Callable[[House], Any], str]] = {
    "revoked": (lambda house: revoke_key(key=house.ada.key, actor="olga", reason="lost"), "key_ended"),
    "disabled": (lambda house: disable_key(key=house.ada.key, actor="olga", reason="odd"), "key_ended"),
    "secret rotated": (
        lambda house: rotate_key(key=house.ada.key, actor="olga", grace=Grace.NOW),
        "key_ended",
    ),
    "deleted": (lambda house: delete_key(house.ada.key), "key_ended"),
    "expired": (
        lambda house: change_key(key=house.ada.key, actor="olga", expires_at=now() + timedelta(seconds=1)),
        "key_ended",
    ),
    "suspended": (
        lambda house: suspend_tenant(tenant=house.acme, actor="olga", reason="unpaid"),
        "tenant_suspended",
    ),
    "suspended by SQL": (
        lambda _: sql("UPDATE tenants_tenant SET state = 'suspended'"),
        "tenant_suspended",
    ),
    "budget cut": (lower_the_budget, "budget_cut"),
    "stopped": (
        lambda _: stop_calls(calls=[only_call()], actor="olga", reason="loop", message="Try less."),
        "call_stopped",
    ),
    **{f"killed: {scope}": (kill(scope), f"kill_switch_{scope}") for scope in SUBJECTS},
}


class Reading(threading.Thread):
    """A client that reads a stream to its end, in the background."""

    def __init__(self, client: httpx.Client, path: str, **changes: Any) -> None:
        super().__init__()
        self._client, self._path, self._body = client, path, DOORS[path] | changes
        self.received = b""
        self.status = 0
        self.start()

    def run(self) -> None:
        with self._client.stream("POST", self._path, json=self._body) as answer:
            self.status = answer.status_code
            for part in answer.iter_raw():
                self.received += part

    def ended(self) -> bytes:
        self.join(30)
        assert not self.is_alive()
        return self.received


def refusal_of(request_id: uuid.UUID) -> str:
    return RequestEvent.objects.get(request_id=request_id).refusal


@pytest.mark.parametrize(
    ("path", "what"),
    [
        *((path, what) for path in DIALECTS for what in STOPS_BY_HAND),
        *((path, "revoked") for path in DOORS if path not in DIALECTS),
    ],
)
def test_a_stream_ends_with_its_reason_and_what_was_delivered_is_booked(house, client, path, what):
    do, code = STOPS_BY_HAND[what]
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=10**6, actor="test")
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    reading = Reading(client, path)
    eventually(lambda: reading.received.count(b"\n") > 20)

    do(house)
    body = reading.ended()

    assert reading.status == 200
    assert not any(mark in body for mark in END_MARKS)
    told = last_json(body)
    if path.startswith("/api/"):
        assert told.keys() == {"error"}
        sentence = told["error"]
    else:
        sentence = told["error"]["message"]
        assert path == "/v1/messages" or told["error"]["code"] == code
    assert "stopped" in sentence
    assert sentence.endswith("Try less.") == (code.startswith("kill_switch") or code == "call_stopped")
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.status, entry.exact) == ("stopped", 200, False)
    assert 1 <= entry.output_tokens < 3000
    assert entry.input_tokens > 0
    assert refusal_of(entry.request_id) == code
    assert redis().hlen(STOPS) == 0


@pytest.mark.parametrize(
    ("path", "stream"), [(path, number % 2 == 0) for number, path in enumerate(DIALECTS)]
)
@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("revoked", 401),
        ("suspended", 403),
        ("budget cut", 429),
        ("stopped", 403),
        ("killed: model", 403),
    ],
)
def test_before_the_first_byte_the_reason_is_a_status(house, client, path, what, status, stream):
    do, code = STOPS_BY_HAND[what]
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=10**6, actor="test")
    house.ollama.fault("load-60000")
    reading = Reading(client, path, stream=stream)
    eventually(lambda: house.ollama.calls)

    do(house)
    told = json.loads(reading.ended())

    assert reading.status == status
    assert "stopped" in (told["error"] if path.startswith("/api/") else told["error"]["message"])
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.status, entry.output_tokens) == ("stopped", status, 0)
    assert refusal_of(entry.request_id) == code


def test_a_call_that_was_taken_for_dead_is_told_so_and_may_be_repeated(house, client):
    house.ollama.fault("load-60000")
    reading = Reading(client, "/v1/chat/completions")
    call = only_call()

    redis().set(hold_key(call.request_id), "settled")
    told = json.loads(reading.ended())

    assert reading.status == 503
    assert told["error"]["code"] == "hold_lost"


def test_a_change_that_ends_nothing_lets_streams_run_to_their_end(house, client):
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=10**6, actor="test")
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-100")
    reading = Reading(client, "/api/chat")
    eventually(lambda: reading.received.count(b"\n") > 5)

    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=10**5, actor="test")
    arm_kill_switch(scope="model", model="other:1b", actor="olga", reason="fire")
    change_key(key=house.ada.key, actor="olga", expires_at=now() + timedelta(days=1))

    assert b'"done":true' in reading.ended()


def test_with_the_heartbeat_of_production_a_stream_ends_soon(house):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-3000")
    reading = Reading(house.ada.http, "/api/chat")
    eventually(lambda: reading.received)

    revoke_key(key=house.ada.key, actor="olga", reason="lost")

    assert b'"done":true' not in reading.ended()


@pytest.mark.slow
def test_calls_of_every_process_are_stopped(house):
    with Gateway(workers=3, **QUICK) as gateway:
        ready(gateway.url, house.ada.secret)
        house.ollama.settings.piece_delay = 0.02
        house.ollama.fault("pieces-3000", times=12)
        clients = [httpx.Client(base_url=gateway.url, headers=dict(house.ada.http.headers), timeout=60,
                                trust_env=False) for _ in range(12)]  # fmt: skip
        streams = [Reading(client, "/api/chat") for client in clients]
        eventually(lambda: all(stream.received for stream in streams))

        arm_kill_switch(scope="platform", actor="olga", reason="fire")
        bodies = [stream.ended() for stream in streams]
        for client in clients:
            client.close()

    assert not any(b'"done":true' in body for body in bodies)
    assert {entry.outcome for entry in house.booked(12)} == {"stopped"}


def run(name: str, *arguments: str) -> str:
    said = StringIO()
    call_command(name, *arguments, stdout=said)
    return said.getvalue()


def test_running_calls_are_listed_and_stopped_by_command(house, client):
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    reading = Reading(client, "/api/chat")
    eventually(lambda: any(call.output_tokens for call in running_calls()))

    [listed] = json.loads(run("running_calls", "--json"))
    assert (listed["tenant"], listed["key"], listed["model"]) == ("acme", "key 0", "tiny:1b")
    assert (listed["upstream"], listed["route"], listed["stream"]) == ("sim", "/api/chat", True)
    assert listed["request_id"] in run("running_calls")
    assert run("running_calls", "--tenant", "acme") != "No call is running.\n"
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    assert run("running_calls", "--tenant", globex.slug) == "No call is running.\n"

    said = json.loads(run("stop_call", listed["request_id"], "--reason", "loop", "--json"))

    assert said == {"stopped": [listed["request_id"]]}
    assert "An operator stopped this call." in reading.ended().decode()
    event = AuditEvent.objects.get(action="call.stopped")
    assert (event.subject, event.reason, event.tenant_id) == (listed["request_id"], "loop", house.acme.pk)
    eventually(lambda: run("running_calls") == "No call is running.\n")


@pytest.mark.parametrize("whose", [["--all"], ["--tenant", "acme"], ["--key"]])
def test_the_calls_of_somebody_are_stopped_by_one_command(house, client, whose):
    house.ollama.fault("load-60000", times=3)
    public_id = house.ada.secret[3:15]
    streams = [Reading(client, "/api/chat") for _ in range(3)]
    eventually(lambda: len(list(running_calls())) == 3)

    said = run("stop_call", *whose, *([public_id] if whose == ["--key"] else []), "--reason", "loop")

    assert said.count("Stopping ") == 3
    for stream in streams:
        stream.ended()
    assert {stream.status for stream in streams} == {403}
