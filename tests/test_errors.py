"""What clients are told, in their own words."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import anthropic
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.exceptions import (
    BacklogFull,
    BudgetExhausted,
    ConcurrencyLimited,
    CountersUnavailable,
    RateLimited,
)
from budgets.reservations import Standing
from keys.exceptions import InvalidKey, KeysUnavailable
from proxy import calls
from proxy.calls import Dialect
from proxy.errors import (
    ANSWERS,
    INTERNAL,
    UPSTREAM_REFUSED,
    answer_for,
    answer_to,
    dialect_of,
    last_frame,
    limit_headers,
    render,
    status_of,
)
from proxy.exceptions import (
    BadRequest,
    BodyTooLarge,
    CloudModelRefused,
    ModelRefused,
    NoModels,
    RouteRefused,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from tenants.exceptions import Refusal

REQUEST_ID = UUID("01980000-0000-7000-8000-000000000001")
DAY = Standing("tenant-tokens-day", "tenant", "tokens", 1000, 100, 7500.0, "day", 86_400)
MINUTE = Standing("key-requests-minute", "key", "requests", 60, 0, 12.3, "minute", 60)
AT_ONCE = Standing("key-concurrent-requests", "key", "requests", 4, 3, None, "now", None)
FOR_EVER = Standing("key-micro-usd-lifetime", "key", "micro_usd", 5_000_000, -3, None, "lifetime", None)
STREAMED = [route for route in calls.ROUTES if route.framing is not calls.Framing.NONE]


def told_of(refusal: BaseException, dialect: Dialect, request_id: UUID) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer that tells a refusal."""
    reply = render(refusal, dialect, request_id)
    assert isinstance(reply.body, bytes)
    return reply.status, reply.headers, reply.body


def leaves(kind: type[Refusal]) -> set[type[Refusal]]:
    below = kind.__subclasses__()
    return set().union(*map(leaves, below)) if below else {kind}


def test_every_refusal_has_an_answer():
    assert leaves(Refusal) <= set(ANSWERS)


def test_every_answer_is_explained_as_it_is():
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (.+?) \| (yes|no) \| (.+) \|$", page, re.MULTILINE)
    explained = {(int(status), code, sentence, repeat == "yes") for status, code, sentence, repeat, _ in rows}

    answers = [*ANSWERS.values(), *UPSTREAM_REFUSED.values(), INTERNAL]

    assert explained == {(one.status, one.code, one.sentence, one.retry) for one in answers}
    assert len(rows) == len({code for _, code, *_ in rows})


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/", Dialect.OLLAMA),
        ("/api/chat", Dialect.OLLAMA),
        ("/v1", Dialect.OPENAI),
        ("/v1/models", Dialect.OPENAI),
        ("/v1/messagesx", Dialect.OPENAI),
        ("/v10", Dialect.OLLAMA),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
    ],
)
def test_the_dialect_is_that_of_the_path(path, dialect):
    assert dialect_of(path) is dialect


def test_ollamas_errors_are_a_text():
    status, headers, body = told_of(ModelRefused("x"), Dialect.OLLAMA, REQUEST_ID)

    assert (status, json.loads(body)) == (403, {"error": ANSWERS[ModelRefused].sentence})
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["X-Request-Id"] == str(REQUEST_ID)
    assert headers["Cache-Control"] == "no-store"


def test_openais_errors_name_the_field_and_the_code():
    _, _, body = told_of(BadRequest("top_p must be a number.", "top_p"), Dialect.OPENAI, REQUEST_ID)

    assert json.loads(body) == {
        "error": {
            "message": "top_p must be a number.",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_request",
        }
    }


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (BadRequest("no"), "invalid_request_error"),
        (InvalidKey("unknown"), "authentication_error"),
        (RouteRefused(), "permission_error"),
        (UpstreamRefused(404, ""), "not_found_error"),
        (BodyTooLarge(), "request_too_large"),
        (RateLimited([MINUTE], 1.0), "rate_limit_error"),
        (UpstreamFailed(), "api_error"),
        (NoModels(), "overloaded_error"),
        (UpstreamTimeout(), "timeout_error"),
        (RuntimeError(), "api_error"),
    ],
)
def test_anthropics_errors_have_a_type_by_status_and_the_request_id(refusal, kind):
    _, headers, body = told_of(refusal, Dialect.ANTHROPIC, REQUEST_ID)

    told = json.loads(body)
    assert told["type"] == "error"
    assert told["error"]["type"] == kind
    assert told["request_id"] == headers["Request-Id"] == str(REQUEST_ID)


