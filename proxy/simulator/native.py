"""The native side: ``/api/chat``, ``/api/generate``, ``/api/embed``, ``/api/embeddings``."""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from proxy.simulator import frames, go_json, names, prompts
from proxy.simulator.exchange import Dialect, Exchange, answer
from proxy.simulator.generation import (
    Final,
    Piece,
    Refused,
    Wish,
    counters,
    load_seconds,
    tokens_of,
    vector,
)
from proxy.simulator.go_json import ListOf, Pointer, Struct
from proxy.simulator.library import Model, remote_fields

_MESSAGE = Struct(
    "Message",
    {
        "role": str,
        "content": str,
        "thinking": str,
        "images": ListOf(str),
        "tool_calls": ListOf(object),
        "tool_name": str,
        "tool_call_id": str,
    },
)
_COMMON: dict[str, go_json.Kind] = {
    "model": str,
    "stream": Pointer(bool),
    "format": object,
    "options": dict,
    "keep_alive": object,
    "think": object,
    "truncate": Pointer(bool),
    "shift": Pointer(bool),
    "logprobs": bool,
    "top_logprobs": int,
    "_debug_render_only": bool,
}
_CHAT = Struct("ChatRequest", {**_COMMON, "messages": ListOf(_MESSAGE), "tools": ListOf(object)})
_GENERATE = Struct(
    "GenerateRequest",
    {
        **_COMMON,
        "prompt": str,
        "suffix": str,
        "system": str,
        "template": str,
        "raw": bool,
        "context": ListOf(int),
        "images": ListOf(str),
    },
)
_EMBED = Struct(
    "EmbedRequest",
    {
        "model": str,
        "input": object,
        "truncate": Pointer(bool),
        "dimensions": int,
        "options": dict,
        "keep_alive": object,
    },
)
_EMBEDDINGS = Struct("EmbeddingRequest", {"model": str, "prompt": str, "options": dict, "keep_alive": object})

# fmt: off
_INTEGERS = (
    "num_predict", "num_keep", "seed", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu",
    "main_gpu", "num_thread", "draft_num_predict",
)
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
)
# fmt: on
# A value of these that differs from the running one makes Ollama load the model again.
_LOADED_WITH = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
DEFAULT_SHAPE: tuple[Any, ...] = (*(None for _ in _LOADED_WITH), True)
_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read(exchange: Exchange, struct: Struct) -> dict[str, Any]:
    """The body as ``struct``, noted in the truth log; raise ``Refused`` if Go could not read it."""
    try:
        fields = go_json.read(struct, exchange.request.body)
    except go_json.BadJson as exc:
        raise Refused(400, "missing request body" if str(exc) == "EOF" else str(exc)) from None
    exchange.record.fields = fields
    return fields


async def chat(exchange: Exchange) -> None:
    """POST /api/chat"""
    fields = read(exchange, _CHAT)
    spelling = fields.get("model", "")
    if not spelling:
        raise Refused(400, "model is required")
    model = await exchange.model(spelling)
    _check_logprobs(fields)
    if not {"completion", "tools"} & set(model.capabilities):
        raise Refused(400, f'"{spelling}" does not support chat')
    messages = [_message(fields) for fields in fields.get("messages") or []]
    tools = fields.get("tools") or []
    check_tools(model, tools)
    options = read_options(fields.get("options"))
    if not messages:
        await _load_or_unload(
            exchange, model, spelling, fields, {"message": {"role": "assistant", "content": ""}}
        )
        return
    wish = _wish(fields, model, options)
    wish.prompt = prompts.render(model, messages, tools, fields.get("format"))
    wish.subject = prompts.subject(messages)
    wish.images = sum(message.images for message in messages)
    wish.tools = () if prompts.answers_a_tool(messages) else tools
    wish.zero_is_a_limit = not model.renders
    if fields.get("_debug_render_only"):
        await _render_only(exchange, wish)
        return
    await answer(exchange, wish, ChatLines(wish, exchange))


