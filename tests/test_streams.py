"""What comes back, and what is booked, when a stream does not go as it should."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.conftest import PATIENCE_SECONDS, House, eventually

MESSAGES = [{"role": "user", "content": "How is the weather?"}]
DOORS: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": "tiny:1b", "messages": MESSAGES},
    "/api/generate": {"model": "tiny:1b", "prompt": "Once"},
    "/v1/chat/completions": {"model": "tiny:1b", "messages": MESSAGES, "stream": True},
    "/v1/completions": {"model": "tiny:1b", "prompt": "Once", "stream": True},
    "/v1/responses": {"model": "tiny:1b", "input": "Hello", "stream": True},
    "/v1/messages": {"model": "tiny:1b", "max_tokens": 100, "messages": MESSAGES, "stream": True},
}
END_MARKS = (b"[DONE]", b'"done":true', b"response.completed", b"message_stop")


def ask(house: House, path: str, **changes: Any) -> tuple[int, bytes]:
    """Status and whole body of a call through one of the doors."""
    response = house.ada.http.post(path, json=DOORS[path] | changes)
    return response.status_code, response.content


def last_json(body: bytes) -> dict[str, Any]:
    """The JSON of the last frame, of either framing."""
    line = [line for line in body.split(b"\n") if line.strip()][-1]
    value: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return value


@pytest.mark.parametrize("fault", ["error-3", "reset-3", "end-3", "cut-3", "garbage-3"])
@pytest.mark.parametrize("path", DOORS)
def test_a_stream_that_breaks_looks_broken_and_its_pieces_are_booked(house, path, fault):
    house.ollama.fault(fault)

    status, body = ask(house, path)

    assert status == 200
    assert not any(mark in body for mark in END_MARKS)
    assert "error" in last_json(body)
    [entry] = house.booked()
    assert (entry.outcome, entry.exact) == ("upstream_failed", False)
    assert entry.output_tokens == 3
    assert entry.input_tokens > 0


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize(
    "fault", ["packet-1", "packet-65536", "utf8", "crlf", "u2028", "slow-5", "oldchunks"]
)
def test_packets_of_any_size_give_the_same_answer_and_exact_counters(house, path, fault):
    house.ollama.fault(fault)

    status, body = ask(house, path)

    assert status == 200
    assert any(mark in body for mark in END_MARKS)
    body.decode()
    [entry] = house.booked()
    [truth] = house.ollama.calls
    assert (entry.outcome, entry.exact) == ("completed", True)
    assert (entry.input_tokens, entry.output_tokens) == (truth.prompt_tokens, truth.output_tokens)


@pytest.mark.parametrize("counters", ["missing", "zero", "negative", "huge"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_counters_that_cannot_be_are_replaced_by_what_went_by(house, path, counters):
    house.ollama.fault(f"counters-{counters}")

    ask(house, path)

    [entry] = house.booked()
    [truth] = house.ollama.calls
    assert entry.outcome == "completed"
    if counters == "huge":
        # Never more than was held for the call, and that it was bent to fit is told.
        held = truth.fields["options"]["num_predict"] if path == "/api/chat" else truth.fields["max_tokens"]
        assert entry.output_tokens == held
        assert not entry.exact
    else:
        assert entry.output_tokens == len([piece for piece in truth.pieces if piece])


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_an_upstream_that_ignores_the_cap_is_cut_at_it(house, path):
    house.ollama.fault("endless")
    limit = {"options": {"num_predict": 7}} if path == "/api/chat" else {"max_tokens": 7}

    status, body = ask(house, path, **limit)

    assert status == 200
    assert not any(mark in body for mark in END_MARKS)
    [entry] = house.booked()
    assert (entry.outcome, entry.output_tokens, entry.exact) == ("cut", 7, False)
    eventually(lambda: house.ollama.calls[0].state == "aborted")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_that_ends_at_its_cap_is_whole_with_its_usage_shown(house, path):
    house.ollama.fault("pieces-100")

    status, body = ask(house, path, max_tokens=7, stream_options={"include_usage": True})

    assert status == 200
    assert b"[DONE]" in body
    assert b'"completion_tokens":7' in body
    [entry] = house.booked()
    assert (entry.outcome, entry.output_tokens, entry.exact) == ("completed", 7, True)


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        ("status-500", 502, "The model server failed."),
        ("panic", 502, "The model server failed."),
        ("busy", 503, "The model server is busy. Try again."),
        ("notfound-pull", 404, "The model is not installed any more."),
        ("oldstatus", 502, "The model server failed."),
        ("reset-0", 502, "The model server failed."),
        ("redirect", 502, "The model server failed."),
        ("gzip", 502, "The model server failed."),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_trouble_before_the_first_byte_is_a_status_and_costs_nothing(house, fault, status, sentence, stream):
    house.ollama.fault(fault)

    response = house.ada.chat(stream=stream)

    assert response.status_code == status
    assert response.json()["error"].startswith(sentence)
    [entry] = house.booked()
    assert (entry.requests, entry.input_tokens, entry.output_tokens) == (0, 0, 0)
    assert entry.status == status


def test_what_upstream_sets_as_headers_stays_there(house):
    house.ollama.fault("cookie")

    response = house.ada.chat()
    second = house.ada.chat()

    assert "set-cookie" not in response.headers
    assert "server" not in response.headers
    assert second.status_code == 200
    assert house.ollama.calls[1].header("cookie") is None


def test_no_header_of_the_client_reaches_upstream(house):
    house.ada.http.post(
        "/api/chat",
        json=DOORS["/api/chat"],
        headers={
            "Cookie": "a=b",
            "Origin": "https://evil.example",
            "X-Forwarded-For": "1.2.3.4",
            "X-Api-Key": house.ada.secret,
            "User-Agent": "canary",
        },
    )

    [call] = house.ollama.calls
    assert {name.lower() for name, _ in call.headers} <= {
        "host", "content-type", "content-length", "accept", "accept-encoding",
    }  # fmt: skip
    assert house.ada.secret not in str(call.headers)
    assert "canary" not in str(call.headers)


def open_raw(house: House, path: str, **changes: Any) -> socket.socket:
    """A call of which nothing has been read yet."""
    body = json.dumps(DOORS[path] | changes).encode()
    host, port = house.gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {house.ada.secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("path", DOORS)
def test_a_client_that_leaves_a_stream_ends_it_upstream_and_pays_for_what_it_got(house, path):
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-10000")

    with open_raw(house, path) as connection:
        received = b""
        # Beyond the head and what comes before the first text.
        while received.count(b"\n") < 40:
            received += connection.recv(65536)

    call = eventually(lambda: house.ollama.calls and house.ollama.calls[0])
    eventually(lambda: call.state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.exact) == ("client_left", False)
    assert 1 <= entry.output_tokens < 10_000
    assert entry.input_tokens > 0


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_byte_ends_the_call_upstream(house, path, stream):
    house.ollama.fault("load-60000")

    with open_raw(house, path, stream=stream):
        call = eventually(lambda: house.ollama.calls and house.ollama.calls[0])

    eventually(lambda: call.state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.output_tokens, entry.exact) == ("client_left", 0, False)
    assert entry.input_tokens > 0


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_client_that_leaves_at_the_end_mark_had_a_whole_answer(house, path):
    # Upstream takes its time between the last object and the end of the connection.
    house.ollama.fault("linger-60000")

    with open_raw(house, path) as connection:
        received = b""
        while not any(mark in received for mark in END_MARKS):
            received += connection.recv(65536)

    [entry] = house.booked()
    [truth] = house.ollama.calls
    assert (entry.outcome, entry.exact, entry.output_tokens) == ("completed", True, truth.output_tokens)


def test_the_room_of_a_call_is_free_when_its_client_sees_the_end(house):
    """A second call right behind the first finds what the first one did not use."""
    for _ in range(20):
        assert house.ada.chat(stream=True).status_code == 200
    assert len(house.booked(20)) == 20


def test_a_guard_against_repetition_is_told_as_a_broken_answer(house):
    house.ollama.fault("repeat")

    _, body = ask(house, "/api/generate")

    assert "error" in last_json(body)
    [entry] = house.booked()
    assert (entry.outcome, entry.exact) == ("upstream_failed", False)
    assert entry.output_tokens > 0


def test_a_line_beyond_the_limit_ends_the_stream(house):
    house.ollama.fault("line-9")

    _, body = ask(house, "/api/chat")

    assert b'"done":true' not in body
    assert "error" in last_json(body)


def test_a_long_line_within_the_limit_passes(house):
    house.ollama.fault("line-4")

    status, body = ask(house, "/api/generate")

    assert status == 200
    assert len(body) > 4 * 2**20
    assert house.booked()[0].outcome == "completed"


def test_loading_a_model_is_answered_by_one_object(house):
    response = house.ada.http.post("/api/generate", json={"model": "tiny:1b"})

    assert response.json()["done_reason"] == "load"
    [entry] = house.booked()
    assert (entry.outcome, entry.input_tokens, entry.output_tokens, entry.exact) == ("completed", 0, 0, True)
