"""What a policy leaves of the options of a call, and what of it Ollama gets to see."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ollama as official
import openai
import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets.services import set_budget
from keys import services
from keys.callers import Caller, load
from keys.models import ApiKey, PolicyRule
from keys.policies import (
    FEATURES,
    LOAD_OPTIONS,
    OPTIONS,
    UNSAID,
    WRITES_SYSTEM,
    Policy,
    Rule,
    rule_of,
    together,
)
from proxy.calls import Call
from proxy.clamping import described, under
from proxy.dialects import anthropic, ollama, responses
from proxy.dialects import openai as openai_dialect
from proxy.exceptions import BadRequest, OptionRefused
from proxy.simulator import go_json, native
from tenants import generations, snapshots
from tenants.models import User
from tenants.services import create_tenant
from tests.conftest import House, eventually

MESSAGES: list[Any] = [{"role": "user", "content": "How is the weather?"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


@dataclass
class Says:
    """What one of platform, tenant and key says."""

    option: str
    allowed: bool | None = None
    minimum: int | None = None
    maximum: int | None = None
    default_value: int | None = None


def chat(**fields: Any) -> Call:
    return ollama.parse_chat(json.dumps({"model": "tiny", "messages": MESSAGES} | fields).encode())


def sent(policy: Policy, call: Call) -> dict[str, Any]:
    """The body that Ollama gets, without what the client has no say in."""
    body: dict[str, Any] = json.loads(under(policy, call).upstream_body("tiny:latest", 7))
    return body


# What platform, tenant and key say together


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([Says("num_ctx", allowed=True)], (True, 256, 2**20, None), id="one allows it"),
        pytest.param(
            [Says("num_ctx", allowed=False), Says("num_ctx", allowed=True)],
            (False, 256, 2**20, None),
            id="one that forbids is enough, however far away",
        ),
        pytest.param(
            [Says("num_ctx", maximum=4096), Says("num_ctx", maximum=8192)],
            (False, 256, 4096, None),
            id="the smaller maximum wins, and no maximum gives leave",
        ),
        pytest.param(
            [Says("num_ctx", minimum=2048), Says("num_ctx", minimum=1024)],
            (False, 2048, 2**20, None),
            id="the larger minimum wins",
        ),
        pytest.param(
            [Says("num_ctx", maximum=1024), Says("num_ctx", minimum=2048)],
            (False, 1024, 1024, None),
            id="a maximum goes before a minimum",
        ),
        pytest.param(
            [
                Says("num_ctx", default_value=2048),
                Says("num_ctx"),
                Says("num_ctx", default_value=512),
            ],
            (False, 256, 2**20, 512),
            id="the nearest default counts",
        ),
        pytest.param(
            [Says("num_ctx", maximum=4096), Says("num_ctx", default_value=16_384)],
            (False, 256, 4096, 4096),
            id="a default stays within what others say",
        ),
        pytest.param([Says("raw", allowed=False)], (False, None, None, None), id="a feature has no numbers"),
    ],
)
def test_the_stricter_wins(said: list[Says], expected: tuple[Any, ...]) -> None:
    assert together(said) == {said[0].option: Rule(*expected)}


def test_without_a_word_clients_choose_nothing_that_is_shared() -> None:
    assert together([]) == {}
    assert {name for name in OPTIONS if not UNSAID[name].allowed} == {"keep_alive", *LOAD_OPTIONS}


def test_who_may_write_no_system_text_has_no_other_way_to_write_one() -> None:
    policy = together([Says("system", allowed=False), Says("raw", allowed=True)])

    assert not any(policy[name].allowed for name in ("system", *WRITES_SYSTEM))


# What becomes of a call

ALLOWED = Says("num_ctx", allowed=True)


@pytest.mark.parametrize(
    ("rule", "asked", "goes_up", "told"),
    [
        pytest.param(None, {"options": {"num_ctx": 4096}}, {}, "num_ctx=dropped", id="nobody says"),
        pytest.param(ALLOWED, {"options": {"num_ctx": 4096}}, {"num_ctx": 4096}, "", id="allowed"),
        pytest.param(
            Says("num_ctx", allowed=True, maximum=8192),
            {"options": {"num_ctx": 262_144}},
            {"num_ctx": 8192},
            "num_ctx=8192",
            id="a full context",
        ),
        pytest.param(
            Says("num_ctx", allowed=True, minimum=2048),
            {"options": {"num_ctx": -5}},
            {"num_ctx": 2048},
            "num_ctx=2048",
            id="less than nothing",
        ),
        pytest.param(
            Says("num_ctx", allowed=True, maximum=8192),
            {"options": {"num_ctx": 2**62}},
            {"num_ctx": 8192},
            "num_ctx=8192",
            id="a huge number",
        ),
        pytest.param(ALLOWED, {"options": {"num_ctx": 4096.9}}, {"num_ctx": 4096}, "", id="a fraction"),
        pytest.param(Says("num_ctx", default_value=4096), {}, {"num_ctx": 4096}, "", id="a default"),
        pytest.param(
            Says("num_ctx", default_value=4096),
            {"options": {"num_ctx": 8192}},
            {"num_ctx": 4096},
            "num_ctx=4096",
            id="a default in place of what may not be asked",
        ),
        pytest.param(
            Says("num_gpu", allowed=True, minimum=10),
            {"options": {"num_gpu": 0}},
            {"num_gpu": 10},
            "num_gpu=10",
            id="nobody puts the model on the processor",
        ),
        pytest.param(
            Says("num_gpu", allowed=True, default_value=33),
            {"options": {"num_gpu": -1}},
            {"num_gpu": 33},
            "num_gpu=33",
            id="as many as Ollama likes",
        ),
        pytest.param(
            Says("use_mmap", allowed=True),
            {"options": {"use_mmap": False}},
            {"use_mmap": False},
            "",
            id="a flag",
        ),
        pytest.param(
            Says("use_mmap", default_value=1),
            {"options": {"use_mmap": False}},
            {"use_mmap": True},
            "use_mmap=true",
            id="a flag that is set for all",
        ),
    ],
)
def test_options_of_the_loaded_model(
    rule: Says | None, asked: dict[str, Any], goes_up: dict[str, Any], told: str
) -> None:
    call = under(together([rule] if rule else []), chat(**asked))

    body = json.loads(call.upstream_body("tiny:latest", 7))
    assert body["options"] == goes_up | {"num_predict": 7}
    assert described(call.clamped) == told
    assert call.num_ctx == goes_up.get("num_ctx")


@pytest.mark.parametrize(
    ("asked", "goes_up"),
    [
        (-1, 300), ("-1m", 300), (10**9, 300), ("24h", 300), (0, 60), ("0", 60), ("1ns", 60), (1e-9, 60),
        (120, 120), ("2m", 120), ("1m30s", 90), (90.5, 91), ("-0s", 60),
    ],
)  # fmt: skip
def test_keep_alive_is_clamped_in_every_spelling(asked: Any, goes_up: int) -> None:
    policy = together([Says("keep_alive", allowed=True, maximum=300)])

    call = under(policy, chat(keep_alive=asked))

    assert json.loads(call.upstream_body("tiny", 7))["keep_alive"] == goes_up
    assert ("keep_alive" in call.clamped) == (asked not in (120, "2m", "1m30s"))


@pytest.mark.parametrize(
    "asked", ["5", "soon", "1h 5m", "1e3s", "\u0665m", "5m" * 40, "", "+", ".s", "1m-1m"]
)
def test_what_is_no_duration_is_refused(asked: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(keep_alive=asked)

    assert refused.value.param == "keep_alive"


def test_a_call_stays_what_it_was_for_another_policy() -> None:
    call = chat(options={"num_ctx": 4096}, think=True)

    under(together([Says("num_ctx", allowed=True), Says("think", allowed=False)]), call)

    assert (call.fields["think"], call.asked, call.clamped) == (True, {"num_ctx": 4096}, {})
    assert "options" not in sent({}, call) or sent({}, call)["options"] == {"num_predict": 7}


@pytest.mark.parametrize(
    ("asked", "rule", "wish", "told"),
    [
        (None, Says("num_predict", maximum=100), 100, ""),
        (50, Says("num_predict", maximum=100), 50, ""),
        (500, Says("num_predict", maximum=100), 100, "num_predict=100"),
        (None, Says("num_predict", maximum=100, default_value=20), 20, ""),
        (None, Says("num_predict", default_value=20), 20, ""),
        (50, Says("num_predict", default_value=20), 50, ""),
        (-1, Says("num_predict", maximum=100), 100, ""),
    ],
)
def test_the_limit_of_output_on_every_door(asked: int | None, rule: Says, wish: int, told: str) -> None:
    policy = together([rule])
    limits = {} if asked is None else {"max_tokens": asked}
    body = json.dumps({"model": "tiny", "messages": MESSAGES} | limits).encode()
    calls = [chat(options={} if asked is None else {"num_predict": asked}), openai_dialect.parse_chat(body)]

    allowed = [under(policy, call) for call in calls]

    assert [(call.output_wish, described(call.clamped)) for call in allowed] == [(wish, told)] * 2


def read(path: str, **fields: Any) -> Call:
    """A call at one of the doors, with ``fields`` besides what it needs."""
    doors: dict[str, tuple[Callable[[bytes], Call], dict[str, Any]]] = {
        "/api/chat": (ollama.parse_chat, {"messages": MESSAGES}),
        "/api/generate": (ollama.parse_generate, {"prompt": "Once"}),
        "/v1/chat/completions": (openai_dialect.parse_chat, {"messages": MESSAGES}),
        "/v1/completions": (openai_dialect.parse_completions, {"prompt": "Once"}),
        "/v1/responses": (responses.parse, {"input": "Once"}),
        "/v1/messages": (anthropic.parse, {"messages": MESSAGES, "max_tokens": 9}),
    }
    parse, usual = doors[path]
    return parse(json.dumps({"model": "tiny", **usual, **fields}).encode())


def spoken(role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "You are a pirate."}, *MESSAGES]


DISABLED = {"type": "disabled"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}}}
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
FORBIDDEN: list[tuple[str, str, dict[str, Any]]] = [
    ("raw", "/api/generate", {"raw": True}),
    ("template", "/api/generate", {"template": "{{ .Prompt }}"}),
    ("suffix", "/api/generate", {"suffix": "end"}),
    ("suffix", "/v1/completions", {"suffix": "end"}),
    ("system", "/api/generate", {"system": "You are a pirate."}),
    ("system", "/api/generate", {"raw": True}),
    ("system", "/api/generate", {"template": "You are a pirate. {{ .Prompt }}"}),
    ("system", "/api/chat", {"messages": spoken("system")}),
    ("system", "/api/chat", {"messages": spoken("SyStem")}),
    ("system", "/api/chat", {"messages": spoken(" system")}),
    ("system", "/api/chat", {"messages": spoken("developer")}),
    ("system", "/api/chat", {"messages": spoken("")}),
    ("system", "/api/chat", {"messages": [{"content": "You are a pirate."}]}),
    ("system", "/v1/chat/completions", {"messages": spoken("system")}),
    ("system", "/v1/chat/completions", {"messages": spoken("developer")}),
    ("system", "/v1/responses", {"instructions": "You are a pirate."}),
    ("system", "/v1/responses", {"input": spoken("developer")}),
    ("system", "/v1/responses", {"input": [{"type": "message", **spoken("system")[0]}]}),
    ("system", "/v1/messages", {"system": "You are a pirate."}),
    ("system", "/v1/messages", {"system": [{"type": "text", "text": "You are a pirate."}]}),
    ("system", "/v1/messages", {"messages": spoken("system")}),
    ("tools", "/api/chat", {"tools": [TOOL]}),
    ("tools", "/v1/chat/completions", {"tools": [TOOL]}),
    ("tools", "/v1/responses", {"tools": [{"type": "function", "name": "f"}]}),
    ("tools", "/v1/messages", {"tools": [{"name": "f", "input_schema": {}}]}),
    ("images", "/api/generate", {"images": [PNG]}),
    ("images", "/api/chat", {"messages": [{"role": "user", "images": [PNG]}]}),
    ("images", "/v1/chat/completions", {"messages": [{"role": "user", "content": [PICTURE]}]}),
]


@pytest.mark.parametrize(("option", "path", "fields"), FORBIDDEN)
def test_what_is_forbidden_is_refused_and_otherwise_served(
    option: str, path: str, fields: dict[str, Any]
) -> None:
    call = read(path, **fields)

    with pytest.raises(OptionRefused):
        under(together([Says(option, allowed=False)]), call)
    assert under(together([Says(option, allowed=True)]), call).fields == call.fields
    # The same door without the field is open.
    under(together([Says(option, allowed=False)]), read(path))


@pytest.mark.parametrize(
    ("path", "asked", "off"),
    [
        ("/api/chat", {"think": "high"}, {"think": False}),
        ("/api/generate", {"think": True}, {"think": False}),
        ("/v1/chat/completions", {"reasoning": {"effort": "high"}}, {"reasoning_effort": "none"}),
        ("/v1/chat/completions", {"reasoning_effort": "max"}, {"reasoning_effort": "none"}),
        ("/v1/responses", {"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "none"}}),
        (
            "/v1/messages",
            {"thinking": {"type": "enabled", "budget_tokens": 9}},
            {"thinking": DISABLED},
        ),
        ("/v1/messages", {"output_config": {"effort": "max"}}, {"thinking": DISABLED}),
    ],
)
def test_thinking_is_switched_off_for_who_asks_and_who_does_not(
    path: str, asked: dict[str, Any], off: dict[str, Any]
) -> None:
    policy = together([Says("think", allowed=False)])

    told, silent = under(policy, read(path, **asked)), under(policy, read(path))

    assert told.fields == silent.fields == read(path).fields | off
    assert (described(told.clamped), described(silent.clamped)) == ("think=false", "")


def test_a_context_that_clients_send_back_by_themselves_is_dropped_and_not_held() -> None:
    call = read("/api/generate", context=[1, 2, 3])

    allowed = under(together([Says("context", allowed=False)]), call)

    assert "context" not in allowed.fields
    assert (allowed.input_bytes, allowed.context_ids) == (read("/api/generate").input_bytes, 0)
    assert described(allowed.clamped) == "context=dropped"


# No body gets an option past its policy

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 10_000),
    st.floats(allow_nan=False, allow_infinity=False),
)
JUNK = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=6), st.lists(NUMBERS, max_size=2))
DURATIONS = st.from_regex(r"\A[-+]?(0|([0-9]{1,12}(\.[0-9]{0,3})?(ns|us|ms|s|m|h)){1,2})\Z")
NAMES = st.sampled_from(
    [
        *LOAD_OPTIONS,
        "num_predict",
        "seed",
        "Num_Ctx",
        "NUM_CTX",
        "num_ctx ",
        "keep_alive",
        "low_vram",
    ]
)
SAYINGS = st.lists(
    st.builds(
        Says,
        option=st.sampled_from(sorted(OPTIONS)),
        allowed=st.sampled_from([None, True, False]),
        minimum=st.none() | st.integers(60, 1024),
        maximum=st.none() | st.integers(60, 1024),
        default_value=st.none() | st.integers(60, 1024),
    ),
    max_size=8,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "options": st.fixed_dictionaries(
            {}, optional={**dict.fromkeys(LOAD_OPTIONS, NUMBERS), "use_mmap": st.booleans()}
        )
        | st.dictionaries(NAMES, JUNK, max_size=6),
        "keep_alive": NUMBERS | DURATIONS,
        "num_ctx": JUNK,
        "raw": st.booleans(),
        "template": st.text(max_size=4),
        "system": st.text(max_size=4),
        "suffix": st.text(max_size=4),
        "context": st.lists(st.integers(0, 9), max_size=3),
        "images": st.sampled_from([[], [PNG], None]),
        "think": st.sampled_from([None, True, False, "high"]),
        "tools": st.sampled_from([[], [TOOL], None]),
    },
)
SMUGGLED = st.dictionaries(
    st.sampled_from(
        ["Options", "OPTIONS", "Keep_Alive", "\u212aeep_alive", "keep_alive", "Raw", "thin\u212a"]
    ),
    JUNK | st.dictionaries(NAMES, JUNK, max_size=2),
    max_size=1,
)
# As Ollama itself reads them, independently of the gateway.
STRUCTS = {"/api/chat": native._CHAT, "/api/generate": native._GENERATE}


@given(path=st.sampled_from(sorted(STRUCTS)), said=SAYINGS, extra=BODIES, smuggled=SMUGGLED)
def test_no_body_makes_ollama_read_what_the_policy_does_not_let_through(
    path: str, said: list[Says], extra: dict[str, Any], smuggled: dict[str, Any]
) -> None:
    policy = together(said)
    try:
        body = under(policy, read(path, **(extra | smuggled))).upstream_body("tiny:latest", 7)
    except BadRequest:
        return

    seen = go_json.read(STRUCTS[path], body)
    options = native.read_options(seen.get("options"))
    options |= {"keep_alive": seen["keep_alive"]} if "keep_alive" in seen else {}

    assert options.pop("num_predict") == 7
    for name in ("keep_alive", *LOAD_OPTIONS):
        rule = rule_of(policy, name)
        if name not in options:
            assert rule.default is None
            continue
        value = int(options[name])
        assert rule.minimum is not None
        assert rule.maximum is not None
        assert rule.minimum <= value <= rule.maximum
        assert rule.allowed or value == (bool(rule.default) if name == "use_mmap" else rule.default)
    for name in FEATURES:
        if not rule_of(policy, name).allowed:
            assert not seen.get(name)


# Doors on which Ollama reads none of what a model is loaded with.
V1_DOORS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
V1_EXTRAS = st.dictionaries(
    st.sampled_from(
        ["options", "Options", "keep_alive", "Keep_Alive", *OPTIONS, "instructions", "reasoning_effort", "n"]
    ),
    JUNK | st.dictionaries(NAMES, JUNK, max_size=2) | st.sampled_from([[TOOL], "none", "high"]),
    max_size=4,
)


@given(path=st.sampled_from(V1_DOORS), said=SAYINGS, extra=V1_EXTRAS)
def test_no_body_on_v1_brings_an_option_or_what_is_forbidden(
    path: str, said: list[Says], extra: dict[str, Any]
) -> None:
    policy = together(said)
    try:
        body = sent(policy, read(path, **extra))
    except BadRequest:
        return

    assert not body.keys() & {"options", "keep_alive", "context", "raw", "template", "think", *LOAD_OPTIONS}
    for name, fields in (
        ("system", ("system", "instructions")),
        ("suffix", ("suffix",)),
        ("tools", ("tools",)),
    ):
        if not rule_of(policy, name).allowed:
            assert not any(body.get(field) for field in fields)
    if not rule_of(policy, "think").allowed:
        assert body.get("reasoning_effort", "none") == "none"


@given(
    path=st.sampled_from(["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"]),
    role=st.sampled_from(["SYSTEM", "system ", "\u017fystem", "developer", "Tool", "User", "model"])
    | st.text(),
)
def test_no_role_but_those_of_a_conversation_gets_through_where_system_is_forbidden(
    path: str, role: str
) -> None:
    name = "input" if path == "/v1/responses" else "messages"
    try:
        body = sent(together([Says("system", allowed=False)]), read(path, **{name: spoken(role)}))
    except BadRequest:
        assert role not in ("user", "assistant", "tool")
        return

    assert body[name][0]["role"].lower() in ("user", "assistant", "tool")


# Through the door


def set_rule(house: House, option: str, **says: Any) -> None:
    services.set_policy(option=option, tenant=house.acme, actor="test", **says)


@pytest.fixture
def ollama_client(house: House) -> Iterator[official.Client]:
    client = official.Client(host=house.gateway.url, headers={"Authorization": f"Bearer {house.ada.secret}"})
    yield client
    client._client.close()


def test_the_official_client_is_clamped_and_told_so(house: House, ollama_client: official.Client) -> None:
    set_rule(house, "num_ctx", allowed=True, maximum=8192)
    set_rule(house, "keep_alive", allowed=True, maximum=300)

    answer = ollama_client.chat(
        "tiny:1b", MESSAGES, options={"num_ctx": 131_072, "num_gpu": 0}, keep_alive=-1
    )
    [truth] = house.ollama.calls
    raw = house.ada.chat(options={"num_ctx": 131_072, "num_gpu": 0}, keep_alive=-1)

    assert answer.message.content == truth.text
    assert truth.fields["keep_alive"] == 300
    assert truth.fields["options"]["num_ctx"] == 8192
    assert "num_gpu" not in truth.fields["options"]
    assert raw.headers["X-Tollgate-Clamped"] == "keep_alive=300, num_ctx=8192, num_gpu=dropped"


def test_a_rule_survives_the_copy_in_redis(house: House) -> None:
    set_rule(house, "num_ctx", allowed=True, maximum=8192, default_value=4096)
    set_rule(house, "system", allowed=False)
    caller = load(house.ada.key.secrets.get().public_id)
    assert caller is not None

    asyncio.run(snapshots.keep("caller", caller.public_id, caller))
    kept = asyncio.run(snapshots.kept("caller", caller.public_id, Caller))

    assert kept == caller
    assert caller.policy["num_ctx"] == Rule(True, 256, 8192, 4096)


def test_every_native_door_gets_defaults_and_no_v1_door_gets_what_ollama_would_ignore(house: House) -> None:
    set_rule(house, "num_ctx", default_value=2048)
    set_rule(house, "keep_alive", default_value=600)
    native_doors: dict[str, dict[str, Any]] = {
        "/api/chat": {"model": "tiny:1b", "messages": MESSAGES},
        "/api/generate": {"model": "tiny:1b", "prompt": "Once"},
        "/api/embed": {"model": "emb:latest", "input": "Once"},
        "/api/embeddings": {"model": "emb:latest", "prompt": "Once"},
    }
    for path, body in native_doors.items():
        answer = house.ada.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        truth = house.ollama.calls[-1]
        assert (truth.fields["options"]["num_ctx"], truth.fields["keep_alive"]) == (2048, 600), path
        assert "X-Tollgate-Clamped" not in answer.headers
    v1 = house.ada.http.post("/v1/chat/completions", json={"model": "tiny:1b", "messages": MESSAGES})

    assert v1.status_code == 200
    assert not {"options", "keep_alive", "num_ctx"} & set(json.loads(house.ollama.calls[-1].body))


def test_a_smaller_context_is_all_that_is_held_of_a_long_prompt(house: House) -> None:
    long = "word " * 2000
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=1500, actor="test")
    refused = house.ada.chat(long, options={"num_predict": 20})
    set_rule(house, "num_ctx", default_value=1024)
    admitted = house.ada.chat(long, options={"num_predict": 20})

    [truth] = house.ollama.calls
    assert (refused.status_code, admitted.status_code) == (429, 200)
    assert truth.fields["options"]["num_ctx"] == 1024
    assert truth.prompt_tokens <= 1024
    assert house.booked()[0].exact


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/api/chat", {"messages": spoken("system")}, str),
        ("/v1/chat/completions", {"messages": spoken("system")}, dict),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9, "system": "x"}, dict),
    ],
)
def test_a_refusal_is_told_in_the_dialect_and_takes_force_at_once(
    house: House, path: str, body: dict[str, Any], shape: type
) -> None:
    body = {"model": "tiny:1b"} | body
    assert house.ada.http.post(path, json=body).status_code == 200
    set_rule(house, "system", allowed=False)
    refused = house.ada.http.post(path, json=body)
    services.set_policy(option="system", tenant=house.acme, actor="test", allowed=None)
    again = house.ada.http.post(path, json=body)

    assert (refused.status_code, again.status_code) == (403, 200)
    error: Any = refused.json()["error"]
    assert type(error) is shape
    assert "may not use" in str(error)
    assert refused.headers["X-Should-Retry"] == "false"
    assert len(house.ollama.calls) == 2


def test_the_official_openai_client_learns_which_field(house: House) -> None:
    set_rule(house, "tools", allowed=False)
    client = openai.OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.ada.secret, max_retries=0)

    with client, pytest.raises(openai.PermissionDeniedError) as refused:
        client.chat.completions.create(model="tiny:1b", messages=MESSAGES, tools=[TOOL])  # type: ignore[list-item]

    assert (refused.value.code, refused.value.param) == ("option_not_allowed", "tools")
    assert house.ollama.calls == []


def test_nobody_unloads_a_shared_model_whatever_the_policy(house: House) -> None:
    set_rule(house, "keep_alive", allowed=True)

    refused = house.ada.http.post("/api/generate", json={"model": "tiny:1b", "keep_alive": 0})
    served = house.ada.chat(keep_alive=0)

    assert (refused.status_code, served.status_code) == (400, 200)
    assert [call.fields["keep_alive"] for call in house.ollama.calls] == [60]
    assert served.headers["X-Tollgate-Clamped"] == "keep_alive=60"


def test_a_rule_typed_as_sql_is_in_force_for_the_next_call_of_its_key_alone(house: House) -> None:
    eve = house.caller()
    house.ada.chat()
    eve.chat()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO keys_policyrule (id, tenant_id, key_id, option, default_value) "
            "VALUES (gen_random_uuid(), %s, %s, 'num_ctx', 4096)",
            [house.acme.pk, house.ada.key.pk],
        )
    eventually(lambda: generations.in_force(house.acme.pk))

    house.ada.chat()
    eve.chat()

    sent_up = [call.fields["options"].get("num_ctx") for call in house.ollama.calls]
    assert sent_up == [None, None, 4096, None]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": MESSAGES, "think": True}),
        ("/api/generate", {"prompt": "Once"}),
        ("/v1/chat/completions", {"messages": MESSAGES, "reasoning_effort": "high"}),
        ("/v1/responses", {"input": "Once", "reasoning": {"effort": "high"}}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50}),
    ],
)
def test_a_model_that_thinks_by_itself_does_not_where_thinking_is_forbidden(
    house: House, path: str, body: dict[str, Any]
) -> None:
    thought = house.ada.http.post(path, json={"model": "thinker:latest"} | body)
    set_rule(house, "think", allowed=False)
    plain = house.ada.http.post(path, json={"model": "thinker:latest"} | body)

    assert (thought.status_code, plain.status_code) == (200, 200)
    before, after = house.ollama.calls
    assert before.output_tokens > after.output_tokens > 0


# Rules are set, shown and taken back


def told(command: str, *arguments: str) -> Any:
    output = io.StringIO()
    call_command(command, *arguments, "--json", stdout=output)
    return json.loads(output.getvalue())


@pytest.fixture
def key(db: None) -> ApiKey:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    return services.issue_key(tenant=acme, label="nightly", actor="test")[0]


def test_what_is_not_named_stays_and_what_says_nothing_goes(key: ApiKey) -> None:
    services.set_policy(option="num_ctx", key=key, actor="ada", allowed=True, maximum=8192)
    services.set_policy(option="num_ctx", key=key, actor="ada", maximum=4096)
    rule = PolicyRule.objects.get()
    services.set_policy(option="num_ctx", key=key, actor="ada", maximum=None, allowed=None)

    assert (rule.tenant, rule.key, rule.allowed, rule.maximum) == (key.tenant, key, True, 4096)
    assert not PolicyRule.objects.exists()
    events = AuditEvent.objects.filter(actor="ada").order_by("id")
    assert [event.action for event in events] == ["policy.set", "policy.set", "policy.removed"]
    assert events[1].details["before"]["maximum"] == 8192
    assert events[1].details["after"]["maximum"] == 4096


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("num_ctx", {}),
        ("bananas", {"allowed": True}),
        ("num_ctx", {"maximum": 0}),
        ("num_ctx", {"maximum": 2**40}),
        ("num_ctx", {"minimum": 4096, "maximum": 2048}),
        ("keep_alive", {"default_value": 0}),
        ("keep_alive", {"default_value": -1}),
        ("raw", {"maximum": 5}),
        ("use_mmap", {"default_value": 2}),
        ("num_predict", {"allowed": False}),
        ("num_predict", {"minimum": 10}),
    ],
)
def test_a_rule_says_what_its_option_can(key: ApiKey, option: str, says: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        services.set_policy(option=option, key=key, actor="ada", **says)
    with pytest.raises(IntegrityError), transaction.atomic():
        PolicyRule.objects.create(tenant=key.tenant, key=key, option=option, **says)
    assert not AuditEvent.objects.filter(actor="ada").exists()


def test_the_commands_set_and_show_what_holds_for_a_key(key: ApiKey) -> None:
    public_id = key.secrets.get().public_id
    of_platform = told("set_policy", "--platform", "--option", "num_ctx", "--maximum", "8192")
    of_tenant = told("set_policy", "--tenant", "acme", "--option", "num_ctx", "--allowed", "yes")
    told("set_policy", "--key", public_id, "--option", "num_ctx", "--default", "16384")
    told("set_policy", "--key", str(key.pk), "--option", "raw", "--allowed", "no")

    shown = told("show_policy", public_id)
    output = io.StringIO()
    call_command("show_policy", public_id, stdout=output)

    assert (of_platform["tenant"], of_platform["maximum"], of_tenant["tenant"]) == (None, 8192, "acme")
    assert shown["options"]["num_ctx"] == {
        "allowed": True, "minimum": 256, "maximum": 8192, "default": 8192, "said": True,
    }  # fmt: skip
    assert not shown["options"]["raw"]["allowed"]
    assert shown["options"].keys() == OPTIONS.keys()
    lines = output.getvalue().splitlines()
    assert lines[0].split(maxsplit=1) == ["num_ctx", "allowed, from 256 to 8192, by default 8192"]
    assert "keep_alive         not allowed (nobody says)" in lines
    assert told("set_policy", "--key", public_id, "--option", "raw", "--allowed", "none") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tenant", "nobody", "--option", "raw", "--allowed", "no"],
        ["--tenant", "acme", "--option", "num_ctx", "--maximum", "lots"],
        ["--tenant", "acme", "--option", "num_ctx", "--maximum", "-5"],
        ["--tenant", "acme", "--option", "num_ctx"],
        ["--key", "nosuchkey000", "--option", "raw", "--allowed", "no"],
        ["--option", "raw", "--allowed", "no"],
    ],
)
def test_the_command_says_what_is_wrong(key: ApiKey, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("set_policy", *arguments)


def test_operators_set_rules_in_the_admin(key: ApiKey) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("operator", password="a long password"))
    page = "/admin/keys/policyrule/"
    values = {"tenant": str(key.tenant_id), "key": "", "option": "num_ctx", "allowed": "true"}
    numbers = {"minimum": "", "maximum": "8192", "default_value": ""}

    added = client.post(f"{page}add/", values | numbers)
    rule = PolicyRule.objects.get()
    changed = client.post(f"{page}{rule.pk}/change/", {"allowed": "false"} | numbers)
    listed = client.get(page)
    rule.refresh_from_db()
    removed = client.post(f"{page}{rule.pk}/delete/", {"post": "yes"})

    assert (added.status_code, changed.status_code, listed.status_code) == (302, 302, 200)
    assert (rule.allowed, rule.maximum, rule.option) == (False, 8192, "num_ctx")
    assert removed.status_code == 302
    assert not PolicyRule.objects.exists()
    assert AuditEvent.objects.filter(actor="operator").count() == 3
