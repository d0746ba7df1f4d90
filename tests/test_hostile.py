"""What comes of it when a client, another tenant or an upstream means no good.

The gateway is a process of its own and the simulated Ollama reads names and
JSON as Go does, so what its log of the truth has not seen has not got through.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import connection

from budgets.counters import HOLDS, SETTLED
from budgets.services import set_budget, set_rate_limit
from budgets.sweeping import sweep
from config.asgi import application
from keys.services import revoke_key
from proxy import running, upstream
from proxy.catalog import catalog
from proxy.models import ModelAlias, Upstream
from proxy.services import remove_upstream, save_alias, save_upstream
from proxy.transport import IDLE_SECONDS
from tenants.redis import PARTITION, AsyncRedis, RedisError, redis_now
from tenants.services import create_tenant
from tests import hostile
from tests.conftest import PATIENCE_SECONDS, Caller, House, eventually
from tests.fault_proxy import FaultProxy, line_to
from tests.test_serve import serving

MESSAGES = [{"role": "user", "content": "How is the weather?"}]
CHAT: dict[str, Any] = {"model": "tiny:1b", "messages": MESSAGES}
# Every door through which a model is called, with a request that is good.
DOORS: dict[str, dict[str, Any]] = {
    "/api/chat": CHAT,
    "/api/generate": {"model": "tiny:1b", "prompt": "Once"},
    "/api/embed": {"model": "emb:latest", "input": "Once"},
    "/api/embeddings": {"model": "emb:latest", "prompt": "Once"},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny:1b", "prompt": "Once"},
    "/v1/embeddings": {"model": "emb:latest", "input": "Once"},
    "/v1/responses": {"model": "tiny:1b", "input": "Once"},
    "/v1/messages": CHAT | {"max_tokens": 50},
}
READERS = (*DOORS, "/v1/messages/count_tokens", "/api/show")
END_MARKS = (b"[DONE]", b'"done":true', b"response.completed", b"message_stop")


def address(house: House) -> tuple[str, int]:
    host, port = house.gateway.url.removeprefix("http://").split(":")
    return host, int(port)


def request(path: str, secret: str, body: Any, *, close: bool = False) -> bytes:
    """The bytes of one POST."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
    head += f"Content-Length: {len(content)}\r\n" + "Connection: close\r\n" * close
    return head.encode() + b"\r\n" + content


def nothing_is_left(house: House) -> bool:
    """No hold, no lease, and nothing at work upstream."""
    leases = redis_now().keys(f"{PARTITION}:leases:*")
    return (
        redis_now().zcard(HOLDS) == 0
        and sum(redis_now().zcard(key) for key in leases) == 0
        and house.ollama.log.counts()["active"] == 0
    )


# What a client sends


def test_no_door_takes_a_body_that_two_readers_could_read_differently(house):
    for path, (name, body) in itertools.product(READERS, hostile.BROKEN_JSON.items()):
        response = house.ada.http.post(path, content=body)
        assert response.status_code == 400, (path, name, response.text)
    assert house.ollama.calls == []


def test_a_field_that_go_would_take_for_another_is_refused_or_stays_here(house):
    for path, body in DOORS.items():
        assert house.ada.http.post(path, json=body).status_code == 200, path
    for path, (known, spellings) in itertools.product(DOORS, hostile.FOLDED_NAMES.items()):
        for spelling in spellings:
            before = len(house.ollama.calls)
            response = house.ada.http.post(path, json=DOORS[path] | {spelling: "big"})
            reached = house.ollama.calls[before:]
            if response.status_code == 400:
                assert reached == []
            else:
                assert (known, response.status_code) != ("model", 200)
                assert not any(spelling in call.body for call in reached), (path, spelling)


def test_what_reloads_steers_or_leaves_the_house_is_not_passed_on(house):
    for path, dropped in (
        ("/api/chat", hostile.NATIVE_DROPPED),
        ("/v1/chat/completions", hostile.OPENAI_DROPPED),
    ):
        for name, value in dropped.items():
            assert house.ada.http.post(path, json=CHAT | {name: value}).status_code == 200, name
            fields = house.ollama.calls[-1].fields
            assert name not in fields or name == "options"
    for name, value in hostile.LOAD_OPTIONS.items():
        assert house.ada.chat(options={name: value}).status_code == 200
        assert list(house.ollama.calls[-1].fields["options"]) == ["num_predict"]
    assert all("num_ctx" not in call.body for call in house.ollama.calls)