async def generate(exchange: Exchange) -> None:
    """POST /api/generate"""
    fields = read(exchange, _GENERATE)
    spelling = fields.get("model", "")
    model = await exchange.model(spelling)
    _check_logprobs(fields)
    replaced = [fields[name] for name in ("template", "system", "context") if fields.get(name)]
    if fields.get("raw") and replaced:
        raise Refused(400, "raw mode does not support template, system, or context")
    if "completion" not in model.capabilities:
        raise Refused(400, f'"{spelling}" does not support generate')
    if fields.get("suffix") and "insert" not in model.capabilities:
        raise Refused(400, f"{model.name.full} does not support insert")
    options = read_options(fields.get("options"))
    prompt = fields.get("prompt", "")
    if not prompt:
        await _load_or_unload(exchange, model, spelling, fields, {"response": ""})
        return
    wish = _wish(fields, model, options)
    messages = [prompts.Message("system", fields["system"])] if fields.get("system") else []
    messages.append(prompts.Message("user", prompt + fields.get("suffix", "")))
    wish.prompt = prompt if fields.get("raw") else prompts.render(model, messages, (), fields.get("format"))
    wish.subject = prompt
    wish.images = len([_image(text) for text in fields.get("images") or []])
    wish.context = fields.get("context") or ()
    if fields.get("_debug_render_only"):
        await _render_only(exchange, wish)
        return
    await answer(exchange, wish, GenerateLines(wish, exchange, with_context=not fields.get("raw")))


async def embed(exchange: Exchange) -> None:
    """POST /api/embed"""
    fields = read(exchange, _EMBED)
    spelling = fields.get("model", "")
    given = fields.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    model = await exchange.model(spelling, embedding=True)
    vectors, counted = await embeddings_of(exchange, model, texts, fields)
    await exchange.send_json({"model": spelling, "embeddings": vectors, **(counted if texts else {})})


async def old_embeddings(exchange: Exchange) -> None:
    """POST /api/embeddings: one text, no counters, not normalised, names in the exact letter case."""
    fields = read(exchange, _EMBEDDINGS)
    spelling = fields.get("model", "")
    if not spelling:
        raise Refused(400, "model is required")
    model = await exchange.model(spelling, embedding=True)
    if not model.name.cloud and names.parse(spelling).short != model.name.short:
        raise Refused(404, f'model "{spelling}" not found, try pulling it first')
    prompt = fields.get("prompt", "")
    vectors, _ = await embeddings_of(exchange, model, [prompt] if prompt else [], fields)
    await exchange.send_json({"embedding": [round(4 * value, 8) for value in vectors[0]] if vectors else []})


async def embeddings_of(
    exchange: Exchange, model: Model, texts: Sequence[str], fields: dict[str, Any]
) -> tuple[list[list[float]], dict[str, Any]]:
    """One vector for each text, and the counters."""
    record, fault, settings = exchange.record, exchange.fault, exchange.settings
    options = read_options(fields.get("options"))
    if not model.embeds:
        raise Refused(400, "this model does not support embeddings")
    limit = options.get("num_ctx") or min(settings.num_ctx, model.context_length)
    counts = [tokens_of(text) for text in texts]
    if fields.get("truncate") is False and any(count > limit for count in counts):
        raise Refused(400, "the input length exceeds the context length")
    load = load_seconds(exchange.library, settings, model, _shape(options, None), fault)
    await asyncio.sleep(load + settings.first_byte_delay + fault.first_ms / 1000)
    exchange.library.keep(model, _keep_alive(fields.get("keep_alive")))
    if fault.error_after is not None:
        raise Refused(500, "simulated fault")
    record.prompt = "\n".join(texts)
    record.prompt_tokens = sum(min(count, limit) for count in counts)
    record.counters = counters(record.prompt_tokens, None, load, fault)
    size = fields.get("dimensions") or model.embedding_length
    return [vector(text, size) for text in texts], record.counters


