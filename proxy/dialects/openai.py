"""OpenAI's API as Ollama reads it: chat completions, completions, embeddings and the list of models.

Ollama ignores many fields without notice. Those that would let a call be larger
than it looks are mapped or refused; see ``docs/doors.md``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from proxy.calls import V1_CHAT, V1_COMPLETIONS, V1_EMBEDDINGS, Call, Route
from proxy.dialects import fields
from proxy.dialects.ollama import MAX_INPUTS, MAX_MESSAGES, MAX_TOOL_CALLS, embedding_call, tools
from proxy.dialects.prompt import Prompt
from proxy.dialects.strict_json import Reader, loads, read_object, wrong
from proxy.exceptions import BadRequest

_PICTURES = (
    "data:image/jpeg;base64,",
    "data:image/jpg;base64,",
    "data:image/png;base64,",
    "data:image/webp;base64,",
)

_Fields = dict[str, Any]

effort = fields.one_of("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
REASONING: dict[str, Reader | None] = {"effort": effort, "summary": None}

_STREAM_OPTIONS: dict[str, Reader | None] = {"include_usage": fields.flag}
_JSON_SCHEMA: dict[str, Reader | None] = {
    "schema": fields.format_schema,
    "name": None,
    "strict": None,
    "description": None,
}
_RESPONSE_FORMAT: dict[str, Reader | None] = {
    "type": fields.one_of("text", "json_object", "json_schema"),
    "json_schema": fields.fields(_JSON_SCHEMA),
}

_IMAGE_URL: dict[str, Reader | None] = {"url": fields.text, "detail": None}
_AUDIO: dict[str, Reader | None] = {"data": fields.text, "format": fields.name}


def _image_url(value: Any, param: str) -> str | _Fields:
    return value if isinstance(value, str) else read_object(value, param, _IMAGE_URL)


_PART: dict[str, Reader | None] = {
    "type": fields.one_of("text", "image_url", "input_audio"),
    "text": fields.text,
    "image_url": _image_url,
    "input_audio": fields.fields(_AUDIO),
}


def _part(value: Any, param: str) -> _Fields:
    """A part of a message: its type, and of the rest only what the type names, which is what is counted."""
    part = read_object(value, param, _PART)
    kind = part.get("type")
    if kind is None or kind not in part:
        raise BadRequest(f"{param} needs a type and what it names.", param)
    return {"type": kind, kind: part[kind]}


def _content(value: Any, param: str) -> str | list[_Fields]:
    return value if isinstance(value, str) else fields.items(value, param, _part, MAX_MESSAGES)


_CALLED: dict[str, Reader | None] = {"name": fields.name, "arguments": fields.text}
_TOOL_CALL: dict[str, Reader | None] = {
    "id": fields.name,
    "index": fields.integer,
    "type": fields.one_of("function"),
    "function": fields.fields(_CALLED),
}


def _tool_calls(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_TOOL_CALL), MAX_TOOL_CALLS)


_MESSAGE: dict[str, Reader | None] = {
    "role": fields.name,
    "content": _content,
    "reasoning": fields.text,
    "tool_calls": _tool_calls,
    "name": fields.name,
    "tool_call_id": fields.name,
}


def _messages(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_MESSAGE), MAX_MESSAGES)


# What chat completions and completions have in common.
_COMMON: dict[str, Reader | None] = {
    "model": fields.name,
    "stream": fields.flag,
    "stream_options": fields.fields(_STREAM_OPTIONS),
    "max_tokens": fields.output_limit,
    "seed": fields.integer,
    "stop": fields.stops,
    "temperature": fields.number,
    "top_p": fields.number,
    "frequency_penalty": fields.number,
    "presence_penalty": fields.number,
    "n": fields.single,
    "best_of": fields.single,
    "_debug_render_only": None,
}
_CHAT: dict[str, Reader | None] = {
    **_COMMON,
    "messages": _messages,
    "max_completion_tokens": fields.output_limit,
    "response_format": fields.fields(_RESPONSE_FORMAT),
    "tools": tools,
    "reasoning": fields.fields(REASONING),
    "reasoning_effort": effort,
    "logprobs": fields.flag,
    "top_logprobs": fields.top_logprobs,
}


def parse_chat(body: bytes) -> Call:
    """Read ``POST /v1/chat/completions``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _CHAT)
    prompt = Prompt()
    messages = kept.get("messages")
    if not messages:
        raise BadRequest("[] is too short - 'messages'", "messages")
    for index, message in enumerate(messages):
        _count_message(prompt, message, f"messages[{index}]")
    if "tools" in kept:
        prompt.tools(kept["tools"])
    if "response_format" in kept:
        prompt.structure(kept["response_format"])
    return _generating(V1_CHAT, kept, prompt)