def test_every_spelling_is_the_one_model_and_cloud_and_nonsense_never_leave(house):
    house.ollama.install("tiny:latest")
    eventually(lambda: "tiny:latest" in house.ada.http.get("/api/tags").text)
    for spelling in hostile.SPELLINGS:
        assert house.ada.chat(model=spelling, stream=False).status_code == 200, spelling
        assert house.ollama.calls[-1].fields["model"] == "tiny:latest"
    calls = len(house.ollama.calls)

    refused = {
        house.ada.chat(model=name).content for name in [*hostile.CLOUD_NAMES, "unknown", "un/known:1b"]
    }
    assert len(refused) == 1
    for name in hostile.INVALID_NAMES:
        assert house.ada.chat(model=name).status_code == 400, name
    assert len(house.ollama.calls) == calls
    assert {entry.model for entry in house.booked(calls)} == {"tiny:latest"}


def test_no_link_in_a_picture_is_followed_or_passed_on(house):
    for link in hostile.IMAGE_LINKS:
        part = {"type": "image_url", "image_url": {"url": link}}
        source = {"type": "image", "source": {"type": "url", "url": link}}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [link]}]}),
            ("/api/generate", {"prompt": "x", "images": [link]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
            ("/v1/responses", {"input": [{"content": [{"type": "input_image", "image_url": link}]}]}),
            ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [source]}]}),
        ]
        for path, fields in asked:
            response = house.ada.http.post(path, json={"model": "tiny:1b"} | fields)
            assert response.status_code == 400, (path, link)
    assert house.ollama.calls == []


NO_NUMBERS = [1e300, -1e300, 2.0**63, "1", True, [1], {"a": 1}]
ODD: list[tuple[str, dict[str, Any]]] = [
    *(("/api/chat", {"options": {name: odd}}) for name in ("seed", "top_k") for odd in NO_NUMBERS),
    *(("/api/generate", {"options": {"num_predict": odd}}) for odd in (*NO_NUMBERS, 0)),
    *(("/v1/chat/completions", {"max_tokens": odd}) for odd in (*NO_NUMBERS, 0)),
    *(("/v1/completions", {"n": odd}) for odd in (0, 2, -1, 1.5, "1")),
    *(("/v1/messages", {"max_tokens": odd}) for odd in (*NO_NUMBERS, 0, -1)),
    *(("/api/embed", {"input": odd}) for odd in ([["x"]], [1], {"a": "b"}, 7, ["x"] * 2049)),
    ("/api/chat", {"messages": [{"role": "user", "content": "x"}] * 10_001}),
    ("/api/chat", {"messages": [[]]}),
    ("/api/chat", {"tools": [{"type": "web_search"}]}),
    ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ("/v1/responses", {"tools": [{"type": "web_search"}]}),
    ("/api/chat", {"format": {"a": "x" * 70_000}}),
    ("/api/generate", {"prompt": "", "keep_alive": "0s"}),
    ("/api/generate", {"template": '{{ printf "%99999d" 1 }}'}),
]


def test_values_that_no_field_has_are_a_400_and_never_a_fault_of_ours(house):
    for path, fields in ODD:
        response = house.ada.http.post(path, json=DOORS[path] | fields)
        assert response.status_code == 400, (path, str(fields)[:100], response.text)
    assert house.ollama.calls == []
    assert redis_now().zcard(HOLDS) == 0


