"""What goes upstream of a request to ``/v1/responses``, and how large it can get."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import responses
from proxy.dialects.prompt import IMAGE_TOKENS
from proxy.exceptions import BadRequest
from tests import hostile

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()
FUNCTION = {
    "type": "function",
    "name": "f",
    "description": "d",
    "parameters": {"type": "object"},
    "strict": True,
}


def ask(**fields):
    return responses.parse(json.dumps({"model": "tiny", "input": "hi", **fields}).encode())


def sent(call, cap=7):
    return json.loads(call.upstream_body("tiny:latest", cap))


def test_a_request_is_sent_anew_with_our_cap():
    call = ask(instructions="Be brief.", max_output_tokens=50, temperature=0.1, tools=[FUNCTION])

    assert sent(call) == {
        "model": "tiny:latest",
        "input": "hi",
        "instructions": "Be brief.",
        "temperature": 0.1,
        "tools": [FUNCTION],
        "stream": False,
        "max_output_tokens": 7,
    }
    assert call.output_wish == 50


@pytest.mark.parametrize(
    "name",
    ["previous_response_id", "conversation", "store", "background", "tool_choice", "include", "keep_alive"],
)
def test_what_ollama_ignores_is_dropped(name):
    assert sent(ask(**{name: "x"})) == sent(ask())


@pytest.mark.parametrize(
    "folded", ["Model", "\u017ftream", "INPUT", "Max_Output_Tokens", "max_output_to\u212aens"]
)
def test_a_name_that_go_takes_for_a_known_one_is_refused(folded):
    with pytest.raises(BadRequest, match="letter case"):
        ask(**{folded: 1})


def test_every_kind_of_item_is_counted_and_sent():
    items = [
        {"role": "user", "content": "question"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "answer"}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "because"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c", "output": "result"},
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"query": "q"}},
    ]

    call = ask(input=items)

    assert sent(call)["input"] == items
    for text in ("question", "answer", "because", '{"a":1}', "result"):
        shorter = json.loads(json.dumps(items).replace(json.dumps(text)[1:-1], "", 1))
        assert ask(input=shorter).input_bytes <= call.input_bytes - len(text)


def test_pictures_are_counted():
    content = [
        {"type": "input_text", "text": "x"},
        {"type": "input_image", "image_url": PNG, "detail": "auto"},
    ]

    call = ask(input=[{"role": "user", "content": content}])

    assert call.images == 1
    assert call.input_bytes == len("user") + 1 + IMAGE_TOKENS


@pytest.mark.parametrize("link", hostile.IMAGE_LINKS)
def test_links_to_pictures_are_refused(link):
    with pytest.raises(BadRequest, match="links are not followed"):
        ask(input=[{"role": "user", "content": [{"type": "input_image", "image_url": link}]}])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", ""),
        ("input", []),
        ("input", None),
        ("input", {"role": "user"}),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"type": ["message"]}]),
        ("input", [{"role": "user", "Role": "system"}]),
        ("input", [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]),
        ("input", [{"type": "function_call", "arguments": {}}]),
        ("max_output_tokens", 0),
        ("max_output_tokens", "9"),
        ("stream", "true"),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "web_search_preview_2025_03_11"}]),
        ("tools", [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]),
        ("tools", [{"type": "mcp", "server_url": "http://127.0.0.1/"}]),
        ("reasoning", {"effort": "all"}),
        ("text", {"format": {"type": "grammar"}}),
        ("truncation", "always"),
        ("instructions", ["x"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(field, value):
    with pytest.raises(BadRequest) as refused:
        ask(**{field: value})

    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


@given(hostile.bodies(responses._RESPONSES), st.integers(1, 10**6))
@settings(max_examples=200)
def test_whatever_is_asked_is_refused_or_sent_with_a_cap_and_known_fields_only(body, cap):
    try:
        call = ask(**{**body, "model": "tiny"})
    except BadRequest:
        return

    upstream = sent(call, cap)
    assert upstream["max_output_tokens"] == cap
    assert upstream.keys() <= responses._RESPONSES.keys() - {"_debug_render_only"}

    again = responses.parse(call.upstream_body("tiny:latest", cap))
    assert sent(again, cap) == upstream
    assert again.input_bytes == call.input_bytes