class Lines(Dialect):
    """One JSON object a line."""

    content_type = "application/x-ndjson"
    newline = False
    # What stands around the text of a line that has nothing but text.
    before_text = b""
    after_text = b""

    def __init__(self, wish: Wish, exchange: Exchange) -> None:
        self.wish = wish
        self._separators = exchange.fault.separators
        self._logprobs = (
            wish.logprobs if wish.logprobs is not None else (0 if exchange.fault.logprobs else None)
        )
        self._remote = remote_fields(wish.model)

        self._head = frames.encode({"model": wish.spelling, **self._remote})[:-1]

    def piece(self, piece: Piece) -> list[bytes]:
        if piece.thinking or piece.calls or self._logprobs is not None:
            return [self._line({**self.body(piece), **self._logprobs_of(piece), "done": False})]
        text = frames.encode_text(piece.content, separators=self._separators)
        created = b',"created_at":"%b",' % frames.now().encode()
        return [b"".join((self._head, created, self.before_text, text, self.after_text, b',"done":false}\n'))]

    def final(self, final: Final) -> list[bytes]:
        return [self._line({**self.body(Piece(calls=final.calls)), **self._end(final)})]

    def failed(self, text: str) -> list[bytes]:
        return [frames.encode({"error": text}) + b"\n"]

    def whole(self, answer: Piece, final: Final | None) -> Any:
        end = {"done": False} if final is None else self._end(final)
        return {**self._top(), **self.body(answer), **self._logprobs_of(answer), **end}

    def body(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _top(self) -> dict[str, Any]:
        return {"model": self.wish.spelling, **self._remote, "created_at": frames.now()}

    def _line(self, fields: dict[str, Any]) -> bytes:
        return frames.encode({**self._top(), **fields}, separators=self._separators) + b"\n"

    def _end(self, final: Final) -> dict[str, Any]:
        reason = {"done_reason": final.reason} if final.reason else {}
        return {"done": True, **reason, **final.counters}

    def _logprobs_of(self, piece: Piece) -> dict[str, Any]:
        if self._logprobs is None or not piece.content:
            return {}
        return {"logprobs": logprobs(piece.content, self._logprobs)}


class ChatLines(Lines):
    before_text = b'"message":{"role":"assistant","content":'
    after_text = b"}"

    def body(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["thinking"] = piece.thinking
        if piece.calls:
            message["tool_calls"] = list(piece.calls)
        return {"message": message}


class GenerateLines(Lines):
    before_text = b'"response":'

    def __init__(self, wish: Wish, exchange: Exchange, *, with_context: bool) -> None:
        super().__init__(wish, exchange)
        self._with_context = with_context

    def body(self, piece: Piece) -> dict[str, Any]:
        thinking = {"thinking": piece.thinking} if piece.thinking else {}
        return {"response": piece.content, **thinking}

    def _end(self, final: Final) -> dict[str, Any]:
        context = {"context": list(final.context)} if self._with_context else {}
        end = super()._end(final)
        return {"done": end.pop("done"), **context, **end}


def logprobs(text: str, alternatives: int) -> list[dict[str, Any]]:
    """What a line carries for one piece; ``alternatives`` more candidates each."""

    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}

    others = [entry(f"{text[:8]}{n}", -1.0 - n) for n in range(alternatives)]
    return [{**entry(text, -0.25), **({"top_logprobs": others} if others else {})}]


def check_tools(model: Model, tools: Sequence[Any]) -> None:
    if tools and "tools" not in model.capabilities:
        raise Refused(400, f"{model.name.full} does not support tools")


def read_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """The options Ollama knows, by their exact names; floats for integers are cut, ``null`` is left out."""
    known: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS:
            if not number:
                raise Refused(500, f'option "{name}" must be of type integer')
            known[name] = int(value)
        elif name in _NUMBERS:
            if not number:
                raise Refused(500, f'option "{name}" must be of type float32')
            known[name] = value
        elif name == "stop":
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise Refused(500, 'option "stop" must be of an array')
            known[name] = value
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise Refused(500, 'option "use_mmap" must be of type boolean')
            known[name] = value
    return known


def thinks(model: Model, value: Any, spelling: str) -> bool:
    """Whether the model thinks, given the request's ``think``; it does by default if it can."""
    if value is None:
        return model.thinks
    if not isinstance(value, bool) and value not in ("low", "medium", "high", "max"):
        raise Refused(
            400, f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)'
        )
    if value and not model.thinks:
        raise Refused(400, f'"{spelling}" does not support thinking')
    return bool(value)


