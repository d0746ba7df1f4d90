"""Every route that Ollama has or had, and what it is here.

Asked without a key: a door is there if it asks for one (401) or answers; every
other route is refused with one and the same answer (403).
"""

import asyncio
import json
import re
from pathlib import Path

import pytest

from proxy.calls import ROUTES
from proxy.dialects.ollama import MAX_INPUTS, MAX_MESSAGES
from proxy.dialects.prompt import IMAGE_TOKENS, MAX_IMAGES
from proxy.dialects.strict_json import MAX_DEPTH, MAX_VALUES
from proxy.errors import ANSWERS
from proxy.exceptions import RouteRefused
from proxy.handler import ProxyHandler
from proxy.simulator import routing

INFERENCE = {
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
}
# Answered by us from what is known of the installed models, for those that the key may use.
LISTING = {
    ("GET", "/api/tags"),
    ("HEAD", "/api/tags"),
    ("GET", "/api/ps"),
    ("POST", "/api/show"),
    ("GET", "/v1/key"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v1/models/ns/tiny:7b"),
    ("POST", "/v1/messages/count_tokens"),
}
# Answered by us, to everybody.
ANSWERED = {("GET", "/"), ("HEAD", "/"), ("GET", "/api/version"), ("HEAD", "/api/version")}
REFUSED = {
    # Ollama's own that change, upload or tell what is nobody's business.
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:0"),
    ("HEAD", "/api/blobs/sha256:0"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/k"),
    ("POST", "/api/me"),
    ("GET", "/api/status"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
    # Inference that tells no usage, and what other versions have.
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/systemone"),
    ("POST", "/v1/responses/compact"),
    ("POST", "/v1/images/generations"),
    # What looks like a door and is none.
    ("GET", "/debug/pprof/"),
    ("POST", "/api"),
    ("GET", "/v1"),
    ("GET", "/v1/models/"),
    ("POST", "/v1/key"),
    ("GET", "/v1/key/"),
    ("POST", "/api/chat/"),
    ("POST", "//api/chat"),
    ("POST", "/api//chat"),
    ("POST", "/api/./chat"),
    ("POST", "/api/x/../chat"),
    ("POST", "/API/chat"),
    ("POST", "/api/chat;x"),
    ("POST", "/api/chat "),
    ("POST", "/api/chat\n"),
    ("POST", "/api/chat\x00"),
    ("POST", "/api\\chat"),
    ("POST", "/api%2Fchat"),
    ("POST", "/v1/messages/batches"),
    ("POST", "/v1/chat/completions/x"),
    ("GET", "/v1/responses/resp_1"),
    ("GET", "/nothing/such"),
    # The wrong method is no other answer.
    ("GET", "/api/chat"),
    ("PUT", "/api/chat"),
    ("DELETE", "/api/chat"),
    ("TRACE", "/api/chat"),
    ("POST", "/api/tags"),
    ("GET", "/api/show"),
    ("POST", "/v1/models"),
    ("DELETE", "/v1/models/tiny"),
    ("POST", "/"),
}


def ask(method: str, path: str, query: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Ask the doors without a key; the answer without the id that each request has of its own."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [],
        "server": ("127.0.0.1", 80),
    }

    async def answer():
        return await ProxyHandler().answer(scope, b"")

    reply = asyncio.run(answer())
    assert isinstance(reply.body, bytes)
    request_id = reply.headers["X-Request-Id"]
    headers = {name: value for name, value in reply.headers.items() if value != request_id}
    return reply.status, headers, reply.body.replace(request_id.encode(), b"")


def by_path(routes):
    return sorted(routes, key=lambda route: (route[1], route[0]))


@pytest.mark.parametrize(("method", "path"), by_path(INFERENCE | LISTING))
def test_a_door_asks_for_a_key(method, path):
    assert ask(method, path)[0] == 401


@pytest.mark.parametrize(("method", "path"), by_path(ANSWERED))
def test_some_doors_answer_everybody(method, path):
    assert ask(method, path)[0] == 200


@pytest.mark.parametrize(("method", "path"), by_path(REFUSED))
def test_everything_else_gets_one_answer_in_the_words_of_its_dialect(method, path):
    model = "/v1/nothing" if path == "/v1" or path.startswith("/v1/") else "/nothing"
    if path.startswith("/v1/messages/"):
        model = "/v1/messages/nothing"

    status, headers, body = ask(method, path)

    assert (status, headers, body) == ask("GET", model)
    assert status == 403
    assert ANSWERS[RouteRefused].sentence in body.decode()


@pytest.mark.parametrize(("method", "path"), by_path(INFERENCE | LISTING | ANSWERED))
def test_a_query_changes_no_door(method, path):
    assert ask(method, path, b"beta=true&path=/api/pull")[0] == ask(method, path)[0]


@pytest.mark.parametrize(("method", "path"), by_path(INFERENCE | LISTING | ANSWERED))
@pytest.mark.parametrize("mark", [b"tg_", b"tgm_"])
def test_a_secret_in_the_address_is_refused(method, path, mark):
    status, _, body = ask(method, path, b"key=" + mark + b"abcdefghijkl" + b"0" * 46)

    assert status == 400
    assert b"address holds an API key" in body


def test_every_route_of_the_simulated_ollama_is_classified():
    one_segment = {f"{prefix}k": make("k") for prefix, make in routing._ONE_SEGMENT.items()}
    known = {
        (method, path.replace("/blobs/k", "/blobs/sha256:0").replace("/models/k", "/models/tiny"))
        for path, handlers in {**routing.TABLE, **one_segment}.items()
        for method in handlers
    }

    assert known <= INFERENCE | LISTING | ANSWERED | REFUSED


def test_the_doors_to_models_are_exactly_those_of_the_table():
    assert {("POST", route.path) for route in ROUTES} == INFERENCE


def test_upstream_is_only_ever_asked_for_paths_that_work_on_models():
    assert {("POST", route.upstream_path) for route in ROUTES} <= INFERENCE


def test_the_page_about_doors_names_each_of_them_and_the_limits_as_they_are():
    page = (Path(__file__).parent.parent / "docs" / "doors.md").read_text()

    for method, path in INFERENCE | LISTING | ANSWERED:
        if method != "HEAD" and not path.startswith("/v1/models/"):
            assert f"`{method} {path}`" in page
    for limit in (MAX_VALUES, MAX_DEPTH, IMAGE_TOKENS, MAX_IMAGES, MAX_MESSAGES, MAX_INPUTS):
        assert re.search(rf"\b{limit:,}\b", page)


def test_the_refusal_tells_native_clients_a_text():
    assert json.loads(ask("POST", "/api/pull")[2]) == {"error": ANSWERS[RouteRefused].sentence}