MUCH = 900_000
SLOW_TO_READ: list[tuple[str, dict[str, Any]]] = [
    ("/api/generate", {"template": "{{" * (MUCH // 2)}),
    ("/api/generate", {"template": "{{ " + " " * MUCH + "x }}"}),
    ("/api/generate", {"template": "{{ if ." + "a" * MUCH + "! }}"}),
    ("/api/generate", {"keep_alive": "0" * MUCH, "prompt": ""}),
    ("/api/chat", {"model": "a/" * (MUCH // 2)}),
    ("/api/chat", {"model": " " * MUCH + "x"}),
    ("/api/chat", {"x": {str(number): {} for number in range(40_000)}, "model": ""}),
    ("/api/chat", {"messages": [{"role": "user", "content": "\ud800" * (MUCH // 6)}], "model": ""}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "x" * MUCH}]}]}),
    ("/v1/responses", {"input": [{}] * 10_001}),
]


def test_nothing_that_a_client_writes_keeps_the_process_from_others(house):
    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=30) as somebody:
        for path, fields in SLOW_TO_READ:
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(house.ada.http.post, path, content=json.dumps(DOORS[path] | fields))
                # Whoever else asks meanwhile is answered.
                assert somebody.get("/api/version").status_code == 200
                assert asked.result(60).status_code in (400, 413), (path, list(fields))


def test_a_path_with_line_feeds_makes_no_line_of_its_own_in_the_log(house):
    house.ada.http.get("/v1/models/x%0aERROR%20forged%20line%1b[31m")
    house.ada.http.post("/api/chat", json=CHAT | {"model": "x\nERROR forged line"})

    assert "forged line" not in house.gateway.log()


def test_bodies_of_upgraded_connections_do_not_count_as_arriving_for_ever(tmp_path):
    with serving(tmp_path, MAX_BODY_BYTES="1000000") as served:
        head = "GET /v1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nContent-Length: 1000000\r\n\r\n"
        for _ in range(18):
            with served.ask(head.encode() + b"x" * 1_000_000) as connection:
                while connection.recv(65536):
                    pass
        # As many as may arrive at one time have come; one more is still taken.
        with served.ask(request("/v1/chat/completions", "none", b"x" * 900_000, close=True)) as connection:
            assert connection.recv(12) != b"HTTP/1.1 503"


# Another tenant's key


@pytest.fixture
def eve(house: House) -> Caller:
    """A good key of another tenant, which may use one model."""
    return house.caller(create_tenant(slug="evil", name="Evil", actor="test", models=["small:latest"]))


def test_a_key_learns_nothing_of_models_and_aliases_that_it_may_not_use(house, eve):
    save_alias(
        alias=ModelAlias(alias="secret-plan:latest", model="small:latest", tenant=house.acme), actor="test"
    )
    save_alias(alias=ModelAlias(alias="shared:latest", model="tiny:1b"), actor="test")
    assert house.ada.chat(model="secret-plan", stream=False).json()["model"] == "small:latest"

    def answers(name: str) -> list[tuple[int, bytes]]:
        asked = [
            eve.chat(model=name),
            eve.http.post("/v1/chat/completions", json=CHAT | {"model": name}),
            eve.http.post("/v1/messages", json=DOORS["/v1/messages"] | {"model": name}),
            eve.http.post("/v1/messages/count_tokens", json=CHAT | {"model": name}),
            eve.http.post("/api/show", json={"model": name}),
            eve.http.get(f"/v1/models/{name}"),
        ]
        ids = [answer.headers["x-request-id"].encode() for answer in asked]
        return [
            (answer.status_code, answer.content.replace(one, b""))
            for answer, one in zip(asked, ids, strict=True)
        ]

    unknown = answers("nobody:latest")
    assert {status for status, _ in unknown} == {403}
    for hidden in ("tiny:1b", "secret-plan", "shared", "emb"):
        assert answers(hidden) == unknown
    seen = eve.http.get("/api/tags").text + eve.http.get("/v1/models").text + eve.http.get("/api/ps").text
    assert not any(name in seen for name in ("tiny", "emb:", "secret-plan", "shared"))
    assert "small" in seen


def test_limits_that_are_told_are_the_callers_own(house, eve):
    set_budget(scope="tenant", unit="tokens", period="day", limit=123_456, tenant=house.acme, actor="test")
    set_rate_limit(scope="key", measure="requests_per_minute", limit=7, key=eve.key, actor="test")

    ours, theirs = house.ada.chat(), eve.chat(model="small")

    assert "123456" in str(ours.headers)
    assert "123456" not in str(theirs.headers)
    assert "q=7;" in theirs.headers["ratelimit-policy"]
    assert "q=7;" not in str(ours.headers)


def test_pipelined_requests_of_different_keys_are_answered_in_order_to_their_owners(house, eve):
    def asking(caller: Caller, model: str) -> bytes:
        return request("/api/chat", caller.secret, CHAT | {"model": model, "stream": False})

    for _ in range(5):
        sent = (
            asking(house.ada, "tiny:1b")
            + asking(eve, "small")
            + asking(eve, "tiny:1b")
            + asking(house.ada, "small")
        )
        with socket.create_connection(address(house), timeout=30) as client:
            client.sendall(sent)
            received = b""
            while received.count(b"HTTP/1.1 ") < 4 or not received.endswith((b"}", b"}\n", b"0\r\n\r\n")):
                received += client.recv(65536)
        told = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
        assert told == [b"200", b"200", b"403", b"200"]
        models = [part.split(b'"model":"')[1].split(b'"')[0] for part in received.split(b"HTTP/1.1 200")[1:]]
        assert models == [b"tiny:1b", b"small:latest", b"small:latest"]
    entries = house.booked(15)
    assert sorted((entry.tenant, entry.model) for entry in entries) == sorted(
        [("acme", "tiny:1b"), ("evil", "small:latest"), ("acme", "small:latest")] * 5
    )


# Settings that change while nobody has noticed yet


def test_an_alias_means_what_it_was_changed_to_from_the_next_call_on(house):
    alias = save_alias(
        alias=ModelAlias(alias="mine:latest", model="tiny:1b", tenant=house.acme), actor="test"
    )
    for model in ("small:latest", "tiny:1b") * 5:
        alias.model = model
        save_alias(alias=alias, actor="test")
        assert house.ada.chat(model="mine", stream=False).json()["model"] == model


def test_an_alias_is_in_force_for_a_key_that_nobody_has_seen_yet(house):
    alias = save_alias(alias=ModelAlias(alias="ours:latest", model="tiny:1b"), actor="test")
    for model in ("small:latest", "tiny:1b") * 5:
        alias.model = model
        save_alias(alias=alias, actor="test")
        assert house.caller().chat(model="ours", stream=False).json()["model"] == model


def test_an_upstream_that_was_switched_off_gets_no_call_and_nobody_a_fault_of_ours(house):
    sim = Upstream.objects.get()
    for _ in range(3):
        sim.enabled = False
        save_upstream(upstream=sim, actor="test")
        calls = len(house.ollama.calls)
        answers = [house.ada.chat(), house.ada.http.get("/v1/models"), house.caller().chat()]
        assert [answer.status_code for answer in answers] == [503] * 3, answers
        assert len(house.ollama.calls) == calls
        sim.enabled = True
        save_upstream(upstream=sim, actor="test")
        eventually(lambda: house.ada.chat().status_code == 200)


def test_a_revoked_key_gets_nothing_upstream_whatever_runs_at_that_moment(house):
    for _ in range(4):
        leaver = house.caller()
        stop = threading.Event()
        late: list[int] = []

        def hammer(leaver: Caller = leaver, stop: threading.Event = stop, late: list[int] = late) -> None:
            with httpx.Client(
                base_url=house.gateway.url, headers=leaver.http.headers, trust_env=False, timeout=30
            ) as client:
                while True:
                    over = stop.is_set()
                    late.append(client.post("/api/chat", json=CHAT).status_code if over else 0)
                    if over:
                        return
                    client.post("/api/chat", json=CHAT)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        revoke_key(key=leaver.key, actor="test", reason="")
        stop.set()
        for thread in threads:
            thread.join(60)
        assert [status for status in late if status] == [401] * 3
    eventually(lambda: nothing_is_left(house))


# What an upstream may do


class RawUpstream:
    """A server that lists models as Ollama does and answers every call with the bytes it was given."""

    def __init__(self, answer: bytes = b"", *, reads_body: bool = True, hangs: bool = False) -> None:
        self.answer, self.reads_body, self.hangs = answer, reads_body, hangs
        self.listing: Any = {"models": [{"name": "raw:latest", "digest": "1", "details": {}}]}
        self.open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> RawUpstream:
        self._thread.start()
        server = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(server, self._loop).result(PATIENCE_SECONDS)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PATIENCE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        while self._tasks:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
        )
        if b" /api/tags " in head or b" /api/show " in head or b" /api/ps " in head:
            await reader.readexactly(length)
            shown = self.listing if b"/api/show" not in head else {"details": {}, "model_info": {}}
            body = json.dumps(shown).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return True
        if self.reads_body:
            await reader.readexactly(length)
        writer.write(self.answer)
        await writer.drain()
        if self.hangs:
            while await reader.read(65536):
                pass
        return not self.reads_body


@pytest.fixture
def raw(house: House) -> Iterator[RawUpstream]:
    with RawUpstream() as server:
        save_upstream(upstream=Upstream(name="raw", base_url=server.url), actor="test")
        eventually(lambda: "raw:latest" in house.ada.http.get("/api/tags").text)
        yield server
        remove_upstream(upstream=Upstream.objects.get(name="raw"), actor="test")
        eventually(lambda: "raw:latest" not in house.ada.http.get("/api/tags").text)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
LINE = b'{"model":"raw","message":{"role":"assistant","content":"x"},"done":false}\n'
LAST = b'{"model":"raw","message":{"content":""},"done":true,"prompt_eval_count":3,"eval_count":1}\n'
MISBEHAVIOUR = {
    "nothing": b"",
    "rubbish": b"\x16\x03\x01 hello\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    + LINE,
    "many interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    "a flood of headers": OK + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n" + LINE,
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 300\r\n\r\n" + LINE,
    "less than its length": OK + b"Content-Length: 99999\r\n\r\n" + LINE,
    "a negative length": OK + b"Content-Length: -5\r\n\r\n" + LINE,
    "bad chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + LINE,
    "an answer that says it is packed": OK + b"Content-Encoding: gzip\r\n\r\n" + LINE + LAST,
    "a redirect": b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "no end": OK + b"\r\n" + LINE,
    "a wrong object": OK + b"\r\n" + b"[]\n" * 3,
    "binary": OK + b"\r\n" + bytes(range(256)) * 40 + b"\n",
}


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_misbehaves_never_looks_whole_and_leaves_nothing_behind(house, raw, stream):
    rows = {name: answer for name, answer in MISBEHAVIOUR.items() if stream or name != "no end"}
    for name, answer in rows.items():
        raw.answer = answer
        response = house.ada.chat(model="raw", stream=stream)
        assert response.status_code == 502 or (stream and "error" in response.text.splitlines()[-1]), name
        assert not any(mark in response.content for mark in END_MARKS), name
    eventually(lambda: nothing_is_left(house) and raw.open <= 1)
    entries = house.booked(len(rows))
    assert {entry.outcome for entry in entries} == {"upstream_failed"}


def test_what_follows_the_end_mark_is_not_passed_on(house, raw):
    raw.answer = OK + b"Connection: close\r\n\r\n" + LINE + LAST + LINE * 50

    response = house.ada.chat(model="raw")

    assert response.content == LINE + LAST
    [entry] = house.booked()
    assert (entry.outcome, entry.output_tokens, entry.exact) == ("completed", 1, True)


def test_a_client_does_not_wait_for_an_upstream_that_has_said_everything(house, raw):
    raw.answer, raw.hangs = OK + b"\r\n" + LINE + LAST, True

    # It hangs until the client gives up, long before the gateway would.
    response = house.ada.chat(model="raw")

    assert response.content == LINE + LAST
    eventually(lambda: raw.open <= 1)
    assert house.booked()[0].outcome == "completed"


def test_an_answer_before_the_prompt_was_read_leaves_no_connection(house, raw):
    raw.answer, raw.reads_body = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", False

    for _ in range(3):
        response = house.ada.chat("x" * 4_000_000, model="raw", stream=False)
        assert response.status_code == 502
    eventually(lambda: nothing_is_left(house) and raw.open <= 2)


def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_call(house, raw):
    """Two answers come to one call; the second carries what was meant for somebody else."""
    poison = LINE.replace(b'"x"', b'"poison"')
    whole = OK + b"Content-Length: %d\r\n\r\n" % len(LINE + LAST) + LINE + LAST
    raw.answer = whole + OK + b"Content-Length: %d\r\n\r\n" % len(poison + LAST) + poison + LAST
    assert house.ada.chat(model="raw").status_code == 200
    raw.answer = whole

    for _ in range(5):
        assert b"poison" not in house.ada.chat(model="raw").content


def test_the_text_of_an_error_that_never_comes_is_not_waited_for(house, raw):
    raw.answer, raw.hangs = b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\n{", True

    assert house.ada.chat(model="raw").status_code == 504
    eventually(lambda: nothing_is_left(house) and raw.open <= 1)


def _is_listed(house: House, name: str) -> bool:
    return name in house.ada.http.get("/api/tags").text


@pytest.mark.parametrize(
    "listing",
    [
        [],
        {"models": {"name": "raw:latest"}},
        {"models": 7},
        {
            "models": [
                None,
                1,
                "raw",
                {},
                {"name": 1},
                {"name": "../x"},
                {"name": "ok:latest", "digest": ["x"]},
            ]
        },
        {
            "models": [
                {"name": "a:cloud"},
                {"name": "b", "remote_host": "https://ollama.com"},
                {"name": "x" * 5000},
            ]
        },
    ],
)
def test_a_listing_that_is_none_hides_no_other_upstreams_models(house, raw, listing):
    raw.listing = listing
    for name in ("one:latest", "two:latest"):
        # What the other upstream has installed since is found all the same, round by round.
        house.ollama.install(name)
        eventually(functools.partial(_is_listed, house, name))

    assert house.ada.chat(model="two").status_code == 200
    assert house.ada.http.get("/api/ps").status_code == 200


def test_however_many_ask_what_is_loaded_upstream_is_asked_about_once_a_second(house):
    def asked() -> int:
        return sum(one.path == "/api/ps" for one in house.ollama.requests)

    house.ada.chat()
    began, before = time.monotonic(), asked()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: house.ada.http.get("/api/ps").json()["models"], range(60)))

    assert asked() - before <= time.monotonic() - began + 2
    eventually(lambda: "tiny:1b" in house.ada.http.get("/api/ps").text)
    assert {len(answer) for answer in answers} <= {0, 1}


# What is left behind


CANARY = "canary-7f3a-of-a-prompt"


def everything_in_redis() -> Iterator[str]:
    readers = {"hash": "hgetall", "string": "get", "set": "smembers"}
    ranges: dict[str, tuple[str, Any, Any]] = {
        "zset": ("zrange", 0, -1), "list": ("lrange", 0, -1), "stream": ("xrange", "-", "+"),
    }  # fmt: skip
    redis: Any = redis_now()
    for key in redis.scan_iter():
        kind = redis.type(key).decode()
        if kind == "none":  # its time was over meanwhile
            continue
        name, *arguments = ranges[kind] if kind in ranges else (readers[kind],)
        yield f"{key!r} {getattr(redis, name)(key, *arguments)!r}"


def everything_in_postgres() -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')  # noqa: S608 - the names are PostgreSQL's own
            yield from (f"{table}: {text}" for (text,) in cursor.fetchall())


def test_no_prompt_and_no_secret_is_kept_or_logged_however_a_call_ends(house, eve):
    secrets = [house.ada.secret, eve.secret]
    wrong = secrets[0][:-1] + ("x" if secrets[0][-1] != "x" else "y")
    prompt = [{"role": "user", "content": CANARY}]
    for path, fields in DOORS.items():
        asked = json.loads(json.dumps(fields).replace("Once", CANARY).replace(MESSAGES[0]["content"], CANARY))
        for fault in (
            "",
            "error-2",
            "reset-2",
            "garbage-1",
            "status-500",
            "panic",
            "notfound-plain",
            "endless",
        ):
            house.ollama.script.clear()
            if fault:
                house.ollama.fault(fault)
            streamed = {} if "embed" in path else {"stream": fault != "panic"}
            house.ada.http.post(path, json=asked | streamed)
        eve.http.post(path, json=asked)
        house.ada.http.post(path, content=json.dumps(asked)[:-1])
        house.ada.http.post(path, json=asked | {"model": 7})
        house.ada.http.post(path, json=asked, headers={"Authorization": f"Bearer {wrong}"})
    house.ollama.script.clear()
    house.ada.http.get("/api/tags", params={"key": secrets[0]})
    house.ada.http.get(f"/v1/models/{secrets[0]}")
    house.ollama.fault("load-60000")
    with socket.create_connection(address(house), timeout=30) as client:
        client.sendall(request("/api/chat", secrets[0], CHAT | {"messages": prompt}))
        eventually(lambda: redis_now().zcard(HOLDS) > 0)
        running_now = list(everything_in_redis())
    eventually(lambda: nothing_is_left(house))
    ended = list(everything_in_redis())
    house.booked(int(redis_now().get(SETTLED) or 0))

    assert len(house.ollama.find(CANARY)) > 40
    for kept in (
        *running_now,
        *ended,
        *everything_in_redis(),
        *everything_in_postgres(),
        house.gateway.log(),
    ):
        for canary in (CANARY, *(secret[15:55] for secret in secrets), wrong[15:55]):
            assert canary not in kept, kept[:500]


def open_files(house: House) -> int:
    """How many the gateway's worker has, sockets among them."""
    parent = house.gateway.process.pid
    [worker] = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return len(list(Path(f"/proc/{worker}/fd").iterdir()))


def test_three_hundred_calls_that_end_in_all_ways_leave_nothing(house):
    set_rate_limit(scope="tenant", measure="concurrent_requests", limit=100, tenant=house.acme, actor="test")
    set_budget(scope="tenant", unit="tokens", period="day", limit=10**9, tenant=house.acme, actor="test")
    faults = [
        "",
        "error-2",
        "reset-2",
        "cut-2",
        "end-2",
        "garbage-2",
        "status-500",
        "reset-0",
        "endless",
        "gzip",
    ]
    for number, fault in enumerate(faults):
        if fault:
            house.ollama.fault(fault, marker=f"way {number}.")
    house.ollama.settings.piece_delay = 0.001
    # What tests before this one have left open in this process is none of the gateway's.
    others = set(house.ollama._connections)

    def call(number: int) -> None:
        path = ("/api/chat", "/v1/chat/completions", "/v1/messages")[number % 3]
        way = f"way {number % len(faults)}."
        stream = number % 4 != 0 or faults[number % len(faults)] == "endless"
        body = DOORS[path] | {"messages": [{"role": "user", "content": way}], "stream": stream}
        body |= {"options": {"num_predict": 50}} if path == "/api/chat" else {"max_tokens": 50}
        with socket.create_connection(address(house), timeout=30) as client:
            client.sendall(request(path, house.ada.secret, body, close=True))
            reads = random.Random(number).choice([0, 1, 2, 5, 10_000])
            while reads and client.recv(256):
                reads -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call, range(40)))
        eventually(lambda: nothing_is_left(house))
        before = open_files(house)
        list(pool.map(call, range(300)))

    eventually(lambda: nothing_is_left(house))
    # A call whose caller hung up may still run beside the next, so that more than twelve ran at a time:
    # what the next calls do not need of their connections to Ollama is closed when it was idle for long.
    eventually(lambda: open_files(house) <= before + 12, IDLE_SECONDS + PATIENCE_SECONDS)
    eventually(lambda: len(house.ollama._connections - others) <= 14, IDLE_SECONDS + PATIENCE_SECONDS)
    calls = len(house.ollama.calls)
    entries = house.booked(calls + sum(call.path == "" for call in house.ollama.calls))
    assert len({entry.request_id for entry in entries}) == len(entries)
    assert sum(entry.requests for entry in entries) <= calls
    assert house.ada.chat().status_code == 200


def test_a_client_that_leaves_at_the_last_moment_is_booked_once_for_what_it_got(house):
    """Leaves some bytes before and behind the end, where a settlement is under way."""
    house.ollama.settings.pieces = 4
    with socket.create_connection(address(house), timeout=30) as client:
        client.sendall(request("/api/chat", house.ada.secret, CHAT, close=True))
        whole = b""
        while part := client.recv(65536):
            whole += part
    end = whole.index(b'"done":true')
    got: list[int] = []

    def leave(number: int) -> None:
        with socket.create_connection(address(house), timeout=30) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.sendall(request("/api/chat", house.ada.secret, CHAT))
            wanted, received = end - 100 + number, b""
            while len(received) < wanted and (part := client.recv(min(wanted - len(received), 65536))):
                received += part
        got.append(received.count(b'"done":false'))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(200)))

    eventually(lambda: nothing_is_left(house))
    entries = house.booked(201)
    assert len({entry.request_id for entry in entries}) == 201
    assert {entry.outcome for entry in entries} <= {"completed", "client_left"}
    assert sum(entry.output_tokens for entry in entries[1:]) >= sum(got)
    for entry in entries:
        assert entry.input_tokens > 0
        assert entry.output_tokens <= 5


# Cancelled anywhere


ONE_BY_ONE = 40


async def asked(path: str, secret: str, body: Any, turns: int, how: str) -> None:
    """Call the application as a server does, and end the call after so many turns of the loop."""
    left = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Mapping[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        await asyncio.sleep(0)

    headers = [(b"authorization", f"Bearer {secret}".encode())]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http",
        "http_version": "1.1", "asgi": {"version": "3.0"}, "root_path": "",
    }  # fmt: skip
    task = asyncio.create_task(application(scope, receive, send))
    # The first turns of the loop one by one, then further and further into the call.
    for _ in range(min(turns, ONE_BY_ONE)):
        await asyncio.sleep(0)
    if turns > ONE_BY_ONE:
        await asyncio.sleep((turns - ONE_BY_ONE) * 0.0005)
    if how == "leaves":
        left.set()
    else:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", ["leaves", "is cut by the server"])
def test_a_call_that_is_cancelled_anywhere_leaves_no_hold_and_is_booked_once(house, how):
    set_rate_limit(scope="tenant", measure="concurrent_requests", limit=50, tenant=house.acme, actor="test")
    house.ollama.settings.pieces = 3
    house.ollama.fault("status-500", marker="refuse me")

    # The gateway takes its turn with the same upstream; what it finds is what we copy.
    eventually(lambda: redis_now().exists("{p0}:catalog:sim"))

    async def work() -> None:
        await catalog.refresh()
        for turns in range(120):
            await asked("/api/chat", house.ada.secret, CHAT | {"stream": turns % 2 == 0}, turns, how)
            refused = {"model": "tiny:1b", "input": "refuse me"}
            await asked("/v1/responses", house.ada.secret, refused, turns, how)
        await running.all_settled()
        assert running.running() == 0
        # What takes back a reserve that was never answered needs the loop to go on.
        await asyncio.to_thread(eventually, lambda: redis_now().zcard(HOLDS) == 0)
        await upstream.close()

    asyncio.run(work())

    eventually(lambda: nothing_is_left(house))
    sweep()
    settled = int(redis_now().get(SETTLED) or 0)
    assert settled, "every call was refused, so none was cancelled in the middle"
    entries = house.booked(settled)
    ids = [entry.request_id for entry in entries]
    assert len(set(ids)) == len(ids)
    assert {entry.outcome for entry in entries} <= {"completed", "client_left", "upstream_failed"}
    assert len(house.ollama.calls) <= len(entries)


# Redis


def test_no_reply_reaches_another_caller_whoever_is_cancelled_and_however_slow_redis_is():
    chance = random.Random(7)
    answered: list[bool] = []
    late: list[RedisError] = []

    async def ask(redis: AsyncRedis, number: int) -> None:
        try:
            answered.append(await redis.call("ECHO", f"mine {number}") == f"mine {number}".encode())
        except RedisError as exc:
            late.append(exc)

    async def work(line: FaultProxy, url: str) -> None:
        redis = AsyncRedis(url, 0.05)
        for turn in range(100):
            if turn % 5 == 0:
                line.freeze()
                asyncio.get_running_loop().call_later(chance.choice([0.02, 0.04, 0.12]), line.thaw)
            tasks = [asyncio.create_task(ask(redis, 20 * turn + number)) for number in range(20)]
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            for task in chance.sample(tasks, 7):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await redis.aclose()

    # A line of our own, because others have to do with the same server.
    with line_to(settings.REDIS_URL) as (line, url):
        asyncio.run(work(line, url))

    assert late
    assert answered
    assert all(answered)
