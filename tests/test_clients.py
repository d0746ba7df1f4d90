"""The official clients, through a real socket, and what is booked for each of their calls.

Their packages are loaded by the tests that use them: it takes longer than to collect all tests there are.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from proxy import admission
from tests.conftest import House

if TYPE_CHECKING:
    from anthropic import Anthropic
    from ollama import Client as Ollama
    from openai import OpenAI

# Each package has types of its own for the same words.
MESSAGES: list[Any] = [{"role": "user", "content": "How is the weather?"}]


def assert_booked_as_sent(house: House, *, route: str, exact: bool = True) -> None:
    """One entry, with the tokens that Ollama's own log has for the one call it got."""
    [entry] = house.booked()
    [truth] = house.ollama.calls
    assert (entry.route, entry.outcome, entry.status, entry.exact) == (route, "completed", 200, exact)
    assert (entry.input_tokens, entry.output_tokens) == (truth.prompt_tokens, truth.output_tokens)
    assert entry.tenant == "acme"
    assert entry.key == house.ada.key.label
    assert entry.upstream == "sim"


@pytest.fixture
def openai_client(house: House) -> Iterator[OpenAI]:
    from openai import OpenAI

    with OpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.ada.secret, max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(house: House) -> Iterator[Ollama]:
    from ollama import Client

    client = Client(host=house.gateway.url, headers={"Authorization": f"Bearer {house.ada.secret}"})
    yield client
    client._client.close()


@pytest.fixture
def anthropic_client(house: House) -> Iterator[Anthropic]:
    from anthropic import Anthropic

    with Anthropic(base_url=house.gateway.url, api_key=house.ada.secret, max_retries=0) as client:
        yield client


def test_openai_chat_streams(house, openai_client):
    stream = openai_client.chat.completions.create(model="tiny:1b", messages=MESSAGES, stream=True)
    chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == house.ollama.calls[0].text
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert_booked_as_sent(house, route="/v1/chat/completions")


