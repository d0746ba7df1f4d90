"""What each door shows and refuses, through a socket."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from keys.services import issue_key, revoke_key
from proxy.models import ModelAlias, Upstream
from proxy.services import remove_upstream, save_alias, save_upstream
from tenants.services import create_tenant
from tests.conftest import PATIENCE_SECONDS, House, eventually

BLOCKED = [
    ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
    ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:0"), ("HEAD", "/api/blobs/sha256:0"),
    ("POST", "/api/signout"), ("POST", "/api/me"), ("POST", "/api/status"), ("GET", "/api/nothing"),
    ("POST", "/api/experimental/web_search"), ("DELETE", "/api/chat"), ("GET", "/api/generate"),
    ("POST", "/api/chat/"), ("POST", "/API/chat"), ("POST", "/api//chat"), ("POST", "//api/pull"),
    ("POST", "/api/x/../pull"), ("POST", "/api/%2e%2e/api/pull"), ("POST", "/api%2Fpull"),
    ("PUT", "/api/tags"), ("OPTIONS", "/api/chat"), ("TRACE", "/api/tags"),
    ("GET", "/debug/pprof/"), ("GET", "/api"),
]  # fmt: skip
BLOCKED_V1 = [
    ("POST", "/v1/audio/transcriptions"), ("POST", "/v1/images/generations"), ("POST", "/v1/systemone"),
    ("POST", "/v1/responses/compact"), ("GET", "/v1/chat/completions"), ("POST", "/v1/models"),
    ("DELETE", "/v1/models/tiny"), ("GET", "/v1"), ("GET", "/v1/"), ("POST", "/v1/chat/completions/"),
    ("OPTIONS", "/v1/chat/completions"),
]  # fmt: skip


def raw(house: House, method: str, path: str) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers and body of a request whose path nobody tidies up on the way."""
    host, port = house.gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {house.ada.secret}\r\n"
            f"Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
        )
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, dict(line.lower().split(b": ", 1) for line in lines), body


def without_id(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in headers.items() if name not in (b"x-request-id", b"date")}


def test_everything_else_gets_one_answer_per_dialect_and_reaches_nobody(house):
    for group in (BLOCKED, BLOCKED_V1):
        answers = {
            (status, tuple(sorted(without_id(headers).items())), body)
            for method, path in group
            if method != "HEAD" and not path.startswith("/debug")
            for status, headers, body in [raw(house, method, path)]
        }
        assert len(answers) == 1, answers
        [(status, _, body)] = answers
        assert status == b"HTTP/1.1 403 Forbidden"
        assert b"This gateway does not serve this route." in body
    assert {request.path for request in house.ollama.requests} <= {"/api/tags", "/api/show"}


def test_the_answer_to_a_blocked_route_does_not_depend_on_the_key(house):
    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=PATIENCE_SECONDS) as nobody:
        anonymous, known = nobody.post("/api/pull"), house.ada.http.post("/api/pull")

    assert (anonymous.status_code, anonymous.content) == (known.status_code, known.content)


def test_nobody_without_a_good_key_gets_anywhere_and_all_look_alike(house):
    secret = house.ada.secret
    mistyped = secret[:-1] + ("y" if secret.endswith("x") else "x")
    wrong = [
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Bearer {mistyped}"},
        {"Authorization": f"Basic {secret}"},
        {"X-Api-Key": "nonsense"},
    ]
    revoked_key, revoked = issue_key(tenant=house.acme, label="gone", actor="test")
    revoke_key(key=revoked_key, actor="test", reason="")
    wrong.append({"Authorization": f"Bearer {revoked}"})

    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=PATIENCE_SECONDS) as nobody:
        answers = [nobody.post("/v1/chat/completions", headers=headers, content=b"{}") for headers in wrong]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert house.ollama.calls == []


def test_a_secret_in_the_address_is_refused(house):
    response = house.ada.http.get("/api/tags", params={"key": house.ada.secret})

    assert response.status_code == 400
    assert house.ada.secret not in response.text


def test_two_authorization_headers_are_refused(house):
    headers = [("Authorization", f"Bearer {house.ada.secret}"), ("Authorization", "Bearer other")]

    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=PATIENCE_SECONDS) as client:
        response = client.get("/api/tags", headers=headers)

    assert response.status_code in (400, 401)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "ZSTD", "br", "identity, gzip"])