def _wish(fields: dict[str, Any], model: Model, options: dict[str, Any]) -> Wish:
    form = fields.get("format")
    if form not in (None, "", "json") and not isinstance(form, dict):
        raise Refused(500, f'invalid format: {form!r}; expected "json" or a valid JSON Schema object')
    return Wish(
        model=model,
        spelling=fields["model"],
        prompt="",
        subject="",
        stream=fields.get("stream") is not False,
        cap=options.get("num_predict"),
        num_ctx=options.get("num_ctx"),
        stop=options.get("stop", ()),
        think=thinks(model, fields.get("think"), fields["model"]),
        form=form or None,
        logprobs=fields.get("top_logprobs", 0) if fields.get("logprobs") else None,
        truncate=fields.get("truncate") is not False,
        shift=fields.get("shift") is not False,
        shape=_shape(options, fields.get("shift")),
        keep_alive=_keep_alive(fields.get("keep_alive")),
    )


def _shape(options: dict[str, Any], shift: bool | None) -> tuple[Any, ...]:
    return (*(options.get(name) for name in _LOADED_WITH), shift is not False)


def _check_logprobs(fields: dict[str, Any]) -> None:
    if not 0 <= fields.get("top_logprobs", 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")


def _message(fields: dict[str, Any]) -> prompts.Message:
    return prompts.Message(
        role=fields.get("role", "").lower(),
        content=fields.get("content", ""),
        thinking=fields.get("thinking", ""),
        images=len([_image(text) for text in fields.get("images") or []]),
        calls=fields.get("tool_calls") or [],
    )


def _image(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "illegal base64 data at input byte 0") from None


def _keep_alive(value: Any) -> float | None:
    """Seconds a model stays loaded: a number, or Go's spelling of a duration; ``None`` is the default."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if value == "0":
        return 0.0
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise Refused(400, f'time: invalid duration "{value}"')
    total = sum(
        float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)(ns|us|µs|ms|s|m|h)", value)
    )
    return -total if value.startswith("-") else total


async def _load_or_unload(
    exchange: Exchange, model: Model, spelling: str, fields: dict[str, Any], empty: dict[str, Any]
) -> None:
    """Nothing to answer: load the model, or unload it if ``keep_alive`` is 0."""
    keep_alive = _keep_alive(fields.get("keep_alive"))
    reason = "unload" if keep_alive == 0 else "load"
    if reason == "load":
        shape = _shape(read_options(fields.get("options")), fields.get("shift"))
        await asyncio.sleep(load_seconds(exchange.library, exchange.settings, model, shape, exchange.fault))
    exchange.library.keep(model, keep_alive)
    exchange.record.done_reason = reason
    top = {"model": spelling, "created_at": frames.now()}
    await exchange.send_json({**top, **empty, "done": True, "done_reason": reason})


async def _render_only(exchange: Exchange, wish: Wish) -> None:
    debug = {"rendered_template": wish.prompt, "image_count": wish.images}
    top = {"model": wish.spelling, "created_at": frames.now()}
    await exchange.send_json({**top, "response": "", "done": False, "_debug_info": debug})
