"""Messages turned into the text that the model is fed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.simulator.library import Model

_END = "<|assistant|>\n"


@dataclass(slots=True)
class Message:
    """One message in Ollama's own form, whatever dialect it came in."""

    role: str
    content: str = ""
    thinking: str = ""
    images: int = 0
    calls: list[Any] = field(default_factory=list)


def render(model: Model, messages: Sequence[Message], tools: Sequence[Any] = (), form: Any = None) -> str:
    """The prompt. The model's own system text comes first unless a system message leads."""
    parts = [] if messages and messages[0].role == "system" else [_turn("system", model.system)]
    if tools:
        parts.append(_turn("tools", json.dumps(list(tools))))
    if form:
        parts.append(_turn("format", json.dumps(form)))
    for message in messages:
        calls = json.dumps(message.calls) if message.calls else ""
        parts.append(_turn(message.role, message.thinking + message.content + calls))
    return "".join(parts) + _END


def subject(messages: Sequence[Message]) -> str:
    """What the answer is about: the last message with text."""
    return next((message.content for message in reversed(messages) if message.content.strip()), "nothing")


def answers_a_tool(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1].role == "tool"


def _turn(role: str, text: str) -> str:
    return f"<|{role}|>\n{text}<|end|>\n" if text else ""
