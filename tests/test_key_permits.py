"""What a key is limited to besides models, and when its secrets stop working: through the gateway's port."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils.timezone import now

from audit.models import AuditEvent, RequestEvent
from budgets import refused_calls
from keys.endpoints import ALWAYS_OPEN, DOORS, ENDPOINTS
from keys.lifetimes import Grace
from keys.models import ApiKey, SecretUse
from keys.networks import holds, network_in
from keys.services import change_key, disable_key, enable_key, end_grace, revoke_key, rotate_key
from proxy.addresses import address_in
from proxy.urls import urlpatterns
from tests.conftest import Caller, House, eventually
from tests.gateway import Gateway
from tests.test_crashes import ready
from tests.test_stops import QUICK, Reading

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello"}], "stream": False}
PROMPT = {"model": "tiny:1b", "prompt": "hello", "stream": False}
INPUT = {"model": "tiny:1b", "input": "hello", "stream": False}
# One request for each door of the table: method, address and body.
KNOCKS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "/api/chat": ("POST", CHAT),
    "/v1/chat/completions": ("POST", CHAT),
    "/api/generate": ("POST", PROMPT),
    "/v1/completions": ("POST", PROMPT),
    "/api/embed": ("POST", {"model": "emb:latest", "input": "hello"}),
    "/api/embeddings": ("POST", {"model": "emb:latest", "prompt": "hello"}),
    "/v1/embeddings": ("POST", {"model": "emb:latest", "input": "hello"}),
    "/v1/responses": ("POST", INPUT),
    "/v1/messages": ("POST", CHAT | {"max_tokens": 10}),
    "/v1/messages/count_tokens": ("POST", {"model": "tiny:1b", "messages": CHAT["messages"]}),
    "/api/tags": ("GET", None),
    "/api/show": ("POST", {"model": "tiny:1b"}),
    "/api/ps": ("GET", None),
    "/v1/models": ("GET", None),
    "/v1/models/tiny:1b": ("GET", None),
    "/v1/usage": ("GET", None),
    "/v1/key": ("GET", None),
}


def knock(caller: Caller, door: str, **headers: str) -> Any:
    method, body = KNOCKS[door]
    return caller.http.request(method, door, json=body, headers=headers)


def scope_of(door: str) -> str | None:
    door = "/v1/models" if door.startswith("/v1/models/") else door
    return next((scope for scope, doors in DOORS.items() if door in doors), None)


def code_of(answer: Any) -> Any:
    return answer.json()["error"]["code"]


def test_every_door_for_models_is_in_the_table_or_open_to_every_key():
    told = {f"/{pattern.pattern}" for pattern in urlpatterns if str(pattern.pattern)}
    told -= {"/api/version", "/v1/models/<path:name>"}

    assert told == {door for doors in DOORS.values() for door in doors} | set(ALWAYS_OPEN)


@pytest.mark.parametrize("scope", ENDPOINTS)
def test_a_key_opens_the_doors_of_its_scopes_and_no_others(house: House, scope: str):
    caller = house.caller(scopes=[scope])

    statuses = {door: knock(caller, door).status_code for door in KNOCKS}

    assert statuses == {door: 200 if scope_of(door) in (scope, None) else 403 for door in KNOCKS}


@pytest.mark.parametrize(
    ("door", "shape"),
    [
        ("/api/chat", {"error": "This key may not use this endpoint."}),
        (
            "/v1/chat/completions",
            {
                "error": {
                    "message": "This key may not use this endpoint.",
                    "type": "permission_error",
                    "param": None,
                    "code": "endpoint_not_allowed",
                }
            },
        ),
        ("/v1/messages", {"type": "permission_error", "message": "This key may not use this endpoint."}),
    ],
)
def test_a_refused_endpoint_is_told_in_the_words_of_its_dialect(house: House, door: str, shape: Any):
    caller = house.caller(scopes=["embeddings"])

    refused = knock(caller, door)

    told = refused.json()
    assert refused.status_code == 403
    assert (told["error"] if door == "/v1/messages" else told) == shape
    assert refused.headers["X-Should-Retry"] == "false"
    assert house.ollama.calls == []


def test_a_refused_endpoint_and_address_can_be_looked_up_later(house: House):
    callers = [house.caller(scopes=["embeddings"]), house.caller(address_blocks=["192.0.2.0/24"])]
    for caller in callers:
        knock(caller, "/v1/chat/completions")

    def events() -> list[RequestEvent]:
        refused_calls.drain()
        return list(RequestEvent.objects.filter(key_id__in=[one.key.pk for one in callers]))

    found = eventually(lambda: len(told := events()) == 2 and told)
    assert {event.refusal for event in found} == {"endpoint_not_allowed", "address_not_allowed"}


def test_a_change_of_scopes_and_networks_holds_for_the_next_call(house: House):
    caller = house.caller()
    assert knock(caller, "/v1/chat/completions").status_code == 200

    change_key(key=caller.key, actor="test", scopes=["models"])
    assert code_of(knock(caller, "/v1/chat/completions")) == "endpoint_not_allowed"
    assert knock(caller, "/v1/models").status_code == 200
    change_key(key=caller.key, actor="test", scopes=None, address_blocks=["2001:db8::/32"])
    assert code_of(knock(caller, "/v1/chat/completions")) == "address_not_allowed"
    assert code_of(knock(caller, "/v1/key")) == "address_not_allowed"
    change_key(key=caller.key, actor="test", address_blocks=["127.0.0.0/8", "2001:db8::/32"])

    assert knock(caller, "/v1/chat/completions").status_code == 200


def test_whom_nobody_trusts_cannot_say_where_they_are(house: House):
    caller = house.caller(address_blocks=["192.0.2.0/24"])

    refused = knock(caller, "/v1/chat/completions", **{"X-Forwarded-For": "192.0.2.7"})

    assert code_of(refused) == "address_not_allowed"
    assert "127.0.0.1" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("192.0.2.7", 200),
        ("198.51.100.1, 192.0.2.7", 200),
        ("192.0.2.7, 198.51.100.1", 403),
        ("2001:db8:7::1", 200),
        ("2001:db9::1", 403),
        ("::ffff:192.0.2.7", 200),
        ("garbage", 403),
    ],
)
def test_behind_a_trusted_proxy_the_clients_own_address_counts(
    behind_a_proxy: Gateway, house: House, forwarded: str, status: int
):
    ready(behind_a_proxy.url, house.ada.secret)
    caller = house.caller(address_blocks=["192.0.2.0/24", "2001:db8::/32"])
    caller.http.base_url = behind_a_proxy.url

    answer = knock(caller, "/v1/chat/completions", **{"X-Forwarded-For": forwarded})

    assert answer.status_code == status


@pytest.fixture(scope="module")
def behind_a_proxy(django_db_setup: None) -> Any:
    with Gateway(workers=1, TRUSTED_PROXIES="127.0.0.0/8") as running:
        yield running


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        (" 192.0.2.7 ", "192.0.2.7/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_is_stored_as_postgresql_writes_it(house: House, written: str, stored: str):
    key = house.caller(address_blocks=[written]).key

    assert ApiKey.objects.get(pk=key.pk).address_blocks == [stored]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("192.0.2.7/24", "Is 192.0.2.0/24 meant"),
        ("192.0.2.0/33", "no network"),
        ("example.org", "no network"),
        ("", "no network"),
    ],
)
def test_what_is_no_network_is_refused_with_what_may_be_meant(written: str, told: str):
    with pytest.raises(ValidationError, match=re.escape(told)):
        network_in(written)


@pytest.mark.parametrize(
    ("blocks", "address", "inside"),
    [
        (("10.0.0.0/8",), "10.255.255.255", True),
        (("10.0.0.0/8",), "11.0.0.0", False),
        (("10.0.0.0/8", "2001:db8::/48"), "2001:db8:0:ffff::1", True),
        (("0.0.0.0/0",), "2001:db8::1", False),
        ((), "10.0.0.1", False),
    ],
)
def test_whether_a_block_holds_an_address(blocks: tuple[str, ...], address: str, inside: bool):
    found = address_in(address)

    assert found is not None
    assert holds(blocks, found) is inside


def test_a_disabled_key_is_refused_as_an_unknown_one_and_works_again_when_enabled(house: House):
    caller = house.caller()
    assert caller.chat().status_code == 200

    assert disable_key(key=caller.key, actor="olga", reason="odd calls")
    refused = caller.chat()
    unknown = caller.http.post("/api/chat", json=CHAT, headers={"Authorization": "Bearer tg_nonsense"})
    assert enable_key(key=caller.key, actor="olga", reason="explained")

    assert (refused.status_code, refused.content) == (401, unknown.content)
    assert caller.chat().status_code == 200
    told = AuditEvent.objects.filter(subject=str(caller.key.pk), actor="olga").order_by("id")
    assert [(event.action, event.reason) for event in told] == [
        ("key.disabled", "odd calls"),
        ("key.enabled", "explained"),
    ]


def with_secret(house: House, caller: Caller, secret: str) -> Any:
    return caller.http.post("/api/chat", json=CHAT, headers={"Authorization": f"Bearer {secret}"})


def test_during_a_grace_both_secrets_work_and_its_end_refuses_the_old_one(house: House):
    caller = house.caller()

    _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.HOUR)
    both = [with_secret(house, caller, secret).status_code for secret in (caller.secret, new)]
    assert end_grace(key=caller.key, actor="olga")
    after = [with_secret(house, caller, secret).status_code for secret in (caller.secret, new)]

    assert (both, after) == ([200, 200], [401, 200])
    assert not end_grace(key=caller.key, actor="olga")
    assert {entry.key_id for entry in house.booked(3)} == {caller.key.pk}


def test_without_a_grace_the_old_secret_is_refused_at_once(house: House):
    caller = house.caller()
    assert caller.chat().status_code == 200

    _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.NOW)

    assert caller.chat().status_code == 401
    assert with_secret(house, caller, new).status_code == 200


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        pytest.param(True, [401, 200, 200], id="the second one was used, so the first one goes"),
        pytest.param(False, [200, 401, 200], id="nobody has seen the second one"),
    ],
)
def test_during_a_grace_a_rotation_leaves_two_secrets_that_work(
    house: House, used: bool, expected: list[int]
):
    caller = house.caller()

    _, second = rotate_key(key=caller.key, actor="olga", grace=Grace.WEEK)
    if used:
        assert with_secret(house, caller, second).status_code == 200
        eventually(lambda: SecretUse.objects.filter(secret=second[3:15]).exists())
    _, third = rotate_key(key=caller.key, actor="olga", grace=Grace.WEEK)
    statuses = [with_secret(house, caller, secret).status_code for secret in (caller.secret, second, third)]

    assert statuses == expected


@pytest.mark.parametrize("knocks", ["/api/chat", "/v1/models"])
def test_the_first_use_of_the_new_secret_ends_the_old_one_soon(house: House, knocks: str):
    caller = house.caller()
    _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.FIRST_USE)
    # However often the old one is used, it is the new one that counts.
    assert [caller.chat().status_code for _ in range(3)] == [200] * 3

    method, body = KNOCKS[knocks]
    used = caller.http.request(method, knocks, json=body, headers={"Authorization": f"Bearer {new}"})

    assert used.status_code == 200
    eventually(lambda: caller.chat().status_code == 401)
    assert with_secret(house, caller, new).status_code == 200
    [event] = AuditEvent.objects.filter(action="key.secrets_retired")
    assert (event.actor, event.details["public_ids"]) == ("gateway", [caller.secret[3:15]])


def test_a_stream_of_a_succeeded_secret_goes_on_and_ends_when_its_key_is_revoked(house: House):
    with Gateway(workers=1, **QUICK) as gateway:
        ready(gateway.url, house.ada.secret)
        caller = house.caller()
        caller.http.base_url = gateway.url
        house.ollama.settings.piece_delay = 0.05
        house.ollama.fault("pieces-3000")
        reading = Reading(caller.http, "/api/chat")
        eventually(lambda: reading.received)
        _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.FIRST_USE)
        models = caller.http.get("/v1/models", headers={"Authorization": f"Bearer {new}"})
        assert models.status_code == 200
        eventually(lambda: caller.http.get("/v1/models").status_code == 401)

        # More than two heartbeats later it still brings something.
        length = len(reading.received)
        eventually(lambda: len(reading.received) > length + 3000)
        revoke_key(key=caller.key, actor="olga", reason="lost")

        assert b'"done":true' not in reading.ended()


def test_when_and_where_each_secret_was_last_used_is_noted(house: House):
    caller = house.caller()
    _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.HOUR)

    caller.chat()
    with_secret(house, caller, new)

    eventually(lambda: SecretUse.objects.filter(secret__key=caller.key).count() == 2)
    use = SecretUse.objects.get(secret=caller.secret[3:15])
    assert (use.model, use.address_block) == ("tiny:1b", "127.0.0.0/24")
    assert now() - use.used_at < timedelta(minutes=1)


def test_noting_a_use_changes_no_generation(house: House):
    from tenants.models import Generation

    caller = house.caller()
    before = dict(Generation.objects.values_list("subject", "number"))

    caller.chat()
    eventually(lambda: SecretUse.objects.filter(secret__key=caller.key).exists())

    assert dict(Generation.objects.values_list("subject", "number")) == before


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        (None, False),
        (timedelta(days=7, minutes=1), False),
        (timedelta(days=6, hours=23), True),
        (timedelta(minutes=5), True),
    ],
)
def test_in_its_last_week_a_key_is_told_of_its_end(house: House, ends: timedelta | None, told: bool):
    expires_at = ends and (now() + ends).replace(microsecond=0)
    caller = house.caller(expires_at=expires_at)

    answers = [caller.chat(stream=stream) for stream in (True, False)] + [caller.http.get("/v1/models")]

    expected = expires_at and expires_at.isoformat().replace("+00:00", "Z")
    for answer in answers:
        assert answer.headers.get("X-Tollgate-Key-Expires") == (expected if told else None)


def test_in_its_grace_an_old_secret_is_told_when_it_ends(house: House):
    caller = house.caller()
    _, new = rotate_key(key=caller.key, actor="olga", grace=Grace.DAY)

    old, current = caller.chat(), with_secret(house, caller, new)

    retires_at = caller.key.secrets.get(public_id=caller.secret[3:15]).retires_at
    assert retires_at is not None
    told = datetime.fromisoformat(old.headers["X-Tollgate-Key-Expires"])
    assert timedelta(0) <= retires_at - told < timedelta(milliseconds=1)
    assert abs(retires_at - now() - timedelta(days=1)) < timedelta(minutes=5)
    assert "X-Tollgate-Key-Expires" not in current.headers


def test_a_key_is_told_what_it_is_limited_to(house: House):
    caller = house.caller(scopes=["models", "chat"], address_blocks=["127.0.0.0/8"])

    told = caller.http.get("/v1/key").json()

    assert (told["scopes"], told["address_blocks"]) == (["chat", "models"], ["127.0.0.0/8"])
    assert told["endpoints"] == [*DOORS["chat"], *DOORS["models"]]
    assert house.ada.http.get("/v1/key").json()["address_blocks"] is None
