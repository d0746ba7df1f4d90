"""The simulated Ollama speaks as the real one: with raw HTTP and with the official clients."""

import base64
import json
import struct
from typing import Any

import anthropic
import httpx
import ollama as ollama_client
import openai
import pytest

from proxy.simulator import SimulatorThread, listing, mutations, routing
from tests.conftest import PATIENCE_SECONDS

HELLO = [{"role": "user", "content": "Tell me about herons"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def ollama():
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture
def http(ollama):
    with httpx.Client(base_url=ollama.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def native(ollama):
    client = ollama_client.Client(ollama.url)
    yield client
    client._client.close()


@pytest.fixture
def openai_client(ollama):
    with openai.OpenAI(base_url=f"{ollama.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(ollama):
    with anthropic.Anthropic(base_url=ollama.url, api_key="any", max_retries=0) as client:
        yield client


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.split(b"\n")[:-1]]


def events_of(response: httpx.Response) -> list[Any]:
    """The objects of an event stream, and the word at its end."""
    events = response.content.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") for event in events)
    return [
        "[DONE]" if event == b"data: [DONE]" else json.loads(event.removeprefix(b"data: "))
        for event in events
    ]


def test_a_chat_streams_lines_and_ends_with_counters(http, ollama):
    response = http.post("/api/chat", json={"model": "tiny:1b", "messages": HELLO})

    lines = lines_of(response)
    record = ollama.calls[0]
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[0]["message"] == {"role": "assistant", "content": "Tell"}
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1]["eval_count"] == len(lines) - 1 == len(record.pieces)
    assert 16 <= lines[-1]["eval_count"] <= 32
    assert lines[-1]["prompt_eval_count"] == -(-len(record.prompt.encode()) // 4)
    assert "".join(line["message"]["content"] for line in lines) == record.text
    assert (record.state, record.complete) == ("finished", True)


def test_an_answer_is_the_same_every_time_and_streamed_or_not(http):
    asked = {"model": "tiny:1b", "messages": HELLO}

    one = http.post("/api/chat", json={**asked, "stream": False}).json()
    two = http.post("/api/chat", json={**asked, "stream": False}).json()
    streamed = lines_of(http.post("/api/chat", json=asked))

    assert one["message"] == two["message"]
    assert one["message"]["content"] == "".join(line["message"]["content"] for line in streamed)
    assert one["eval_count"] == two["eval_count"] == streamed[-1]["eval_count"]


def test_whole_answers_end_with_a_newline_on_the_openai_side_only(http):
    native = http.post("/api/chat", json={"model": "tiny:1b", "messages": HELLO, "stream": False})
    v1 = http.post("/v1/chat/completions", json={"model": "tiny:1b", "messages": HELLO})

    assert native.headers["content-type"] == "application/json; charset=utf-8"
    assert not native.content.endswith(b"\n")
    assert v1.headers["content-type"] == "application/json"
    assert v1.content.endswith(b"\n")


@pytest.mark.parametrize(
    ("options", "count", "reason"),
    [
        ({"num_predict": 3}, 3, "length"),
        ({"num_predict": 3.9}, 3, "length"),
        ({"num_predict": 0}, 21, "stop"),
        ({"num_predict": -1}, 21, "stop"),
        ({"num_predict": None}, 21, "stop"),
        ({"NUM_PREDICT": 3}, 21, "stop"),
        ({"stop": ["herons"]}, 4, "stop"),
    ],
)
def test_the_limit_is_obeyed(http, ollama, options, count, reason):
    ollama.settings.pieces = 21

    answer = http.post(
        "/api/chat", json={"model": "tiny:1b", "messages": HELLO, "stream": False, "options": options}
    ).json()

    assert (answer["eval_count"], answer["done_reason"]) == (count, reason)


def test_zero_is_a_limit_where_ollama_does_not_render_the_prompt(http):
    asked = {"model": "tools", "messages": HELLO, "stream": False, "options": {"num_predict": 0}}

    answer = http.post("/api/chat", json=asked).json()

    assert (answer.get("eval_count"), answer["done_reason"]) == (None, "length")


def test_a_negative_limit_is_ten_times_the_context(http, ollama):
    ollama.settings.pieces = 1_000_000
    options = {"num_predict": -1, "num_ctx": 20}

    answer = http.post(
        "/api/generate", json={"model": "tiny:1b", "prompt": "x", "stream": False, "options": options}
    ).json()

    assert (answer["eval_count"], answer["done_reason"]) == (200, "length")


def test_generate_ends_with_the_context_and_raw_does_not(http):
    asked = {"model": "tiny:1b", "prompt": "Tell me", "options": {"num_predict": 4}}

    last = lines_of(http.post("/api/generate", json=asked))[-1]
    raw = http.post("/api/generate", json={**asked, "raw": True, "stream": False}).json()

    assert len(last["context"]) == last["prompt_eval_count"] + 4
    assert "context" not in raw
    assert raw["prompt_eval_count"] == 2


def test_empty_requests_load_and_unload_in_one_object(http, ollama):
    loaded = http.post("/api/generate", json={"model": "tiny:1b"})
    running = http.get("/api/ps").json()["models"]
    unloaded = http.post("/api/chat", json={"model": "tiny:1b", "messages": [], "keep_alive": 0})

    assert loaded.json()["done_reason"] == "load"
    assert "prompt_eval_count" not in loaded.json()
    assert [model["name"] for model in running] == ["tiny:1b"]
    assert unloaded.json()["done_reason"] == "unload"
    assert http.get("/api/ps").json()["models"] == []


def test_an_empty_completion_is_the_end_of_a_stream_where_one_was_asked_for(http):
    events = events_of(http.post("/v1/completions", json={"model": "tiny:1b", "prompt": "", "stream": True}))

    loaded, end = events
    assert loaded["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]
    assert end == "[DONE]"


def test_another_context_size_loads_the_model_again(http, ollama):
    for num_ctx in (2048, 2048, 1024):
        http.post("/api/generate", json={"model": "tiny:1b", "prompt": "x", "options": {"num_ctx": num_ctx}})

    assert ollama.library.loads == {"tiny:1b": 2}


def test_thinking_comes_first_is_counted_and_can_be_turned_off(http):
    asked = {"model": "thinker", "messages": HELLO, "stream": False}

    thought = http.post("/api/chat", json=asked).json()
    plain = http.post("/api/chat", json={**asked, "think": False}).json()
    v1 = http.post("/v1/chat/completions", json={"model": "thinker", "messages": HELLO}).json()

    assert thought["message"]["thinking"]
    assert "thinking" not in plain["message"]
    assert thought["eval_count"] == plain["eval_count"] + 6
    assert v1["choices"][0]["message"]["reasoning"] == thought["message"]["thinking"]


def test_a_tool_is_called_in_the_last_line_and_its_result_answered(http):
    asked = {"model": "tools", "messages": HELLO, "tools": [WEATHER]}

    lines = lines_of(http.post("/api/chat", json=asked))
    result = [*HELLO, lines[-1]["message"], {"role": "tool", "content": "sunny", "tool_name": "weather"}]
    answer = http.post("/api/chat", json={**asked, "messages": result, "stream": False}).json()

    assert lines[-1]["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert lines[-1]["done_reason"] == "stop"
    assert answer["message"]["content"].startswith("sunny")


def test_a_schema_is_followed(http):
    form = {"type": "object", "properties": {"city": {"type": "string"}, "heat": {"type": "integer"}}}

    answer = http.post(
        "/api/chat", json={"model": "tiny:1b", "messages": HELLO, "format": form, "stream": False}
    )

    assert json.loads(answer.json()["message"]["content"]) == {"city": "Paris", "heat": 7}


def test_embeddings_have_unit_length_and_one_count_for_all(http):
    answer = http.post("/api/embed", json={"model": "emb", "input": ["one two", "three"]}).json()
    old = http.post("/api/embeddings", json={"model": "emb", "prompt": "one two"}).json()

    assert [sum(v * v for v in vector) for vector in answer["embeddings"]] == pytest.approx([1, 1], abs=1e-6)
    assert answer["prompt_eval_count"] == 2 + 2
    assert "eval_count" not in answer
    assert list(old) == ["embedding"]


def test_empty_input_is_no_work(http):
    assert http.post("/api/embed", json={"model": "emb", "input": []}).json() == {
        "model": "emb",
        "embeddings": [],
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", b"", 400, "missing request body"),
        ("/v1/chat/completions", b"", 400, "EOF"),
        ("/api/chat", b"{", 400, "unexpected EOF"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/chat", {"model": "/x"}, 400, "invalid model name"),
        ("/api/chat", {"model": "Gone"}, 404, "model 'Gone' not found"),
        ("/api/embed", {"model": "gone", "input": "x"}, 404, 'model "gone" not found, try pulling it first'),
        ("/api/embed", {"model": "emb", "input": [1]}, 400, "invalid input type"),
        (
            "/api/embeddings",
            {"model": "EMB", "prompt": "x"},
            404,
            'model "EMB" not found, try pulling it first',
        ),
        ("/api/show", {"name": "gone"}, 404, "model 'gone:latest' not found"),
        ("/api/chat", {"model": "emb", "messages": HELLO}, 400, '"emb" does not support chat'),
        ("/api/generate", {"model": "emb", "prompt": "x"}, 400, '"emb" does not support generate'),
        (
            "/api/chat",
            {"model": "tiny:1b", "messages": HELLO, "think": True},
            400,
            '"tiny:1b" does not support thinking',
        ),
        (
            "/api/chat",
            {"model": "tiny:1b", "messages": HELLO, "tools": [WEATHER]},
            400,
            "registry.ollama.ai/library/tiny:1b does not support tools",
        ),
        (
            "/api/generate",
            {"model": "tiny:1b", "prompt": "x", "raw": True, "system": "y"},
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            "/api/chat",
            {"model": "tiny:1b", "messages": HELLO, "options": {"num_predict": "9"}},
            500,
            'option "num_predict" must be of type integer',
        ),
        (
            "/api/chat",
            {"model": "tiny:1b", "messages": HELLO, "top_logprobs": 21},
            400,
            "top_logprobs must be between",
        ),
        ("/api/chat", {"model": "tiny:1b", "messages": HELLO, "keep_alive": "5"}, 400, "invalid duration"),
        ("/api/chat", {"model": "tiny:1b", "messages": HELLO, "format": "xml"}, 500, "invalid format"),
        ("/v1/chat/completions", {"model": "tiny:1b", "messages": []}, 400, "[] is too short - 'messages'"),
        ("/v1/completions", {"model": "tiny:1b", "prompt": ["x"]}, 400, "json: cannot unmarshal array"),
        ("/v1/embeddings", {"model": "emb", "input": [[1, 2]]}, 400, "invalid input"),
        ("/v1/embeddings", {"model": "emb", "input": "x", "encoding_format": "hex"}, 400, "Invalid value"),
        ("/v1/responses", {"model": "tiny:1b", "input": [{"type": "odd"}]}, 400, "unknown input item type"),
        ("/v1/messages", {"model": "tiny:1b", "messages": HELLO}, 400, "max_tokens is required"),
        (
            "/v1/messages",
            {"model": "gone", "max_tokens": 9, "messages": HELLO},
            404,
            "model 'gone' not found",
        ),
    ],
)
def test_refusals_have_ollamas_status_text_and_shape(http, path, body, status, text):
    response = http.post(path, content=body if isinstance(body, bytes) else json.dumps(body))

    error = response.json()["error"]
    assert response.status_code == status
    assert text in (error["message"] if path.startswith("/v1/") else error)
    if path == "/v1/messages":
        assert response.json()["type"] == "error"
    elif path.startswith("/v1/"):
        assert set(error) == {"message", "type", "param", "code"}


def test_the_content_type_of_a_request_does_not_matter(http):
    body = json.dumps({"model": "tiny:1b", "messages": HELLO, "stream": False})

    response = http.post(
        "/api/chat", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )

    assert response.status_code == 200


def test_chunks_of_the_present_layout(http):
    response = http.post(
        "/v1/chat/completions",
        json={
            "model": "tiny:1b",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 3,
        },
    )

    *chunks, finish, usage, done = events_of(response)
    assert response.headers["content-type"] == "text/event-stream"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Tell"},
        {"content": " me"},
        {"content": " about"},
    ]
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert not any("usage" in chunk for chunk in (*chunks, finish))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert len({(chunk["id"], chunk["created"]) for chunk in (*chunks, finish, usage)}) == 1
    assert done == "[DONE]"


def test_chunks_of_the_old_layout(http):
    asked = {
        "model": "fault-oldchunks",
        "messages": HELLO,
        "stream": True,
        "max_tokens": 2,
        "reasoning_effort": "none",
    }

    *chunks, done = events_of(http.post("/v1/chat/completions", json=asked))

    assert [chunk["choices"][0]["delta"]["role"] for chunk in chunks] == ["assistant"] * 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert done == "[DONE]"


@pytest.mark.parametrize("ignored", [{"max_completion_tokens": 2}, {"n": 3}, {"options": {"num_predict": 2}}])
def test_what_ollama_ignores_is_ignored(http, ollama, ignored):
    ollama.settings.pieces = 20

    answer = http.post("/v1/chat/completions", json={"model": "tiny:1b", "messages": HELLO, **ignored}).json()

    assert answer["usage"]["completion_tokens"] == 20
    assert len(answer["choices"]) == 1


def test_completions_carry_zero_usage_until_the_last_chunk(http):
    asked = {"model": "tiny:1b", "prompt": "Tell me", "stream": True, "max_tokens": 2}

    *chunks, usage, done = events_of(
        http.post("/v1/completions", json={**asked, "stream_options": {"include_usage": True}})
    )
    without = events_of(http.post("/v1/completions", json=asked))

    assert [chunk["usage"]["total_tokens"] for chunk in chunks] == [0, 0, 0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in without[:-1])


def test_embeddings_can_be_asked_for_as_base64(http):
    plain = http.post("/v1/embeddings", json={"model": "emb", "input": "one"}).json()
    packed = http.post(
        "/v1/embeddings", json={"model": "emb", "input": "one", "encoding_format": "base64"}
    ).json()

    values = plain["data"][0]["embedding"]
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(values)}f", data) == pytest.approx(values, abs=1e-6)
    assert plain["usage"] == {"prompt_tokens": 1, "total_tokens": 1}


def test_the_event_names_of_responses_come_in_order(http):
    asked = {"model": "thinker", "input": "Hi", "stream": True, "max_output_tokens": 8}

    response = http.post("/v1/responses", json=asked)

    blocks = [block.split(b"\n") for block in response.content.split(b"\n\n")[:-1]]
    payloads = [json.loads(data.removeprefix(b"data: ")) for _, data in blocks]
    kinds = [name.removeprefix(b"event: ").decode() for name, _ in blocks]
    assert kinds == [payload["type"] for payload in payloads]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.reasoning_summary_text.delta"] * 6,
        "response.reasoning_summary_text.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 2,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert payloads[-1]["response"]["usage"]["output_tokens"] == 8
    assert payloads[-1]["response"]["status"] == "completed"
    assert response.headers["cache-control"] == "no-cache"


def test_the_events_of_messages_come_in_order_and_the_last_usage_is_the_true_one(http):
    asked = {"model": "thinker", "max_tokens": 8, "stream": True, "messages": HELLO}

    response = http.post("/v1/messages?beta=true", json=asked)

    payloads = [json.loads(block.split(b"\ndata: ")[1]) for block in response.content.split(b"\n\n")[:-1]]
    assert [payload["type"] for payload in payloads] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 6,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert payloads[0]["message"]["usage"]["input_tokens"] != payloads[-2]["usage"]["input_tokens"]
    assert payloads[-2]["usage"]["output_tokens"] == 8
    assert payloads[-2]["delta"] == {"stop_reason": "max_tokens"}


def test_lists_and_show(http, ollama):
    tags = http.get("/api/tags").json()["models"]
    shown = http.post("/api/show", json={"name": "small", "verbose": True}).json()
    one = http.get("/v1/models/TINY%3A1b").json()

    assert {entry["name"] for entry in tags} == {
        "tiny:1b",
        "small:latest",
        "emb:latest",
        "thinker:latest",
        "tools:latest",
    }
    assert all(len(entry["digest"]) == 64 and entry["details"]["context_length"] for entry in tags)
    assert "/blobs/sha256-" in shown["modelfile"]
    assert shown["system"]
    assert shown["license"]
    assert ".Suffix" in shown["template"]
    assert len(shown["model_info"]["tokenizer.ggml.tokens"]) == 4096
    assert one == {"id": "TINY:1b", "object": "model", "created": one["created"], "owned_by": "library"}
    assert http.get("/api/version").json() == {"version": listing.VERSION}
    assert http.get("/").text == "Ollama is running"


def test_the_list_of_no_models_is_null_on_the_openai_side(http, ollama):
    ollama.library.installed.clear()

    assert http.get("/v1/models").json() == {"object": "list", "data": None}
    assert http.get("/api/tags").json() == {"models": []}


def test_the_debugging_field_shows_the_prompt_and_generates_nothing(http):
    asked = {"model": "tiny:1b", "messages": HELLO, "_DEBUG_render_only": True}

    answer = http.post("/api/chat", json=asked).json()

    assert "heron" in answer["_debug_info"]["rendered_template"]
    assert "eval_count" not in answer


def test_cloud_names_are_answered_visibly(http, ollama):
    asked = {"model": "gpt-oss:120b-cloud", "messages": HELLO, "stream": False}

    answered = http.post("/api/chat", json=asked).json()
    ollama.settings.cloud = "unauthorized"
    signed_out = http.post("/v1/chat/completions", json=asked)
    ollama.settings.cloud = "disabled"
    disabled = http.post("/api/chat", json=asked)

    assert answered["remote_host"]
    assert answered["message"]["content"].startswith("answered by the cloud")
    assert all(record.cloud for record in ollama.calls)
    assert (signed_out.status_code, signed_out.json()["error"]) == (401, "unauthorized")
    assert disabled.status_code == 403


def test_a_compressed_body_is_noticed_on_the_routes_that_read_it(http):
    headers = {"Content-Encoding": "zstd"}

    v1 = http.post("/v1/chat/completions", content=b"\x28\xb5\x2f\xfd", headers=headers)
    native = http.post("/api/chat", content=b"\x28\xb5\x2f\xfd", headers=headers)

    assert (v1.status_code, v1.json()) == (
        400,
        {"error": "zstd body received, the simulator does not unpack it"},
    )
    assert "invalid character" in native.json()["error"]


def test_mutating_routes_work_and_are_recorded(http, ollama):
    lines = lines_of(http.post("/api/pull", json={"name": "fresh"}))
    http.post("/api/copy", json={"source": "fresh", "destination": "twin"})
    http.request("DELETE", "/api/delete", json={"model": "fresh"})
    created = http.post("/api/create", json={"model": "mine", "from": "tiny:1b", "stream": False})
    digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

    assert lines[-1] == {"status": "success"}
    assert created.json() == {"status": "success"}
    assert http.head(f"/api/blobs/{digest}").status_code == 404
    assert http.post(f"/api/blobs/{digest}", content=b"hello").status_code == 201
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    names = {entry["name"] for entry in http.get("/api/tags").json()["models"]}
    assert {"twin:latest", "mine:latest"} < names
    assert "fresh:latest" not in names
    assert [record.path for record in ollama.requests][:4] == [
        "/api/pull",
        "/api/copy",
        "/api/delete",
        "/api/create",
    ]


@pytest.mark.parametrize(
    ("path", "method"),
    [(path, method) for path, methods in {**routing.TABLE, **mutations.TABLE}.items() for method in methods],
)
def test_no_route_breaks_down_on_an_empty_object(http, ollama, path, method):
    response = http.request(method, path, content=b"{}")

    assert response.status_code < 500
    assert ollama.requests[-1].state == "finished"


def test_the_ollama_package_understands_every_answer(native):
    whole = native.chat("tiny:1b", HELLO)
    parts = list(native.chat("thinker", HELLO, stream=True))
    called = native.chat("tools", HELLO, tools=[WEATHER])
    generated = list(native.generate("small", "Tell me", stream=True, suffix="end"))
    embedded = native.embed("emb", ["one", "two"])
    shown = native.show("tiny:1b")

    assert whole.message.content
    assert whole.eval_count
    assert parts[0].message.thinking
    assert parts[-1].done
    assert called.message.tool_calls[0].function.arguments == {"city": "Paris"}
    assert generated[-1].context
    assert len(embedded.embeddings) == 2
    assert len(native.embeddings("emb", "one").embedding) == 64
    assert {model.model for model in native.list().models} >= {"tiny:1b", "emb:latest"}
    assert "tiny:1b" in {model.name for model in native.ps().models}
    assert shown.modelinfo["simulated.context_length"] == 8192
    assert native.pull("fresh").status == "success"
    with pytest.raises(ollama_client.ResponseError, match="model 'gone' not found"):
        native.chat("gone", HELLO)


def test_the_openai_package_understands_every_answer(openai_client):
    client = openai_client
    whole = client.chat.completions.create(model="tiny:1b", messages=HELLO)
    chunks = list(
        client.chat.completions.create(
            model="tiny:1b", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    called = client.chat.completions.create(model="tools", messages=HELLO, tools=[WEATHER])
    text = list(client.completions.create(model="tiny:1b", prompt="Tell me", stream=True))
    embedded = client.embeddings.create(model="emb", input=["one", "two"])
    response = client.responses.create(model="thinker", input="Hi")
    with client.responses.stream(
        model="tools", input="Hi", tools=[{"type": "function", **WEATHER["function"]}]
    ) as stream:
        streamed = stream.get_final_response()

    assert whole.choices[0].message.content == "".join(
        c.choices[0].delta.content or "" for c in chunks if c.choices
    )
    assert chunks[-1].usage == whole.usage
    assert called.choices[0].finish_reason == "tool_calls"
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}
    assert text[-1].choices[0].finish_reason == "stop"
    assert len(embedded.data[0].embedding) == 64
    assert response.output_text
    assert response.usage.output_tokens
    assert streamed.output[0].name == "weather"
    assert {model.id for model in client.models.list()} >= {"tiny:1b"}
    assert client.models.retrieve("tiny:1b").owned_by == "library"
    with pytest.raises(openai.NotFoundError, match="model 'gone' not found"):
        client.chat.completions.create(model="gone", messages=HELLO)


def test_the_anthropic_package_understands_every_answer(anthropic_client):
    client = anthropic_client
    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}

    whole = client.messages.create(model="thinker", max_tokens=100, messages=HELLO)
    with client.messages.stream(model="thinker", max_tokens=100, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    with client.messages.stream(model="tools", max_tokens=100, messages=HELLO, tools=[tool]) as stream:
        called = stream.get_final_message()

    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert streamed.content[1].text == whole.content[1].text
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert called.stop_reason == "tool_use"
    assert called.content[0].input == {"city": "Paris"}
    with pytest.raises(anthropic.NotFoundError, match="model 'gone' not found"):
        client.messages.create(model="gone", max_tokens=100, messages=HELLO)
