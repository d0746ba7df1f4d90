"""OpenAI's Responses API as Ollama reads it: nothing is stored, every request is whole in itself."""

from __future__ import annotations

from typing import Any

from proxy.calls import V1_RESPONSES, Call
from proxy.dialects import fields
from proxy.dialects.ollama import MAX_MESSAGES, MAX_TOOLS
from proxy.dialects.openai import REASONING, encoded_image
from proxy.dialects.prompt import Prompt
from proxy.dialects.strict_json import Reader, loads, read_object, wrong
from proxy.exceptions import BadRequest

_Fields = dict[str, Any]

# Texts of one kind or another; only an input image is anything else.
_PART: dict[str, Reader | None] = {
    "type": fields.one_of(
        "input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal", "input_image"
    ),
    "text": fields.text,
    "refusal": fields.text,
    "image_url": fields.text,
    "detail": None,
}


def _parts(value: Any, param: str) -> str | list[_Fields]:
    if isinstance(value, str):
        return value
    return fields.items(value, param, fields.fields(_PART), MAX_MESSAGES)


_ITEMS: dict[str, dict[str, Reader | None]] = {
    "message": {
        "type": fields.name,
        "id": fields.name,
        "role": fields.name,
        "content": _parts,
        "status": None,
    },
    "function_call": {
        "type": fields.name,
        "id": fields.name,
        "call_id": fields.name,
        "name": fields.name,
        "namespace": fields.name,
        "arguments": fields.text,
        "status": None,
    },
    "function_call_output": {
        "type": fields.name,
        "id": fields.name,
        "call_id": fields.name,
        "output": _parts,
        "status": None,
    },
    "reasoning": {
        "type": fields.name,
        "id": fields.name,
        "summary": _parts,
        "content": _parts,
        "encrypted_content": fields.text,
        "status": None,
    },
    # What a search found earlier, as part of what was said. It starts no search.
    "web_search_call": {
        "type": fields.name,
        "id": fields.name,
        "status": fields.name,
        "action": fields.mapping,
    },
}


def _item(value: Any, param: str) -> _Fields:
    """One item of the input, which is a message if it does not say what it is."""
    kind = fields.mapping(value, param).get("type", "message")
    known = _ITEMS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise wrong(f"{param}.type", "one of " + ", ".join(_ITEMS))
    return read_object(value, param, known)


def _input(value: Any, param: str) -> str | list[_Fields]:
    return value if isinstance(value, str) else fields.items(value, param, _item, MAX_MESSAGES)


_FUNCTION: dict[str, Reader | None] = {
    "type": fields.one_of("function"),
    "name": fields.name,
    "description": fields.text,
    "parameters": fields.schema,
    "strict": fields.flag,
}


def _functions(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_FUNCTION), MAX_TOOLS)


_NAMESPACE: dict[str, Reader | None] = {
    "type": fields.name,
    "name": fields.name,
    "description": fields.text,
    "tools": _functions,
}


def _tool(value: Any, param: str) -> _Fields:
    """A function, or a named set of them.

    A search is refused, for it would run upstream on the operator's account.
    """
    named = fields.mapping(value, param).get("type") == "namespace"
    return read_object(value, param, _NAMESPACE if named else _FUNCTION)


def _tools(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, _tool, MAX_TOOLS)


_FORMAT: dict[str, Reader | None] = {
    "type": fields.one_of("text", "json_object", "json_schema"),
    "name": fields.name,
    "schema": fields.format_schema,
    "strict": fields.flag,
    "description": None,
}
_TEXT: dict[str, Reader | None] = {"format": fields.fields(_FORMAT), "verbosity": None}

_RESPONSES: dict[str, Reader | None] = {
    "model": fields.name,
    "input": _input,
    "instructions": fields.text,
    "max_output_tokens": fields.output_limit,
    "temperature": fields.number,
    "top_p": fields.number,
    "tools": _tools,
    "reasoning": fields.fields(REASONING),
    "text": fields.fields(_TEXT),
    "stream": fields.flag,
    "truncation": fields.one_of("auto", "disabled"),
    "_debug_render_only": None,
}


def parse(body: bytes) -> Call:
    """Read ``POST /v1/responses``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _RESPONSES)
    model = fields.take_model(kept)
    given = kept.get("input")
    if not given:
        raise BadRequest("input must be a text or a list of items, and not empty.", "input")
    prompt = Prompt()
    prompt.text(kept.get("instructions", ""))
    if isinstance(given, str):
        prompt.messages = 1
        prompt.text(given)
    else:
        for index, item in enumerate(given):
            _count_item(prompt, item, f"input[{index}]")
    if "tools" in kept:
        prompt.tools(kept["tools"])
    if "text" in kept:
        prompt.structure(kept["text"])
    wish = kept.pop("max_output_tokens", None)
    return Call(
        route=V1_RESPONSES,
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


def _count_item(prompt: Prompt, item: _Fields, param: str) -> None:
    prompt.messages += 1
    for name, value in item.items():
        if isinstance(value, list):
            prompt.messages += len(value)
            for index, part in enumerate(value):
                _count_part(prompt, part, f"{param}.{name}[{index}]")
        elif isinstance(value, dict) or name == "arguments":
            prompt.structure(value)
        else:
            prompt.text(value)


def _count_part(prompt: Prompt, part: _Fields, param: str) -> None:
    if "image_url" in part:
        prompt.media(encoded_image(part["image_url"], f"{param}.image_url"), param)
    prompt.text(part.get("text", ""))
    prompt.text(part.get("refusal", ""))