def test_a_packed_body_is_refused(house, encoding):
    response = house.ada.http.post(
        "/v1/chat/completions", content=b"x", headers={"Content-Encoding": encoding}
    )

    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_encoding"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b'{"model":"tiny:1b"', b'{"model":1,"messages":[]}',
        b'{"model":"tiny:1b","Model":"small","messages":[{"role":"user","content":"x"}]}',
        '{"model":"tiny:1b","\u017ftream":true,"messages":[{"role":"user","content":"x"}]}'.encode(),
        '{"model":"tiny:1b"}'.encode("utf-16"), b"[" * 100_000,
        b'{"model":"tiny:1b","options":{"seed":1e999}}',
        b'{"model":"tiny:1b","stream":"yes","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"tiny:1b","options":{"num_predict":0},"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"../../etc/passwd","messages":[{"role":"user","content":"x"}]}',
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400_in_the_dialect_and_reaches_nobody(house, body):
    response = house.ada.http.post("/api/chat", content=body)

    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)
    assert house.ollama.calls == []


@pytest.mark.parametrize(
    "name", ["tiny:cloud", "tiny:1b-cloud", "gpt-oss:120b-cloud", "tiny:1b:cloud", "nobody", "small:none"]
)
def test_a_model_that_is_not_there_or_in_the_cloud_is_one_and_the_same_403(house, name):
    answers = [
        house.ada.chat(model=name).json(),
        house.ada.http.post("/api/show", json={"model": name}).json(),
    ]

    assert len({json.dumps(answer) for answer in answers}) == 1
    assert house.ollama.calls == []


def test_only_its_own_models_are_shown_to_a_key_and_served(house):
    few = house.caller(allow_all_models=False, models=["TINY:1b"])

    assert [entry["name"] for entry in few.http.get("/api/tags").json()["models"]] == ["tiny:1b"]
    assert [entry["id"] for entry in few.http.get("/v1/models").json()["data"]] == ["tiny:1b"]
    assert few.chat().status_code == 200
    assert few.chat(model="Library/Tiny:1B").status_code == 200
    hidden, unknown = few.chat(model="small"), few.chat(model="nobody")
    assert (hidden.status_code, hidden.content) == (403, unknown.content)


def test_a_key_with_an_empty_list_may_use_nothing_and_one_without_follows_its_tenant(house):
    closed = create_tenant(slug="closed", name="Closed", actor="test", models=["small:latest"])

    assert house.caller(closed, allow_all_models=False, models=[]).http.get("/v1/models").json()["data"] == []
    follows = house.caller(closed).http.get("/v1/models").json()["data"]
    assert [model["id"] for model in follows] == ["small:latest"]


def test_show_tells_nothing_of_the_operator_or_the_host(house):
    shown = house.ada.http.post("/api/show", json={"name": "tiny:1b", "verbose": True})

    assert set(shown.json()) <= {"details", "model_info", "capabilities", "parameters", "modified_at"}
    for secret in ("/root", "blobs", "system", "licen", "TEMPLATE", "{{"):
        assert secret not in shown.text


def test_our_own_version_and_the_greeting_need_no_key(house):
    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=PATIENCE_SECONDS) as nobody:
        assert nobody.get("/api/version").json() == {"version": "0.1.0"}
        assert nobody.get("/").text == "Ollama is running"
        assert nobody.head("/").status_code == 200


def test_every_answer_has_an_id_of_ours_whatever_the_client_sends(house):
    answers = [
        house.ada.http.get("/api/tags", headers={"X-Request-Id": "mine"}),
        house.ada.chat(),
        house.ada.chat(model="nobody"),
        house.ada.http.get("/nowhere/api"),
    ]

    ids = [answer.headers.get("x-request-id") for answer in answers[:3]]
    assert None not in ids
    assert "mine" not in ids
    assert len(set(ids)) == 3


def test_an_alias_stands_for_its_model_where_the_model_is_allowed(house):
    save_alias(alias=ModelAlias(alias="house:latest", model="tiny:1b"), actor="test")
    save_alias(alias=ModelAlias(alias="house:latest", model="small:latest", tenant=house.acme), actor="test")
    other = create_tenant(slug="other", name="Other", actor="test", models=["tiny:1b"])

    assert house.ada.chat(model="house", stream=False).json()["model"] == "small:latest"
    assert house.caller(other).chat(model="House", stream=False).json()["model"] == "tiny:1b"


def test_without_an_upstream_every_call_is_refused(house):
    remove_upstream(upstream=Upstream.objects.get(), actor="test")

    eventually(lambda: house.ada.chat().status_code == 503)
    answer = house.ada.http.get("/v1/models")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_models"
    assert "retry-after" in answer.headers

    save_upstream(upstream=Upstream(name="sim", base_url=house.ollama.url), actor="test")
    eventually(lambda: house.ada.chat().status_code == 200)


def test_a_new_model_is_found_by_the_poll(house):
    house.ollama.install("fresh:latest")

    eventually(lambda: "fresh:latest" in house.ada.http.get("/api/tags").text)
    assert house.ada.chat(model="fresh").status_code == 200


def test_a_body_beyond_the_limit_is_refused_in_the_dialect(house):
    response = house.ada.http.post("/v1/chat/completions", content=b"x" * (20 * 2**20 + 1))

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