def test_openai_chat_streams_with_usage_where_asked(house, openai_client):
    stream = openai_client.chat.completions.create(
        model="tiny:1b", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    last = list(stream)[-1]

    assert last.choices == []
    assert last.usage.prompt_tokens == house.ollama.calls[0].prompt_tokens
    assert_booked_as_sent(house, route="/v1/chat/completions")


def test_openai_chat_answers_at_once(house, openai_client):
    answer = openai_client.chat.completions.create(model="tiny:1b", messages=MESSAGES)

    assert answer.choices[0].message.content == house.ollama.calls[0].text
    assert_booked_as_sent(house, route="/v1/chat/completions")


def test_openai_limit_of_output_reaches_ollama(house, openai_client):
    answer = openai_client.chat.completions.create(
        model="tiny:1b", messages=MESSAGES, max_completion_tokens=5
    )

    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"
    assert json.loads(house.ollama.calls[0].body)["max_tokens"] == 5


@pytest.mark.parametrize(
    ("rest", "status"),
    [pytest.param({"tool_calls": []}, 200, id="a list"), pytest.param({}, 400, id="no list")],
)
def test_openai_message_may_be_empty_if_it_has_a_list_of_calls(house, rest, status):
    """As programs write an answer of a model that said nothing, when they send it back."""
    said = [*MESSAGES, {"role": "assistant", "content": None, **rest}, *MESSAGES]
    answer = house.ada.http.post("/v1/chat/completions", json={"model": "tiny:1b", "messages": said})

    assert answer.status_code == status


@pytest.mark.parametrize("stream", [True, False])
def test_openai_completions(house, openai_client, stream):
    answer = openai_client.completions.create(model="tiny:1b", prompt="Once", stream=stream)
    parts = list(answer) if stream else [answer]

    assert "".join(part.choices[0].text for part in parts) == house.ollama.calls[0].text
    assert_booked_as_sent(house, route="/v1/completions")


@pytest.mark.parametrize("stream", [True, False])
def test_openai_completions_of_nothing_load_the_model_and_count_no_tokens(house, openai_client, stream):
    answer = openai_client.completions.create(model="tiny:1b", prompt="", stream=stream)
    parts = list(answer) if stream else [answer]

    assert [(part.choices[0].text, part.choices[0].finish_reason) for part in parts] == [("", "load")]
    assert_booked_as_sent(house, route="/v1/completions")
    assert house.booked()[0].input_tokens == 0


def test_openai_embeddings(house, openai_client):
    answer = openai_client.embeddings.create(model="emb", input=["one", "two"])

    assert [item.index for item in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == 64
    assert_booked_as_sent(house, route="/v1/embeddings")


@pytest.mark.parametrize("stream", [True, False])
def test_openai_responses(house, openai_client, stream):
    answer = openai_client.responses.create(model="tiny:1b", input="Hello", stream=stream)

    if stream:
        events = list(answer)
        assert events[-1].type == "response.completed"
        answer = events[-1].response
    assert answer.output_text == house.ollama.calls[0].text
    assert_booked_as_sent(house, route="/v1/responses")


def test_openai_lists_models(house, openai_client):
    names = {model.id for model in openai_client.models.list()}

    assert {"tiny:1b", "emb:latest", "thinker:latest"} <= names
    assert openai_client.models.retrieve("TINY:1b").id == "tiny:1b"


def test_openai_errors_are_its_own(house, openai_client):
    from openai import AuthenticationError, PermissionDeniedError

    with pytest.raises(PermissionDeniedError) as refused:
        openai_client.chat.completions.create(model="nobody", messages=MESSAGES)

    assert refused.value.code == "model_not_allowed"
    assert refused.value.request_id is not None
    with pytest.raises(AuthenticationError):
        openai_client.with_options(api_key="tg_wrong").models.list()


@pytest.mark.parametrize("stream", [True, False])
def test_anthropic_messages(house, anthropic_client, stream):
    if stream:
        with anthropic_client.messages.stream(model="tiny:1b", max_tokens=100, messages=MESSAGES) as events:
            answer = events.get_final_message()
    else:
        answer = anthropic_client.messages.create(model="tiny:1b", max_tokens=100, messages=MESSAGES)

    assert answer.content[0].text == house.ollama.calls[0].text
    assert answer.usage.output_tokens == house.ollama.calls[0].output_tokens
    assert_booked_as_sent(house, route="/v1/messages")


def test_anthropic_answers_a_history_with_blocks_that_no_model_reads(house, anthropic_client):
    herons = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Herons."}}
    history: list[Any] = [
        {"role": "user", "content": [herons, {"type": "text", "text": "Hello"}]},
        {
            "role": "assistant",
            "content": [{"type": "redacted_thinking", "data": "c2Vh"}, {"type": "text", "text": "Hi"}],
        },
        {"role": "user", "content": "Go on"},
    ]

    answer = anthropic_client.messages.create(model="tiny:1b", max_tokens=100, messages=history)

    assert answer.content[0].text == house.ollama.calls[0].text
    assert all(word not in house.ollama.calls[0].body for word in ("Herons", "c2Vh"))
    assert_booked_as_sent(house, route="/v1/messages")


def test_anthropic_tokens_are_counted_by_ourselves(house, anthropic_client):
    counted = anthropic_client.messages.count_tokens(model="tiny:1b", messages=MESSAGES)

    assert counted.input_tokens > 0
    assert house.ollama.calls == []


def test_a_large_body_is_read_while_others_are_answered():
    async def read_one() -> bool:
        answered = threading.Event()
        asyncio.get_running_loop().call_soon(answered.set)
        return await admission.read(lambda _: answered.wait(30), b" " * (admission.LARGE_BODY_BYTES + 1))

    assert asyncio.run(read_one())


def test_anthropic_tokens_of_a_large_prompt_are_counted(house, anthropic_client):
    prompt = "word " * (admission.LARGE_BODY_BYTES // 4)
    counted = anthropic_client.messages.count_tokens(
        model="tiny:1b", messages=[{"role": "user", "content": prompt}]
    )

    assert counted.input_tokens > admission.LARGE_BODY_BYTES // 8


def test_anthropic_errors_are_its_own(house, anthropic_client):
    from anthropic import PermissionDeniedError

    with pytest.raises(PermissionDeniedError) as refused:
        anthropic_client.messages.create(model="nobody", max_tokens=9, messages=MESSAGES)

    assert refused.value.response.json()["error"]["type"] == "permission_error"


def test_ollama_chat_streams(house, ollama_client):
    parts = list(ollama_client.chat(model="tiny:1b", messages=MESSAGES, stream=True))

    assert "".join(part.message.content for part in parts) == house.ollama.calls[0].text
    assert parts[-1].done
    assert parts[-1].eval_count == house.ollama.calls[0].output_tokens
    assert_booked_as_sent(house, route="/api/chat")


def test_ollama_chat_answers_at_once(house, ollama_client):
    answer = ollama_client.chat(model="tiny:1b", messages=MESSAGES, options={"num_predict": 3})

    assert answer.eval_count == 3
    assert answer.done_reason == "length"
    assert_booked_as_sent(house, route="/api/chat")


@pytest.mark.parametrize("stream", [True, False])
def test_ollama_generate(house, ollama_client, stream):
    answer = ollama_client.generate(model="tiny:1b", prompt="Once", stream=stream)
    parts = list(answer) if stream else [answer]

    assert "".join(part.response for part in parts) == house.ollama.calls[0].text
    assert_booked_as_sent(house, route="/api/generate")


def test_ollama_thinking_is_counted_as_output(house, ollama_client):
    answer = ollama_client.chat(model="thinker", messages=MESSAGES, think=True)

    assert answer.message.thinking
    assert_booked_as_sent(house, route="/api/chat")


def test_ollama_tools_pass(house, ollama_client):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }

    parts = list(ollama_client.chat(model="tools", messages=MESSAGES, tools=[tool], stream=True))

    assert [call.function.name for part in parts for call in part.message.tool_calls or []] == ["weather"]
    assert_booked_as_sent(house, route="/api/chat")


def test_ollama_embed(house, ollama_client):
    answer = ollama_client.embed(model="emb", input=["one", "two"])

    assert len(answer.embeddings) == 2
    assert_booked_as_sent(house, route="/api/embed")


def test_ollama_old_embeddings_are_counted_too(house, ollama_client):
    answer = ollama_client.embeddings(model="emb", prompt="one")

    assert len(answer.embedding) == 64
    assert_booked_as_sent(house, route="/api/embeddings")


def test_ollama_lists_shows_and_looks(house, ollama_client):
    ollama_client.generate(model="tiny:1b", prompt="Once")

    assert "tiny:1b" in {model.model for model in ollama_client.list().models}
    shown = ollama_client.show("tiny:1b")
    assert shown.modelinfo["simulated.context_length"] == 8192
    assert "tiny:1b" in {model.model for model in ollama_client.ps().models}


def test_ollama_errors_are_its_own(house, ollama_client):
    from ollama import ResponseError

    with pytest.raises(ResponseError) as refused:
        ollama_client.chat(model="nobody", messages=MESSAGES)

    assert refused.value.status_code == 403
    assert "does not exist, or this key may not use it" in refused.value.error


def test_asynchronous_clients_stream_side_by_side(house):
    from anthropic import AsyncAnthropic
    from ollama import AsyncClient
    from openai import AsyncOpenAI

    async def openai_text() -> str:
        async with AsyncOpenAI(
            base_url=f"{house.gateway.url}/v1", api_key=house.ada.secret, max_retries=0
        ) as client:
            stream = await client.chat.completions.create(model="tiny:1b", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ollama_text() -> str:
        client = AsyncClient(host=house.gateway.url, headers={"Authorization": f"Bearer {house.ada.secret}"})
        async with client._client:
            stream = await client.chat(model="tiny:1b", messages=MESSAGES, stream=True)
            return "".join([part.message.content or "" async for part in stream])

    async def anthropic_text() -> str:
        async with (
            AsyncAnthropic(base_url=house.gateway.url, api_key=house.ada.secret, max_retries=0) as client,
            client.messages.stream(model="tiny:1b", max_tokens=99, messages=MESSAGES) as events,
        ):
            return await events.get_final_text()

    async def all_at_once() -> list[str]:
        work = [openai_text, ollama_text, anthropic_text] * 4
        return await asyncio.gather(*(one() for one in work))

    texts = asyncio.run(all_at_once())

    assert all(texts)
    entries = house.booked(12)
    assert sum(entry.output_tokens for entry in entries) == sum(c.output_tokens for c in house.ollama.calls)
    assert sum(entry.input_tokens for entry in entries) == sum(c.prompt_tokens for c in house.ollama.calls)
