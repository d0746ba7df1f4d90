"""The OpenAI side: ``/v1/chat/completions``, ``/v1/completions``, ``/v1/embeddings``."""

import base64
import json
import random
import struct
import time
from typing import Any

from proxy.simulator import frames, go_json, native, prompts
from proxy.simulator.exchange import Dialect, Exchange, answer, send_final
from proxy.simulator.generation import Final, Piece, Refused, Wish
from proxy.simulator.go_json import ListOf, Pointer, Struct
from proxy.simulator.library import Model

_MESSAGE = Struct(
    "Message",
    {
        "role": str,
        "content": object,
        "reasoning": str,
        "tool_calls": ListOf(object),
        "name": str,
        "tool_call_id": str,
    },
)
_STREAM_OPTIONS = Pointer(Struct("StreamOptions", {"include_usage": bool}))
_CHAT = Struct(
    "ChatCompletionRequest",
    {
        "model": str,
        "messages": ListOf(_MESSAGE),
        "stream": bool,
        "stream_options": _STREAM_OPTIONS,
        "max_tokens": Pointer(int),
        "seed": Pointer(int),
        "stop": object,
        "temperature": Pointer(float),
        "frequency_penalty": Pointer(float),
        "presence_penalty": Pointer(float),
        "top_p": Pointer(float),
        "response_format": Pointer(Struct("ResponseFormat", {"type": str, "json_schema": object})),
        "tools": ListOf(object),
        "reasoning": Pointer(Struct("Reasoning", {"effort": str})),
        "reasoning_effort": Pointer(str),
        "logprobs": Pointer(bool),
        "top_logprobs": int,
        "_debug_render_only": bool,
    },
)
_COMPLETION = Struct(
    "CompletionRequest",
    {
        "model": str,
        "prompt": str,
        "suffix": str,
        "stream": bool,
        "stream_options": _STREAM_OPTIONS,
        "max_tokens": Pointer(int),
        "seed": Pointer(int),
        "stop": object,
        "temperature": Pointer(float),
        "frequency_penalty": float,
        "presence_penalty": float,
        "top_p": float,
        "logprobs": Pointer(int),
        "_debug_render_only": bool,
    },
)
_EMBED = Struct("EmbedRequest", {"model": str, "input": object, "dimensions": int, "encoding_format": str})
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
_IMAGE_KINDS = (
    "data:image/jpeg;base64,",
    "data:image/jpg;base64,",
    "data:image/png;base64,",
    "data:image/webp;base64,",
    "data:;base64,",
)


def read(exchange: Exchange, kind: Struct) -> dict[str, Any]:
    """The body as ``kind``, noted in the truth log; raise ``Refused`` if Go could not read it."""
    try:
        fields = go_json.read(kind, exchange.request.body)
    except go_json.BadJson as exc:
        raise Refused(400, str(exc)) from None
    exchange.record.fields = fields
    return fields


async def chat_completions(exchange: Exchange) -> None:
    """POST /v1/chat/completions"""
    fields = read(exchange, _CHAT)
    if not fields.get("messages"):
        raise Refused(400, "[] is too short - 'messages'")
    spelling = fields.get("model", "")
    if not spelling:
        raise Refused(400, "model is required")
    messages = [message for given in fields["messages"] for message in _messages(given)]
    effort = fields.get("reasoning_effort") or (fields.get("reasoning") or {}).get("effort")
    form = _form(fields.get("response_format"))
    if not 0 <= fields.get("top_logprobs", 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    model = await exchange.model(spelling)
    if "completion" not in model.capabilities:
        raise Refused(400, f'"{spelling}" does not support chat')
    tools = fields.get("tools") or []
    native.check_tools(model, tools)
    wish = chat_wish(model, spelling, messages, tools, form=form, stream=fields.get("stream", False))
    wish.cap = fields.get("max_tokens")
    wish.stop = _stop(fields.get("stop"))
    wish.think = thinks(model, effort, spelling)
    wish.logprobs = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
    if fields.get("_debug_render_only"):
        debug = {"rendered_template": wish.prompt, "image_count": wish.images}
        await exchange.send_json(
            {"model": spelling, "created_at": frames.now(), "_debug_info": debug}, newline=True
        )
        return
    await answer(exchange, wish, ChatChunks(wish, exchange, include_usage=_include_usage(fields)))


async def completions(exchange: Exchange) -> None:
    """POST /v1/completions"""
    fields = read(exchange, _COMPLETION)
    spelling = fields.get("model", "")
    model = await exchange.model(spelling)
    if "completion" not in model.capabilities:
        raise Refused(400, f'"{spelling}" does not support generate')
    if fields.get("suffix") and "insert" not in model.capabilities:
        raise Refused(400, f"{model.name.full} does not support insert")
    prompt = fields.get("prompt", "")
    wish = chat_wish(model, spelling, [prompts.Message("user", prompt + fields.get("suffix", ""))], ())
    wish.stream, wish.subject = fields.get("stream", False), prompt
    wish.cap, wish.stop, wish.zero_is_a_limit = fields.get("max_tokens"), _stop(fields.get("stop")), False
    wish.logprobs = fields.get("logprobs")
    dialect = TextChunks(wish, exchange, include_usage=_include_usage(fields))
    if fields.get("_debug_render_only"):
        debug = {"rendered_template": wish.prompt, "image_count": 0}
        await exchange.send_json(
            {"model": spelling, "created_at": frames.now(), "_debug_info": debug}, newline=True
        )
    elif not prompt:
        exchange.record.done_reason = "load"
        await send_final(exchange, wish, dialect, Final("load", {}))
    else:
        await answer(exchange, wish, dialect)


async def embeddings(exchange: Exchange) -> None:
    """POST /v1/embeddings"""
    fields = read(exchange, _EMBED)
    spelling = fields.get("model", "")
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not texts or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input")
    encoding = fields.get("encoding_format") or "float"
    if encoding.lower() not in ("float", "base64"):
        raise Refused(
            400, f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        )
    model = await exchange.model(spelling, embedding=True)
    vectors, counted = await native.embeddings_of(exchange, model, texts, fields)
    tokens = counted.get("prompt_eval_count", 0)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(v) if encoding.lower() == "base64" else v,
        }
        for index, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    await exchange.send_json(
        {"object": "list", "data": data, "model": spelling, "usage": usage}, newline=True
    )


