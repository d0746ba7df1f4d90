"""What goes upstream of a request in OpenAI's words, and how large it can get."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import openai
from proxy.dialects.prompt import IMAGE_TOKENS
from proxy.exceptions import BadRequest
from tests import hostile

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()


def chat(**fields):
    return openai.parse_chat(hostile.chat_with(**fields))


def complete(**fields):
    return openai.parse_completions(json.dumps({"model": "tiny", "prompt": "hi", **fields}).encode())


def embed(**fields):
    return openai.parse_embeddings(json.dumps({"model": "emb", **fields}).encode())


def sent(call, cap=7):
    return json.loads(call.upstream_body("tiny:latest", cap))


def test_a_chat_is_sent_anew_with_our_cap():
    call = chat(temperature=0.2, max_tokens=50, n=1, response_format={"type": "json_object"})

    assert sent(call) == {
        "model": "tiny:latest",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.2,
        "response_format": {"type": "json_object"},
        "stream": False,
        "max_tokens": 7,
    }


@pytest.mark.parametrize("name", hostile.OPENAI_DROPPED)
def test_what_ollama_ignores_or_must_not_see_is_dropped(name):
    dropped = {name: hostile.OPENAI_DROPPED[name]}

    assert sent(chat(**dropped)) == sent(chat())
    assert sent(complete(**dropped)) == sent(complete())


@pytest.mark.parametrize(
    ("known", "folded"),
    [
        (known, folded)
        for known in (
            "model",
            "messages",
            "stream",
            "tools",
            "_debug_render_only",
            "max_tokens",
            "stream_options",
        )
        for folded in hostile.FOLDED_NAMES[known]
    ],
)
def test_a_name_that_go_takes_for_a_known_one_is_refused(known, folded):
    with pytest.raises(BadRequest, match="letter case"):
        chat(**{folded: 1})


@pytest.mark.parametrize(
    ("limits", "wish"),
    [
        ({}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 5),
        ({"max_tokens": -1, "max_completion_tokens": 9}, 9),
    ],
)
def test_the_smaller_limit_counts_and_only_the_one_that_ollama_reads_is_sent(limits, wish):
    call = chat(**limits)

    assert call.output_wish == wish
    assert sent(call)["max_tokens"] == 7
    assert "max_completion_tokens" not in sent(call)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, True),
    ],
)
def test_a_stream_always_asks_for_usage_and_remembers_whether_its_client_did(options, shown):
    for call in (chat(stream=True, **options), complete(stream=True, **options)):
        assert call.shows_usage is shown
        assert sent(call)["stream_options"] == {"include_usage": True}


def test_a_single_answer_has_no_stream_options():
    assert "stream_options" not in sent(chat(stream_options={"include_usage": True}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", None),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 1}]),
        ("messages", [{"role": "user", "content": [{"type": "file", "file": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]),
        ("stream", "true"),
        ("stream_options", True),
        ("stream_options", {"include_usage": "yes"}),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_tokens", 5.0),
        ("max_completion_tokens", 0),
        ("n", 2),
        ("n", 1000),
        ("best_of", 2),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("response_format", {"type": "grammar"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "web_search_preview"}]),
        ("reasoning_effort", "extreme"),
        ("reasoning", {"effort": 1}),
        ("logprobs", 5),
        ("top_logprobs", 21),
        ("temperature", "1"),
        ("seed", 1.5),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(field, value):
    with pytest.raises(BadRequest) as refused:
        chat(**{field: value})

    assert refused.value.param is not None
    assert refused.value.param.startswith(field)


def test_content_may_be_missing_beside_tool_calls():
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

    call = chat(messages=[{"role": "assistant", "content": None, "tool_calls": [called]}])

    assert sent(call)["messages"] == [{"role": "assistant", "tool_calls": [called]}]
    assert call.input_bytes > len('{"a":1}')


def test_each_part_of_a_message_counts_as_the_message_that_ollama_makes_of_it():
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {"type": "image_url", "image_url": PNG},
    ]

    call = chat(messages=[{"role": "user", "content": parts}])

    assert (call.messages, call.images) == (3, 2)
    assert call.input_bytes == len("user") + len("What is this?") + 2 * IMAGE_TOKENS


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "hi", "image_url": PNG},
        {"type": "text", "text": "hi", "input_audio": {"data": "AAAA", "format": "mp3"}},
    ],
)
def test_a_part_has_nothing_but_what_its_type_names(part):
    call = chat(messages=[{"role": "user", "content": [part]}])

    assert sent(call)["messages"][0]["content"] == [{"type": "text", "text": "hi"}]
    assert call.images == 0


def test_a_schema_that_grows_into_a_vast_grammar_is_refused():
    with pytest.raises(BadRequest, match="repetitions"):
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"maxItems": 10**9}}})


def test_a_number_in_the_arguments_of_a_call_counts_all_its_digits():
    numbers = ",".join(["1E20"] * 50)
    called = {"function": {"name": "f", "arguments": f'{{"a":[{numbers}]}}'}}

    call = chat(messages=[{"role": "assistant", "content": None, "tool_calls": [called]}])

    assert call.input_bytes > 50 * len("100000000000000000000,")


@pytest.mark.parametrize("link", hostile.IMAGE_LINKS)
def test_links_to_pictures_are_refused(link):
    for image in (link, {"url": link}):
        with pytest.raises(BadRequest, match="links are not followed"):
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": image}]}])


def test_a_completion_has_one_prompt():
    assert sent(complete(prompt=["only"]))["prompt"] == "only"
    for prompt in (["a", "b"], [1, 2], [], 5):
        with pytest.raises(BadRequest, match="one string"):
            complete(prompt=prompt)


def test_a_completion_counts_prompt_and_suffix():
    call = complete(prompt="ab", suffix="ü", stop="x", echo=True, logprobs=2)

    assert call.input_bytes == 4
    assert sent(call).keys() == {"model", "prompt", "suffix", "stop", "logprobs", "stream", "max_tokens"}


@pytest.mark.parametrize("value", ["", "a", ["a", "b"]])
def test_texts_are_embedded(value):
    assert sent(embed(input=value, encoding_format="base64", user="ada")) == {
        "model": "tiny:latest",
        "input": value,
        "encoding_format": "base64",
    }


@pytest.mark.parametrize("value", [[], None, 1, {"a": 1}, ["a", None], ["a", 1], ["a"] * 3000])
def test_other_inputs_are_not(value):
    with pytest.raises(BadRequest):
        embed(input=value)


@pytest.mark.parametrize("value", [[1, 2], [[1, 2], [3]]])
def test_token_ids_are_refused_with_advice(value):
    with pytest.raises(BadRequest, match="check_embedding_ctx_length"):
        embed(input=value)


def test_an_unknown_encoding_is_refused():
    with pytest.raises(BadRequest):
        embed(input="a", encoding_format="float16")


@pytest.mark.parametrize(
    ("name", "owner"), [("tiny:latest", "library"), ("ns/tiny:7b", "ns"), ("hf.co/ns/tiny:7b", "ns")]
)
def test_a_model_is_described_as_openai_does(name, owner):
    assert openai.model_object({"name": name, "modified_at": "2026-01-02T03:04:05.123456789+01:00"}) == {
        "id": name,
        "object": "model",
        "created": 1767319445,
        "owned_by": owner,
    }


@pytest.mark.parametrize("instant", [None, "", "yesterday", 5])
def test_a_model_without_a_date_is_described_all_the_same(instant):
    assert openai.model_object({"name": "a:b", "modified_at": instant})["created"] == 0


_bodies = hostile.bodies({*openai._CHAT, *openai._COMPLETIONS})
_bases = st.sampled_from(
    [(openai.parse_chat, json.loads(hostile.GOOD_CHAT)), (openai.parse_completions, {"model": "t"})]
)


@given(_bases, _bodies, st.integers(1, 10**6))
@settings(max_examples=300)
def test_whatever_is_asked_is_refused_or_sent_with_a_cap_and_known_fields_only(base, body, cap):
    parse, good = base
    try:
        call = parse(json.dumps({**good, **body, "model": "tiny"}).encode())
    except BadRequest:
        return

    upstream = sent(call, cap)
    assert upstream["max_tokens"] == cap
    assert upstream.keys() <= {*openai._CHAT, *openai._COMPLETIONS} - {
        "n",
        "best_of",
        "max_completion_tokens",
        "_debug_render_only",
    }
    assert call.output_wish is None or call.output_wish > 0

    again = parse(call.upstream_body("tiny:latest", cap))
    assert sent(again, cap) == upstream
    assert again.input_bytes == call.input_bytes