def test_a_model_that_is_forbidden_unknown_or_in_the_cloud_gets_the_same_answer():
    told = [
        told_of(refusal, Dialect.OPENAI, REQUEST_ID)
        for refusal in (ModelRefused("a"), CloudModelRefused("b"))
    ]

    assert told[0] == told[1]


def test_a_key_that_is_wrong_in_whatever_way_gets_the_same_answer():
    told = [told_of(InvalidKey(reason), Dialect.OPENAI, REQUEST_ID) for reason in ("unknown", "revoked")]

    assert told[0] == told[1]
    assert told[0][1]["WWW-Authenticate"] == "Bearer"


def test_a_fault_of_ours_tells_nothing():
    status, _, body = told_of(RuntimeError("password=hunter2"), Dialect.OLLAMA, REQUEST_ID)

    assert (status, json.loads(body)) == (500, {"error": INTERNAL.sentence})


def test_a_response_without_a_view_has_an_id_of_its_own():
    reply = answer_for("/v1/models", RuntimeError())

    assert reply.status == 500
    assert UUID(reply.headers["X-Request-Id"])


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (
            400,
            "registry.ollama.ai/library/tiny:latest does not support tools",
            (400, "tiny:latest does not support tools"),
        ),
        (400, '{"error":{"code":400,"message":"too long","type":"x"}}', (400, "too long")),
        (400, '{"error":"too long"}', (400, "too long")),
        (400, "", (400, UPSTREAM_REFUSED[400].sentence)),
        (400, '{"error":{"code":4}}', (400, UPSTREAM_REFUSED[400].sentence)),
        (400, "{broken", (400, UPSTREAM_REFUSED[400].sentence)),
        (400, "open /root/.ollama/models/x: denied", (400, UPSTREAM_REFUSED[400].sentence)),
        (400, "open C:\\models\\x", (400, UPSTREAM_REFUSED[400].sentence)),
        (400, "see https://host.example/sign-in?key=1", (400, UPSTREAM_REFUSED[400].sentence)),
        (400, "x" * 10_000, (400, "x" * 500)),
        (401, "unauthorized", (502, ANSWERS[UpstreamRefused].sentence)),
        (403, "cloud is disabled", (502, ANSWERS[UpstreamRefused].sentence)),
        (404, "model 'ns/hidden' not found", (404, UPSTREAM_REFUSED[404].sentence)),
        (500, "llama runner died: /tmp/x", (502, ANSWERS[UpstreamRefused].sentence)),
        (503, "server busy", (503, UPSTREAM_REFUSED[503].sentence)),
        (307, "", (502, ANSWERS[UpstreamRefused].sentence)),
    ],
)
def test_upstreams_own_errors_are_told_only_as_far_as_they_concern_the_client(status, text, told):
    answered, _, body = told_of(UpstreamRefused(status, text), Dialect.OLLAMA, REQUEST_ID)

    assert (answered, json.loads(body)["error"]) == told
    assert status_of(UpstreamRefused(status, text)) == answered


def test_a_limit_is_named_with_what_is_used_and_when_it_is_back():
    _, _, body = told_of(BudgetExhausted([DAY, MINUTE], 7500.0), Dialect.OLLAMA, REQUEST_ID)

    assert json.loads(body)["error"].endswith(
        "Limit tenant-tokens-day: 900 of 1000 tokens used or held, back in 2h5m0s."
    )


def test_a_limit_that_never_comes_back_says_no_time():
    _, headers, body = told_of(BudgetExhausted([FOR_EVER], None), Dialect.OLLAMA, REQUEST_ID)

    assert json.loads(body)["error"].endswith("5000003 of 5000000 millionths of a dollar used or held.")
    assert headers["X-Should-Retry"] == "false"
    assert "Retry-After" not in headers


@pytest.mark.parametrize("seconds", [0, 0.2, 1, 30, 100_000])
def test_clients_are_told_to_wait_at_least_so_long_and_not_all_the_same(seconds):
    told = [told_of(RateLimited([MINUTE], seconds), Dialect.OPENAI, REQUEST_ID)[1] for _ in range(50)]

    for headers in told:
        assert int(headers["Retry-After"]) >= max(1, seconds)
        assert seconds * 1000 <= int(headers["Retry-After-Ms"]) <= seconds * 1250 + 1
        assert int(headers["Retry-After-Ms"]) <= seconds * 1000 + 60_001
        assert "X-Should-Retry" not in headers
    assert seconds == 0 or len({headers["Retry-After-Ms"] for headers in told}) > 1


