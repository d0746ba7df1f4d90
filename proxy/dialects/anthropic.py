"""Anthropic's Messages API as Ollama reads it, and the count of tokens that Ollama lacks."""

from __future__ import annotations

from typing import Any

from proxy.calls import V1_MESSAGES, Call
from proxy.dialects import fields
from proxy.dialects.ollama import MAX_MESSAGES, MAX_TOOLS
from proxy.dialects.prompt import Prompt
from proxy.dialects.strict_json import Reader, loads, read_object, wrong
from proxy.exceptions import BadRequest

_Fields = dict[str, Any]

_SOURCE: dict[str, Reader | None] = {
    "type": fields.one_of("base64"),
    "media_type": fields.name,
    "data": fields.text,
}
_TEXT: dict[str, Reader | None] = {"type": fields.name, "text": fields.text, "cache_control": None}
_IMAGE: dict[str, Reader | None] = {
    "type": fields.name,
    "source": fields.fields(_SOURCE),
    "cache_control": None,
}

# Ollama passes over them; so do we, and count nothing of what no model reads.
_PASSED_OVER = ("document", "redacted_thinking")


def _reader_of_blocks(kinds: dict[str, dict[str, Reader | None]]) -> Reader:
    """A reader of a text, or of a list of blocks of these kinds without those that are passed over."""

    def block(value: Any, param: str) -> _Fields | None:
        kind = fields.mapping(value, param).get("type")
        if kind in _PASSED_OVER:
            return None
        known = kinds.get(kind) if isinstance(kind, str) else None
        if known is None:
            raise wrong(f"{param}.type", "one of " + ", ".join(kinds))
        return read_object(value, param, known)

    def read(value: Any, param: str) -> str | list[_Fields]:
        if isinstance(value, str):
            return value
        return [one for one in fields.items(value, param, block, MAX_MESSAGES) if one is not None]

    return read


_result = _reader_of_blocks({"text": _TEXT, "image": _IMAGE})


def _found(value: Any, param: str) -> list[Any] | _Fields:
    """What a search found, or its error, as part of what was said."""
    if isinstance(value, list):
        return fields.items(value, param, fields.mapping, MAX_MESSAGES)
    return fields.mapping(value, param)


_USE: dict[str, Reader | None] = {
    "type": fields.name,
    "id": fields.name,
    "name": fields.name,
    "input": fields.mapping,
    "cache_control": None,
}
_content = _reader_of_blocks(
    {
        "text": _TEXT,
        "image": _IMAGE,
        "tool_use": _USE,
        "tool_result": {
            "type": fields.name,
            "tool_use_id": fields.name,
            "content": _result,
            "is_error": fields.flag,
            "cache_control": None,
        },
        "thinking": {"type": fields.name, "thinking": fields.text, "signature": fields.text},
        "server_tool_use": _USE,
        "web_search_tool_result": {
            "type": fields.name,
            "tool_use_id": fields.name,
            "content": _found,
            "cache_control": None,
        },
    }
)
_system = _reader_of_blocks({"text": _TEXT})

_MESSAGE: dict[str, Reader | None] = {"role": fields.name, "content": _content}


def _messages(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_MESSAGE), MAX_MESSAGES)


# ``custom`` is a function of the client's; others are the server's, such as a search outside the house.
_TOOL: dict[str, Reader | None] = {
    "type": fields.one_of("custom"),
    "name": fields.name,
    "description": fields.text,
    "input_schema": fields.schema,
    "cache_control": None,
}


def _tools(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_TOOL), MAX_TOOLS)


_THINKING: dict[str, Reader | None] = {
    "type": fields.one_of("enabled", "disabled", "adaptive"),
    "budget_tokens": fields.integer,
}
_OUTPUT_CONFIG: dict[str, Reader | None] = {"effort": fields.one_of("low", "medium", "high", "xhigh", "max")}

_MESSAGES: dict[str, Reader | None] = {
    "model": fields.name,
    "max_tokens": fields.output_limit,
    "messages": _messages,
    "system": _system,
    "stream": fields.flag,
    "temperature": fields.number,
    "top_p": fields.number,
    "top_k": fields.integer,
    "stop_sequences": fields.stop_list,
    "tools": _tools,
    "thinking": fields.fields(_THINKING),
    "output_config": fields.fields(_OUTPUT_CONFIG),
    "_debug_render_only": None,
}


def parse(body: bytes) -> Call:
    """Read ``POST /v1/messages``; raises ``BadRequest``."""
    call = _read(body)
    if call.output_wish is None:
        raise BadRequest("max_tokens is required and must be above 0.", "max_tokens")
    return call


def parse_count(body: bytes) -> Call:
    """Read ``POST /v1/messages/count_tokens``, of which nothing goes upstream; raises ``BadRequest``."""
    return _read(body)


def _read(body: bytes) -> Call:
    kept = read_object(loads(body), "", _MESSAGES)
    model = fields.take_model(kept)
    messages = kept.get("messages")
    if not messages:
        raise BadRequest("messages must have at least one message.", "messages")
    prompt = Prompt()
    for index, message in enumerate(messages):
        prompt.messages += 1
        prompt.text(message.get("role", ""))
        _count_blocks(prompt, message.get("content", ""), f"messages[{index}].content")
    _count_blocks(prompt, kept.get("system", ""), "system")
    if "tools" in kept:
        prompt.tools(kept["tools"])
    wish = kept.pop("max_tokens", None)
    return Call(
        route=V1_MESSAGES,
        model=model,
        stream=kept.pop("stream", False),
        fields=kept,
        input_bytes=prompt.bytes,
        messages=prompt.messages,
        images=prompt.images,
        media_bytes=prompt.media_bytes,
        output_wish=wish,
        shows_usage=True,
    )


def _count_blocks(prompt: Prompt, content: str | list[_Fields], param: str) -> None:
    if isinstance(content, str):
        prompt.text(content)
        return
    for index, block in enumerate(content):
        prompt.messages += 1
        _count_block(prompt, block, f"{param}[{index}]")


def _count_block(prompt: Prompt, block: _Fields, param: str) -> None:
    kind = block["type"]
    if kind == "text":
        prompt.text(block.get("text", ""))
    elif kind == "image":
        prompt.media(block.get("source", {}).get("data", ""), param)
    elif kind == "thinking":
        prompt.text(block.get("thinking", ""))
    elif kind == "tool_result":
        prompt.text(block.get("tool_use_id", ""))
        _count_blocks(prompt, block.get("content", ""), f"{param}.content")
    else:
        prompt.structure(block)
