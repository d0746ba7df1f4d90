"""What a meter makes of the frames of each dialect."""

import orjson
import pytest

from proxy.calls import CHAT, GENERATE, V1_CHAT, V1_COMPLETIONS, V1_MESSAGES, V1_RESPONSES, Call, Route
from proxy.exceptions import OutputCapPassed, UpstreamFailed
from proxy.metering import Counters, Meter, counters_in, meter_for, text_in, usage_of


def meter(route: Route, *, cap: int = 100, shows_usage: bool = False) -> Meter:
    return meter_for(route, cap=cap, shows_usage=shows_usage)


def line(**fields: object) -> bytes:
    return orjson.dumps({"model": "tiny:1b", **fields}) + b"\n"


def event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data)) + b"\n\n"


def chunk(**delta: object) -> bytes:
    return event({"id": "c", "model": "tiny:1b", "choices": [{"index": 0, "delta": delta}]})


USAGE = event(
    {
        "id": "c",
        "model": "tiny:1b",
        "choices": [],
        "usage": {"prompt_tokens": 14, "completion_tokens": 2, "total_tokens": 16},
    }
)
FINAL = line(
    message={"role": "assistant", "content": ""},
    done=True,
    done_reason="stop",
    prompt_eval_count=14,
    eval_count=2,
    load_duration=5,
    prompt_eval_duration=6,
    eval_duration=7,
)


def test_native_counters_come_from_the_final_line():
    native = meter(CHAT)

    assert native.take(line(message={"role": "assistant", "content": "Rain"}, done=False)).startswith(b"{")
    ended_early = native.ended
    assert native.take(FINAL) == FINAL
    assert (ended_early, native.ended) == (False, True)
    assert native.counters == Counters(14, 2, load_ns=5, prompt_ns=6, output_ns=7)
    assert native.pieces == 1


@pytest.mark.parametrize(
    "text",
    [
        '"done":true',
        '{"done":true}',
        '"error":"x"',
        '\\"done\\":true',
        '"usage":{}',
        "data: [DONE]\n\n",
        '"model":""',
    ],
)
@pytest.mark.parametrize("route", [CHAT, GENERATE, V1_CHAT], ids=lambda route: route.name)
def test_text_that_looks_like_an_end_is_text(route, text):
    watching = meter(route)
    frame = {
        CHAT: line(message={"role": "assistant", "content": text}, done=False),
        GENERATE: line(response=text, done=False),
        V1_CHAT: chunk(content=text),
    }[route]

    assert watching.take(frame) == frame
    assert not watching.ended
    assert watching.counters is None
    assert watching.pieces == 1


def test_done_inside_the_arguments_of_a_tool_is_not_the_end():
    native = meter(CHAT)
    call = {"function": {"name": "f", "arguments": {"done": True, "error": "no"}}}

    native.take(line(message={"role": "assistant", "content": "", "tool_calls": [call]}, done=False))

    assert not native.ended
    assert native.pieces == 1


def test_an_error_line_of_upstream_is_its_failure_and_not_passed_on():
    with pytest.raises(UpstreamFailed):
        meter(CHAT).take(b'{"error":"an error was encountered while running the model: /root/.ollama"}\n')


def test_usage_is_hidden_from_a_client_that_did_not_ask():
    hidden, shown = meter(V1_CHAT), meter(V1_CHAT, shows_usage=True)

    assert hidden.take(USAGE) == b""
    assert shown.take(USAGE) == USAGE
    assert hidden.counters == shown.counters == Counters(14, 2)


def test_usage_that_is_shown_is_no_piece_of_output():
    shown = meter(V1_CHAT, cap=1, shows_usage=True)

    shown.take(chunk(content="Rain"))

    assert shown.take(USAGE) == USAGE
    assert shown.pieces == 1


def test_completions_lose_the_zeros_that_our_asking_put_into_every_chunk():
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    frame = event({"id": "c", "model": "m", "choices": [{"text": "Rain", "index": 0}], "usage": zeros})

    assert b"usage" not in meter(V1_COMPLETIONS).take(frame)
    assert meter(V1_COMPLETIONS, shows_usage=True).take(frame) == frame


def test_openai_streams_end_with_done():
    openai = meter(V1_CHAT)

    for frame in (
        chunk(role="assistant", content=""),
        chunk(content="Rain"),
        chunk(),
        USAGE,
        event(b"[DONE]"),
    ):
        openai.take(frame)

    assert openai.ended
    assert openai.pieces == 1


def test_the_odd_chunk_of_a_swallowed_error_is_a_failure():
    odd = event(
        {"id": "c", "model": "", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]}
    )

    with pytest.raises(UpstreamFailed):
        meter(V1_CHAT).take(odd)


def test_responses_take_usage_from_the_completed_response():
    responses = meter(V1_RESPONSES)
    usage = {"input_tokens": 14, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}}

    responses.take(event({"type": "response.created"}, "response.created"))
    responses.take(event({"delta": "Rain"}, "response.output_text.delta"))
    responses.take(event({"response": {"usage": usage}}, "response.completed"))

    assert responses.ended
    assert responses.pieces == 1
    assert responses.counters == Counters(14, 2, cached_tokens=3)