async def transcriptions(exchange: Exchange) -> None:
    """POST /v1/audio/transcriptions: a form, not JSON, and no usage in the answer"""
    await exchange.send_json({"text": "A simulated transcription."}, newline=True)


def chat_wish(
    model: Model,
    spelling: str,
    messages: list[prompts.Message],
    tools: Any,
    *,
    form: Any = None,
    stream: bool = False,
) -> Wish:
    """A chat's wish without what each API calls otherwise: limit, stop strings, thinking."""
    return Wish(
        model=model,
        spelling=spelling,
        prompt=prompts.render(model, messages, tools, form),
        subject=prompts.subject(messages),
        stream=stream,
        tools=() if prompts.answers_a_tool(messages) else tools,
        form=form,
        images=sum(message.images for message in messages),
        shape=native.DEFAULT_SHAPE,
        zero_is_a_limit=not model.renders,
    )


class Chunks(Dialect):
    """Server-sent events of one completion."""

    def __init__(self, wish: Wish, exchange: Exchange, *, include_usage: bool) -> None:
        self.wish = wish
        self.fault = exchange.fault
        self.include_usage = include_usage
        self.number = random.randrange(999)  # noqa: S311
        self.created = int(time.time())
        self.logprobs = (
            wish.logprobs if wish.logprobs is not None else (0 if exchange.fault.logprobs else None)
        )

    def event(self, value: Any) -> bytes:
        return b"data: " + frames.encode(value, separators=self.fault.separators) + b"\n\n"

    def usage(self, final: Final | None) -> dict[str, Any]:
        if final is None:
            return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        usage: dict[str, Any] = {
            "prompt_tokens": final.prompt_tokens,
            "completion_tokens": final.output_tokens,
            "total_tokens": final.prompt_tokens + final.output_tokens,
        }
        if final.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": final.cached_tokens}
        return usage


class ChatChunks(Chunks):
    """Chat chunks as written since v0.32.6, or in the older layout when the fault says so."""

    _begun = False
    _called = False
    _around: tuple[bytes, bytes] | None = None

    def piece(self, piece: Piece) -> list[bytes]:
        if self._begun and piece.content and not (piece.thinking or piece.calls or self.logprobs is not None):
            return [self._text_chunk(piece.content)]
        deltas: list[dict[str, Any]] = []
        if piece.thinking:
            deltas.append({"content": "", "reasoning": piece.thinking})
        if piece.calls:
            self._called = True
            deltas.append({"content": "", "tool_calls": self._calls(piece)})
        if piece.content or not deltas:
            deltas.append({"content": piece.content})
        return [self._chunk(delta, piece.content) for delta in deltas]

    def _text_chunk(self, text: str) -> bytes:
        """A chunk with text alone; all but the text is the same in each."""
        if self._around is None:
            before, _, after = self._chunk({"content": ""}, "-").partition(b'"content":""')
            self._around = before + b'"content":', after
        return self._around[0] + frames.encode_text(text, separators=self.fault.separators) + self._around[1]

    def final(self, final: Final) -> list[bytes]:
        frames_ = self.piece(Piece(calls=final.calls)) if final.calls else []
        reason = self._reason(final)
        if self.fault.old_chunks:
            frames_.append(self._chunk({"content": ""}, "", reason))
        else:
            frames_.append(self._event_of({}, None, reason))
        if self.include_usage:
            frames_.append(self.event({**self._top(), "choices": [], "usage": self.usage(final)}))
        return [*frames_, b"data: [DONE]\n\n"]

    def failed(self, text: str) -> list[bytes]:
        top = {**self._top(), "model": ""}
        delta = {"role": "assistant", "content": ""}
        return [self.event({**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})]

    def whole(self, answer: Piece, final: Final | None) -> Any:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = self._calls(answer)
            self._called = True
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": self._reason(final)}
        if self.logprobs is not None:
            choice["logprobs"] = {"content": native.logprobs(answer.content, self.logprobs)}
        top = {**self._top(), "object": "chat.completion"}
        return {**top, "choices": [choice], "usage": self.usage(final)}

    def _chunk(self, delta: dict[str, Any], content: str, reason: str | None = None) -> bytes:
        if self.fault.old_chunks or not self._begun:
            delta = {"role": "assistant", **delta}
        elif not content:
            delta.pop("content", None)
        self._begun = True
        return self._event_of(delta, content, reason)

    def _event_of(self, delta: dict[str, Any], content: str | None, reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        if content and self.logprobs is not None:
            choice["logprobs"] = {"content": native.logprobs(content, self.logprobs)}
        return self.event({**self._top(), "choices": [choice]})

    def _reason(self, final: Final | None) -> str | None:
        if final is None or not final.reason:
            return None
        return "tool_calls" if self._called or final.calls else final.reason

    def _calls(self, piece: Piece) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "index": call["function"]["index"],
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"], separators=(",", ":")),
                },
            }
            for call in piece.calls
        ]

    def _top(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.number}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.wish.spelling,
            "system_fingerprint": "fp_ollama",
        }


