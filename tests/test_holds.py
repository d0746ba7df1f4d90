"""What a call may ask for besides a plain prompt is inside its hold, or refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from budgets.services import set_budget
from tests.conftest import House

LIMIT = 10**6
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}},
    },
}
SAID = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/api/chat", {"model": "tools", "messages": SAID, "tools": [TOOL]}, id="tools"),
        pytest.param("/api/chat", {"messages": [{**SAID[0], "images": [PNG, PNG]}]}, id="images"),
        pytest.param("/api/chat", {"model": "thinker", "messages": SAID, "think": True}, id="thinking"),
        pytest.param("/api/chat", {"messages": SAID, "format": TOOL["function"]["parameters"]}, id="schema"),
        pytest.param("/api/generate", {"prompt": "hello", "context": list(range(300))}, id="context"),
        pytest.param(
            "/api/generate", {"model": "small", "prompt": "def f(", "suffix": "return 1"}, id="suffix"
        ),
        pytest.param("/api/generate", {"prompt": "hello", "system": "Be brief. " * 20}, id="system"),
        pytest.param("/api/generate", {"prompt": "ä漢🦙" * 40, "raw": True}, id="raw"),
        pytest.param("/api/embed", {"model": "emb", "input": ["one", "two " * 50] * 30}, id="batch"),
        pytest.param("/v1/embeddings", {"model": "emb", "input": ["one", "two"] * 30}, id="v1 batch"),
        pytest.param("/v1/chat/completions", {"messages": SAID, "n": 1}, id="n of 1"),
        pytest.param(
            "/v1/completions",
            {"model": "small", "prompt": "hello", "best_of": 1, "suffix": "bye"},
            id="best_of 1",
        ),
    ],
)
@pytest.mark.parametrize("unit", ["tokens", "output_tokens"])
def test_what_was_used_was_held(house: House, unit: str, path: str, body: dict[str, Any]) -> None:
    set_budget(scope="tenant", tenant=house.acme, unit=unit, period="day", limit=LIMIT, actor="test")

    answer = house.ada.http.post(path, json={"model": "tiny:1b", "stream": False, **body})

    assert answer.status_code == 200, answer.text
    [truth] = house.ollama.calls
    left = int(answer.headers["ratelimit"].partition(";r=")[2].partition(";")[0])
    used = truth.output_tokens + (truth.prompt_tokens if unit == "tokens" else 0)
    assert used <= LIMIT - left
    [entry] = house.booked()
    assert (entry.input_tokens, entry.output_tokens) == (truth.prompt_tokens, truth.output_tokens)
    assert entry.exact


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": SAID, "n": 2}, "n"),
        ("/v1/completions", {"prompt": "hello", "n": 2}, "n"),
        ("/v1/completions", {"prompt": "hello", "best_of": 3}, "best_of"),
        ("/v1/completions", {"prompt": ["one", "two"]}, "prompt"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input"),
    ],
)
def test_what_would_be_several_calls_is_refused(
    house: House, path: str, body: dict[str, Any], param: str
) -> None:
    answer = house.ada.http.post(path, json={"model": "tiny:1b", **body})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert house.ollama.calls == []
