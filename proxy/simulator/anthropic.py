"""``/v1/messages``: Anthropic's events, no ``[DONE]``, usage first guessed and then told."""

import json
import secrets
from typing import Any

from proxy.simulator import frames, native, openai, prompts
from proxy.simulator.exchange import Dialect, Exchange, answer
from proxy.simulator.generation import Final, Piece, Refused, Wish
from proxy.simulator.go_json import Either, ListOf, Pointer, Struct

_BLOCK = Struct(
    "ContentBlock",
    {
        "type": str,
        "text": Pointer(str),
        "source": Pointer(Struct("ImageSource", {"type": str, "media_type": str, "data": str, "url": str})),
        "id": str,
        "name": str,
        "input": dict,
        "tool_use_id": str,
        "content": object,
        "is_error": bool,
        "thinking": Pointer(str),
        "signature": str,
    },
)
_TOOL = Struct(
    "Tool", {"type": str, "name": str, "description": str, "input_schema": object, "max_uses": int}
)
_REQUEST = Struct(
    "MessagesRequest",
    {
        "model": str,
        "max_tokens": int,
        "messages": ListOf(Struct("MessageParam", {"role": str, "content": Either(ListOf(_BLOCK))})),
        "system": object,
        "stream": bool,
        "temperature": Pointer(float),
        "top_p": Pointer(float),
        "top_k": Pointer(int),
        "stop_sequences": ListOf(str),
        "tools": ListOf(_TOOL),
        "thinking": Pointer(Struct("ThinkingConfig", {"type": str, "budget_tokens": int})),
        "output_config": Pointer(Struct("OutputConfig", {"effort": str})),
    },
)
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "": None}


async def messages(exchange: Exchange) -> None:
    """POST /v1/messages"""
    fields = openai.read(exchange, _REQUEST)
    spelling = fields.get("model", "")
    if not spelling:
        raise Refused(400, "model is required")
    if fields.get("max_tokens", 0) <= 0:
        raise Refused(400, "max_tokens is required and must be positive")
    if not fields.get("messages"):
        raise Refused(400, "messages is required")
    given = _read_system(fields.get("system")) + [
        message for param in fields["messages"] for message in _read_message(param)
    ]
    model = await exchange.model(spelling)
    if "completion" not in model.capabilities:
        raise Refused(400, f'"{spelling}" does not support chat')
    tools = [_tool(tool) for tool in fields.get("tools") or []]
    native.check_tools(model, tools)
    wish = openai.chat_wish(model, spelling, given, tools, stream=fields.get("stream", False))
    wish.cap = fields["max_tokens"]
    wish.stop = fields.get("stop_sequences") or ()
    wish.think = model.thinks and (fields.get("thinking") or {}).get("type") != "disabled"
    guess = max(1, sum(len(message.role) + len(message.content) for message in given) // 4)
    await answer(exchange, wish, MessageEvents(wish, guess))


class MessageEvents(Dialect):
    """The events of one message. ``guess`` is the input told first."""

    headers = (("Cache-Control", "no-cache"),)

    def __init__(self, wish: Wish, guess: int) -> None:
        self.wish = wish
        self._guess = guess
        self._id = f"msg_{secrets.token_hex(12)}"
        self._index = 0
        self._open = ""
        self._called = False

    def start(self) -> list[bytes]:
        usage = {"input_tokens": self._guess, "output_tokens": 0}
        return [_event("message_start", message={**self._message([]), "usage": usage})]

    def piece(self, piece: Piece) -> list[bytes]:
        events = []
        if piece.thinking:
            events += self._begin("thinking", {"type": "thinking", "thinking": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": piece.thinking}))
        if piece.content:
            events += self._begin("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": piece.content}))
        for call in piece.calls:
            self._called = True
            events += self._close()
            function = call["function"]
            block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            events += self._begin("tool_use", block)
            text = json.dumps(function["arguments"], separators=(",", ":"))
            events.append(self._delta({"type": "input_json_delta", "partial_json": text}))
            events += self._close()
        return events

    def final(self, final: Final) -> list[bytes]:
        events = self.piece(Piece(calls=final.calls)) if final.calls else []
        reason = self._stop_reason(final)
        delta = {"stop_reason": reason} if reason else {}
        return [
            *events,
            *self._close(),
            _event("message_delta", delta=delta, usage=_usage(final)),
            _event("message_stop"),
        ]

    def whole(self, answer: Piece, final: Final | None) -> Any:
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking})
        if answer.content:
            content.append({"type": "text", "text": answer.content})
        for call in answer.calls:
            self._called = True
            function = call["function"]
            content.append(
                {
                    "type": "tool_use",
                    "id": call["id"],
                    "name": function["name"],
                    "input": function["arguments"],
                }
            )
        reason = self._stop_reason(final)
        return {
            **self._message(content),
            **({"stop_reason": reason} if reason else {}),
            "usage": _usage(final),
        }

    def _begin(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        if self._open == kind:
            return []
        events = self._close()
        self._open = kind
        return [*events, _event("content_block_start", index=self._index, content_block=block)]

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        self._index += 1
        return [_event("content_block_stop", index=self._index - 1)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        top = {"id": self._id, "type": "message", "role": "assistant", "model": self.wish.spelling}
        return {**top, "content": content}

    def _stop_reason(self, final: Final | None) -> str | None:
        if self._called:
            return "tool_use"
        return _STOP_REASONS.get(final.reason, "stop_sequence") if final else None


def _event(kind: str, **payload: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), frames.encode({"type": kind, **payload}))


def _usage(final: Final | None) -> dict[str, Any]:
    if final is None:
        return {"input_tokens": 0, "output_tokens": 0}
    usage = {"input_tokens": final.prompt_tokens, "output_tokens": final.output_tokens}
    if final.cached_tokens is not None:
        usage["cache_read_input_tokens"] = final.cached_tokens
    return usage


def _read_system(system: Any) -> list[prompts.Message]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system or []
    if not isinstance(blocks, list):
        return []
    text = "".join(_text_of(block) for block in blocks)
    return [prompts.Message("system", text)] if text else []


def _read_message(param: dict[str, Any]) -> list[prompts.Message]:
    """Ollama's messages for one of Anthropic's: tool results become messages of their own, first."""
    role, content = param.get("role", "").lower(), param.get("content")
    if content is None or isinstance(content, str):
        return [prompts.Message(role, content or "")]
    message = prompts.Message(role)
    results = []
    for block in content:
        kind = block.get("type", "")
        if kind == "text":
            message.content += block.get("text") or ""
        elif kind == "image":
            if (block.get("source") or {}).get("type") != "base64":
                raise Refused(400, "invalid image source type: only base64 images are supported")
            message.images += 1
        elif kind in ("tool_use", "server_tool_use"):
            message.calls.append({"name": block.get("name", ""), "arguments": block.get("input") or {}})
        elif kind in ("tool_result", "web_search_tool_result"):
            results.append(prompts.Message("tool", _result_text(block.get("content"))))
        elif kind == "thinking":
            message.thinking = block.get("thinking") or ""
    said = message.content or message.images or message.calls or message.thinking
    return [*results, message] if said else results


def _result_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(_text_of(block) for block in content) if isinstance(content, list) else ""


def _text_of(block: Any) -> str:
    text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else ""
    return text if isinstance(text, str) else ""


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in Ollama's own form."""
    name = "web_search" if tool.get("type", "").startswith("web_search") else tool.get("name", "")
    return {"type": "function", "function": {"name": name, "parameters": tool.get("input_schema")}}