class TextChunks(Chunks):
    """``text_completion`` objects; with usage asked for, every chunk carries one, of zeros until the last."""

    def piece(self, piece: Piece) -> list[bytes]:
        return [self._chunk(piece.content, None)]

    def final(self, final: Final) -> list[bytes]:
        result = [self._chunk("", final.reason or None)]
        if self.include_usage:
            result.append(self.event({**self._top(), "choices": [], "usage": self.usage(final)}))
        return [*result, b"data: [DONE]\n\n"]

    def failed(self, text: str) -> list[bytes]:
        choice = {"text": "", "index": 0, "finish_reason": None}
        return [self.event({**self._top(), "model": "", "choices": [choice]})]

    def whole(self, answer: Piece, final: Final | None) -> Any:
        choice = {"text": answer.content, "index": 0, "finish_reason": (final and final.reason) or None}
        return {**self._top(), "choices": [choice], "usage": self.usage(final)}

    def _chunk(self, text: str, reason: str | None) -> bytes:
        usage = {"usage": self.usage(None)} if self.include_usage else {}
        choice: dict[str, Any] = {"text": text, "index": 0, "finish_reason": reason}
        if text and self.logprobs is not None:
            choice["logprobs"] = {"content": native.logprobs(text, self.logprobs)}
        return self.event({**self._top(), "choices": [choice], **usage})

    def _top(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.number}",
            "object": "text_completion",
            "created": self.created,
            "model": self.wish.spelling,
            "system_fingerprint": "fp_ollama",
        }


def _messages(given: dict[str, Any]) -> list[prompts.Message]:
    """Ollama's messages for one of OpenAI's: each content part becomes one of its own."""
    role, content, calls = given.get("role", ""), given.get("content"), given.get("tool_calls") or []
    if isinstance(content, str):
        return [prompts.Message(role, content, given.get("reasoning", ""), calls=calls)]
    if isinstance(content, list):
        return [_part(role, part) for part in content]
    if content is None and given.get("tool_calls") is not None:
        for call in calls:
            try:
                json.loads((call.get("function") or {}).get("arguments", ""))
            except (TypeError, ValueError):
                raise Refused(400, "invalid tool call arguments") from None
        return [prompts.Message(role, "", given.get("reasoning", ""), calls=calls)]
    raise Refused(400, f"invalid message content type: {type(content).__name__}")


def _part(role: str, part: Any) -> prompts.Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return prompts.Message(role, part["text"])
    if kind == "image_url":
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        if isinstance(url, str) and url.startswith(_IMAGE_KINDS):
            return prompts.Message(role, images=1)
        raise Refused(400, "invalid image input")
    if kind == "input_audio":
        return prompts.Message(role, images=1)
    raise Refused(400, "invalid message format")


def _form(given: dict[str, Any] | None) -> Any:
    kind = (given or {}).get("type")
    if given and kind == "json_schema" and isinstance(given.get("json_schema"), dict):
        return given["json_schema"].get("schema")
    return "json" if kind == "json_object" else None


def _stop(given: Any) -> list[str]:
    words = [given] if isinstance(given, str) else given or []
    return [word for word in words if isinstance(word, str)]


def thinks(model: Model, effort: str | None, spelling: str) -> bool:
    if effort is None or effort == "":
        return model.thinks
    if effort not in _EFFORTS:
        raise Refused(
            400, f'invalid reasoning value: "{effort}" (must be "high", "medium", "low", "max", or "none")'
        )
    return native.thinks(model, effort not in ("none", "minimal"), spelling)


def _include_usage(fields: dict[str, Any]) -> bool:
    return bool((fields.get("stream_options") or {}).get("include_usage"))


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