def test_a_call_that_no_minute_has_room_for_asks_for_no_retry():
    headers = told_of(RateLimited([MINUTE], None), Dialect.OPENAI, REQUEST_ID)[1]

    assert headers["X-Should-Retry"] == "false"
    assert "Retry-After" not in headers


def test_a_budget_says_when_it_is_back_but_asks_for_no_retry():
    headers = told_of(BudgetExhausted([DAY], 7500.0), Dialect.OPENAI, REQUEST_ID)[1]

    assert int(headers["Retry-After"]) >= 7500
    assert headers["X-Should-Retry"] == "false"


@pytest.mark.parametrize("refusal", [KeysUnavailable(3.0), CountersUnavailable(), BacklogFull(), NoModels()])
def test_our_own_troubles_ask_for_another_try(refusal):
    status, headers, _ = told_of(refusal, Dialect.OPENAI, REQUEST_ID)

    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    assert "X-Should-Retry" not in headers


@pytest.mark.parametrize(
    "refusal", [BadRequest("no"), InvalidKey("x"), RouteRefused(), ModelRefused(), RuntimeError()]
)
def test_what_cannot_get_better_asks_for_none(refusal):
    headers = told_of(refusal, Dialect.OPENAI, REQUEST_ID)[1]

    assert headers["X-Should-Retry"] == "false"
    assert "Retry-After" not in headers


def test_the_standard_pair_names_every_limit():
    for dialect in Dialect:
        headers = limit_headers([DAY, MINUTE, AT_ONCE, FOR_EVER], dialect)

        assert headers["RateLimit-Policy"] == (
            '"tenant-tokens-day";q=1000;qu="tokens";w=86400, '
            '"key-requests-minute";q=60;qu="requests";w=60, '
            '"key-concurrent-requests";q=4;qu="concurrent-requests", '
            '"key-micro-usd-lifetime";q=5000000;qu="micro-usd"'
        )
        assert headers["RateLimit"] == (
            '"tenant-tokens-day";r=100;t=7500, "key-requests-minute";r=0;t=13, '
            '"key-concurrent-requests";r=3, "key-micro-usd-lifetime";r=0'
        )


def test_openais_headers_tell_the_limit_with_the_least_left():
    roomy = Standing("tenant-tokens-minute", "tenant", "tokens", 9000, 5000, 1.5, "minute", 60)

    headers = limit_headers([roomy, DAY, MINUTE, AT_ONCE], Dialect.OPENAI)

    assert {name: value for name, value in headers.items() if name.startswith("X-")} == {
        "X-RateLimit-Limit-Requests": "60",
        "X-RateLimit-Remaining-Requests": "0",
        "X-RateLimit-Reset-Requests": "12.3s",
        "X-RateLimit-Limit-Tokens": "1000",
        "X-RateLimit-Remaining-Tokens": "100",
        "X-RateLimit-Reset-Tokens": "2h5m0s",
    }


def test_anthropics_headers_tell_an_instant(time_machine):
    time_machine.move_to("2026-01-02T03:04:05Z", tick=False)

    headers = limit_headers([DAY, AT_ONCE], Dialect.ANTHROPIC)

    assert {name: value for name, value in headers.items() if name.startswith("Anthropic")} == {
        "Anthropic-RateLimit-Tokens-Limit": "1000",
        "Anthropic-RateLimit-Tokens-Remaining": "100",
        "Anthropic-RateLimit-Tokens-Reset": "2026-01-02T05:09:05Z",
    }


def test_what_has_no_value_is_left_out():
    assert limit_headers([], Dialect.OPENAI) == {}
    assert not any("Reset" in name for name in limit_headers([FOR_EVER], Dialect.OPENAI))


@given(st.floats(0, 10**9))
def test_a_duration_is_never_shorter_than_it_is(seconds):
    standing = Standing("a", "key", "tokens", 1, 0, seconds, "fixed", None)
    written = limit_headers([standing], Dialect.OPENAI)["X-RateLimit-Reset-Tokens"]

    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(ms|[hms])", written)
    assert "".join(number + unit for number, unit in parts) == written
    assert sum(float(number) * units[unit] for number, unit in parts) >= seconds - 1e-6


