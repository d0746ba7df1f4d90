"""What a meter makes of the frames of each dialect."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.estimators import DEFAULT, Estimator, Ratio
from proxy.calls import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    V1_CHAT,
    V1_COMPLETIONS,
    V1_EMBEDDINGS,
    V1_MESSAGES,
    V1_RESPONSES,
    Call,
    Route,
)
from proxy.exceptions import OutputCapPassed, UpstreamFailed
from proxy.metering import Counters, Meter, counters_in, meter_for, text_in, usage_of

# Two bytes to a token where the default has four, in prompts and long frames alike.
LEARNED = Estimator("learned:3", {1024: Ratio(2, 1)}, {4096: Ratio(2, 1)})


def meter(
    route: Route, *, cap: int = 100, shows_usage: bool = False, estimator: Estimator = DEFAULT
) -> Meter:
    return meter_for(route, estimator, cap=cap, shows_usage=shows_usage)


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
    assert hidden.counters == shown.counters == Counters(14, 2, total_tokens=16)


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
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Rain"}]}]
    responses.take(event({"response": {"output": output, "usage": usage}}, "response.completed"))

    assert responses.ended
    assert responses.pieces == 1
    assert responses.counters == Counters(14, 2, cached_tokens=3)
    assert responses.output_bytes == len("Rain")


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


@pytest.mark.parametrize(("estimator", "tokens"), [(DEFAULT, 500), (LEARNED, 1000)])
def test_a_long_frame_is_estimated_by_its_text(estimator, tokens):
    native = meter(CHAT, cap=1000, estimator=estimator)

    native.take(line(message={"role": "assistant", "content": "x" * 2000}, done=False))

    assert native.pieces == 1
    assert native.output_estimate == tokens


def call(route: Route = CHAT, *, input_bytes: int = 400) -> Call:
    return Call(
        route=route, model="tiny", stream=True, fields={}, input_bytes=input_bytes, messages=1, images=0,
        output_wish=None, shows_usage=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counters", "estimate", "expected"),
    [
        pytest.param(None, 0, (100, 0, "default"), id="nothing counted, nothing seen"),
        pytest.param(Counters(14, None), 0, (14, 0, ""), id="output zero, which upstream leaves out"),
        pytest.param(Counters(0, 0), 0, (0, 0, ""), id="a model was loaded"),
        pytest.param(Counters(14, 2, cached_tokens=-3), 2, (14, 2, ""), id="cached tokens that cannot be"),
    ],
)
def test_a_zero_is_a_count_only_where_nothing_went_by(counters, estimate, expected):
    usage = usage_of(call(), counters, estimate, 40, DEFAULT)

    assert (usage.input_tokens, usage.output_tokens, usage.estimator) == expected
    assert usage.cached_tokens == 0


def test_what_is_estimated_names_its_estimator_and_what_is_counted_none():
    counted = usage_of(call(), Counters(14, 2), 2, 40, LEARNED, 9)
    estimated = usage_of(call(), None, 2, 40, LEARNED)

    assert (counted.exact, counted.estimator, counted.input_bytes, counted.output_bytes) == (True, "", 400, 9)
    assert (estimated.exact, estimated.estimator) == (False, "learned:3")
    assert (estimated.input_tokens, estimated.output_bytes) == (200, None)


def test_pictures_and_ids_are_estimated_apart_from_text_and_nobody_learns_of_them():
    seen = call(input_bytes=400 + 4608 + 30)
    seen.media_bytes, seen.context_ids = 4608, 30

    assert seen.input_estimate(DEFAULT) == 100 + 4608 // 4 + 30
    assert seen.input_estimate(LEARNED) == 200 + 4608 // 4 + 30
    assert usage_of(seen, Counters(14, 2), 2, 40, LEARNED).input_bytes is None


PIECES = 3
# What stands where in each dialect: prompt, answer, total if it has one.
NAMES: dict[Route, tuple[str, ...]] = {
    CHAT: ("prompt_eval_count", "eval_count"),
    GENERATE: ("prompt_eval_count", "eval_count"),
    V1_CHAT: ("prompt_tokens", "completion_tokens", "total_tokens"),
    V1_COMPLETIONS: ("prompt_tokens", "completion_tokens", "total_tokens"),
    V1_RESPONSES: ("input_tokens", "output_tokens", "total_tokens"),
    V1_MESSAGES: ("input_tokens", "output_tokens"),
}
ABSENT = object()
# What upstream told of prompt, answer and total; and what is booked of 400 bytes of prompt and three pieces.
PARTS: dict[str, tuple[Any, Any, Any, tuple[int, int, bool]]] = {
    "all": (14, 5, 19, (14, 5, True)),
    "none": (ABSENT, ABSENT, ABSENT, (100, 3, False)),
    "input only": (14, ABSENT, ABSENT, (14, 3, False)),
    "output only": (ABSENT, 5, ABSENT, (100, 5, False)),
    "null for input": (None, 5, ABSENT, (100, 5, False)),
    "null for output": (14, None, ABSENT, (14, 3, False)),
    "zeros": (0, 0, 0, (100, 3, False)),
    "zero input": (0, 5, 5, (100, 5, False)),
    "zero output": (14, 0, 14, (14, 3, False)),
    "negative input": (-5, 5, ABSENT, (100, 5, False)),
    "negative output": (14, -1_000_000, ABSENT, (14, 3, False)),
    "text": ("14", "5", "19", (100, 3, False)),
    "text for input": ("14", 5, ABSENT, (100, 5, False)),
    "fractions": (14.0, 5.5, 19.5, (100, 3, False)),
    "true": (True, True, True, (100, 3, False)),
    "lists": ([14], [5], [19], (100, 3, False)),
    "objects": ({}, {"n": 5}, {}, (100, 3, False)),
    "total only": (ABSENT, ABSENT, 19, (16, 3, False)),
    "total and input": (14, ABSENT, 19, (14, 5, True)),
    "total and output": (ABSENT, 5, 19, (14, 5, True)),
    "total and an input that is none": (-5, 5, 19, (14, 5, True)),
    "total below its part": (14, ABSENT, 9, (14, 3, False)),
    "total below what was seen": (ABSENT, ABSENT, 2, (100, 3, False)),
    "total that is none": (14, ABSENT, "19", (14, 3, False)),
    "total that is not the sum": (14, 5, 99, (14, 5, True)),
}


def frames_with(route: Route, counts: dict[str, Any]) -> list[bytes]:
    """Three pieces of text and what ends a stream, with these counts where the dialect has them."""
    if route in (CHAT, GENERATE):

        def spoken(text: str) -> dict[str, Any]:
            return (
                {"message": {"role": "assistant", "content": text}} if route is CHAT else {"response": text}
            )

        pieces = [line(**spoken("Rain"), done=False)] * PIECES
        return [*pieces, line(**spoken(""), done=True, done_reason="stop", **counts)]
    if route in (V1_CHAT, V1_COMPLETIONS):
        text = event({"id": "c", "model": "m", "choices": [{"text": "Rain", "index": 0}]})
        pieces = [chunk(content="Rain") if route is V1_CHAT else text] * PIECES
        told = event({"id": "c", "model": "m", "choices": [], "usage": counts})
        return [*pieces, told, event(b"[DONE]")]
    if route is V1_RESPONSES:
        pieces = [event({"delta": "Rain"}, "response.output_text.delta")] * PIECES
        return [*pieces, event({"response": {"output": [], "usage": counts}}, "response.completed")]
    pieces = [event({"delta": {"type": "text_delta", "text": "Rain"}}, "content_block_delta")] * PIECES
    return [*pieces, event({"usage": counts}, "message_delta"), event({}, "message_stop")]


@pytest.mark.parametrize(
    ("route", "parts"),
    [
        pytest.param(route, parts, id=f"{route.name}, {name}")
        for route, names in NAMES.items()
        for name, parts in PARTS.items()
        if len(names) == 3 or "total" not in name
    ],
)
def test_only_what_upstream_did_not_count_is_filled_and_what_it_counted_stays(route, parts):
    *told, (input_tokens, output_tokens, exact) = parts
    counts = {name: part for name, part in zip(NAMES[route], told, strict=False) if part is not ABSENT}
    watching = meter(route)
    for frame in frames_with(route, counts):
        watching.take(frame)

    usage = usage_of(call(route), watching.counters, watching.output_estimate, 40, DEFAULT)

    assert watching.ended
    assert (usage.input_tokens, usage.output_tokens) == (input_tokens, output_tokens)
    assert usage.estimator == ("" if exact else "default")


@pytest.mark.parametrize("route", NAMES, ids=lambda route: route.name)
def test_counts_that_came_before_a_stream_was_cut_stay(route):
    counts = dict(zip(NAMES[route], (14, 5, 19), strict=False))
    watching = meter(route)
    for frame in frames_with(route, counts)[: PIECES + 1]:
        watching.take(frame)

    usage = usage_of(call(route), watching.counters, watching.output_estimate, 40, DEFAULT)

    assert (usage.input_tokens, usage.output_tokens, usage.exact) == (14, 5, True)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param({"prompt_tokens": 9, "total_tokens": 9}, (9, 0, True), id="both"),
        pytest.param({"total_tokens": 9}, (9, 0, True), id="total only, which is all prompt"),
        pytest.param({"prompt_tokens": 9}, (9, 0, True), id="prompt only"),
        pytest.param({"prompt_tokens": 0, "total_tokens": 9}, (9, 0, True), id="zero prompt"),
        pytest.param({"prompt_tokens": -2, "total_tokens": 9}, (9, 0, True), id="negative prompt"),
        pytest.param({"prompt_tokens": 0, "total_tokens": "9"}, (100, 0, False), id="text for the total"),
        pytest.param({"prompt_tokens": 0, "total_tokens": 0}, (100, 0, False), id="zeros"),
        pytest.param({"total_tokens": -9}, (100, 0, False), id="negative total"),
        pytest.param({"prompt_tokens": "9", "total_tokens": "9"}, (100, 0, False), id="text"),
        pytest.param({}, (100, 0, False), id="nothing"),
    ],
)
def test_of_vectors_everything_is_prompt(counts, expected):
    answer = {"object": "list", "data": [{"embedding": [0.5], "index": 0}], "usage": counts}

    usage = usage_of(call(V1_EMBEDDINGS), counters_in(answer), text_in(answer), 40, DEFAULT)

    assert (usage.input_tokens, usage.output_tokens, usage.exact) == expected


@pytest.mark.parametrize("route", [EMBED, EMBEDDINGS], ids=lambda route: route.name)
@pytest.mark.parametrize(
    ("count", "expected"), [(9, (9, True)), (0, (100, False)), (-9, (100, False)), ("9", (100, False))]
)
def test_of_native_vectors_too(route, count, expected):
    answer = {"embeddings": [[0.5]], "prompt_eval_count": count}

    usage = usage_of(call(route), counters_in(answer), text_in(answer), 40, DEFAULT)

    assert (usage.input_tokens, usage.exact) == expected
    assert usage.output_tokens == 0


# How each dialect brings text, thinking, and what a model writes to a tool.
CARRIERS: dict[str, tuple[Route, Any]] = {
    "chat": (CHAT, lambda text: line(message={"role": "assistant", "content": text}, done=False)),
    "chat, thinking": (
        CHAT,
        lambda text: line(message={"role": "assistant", "content": "", "thinking": text}, done=False),
    ),
    "chat, tool": (
        CHAT,
        lambda text: line(
            message={"role": "assistant", "content": "", "tool_calls": [{"function": {"name": text}}]},
            done=False,
        ),
    ),
    "chat, all in the last line": (
        CHAT,
        lambda text: line(message={"role": "assistant", "content": text}, done=True),
    ),
    "generate": (GENERATE, lambda text: line(response=text, done=False)),
    "generate, all in the last line": (
        GENERATE,
        lambda text: line(response=text, done=True, prompt_eval_count=14),
    ),
    "v1 chat": (V1_CHAT, lambda text: chunk(content=text)),
    "v1 chat, reasoning": (V1_CHAT, lambda text: chunk(content="", reasoning=text)),
    "v1 chat, tool": (V1_CHAT, lambda text: chunk(tool_calls=[{"function": {"arguments": text}}])),
    "v1 completions": (V1_COMPLETIONS, lambda text: event({"model": "m", "choices": [{"text": text}]})),
    "responses": (V1_RESPONSES, lambda text: event({"delta": text}, "response.output_text.delta")),
    "messages": (
        V1_MESSAGES,
        lambda text: event({"delta": {"type": "text_delta", "text": text}}, "content_block_delta"),
    ),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@given(text=st.text(min_size=1, max_size=700), tokens=st.integers(1, 10_000))
def test_a_stream_that_carried_content_is_never_estimated_at_nothing(carrier, text, tokens):
    route, frame = CARRIERS[carrier]
    sizes = [4**exponent for exponent in range(3, 8)]
    estimator = Estimator("learned:1", {}, {size: Ratio(10_000, tokens) for size in sizes})
    watching = meter(route, estimator=estimator)

    watching.take(frame(text))

    usage = usage_of(call(route), watching.counters, watching.output_estimate, 40, estimator)
    assert usage.output_tokens >= 1
    assert usage.input_tokens >= 1
    assert usage.estimator == "learned:1"


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
        pytest.param(
            {"usage": {"prompt_tokens": 9, "total_tokens": 9}},
            Counters(9, None, total_tokens=9),
            id="v1 embeddings",
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}, None, id="v1 zeros"
        ),
        pytest.param(
            {"usage": {"input_tokens": 4, "output_tokens": 2, "cache_read_input_tokens": 10}},
            Counters(14, 2, cached_tokens=10),
            id="messages",
        ),
        pytest.param(
            {"usage": {"input_tokens": 4, "output_tokens": 2, "cache_read_input_tokens": "10"}},
            Counters(4, 2),
            id="messages, nonsense for the cache",
        ),
        pytest.param(
            {
                "usage": {
                    "prompt_tokens": 4,
                    "completion_tokens": 2,
                    "prompt_tokens_details": {"cached_tokens": "x"},
                    "cache_read_input_tokens": 1,
                }
            },
            Counters(5, 2, cached_tokens=1),
            id="both ways to tell of the cache, one of them nonsense",
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
        ({"content": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]}, 7),
        ({"output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}]}, 2),
    ],
)
def test_text_of_an_answer_is_found_where_each_dialect_puts_it(answer, size):
    assert text_in(answer) == size
