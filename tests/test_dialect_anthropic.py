"""What goes upstream of a request to ``/v1/messages``, how large it can get, and the count we make."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets.estimators import DEFAULT
from proxy.dialects import anthropic
from proxy.dialects.prompt import IMAGE_TOKENS
from proxy.exceptions import BadRequest
from tests import hostile

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()
MESSAGES = [{"role": "user", "content": "hi"}]


def ask(**fields):
    return anthropic.parse(
        json.dumps({"model": "tiny", "max_tokens": 50, "messages": MESSAGES, **fields}).encode()
    )


def count(**fields):
    return anthropic.parse_count(json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode())


def sent(call, cap=7):
    return json.loads(call.upstream_body("tiny:latest", cap))


def test_a_request_is_sent_anew_with_our_cap():
    call = ask(system="Be brief.", stop_sequences=["x"], thinking={"type": "enabled", "budget_tokens": 1024})

    assert sent(call) == {
        "model": "tiny:latest",
        "messages": MESSAGES,
        "system": "Be brief.",
        "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stream": False,
        "max_tokens": 7,
    }
    assert call.output_wish == 50


@pytest.mark.parametrize(
    "name", ["tool_choice", "metadata", "cache_control", "service_tier", "options", "keep_alive"]
)
def test_what_ollama_ignores_is_dropped(name):
    assert sent(ask(**{name: {"x": 1}})) == sent(ask())


@pytest.mark.parametrize("folded", ["Model", "MESSAGES", "\u017fystem", "Max_Tokens", "max_to\u212aens"])
def test_a_name_that_go_takes_for_a_known_one_is_refused(folded):
    with pytest.raises(BadRequest, match="letter case"):
        ask(**{folded: 1})


@pytest.mark.parametrize("limit", [None, -1, 0, "5", 1.5, True])
def test_a_limit_above_zero_is_required(limit):
    with pytest.raises(BadRequest) as refused:
        ask(max_tokens=limit)

    assert refused.value.param == "max_tokens"


def test_every_kind_of_block_is_counted_and_sent():
    blocks = [
        {"type": "text", "text": "question"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"Type": "word", "type": 1}},
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "text", "text": "result"}],
            "is_error": False,
        },
        {"type": "tool_result", "tool_use_id": "t", "content": "outcome"},
        {"type": "thinking", "thinking": "because", "signature": "s"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "query"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"title": "title"}]},
    ]

    call = ask(messages=[{"role": "user", "content": blocks}])

    assert sent(call)["messages"] == [{"role": "user", "content": blocks}]
    for text in ("question", "word", "result", "outcome", "because", "query", "title"):
        shorter = json.loads(json.dumps(blocks).replace(f'"{text}"', '""'))
        fewer = ask(messages=[{"role": "user", "content": shorter}])
        assert fewer.input_bytes <= call.input_bytes - len(text)


PASSED_OVER = [
    {
        "type": "document",
        "title": "Herons",
        "source": {"type": "url", "url": "https://example.org/herons.pdf"},
        "citations": {"enabled": True},
    },
    {"type": "redacted_thinking", "data": "c2VjcmV0"},
]


@pytest.mark.parametrize("block", PASSED_OVER, ids=lambda block: block["type"])
def test_blocks_that_ollama_passes_over_are_left_out_and_not_counted(block):
    def asked(*more):
        result = {
            "type": "tool_result",
            "tool_use_id": "t1",
            "content": [*more, {"type": "text", "text": "7"}],
        }
        return [{"role": "user", "content": [*more, {"type": "text", "text": "Hello"}, *more, result]}]

    with_it, without = ask(messages=asked(block)), ask(messages=asked())

    assert sent(with_it) == sent(without)
    assert (with_it.input_bytes, with_it.messages) == (without.input_bytes, without.messages)
    assert count(messages=asked(block)).input_bytes == without.input_bytes


def test_the_marks_of_a_cache_are_dropped_everywhere():
    mark = {"cache_control": {"type": "ephemeral"}}

    call = ask(
        system=[{"type": "text", "text": "s", **mark}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "t", **mark}]}],
        tools=[{"name": "f", "input_schema": {"type": "object"}, **mark}],
    )

    assert b"cache_control" not in call.upstream_body("tiny", 7)


def test_pictures_are_counted_in_messages_and_in_results():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}

    call = ask(messages=[{"role": "user", "content": [image, {"type": "tool_result", "content": [image]}]}])

    assert call.images == 2
    assert call.input_bytes == len("user") + 2 * IMAGE_TOKENS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", None),
        ("messages", [{"role": "user", "content": 1}]),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "container_upload", "file_id": "x"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "a", "Text": "b"}]}]),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/"}}]}],
        ),
        ("system", [{"type": "image", "source": {}}]),
        ("system", 5),
        ("stream", "true"),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tools", [{"type": "computer_20250124", "name": "computer"}]),
        ("tools", [{"name": "f", "input_schema": []}]),
        ("thinking", {"type": "maybe"}),
        ("output_config", {"effort": 3}),
        ("stop_sequences", "x"),
        ("top_k", 0.5),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(field, value):
    with pytest.raises(BadRequest) as refused:
        ask(**{field: value})

    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


def test_a_count_needs_no_limit_and_takes_four_bytes_for_a_token():
    counted = count(system="x" * 396)

    assert counted.model == "tiny"
    assert counted.input_estimate(DEFAULT) == (396 + len("userhi") + 3) // 4


def test_a_count_is_never_nothing():
    assert count(messages=[{"role": "", "content": ""}]).input_estimate(DEFAULT) == 1


def test_a_count_refuses_what_a_request_refuses():
    with pytest.raises(BadRequest):
        count(messages=[])
    with pytest.raises(BadRequest):
        count(Model="big")
    with pytest.raises(BadRequest):
        count(tools=[{"type": "web_search_20250305"}])


@pytest.mark.parametrize("body", hostile.BROKEN_JSON.values(), ids=hostile.BROKEN_JSON)
def test_a_broken_body_is_a_bad_request(body):
    for parse in (anthropic.parse, anthropic.parse_count):
        with pytest.raises(BadRequest):
            parse(body)


@given(hostile.bodies(anthropic._MESSAGES), st.integers(1, 10**6))
@settings(max_examples=200)
def test_whatever_is_asked_is_refused_or_sent_with_a_cap_and_known_fields_only(body, cap):
    try:
        call = ask(**{**body, "model": "tiny"})
    except BadRequest:
        return

    upstream = sent(call, cap)
    assert upstream["max_tokens"] == cap
    assert upstream.keys() <= anthropic._MESSAGES.keys() - {"_debug_render_only"}

    again = anthropic.parse(call.upstream_body("tiny:latest", cap))
    assert sent(again, cap) == upstream
    assert again.input_bytes == call.input_bytes