@pytest.mark.parametrize("route", STREAMED, ids=lambda route: route.name)
def test_the_last_frame_of_a_broken_stream_is_an_error_and_no_end(route):
    frame = last_frame(UpstreamFailed("secret detail"), route)

    assert b"secret" not in frame
    assert b"[DONE]" not in frame
    assert b"done" not in frame
    assert frame.endswith(b"\n" if route.framing is calls.Framing.NDJSON else b"\n\n")
    assert frame.count(b"\n\n") == (route.framing is calls.Framing.SSE)


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer to everything: its address, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("refusal", "kind", "tries"),
    [
        (BadRequest("no", "x"), openai.BadRequestError, 1),
        (InvalidKey("unknown"), openai.AuthenticationError, 1),
        (ModelRefused(), openai.PermissionDeniedError, 1),
        (BudgetExhausted([DAY], 7500.0), openai.RateLimitError, 1),
        (RateLimited([MINUTE], 0.01), openai.RateLimitError, 2),
        (ConcurrencyLimited([AT_ONCE], 0.01), openai.RateLimitError, 2),
        (KeysUnavailable(0.01), openai.InternalServerError, 2),
        (RuntimeError(), openai.InternalServerError, 1),
    ],
)
def test_openais_client_raises_its_own_error_and_repeats_only_what_can_succeed(refusal, kind, tries):
    with (
        answering(*told_of(refusal, Dialect.OPENAI, REQUEST_ID)) as (url, asked),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=1) as client,
        pytest.raises(kind) as raised,
    ):
        client.chat.completions.create(model="tiny", messages=MESSAGES)

    assert len(asked) == tries
    assert raised.value.code == answer_to(refusal).code
    assert raised.value.request_id == str(REQUEST_ID)


@pytest.mark.parametrize(
    ("refusal", "kind", "tries"),
    [
        (InvalidKey("unknown"), anthropic.AuthenticationError, 1),
        (BudgetExhausted([DAY], 7500.0), anthropic.RateLimitError, 1),
        (RateLimited([MINUTE], 0.01), anthropic.RateLimitError, 2),
        (BodyTooLarge(), anthropic.APIStatusError, 1),
    ],
)
def test_anthropics_client_does_too(refusal, kind, tries):
    with (
        answering(*told_of(refusal, Dialect.ANTHROPIC, REQUEST_ID)) as (url, asked),
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=1) as client,
        pytest.raises(kind) as raised,
    ):
        client.messages.create(model="tiny", max_tokens=5, messages=MESSAGES)

    assert len(asked) == tries
    assert raised.value.request_id == str(REQUEST_ID)


def test_ollamas_client_shows_the_sentence():
    told = told_of(ModelRefused(), Dialect.OLLAMA, REQUEST_ID)
    with answering(*told) as (url, _), pytest.raises(ollama.ResponseError) as raised:
        ollama.Client(url).chat("tiny", MESSAGES)

    assert raised.value.error == ANSWERS[ModelRefused].sentence
    assert raised.value.status_code == 403


def test_openais_client_raises_on_the_last_frame_of_a_broken_chat():
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "t", "choices": []}
    body = b"data: " + json.dumps(chunk).encode() + b"\n\n" + last_frame(UpstreamFailed(), calls.V1_CHAT)
    with (
        answering(200, {"Content-Type": "text/event-stream"}, body) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
        pytest.raises(openai.APIError, match="The model server failed"),
    ):
        list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))


def test_openais_client_raises_on_the_last_frame_of_a_broken_response():
    body = last_frame(UpstreamFailed(), calls.V1_RESPONSES)
    with (
        answering(200, {"Content-Type": "text/event-stream"}, body) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
        pytest.raises(openai.APIError, match="The model server failed"),
    ):
        list(client.responses.create(model="tiny", input="hi", stream=True))


def test_anthropics_client_raises_on_the_last_frame_of_a_broken_answer():
    body = last_frame(UpstreamFailed(), calls.V1_MESSAGES)
    with (
        answering(200, {"Content-Type": "text/event-stream"}, body) as (url, _),
        anthropic.Anthropic(base_url=url, api_key="x") as client,
        pytest.raises(anthropic.APIStatusError, match="The model server failed"),
    ):
        list(client.messages.create(model="tiny", max_tokens=5, messages=MESSAGES, stream=True))


def test_ollamas_client_raises_on_the_last_frame_of_a_broken_chat():
    body = last_frame(UpstreamFailed(), calls.CHAT)
    with (
        answering(200, {"Content-Type": "application/x-ndjson"}, body) as (url, _),
        pytest.raises(ollama.ResponseError, match="The model server failed"),
    ):
        list(ollama.Client(url).chat("tiny", MESSAGES, stream=True))