def _count_message(prompt: Prompt, message: _Fields, param: str) -> None:
    """Count a message, of which upstream makes one for each of its parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    prompt.messages += max(1, len(parts))
    for name in ("role", "reasoning", "name", "tool_call_id"):
        prompt.text(message.get(name, ""))
    if isinstance(content, str):
        prompt.text(content)
    elif content is None and "tool_calls" not in message:
        raise wrong(f"{param}.content", "a string or a list of parts")
    for index, part in enumerate(parts):
        _count_part(prompt, part, f"{param}.content[{index}]")
    if "tool_calls" in message:
        prompt.calls(message["tool_calls"])


def _count_part(prompt: Prompt, part: _Fields, param: str) -> None:
    kind = part["type"]
    if kind == "text":
        prompt.text(part["text"])
    elif kind == "image_url":
        url = part["image_url"]
        prompt.media(encoded_image(url if isinstance(url, str) else url.get("url", ""), param), param)
    else:
        prompt.media(part["input_audio"].get("data", ""), param)


def encoded_image(url: str, param: str) -> str:
    """The base64 of a ``data:`` address; refuses anything else, for nothing is ever fetched."""
    for start in (*_PICTURES, "data:;base64,"):
        if url.startswith(start):
            return url[len(start) :]
    raise BadRequest(
        f"{param} must be a JPEG, PNG or WebP image as a data: URI; links are not followed.", param
    )


def _prompt(value: Any, param: str) -> str:
    """One text; OpenAI also takes a list, of which a single text may stand for itself."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, str):
        return value
    raise wrong(param, "one string")


_COMPLETIONS: dict[str, Reader | None] = {
    **_COMMON,
    "prompt": _prompt,
    "suffix": fields.text,
    "logprobs": fields.top_logprobs,
}


def parse_completions(body: bytes) -> Call:
    """Read ``POST /v1/completions``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _COMPLETIONS)
    prompt = Prompt()
    prompt.messages = 1
    prompt.text(kept.get("prompt", ""))
    prompt.text(kept.get("suffix", ""))
    return _generating(V1_COMPLETIONS, kept, prompt)


def _generating(route: Route, kept: _Fields, prompt: Prompt) -> Call:
    model = fields.take_model(kept)
    for ignored in ("n", "best_of"):
        kept.pop(ignored, None)
    limits = [kept.pop(limit, None) for limit in ("max_tokens", "max_completion_tokens")]
    return Call(
        route=route,
        model=model,
        stream=kept.pop("stream", False),
        fields=kept,
        input_bytes=prompt.bytes,
        messages=prompt.messages,
        images=prompt.images,
        media_bytes=prompt.media_bytes,
        output_wish=min((limit for limit in limits if limit is not None), default=None),
        shows_usage=kept.pop("stream_options", {}).get("include_usage", False),
    )


def _input(value: Any, param: str) -> str | list[str]:
    """One text or several; token ids, as some clients send them, mean nothing to Ollama."""
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise BadRequest(
            f"{param} holds token ids, which this server cannot read: send text instead "
            "(in LangChain: check_embedding_ctx_length=False).",
            param,
        )
    if value == [] or not isinstance(value, (str, list)):
        raise BadRequest("invalid input", param)
    return value if isinstance(value, str) else fields.items(value, param, fields.text, MAX_INPUTS)


_EMBEDDINGS: dict[str, Reader | None] = {
    "model": fields.name,
    "input": _input,
    "encoding_format": fields.one_of("float", "base64"),
    "dimensions": fields.positive,
}


def parse_embeddings(body: bytes) -> Call:
    """Read ``POST /v1/embeddings``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _EMBEDDINGS)
    model = fields.take_model(kept)
    if "input" not in kept:
        raise BadRequest("invalid input", "input")
    inputs = kept["input"]
    return embedding_call(V1_EMBEDDINGS, model, kept, [inputs] if isinstance(inputs, str) else inputs)


def model_object(entry: _Fields) -> _Fields:
    """A model of ``/v1/models``, made of its entry in ``/api/tags``."""
    namespace = entry["name"].rpartition("/")[0].rpartition("/")[2]
    return {
        "id": entry["name"],
        "object": "model",
        "created": _seconds(entry.get("modified_at")),
        "owned_by": namespace or "library",
    }


def _seconds(instant: Any) -> int:
    """Unix seconds of an RFC 3339 instant, 0 if it is none."""
    try:
        return int(datetime.fromisoformat(instant).timestamp())
    except (TypeError, ValueError):
        return 0