def test_messages_take_usage_from_the_delta_and_not_from_the_start():
    messages = meter(V1_MESSAGES)

    messages.take(event({"message": {"usage": {"input_tokens": 99, "output_tokens": 0}}}, "message_start"))
    messages.take(event({"delta": {"type": "text_delta", "text": "Rain"}}, "content_block_delta"))
    messages.take(event({"usage": {"input_tokens": 14, "output_tokens": 2}}, "message_delta"))
    ended_early = messages.ended
    messages.take(event({"type": "message_stop"}, "message_stop"))

    assert (ended_early, messages.ended) == (False, True)
    assert messages.pieces == 1
    assert messages.counters == Counters(14, 2)


@pytest.mark.parametrize("route", [CHAT, V1_CHAT], ids=lambda route: route.name)
def test_the_piece_beyond_the_cap_is_not_passed_on(route):
    watching = meter(route, cap=3)
    piece = (
        line(message={"role": "assistant", "content": "x"}, done=False)
        if route is CHAT
        else chunk(content="x")
    )

    for _ in range(3):
        assert watching.take(piece) == piece
    with pytest.raises(OutputCapPassed):
        watching.take(piece)
    assert watching.output_estimate == 3


def test_thinking_and_tool_calls_count_as_output():
    native = meter(CHAT)

    native.take(line(message={"role": "assistant", "content": "", "thinking": "hm"}, done=False))
    native.take(line(message={"role": "assistant", "content": "", "tool_calls": [{}]}, done=False))
    native.take(line(message={"role": "assistant", "content": ""}, done=False))

    assert native.pieces == 2


def test_a_long_frame_is_estimated_by_its_text():
    native = meter(CHAT, cap=1000)

    native.take(line(message={"role": "assistant", "content": "x" * 2000}, done=False))

    assert native.pieces == 1
    assert native.output_estimate == 500


def call(route: Route = CHAT, *, input_bytes: int = 400) -> Call:
    return Call(
        route=route, model="tiny", stream=True, fields={}, input_bytes=input_bytes, messages=1, images=0,
        output_wish=None, shows_usage=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counters", "estimate", "expected"),
    [
        pytest.param(Counters(14, 2), 2, (14, 2, True), id="both counted"),
        pytest.param(None, 7, (100, 7, False), id="nothing counted"),
        pytest.param(Counters(None, 2), 2, (100, 2, False), id="prompt missing"),
        pytest.param(Counters(14, None), 3, (14, 3, False), id="output missing"),
        pytest.param(Counters(14, None), 0, (14, 0, True), id="output zero, which upstream leaves out"),
        pytest.param(Counters(-5, 2), 2, (100, 2, False), id="negative prompt"),
        pytest.param(Counters(14, -1_000_000), 4, (14, 4, False), id="negative output"),
        pytest.param(Counters(True, 2), 2, (100, 2, False), id="no number"),
    ],
)
def test_only_what_upstream_did_not_count_is_estimated(counters, estimate, expected):
    usage = usage_of(call(), counters, estimate, 40)

    assert (usage.input_tokens, usage.output_tokens, usage.exact) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param({"done": True, "prompt_eval_count": 14, "eval_count": 2}, Counters(14, 2), id="native"),
        pytest.param({"done": True, "done_reason": "load"}, Counters(0, 0, output_ns=0), id="load"),
        pytest.param({"done": False, "response": "x x x"}, None, id="cut by the guard against repetition"),
        pytest.param({"embeddings": [[1]], "prompt_eval_count": 9}, Counters(9, 0), id="embed"),
        pytest.param(
            {"embeddings": [[1]], "prompt_eval_count": 9, "total_duration": 70, "load_duration": 20},
            Counters(9, 0, load_ns=20, prompt_ns=50),
            id="embed, with times",
        ),
        pytest.param({"embeddings": []}, Counters(0, 0), id="nothing to embed"),
        pytest.param({"usage": {"prompt_tokens": 9, "total_tokens": 9}}, Counters(9, 0), id="v1 embeddings"),
        pytest.param(
            {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}, None, id="v1 zeros"
        ),
        pytest.param(
            {"usage": {"input_tokens": 4, "output_tokens": 2, "cache_read_input_tokens": 10}},
            Counters(14, 2, cached_tokens=10),
            id="messages",
        ),
    ],
)
def test_counters_of_a_whole_answer(answer, expected):
    assert counters_in(answer) == expected


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        ({"message": {"role": "assistant", "content": "äb", "thinking": "c"}}, 4),
        ({"response": "abc", "context": [1, 2]}, 3),
        (
            {
                "choices": [
                    {"message": {"content": "ab", "tool_calls": [{"function": {"arguments": '{"a":1}'}}]}}
                ]
            },
            9,
        ),
        ({"choices": [{"text": "abc"}]}, 3),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "abcd"}]}]}, 4),
        ({"content": [{"type": "text", "text": "abcd"}], "usage": {"text": "no"}}, 4),
    ],
)
def test_text_of_an_answer_is_found_where_each_dialect_puts_it(answer, size):
    assert text_in(answer) == size
