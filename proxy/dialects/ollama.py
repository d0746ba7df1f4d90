"""Ollama's own API, ``/api/*``: its requests, and what of its listings is for everybody.

Field names, types and defaults are those of Ollama's ``api`` package; the table
of what is dropped, mapped and refused, and why, is in ``docs/doors.md``.
"""

from __future__ import annotations

import math
import re
from typing import Any

from keys.policies import LOAD_OPTIONS
from proxy.calls import CHAT, EMBED, EMBEDDINGS, GENERATE, Call, Route
from proxy.dialects import fields
from proxy.dialects.prompt import EMBEDDING_MARKS, Prompt
from proxy.dialects.strict_json import MAX_INTEGER, Reader, loads, read_object, wrong
from proxy.exceptions import BadRequest

MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_TOOL_CALLS = 1024
MAX_INPUTS = 2048
MAX_CONTEXT_IDS = 2**20
# Longer than the context of any model, which is all that these numbers can reach back over.
MAX_REACH = 2**20

_Fields = dict[str, Any]


def _whole(value: Any, param: str) -> int:
    """An integer option; as upstream does, a fraction is cut off."""
    whole = int(fields.number(value, param))
    if not -MAX_INTEGER <= whole < MAX_INTEGER:
        raise wrong(param, "an integer of 64 bits")
    return whole


def _reach(value: Any, param: str) -> int:
    """How many tokens something reaches back over, -1 for all.

    More than there can be means all as well, but the sampler sets memory aside
    for each of them, and two thousand million would end it for everybody.
    """
    return max(-1, min(_whole(value, param), MAX_REACH))


_OPTIONS: dict[str, Reader] = {
    "num_predict": _whole,
    "num_keep": _reach,
    "seed": _whole,
    "temperature": fields.number,
    "top_k": _whole,
    "top_p": fields.number,
    "min_p": fields.number,
    "typical_p": fields.number,
    "repeat_last_n": _reach,
    "repeat_penalty": fields.number,
    "presence_penalty": fields.number,
    "frequency_penalty": fields.number,
    "stop": fields.stop_list,
    "num_ctx": _whole,
    "num_batch": _whole,
    "num_gpu": _whole,
    "main_gpu": _whole,
    "use_mmap": fields.flag,
    "num_thread": _whole,
    "draft_num_predict": _whole,
}


def _options(value: Any, param: str) -> _Fields:
    """The options of one call; their names are matched exactly, as upstream does."""
    kept = {}
    for name, item in fields.mapping(value, param).items():
        reader = _OPTIONS.get(name)
        if reader is not None and item is not None:
            kept[name] = reader(item, f"{param}.{name}")
    return kept


def _format(value: Any, param: str) -> str | _Fields:
    if value in ("", "json"):
        return str(value)
    if isinstance(value, dict):
        return fields.format_schema(value, param)
    raise wrong(param, "'json' or a JSON schema")


def _think(value: Any, param: str) -> bool | str:
    if isinstance(value, bool) or value in ("low", "medium", "high", "max"):
        return bool(value) if isinstance(value, bool) else str(value)
    raise wrong(param, "true, false, 'low', 'medium', 'high' or 'max'")


# Go's spelling of a duration; nobody means one that is written with more characters.
_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_CHARACTERS = 64


def _keep_alive(value: Any, param: str) -> float:
    """Seconds, given as such or as a duration such as ``1h30m``; a negative one is infinite, as upstream."""
    if isinstance(value, str):
        if len(value) > _DURATION_CHARACTERS or not _DURATION.fullmatch(value):
            raise wrong(param, "a number of seconds or a duration such as '5m'")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
        return math.inf if value.startswith("-") and seconds else seconds
    number = fields.number(value, param)
    return math.inf if number < 0 else number


def _images(value: Any, param: str) -> list[str]:
    return fields.items(value, param, fields.text, MAX_MESSAGES)


def _context(value: Any, param: str) -> list[int]:
    return fields.items(value, param, fields.integer, MAX_CONTEXT_IDS)


_CALLED: dict[str, Reader | None] = {
    "index": fields.integer,
    "name": fields.name,
    "arguments": fields.mapping,
}
_TOOL_CALL: dict[str, Reader | None] = {"id": fields.name, "function": fields.fields(_CALLED)}


def _tool_calls(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_TOOL_CALL), MAX_TOOL_CALLS)


_MESSAGE: dict[str, Reader | None] = {
    "role": fields.name,
    "content": fields.text,
    "thinking": fields.text,
    "images": _images,
    "tool_calls": _tool_calls,
    "tool_name": fields.name,
    "tool_call_id": fields.name,
}


def _messages(value: Any, param: str) -> list[_Fields]:
    return fields.items(value, param, fields.fields(_MESSAGE), MAX_MESSAGES)


_FUNCTION: dict[str, Reader | None] = {
    "name": fields.name,
    "description": fields.text,
    "parameters": fields.schema,
}
_TOOL: dict[str, Reader | None] = {"type": fields.one_of("function"), "function": fields.fields(_FUNCTION)}


def tools(value: Any, param: str) -> list[_Fields]:
    """Definitions of functions. Other kinds are refused: a search would run upstream, outside the house."""
    return fields.items(value, param, fields.fields(_TOOL), MAX_TOOLS)


# What chat and generate have in common. Dropped: ``shift`` reloads the model for
# everybody, ``_debug_render_only`` shows the operator's own prompt and template.
_COMMON: dict[str, Reader | None] = {
    "model": fields.name,
    "stream": fields.flag,
    "format": _format,
    "options": _options,
    "keep_alive": _keep_alive,
    "think": _think,
    "truncate": fields.flag,
    "shift": None,
    "logprobs": fields.flag,
    "top_logprobs": fields.top_logprobs,
    "_debug_render_only": None,
}
_CHAT: dict[str, Reader | None] = {**_COMMON, "messages": _messages, "tools": tools}
_GENERATE: dict[str, Reader | None] = {
    **_COMMON,
    "prompt": fields.text,
    "suffix": fields.text,
    "system": fields.text,
    "template": fields.text,
    "raw": fields.flag,
    "context": _context,
    "images": _images,
    "width": None,
    "height": None,
    "steps": None,
}


def parse_chat(body: bytes) -> Call:
    """Read ``POST /api/chat``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _CHAT)
    prompt = Prompt()
    messages: list[_Fields] = kept.get("messages", [])
    prompt.messages = len(messages)
    for index, message in enumerate(messages):
        for name, value in message.items():
            if name == "images":
                for encoded in value:
                    prompt.media(encoded, f"messages[{index}].images")
            elif name == "tool_calls":
                prompt.calls(value)
            else:
                prompt.text(value)
    if "tools" in kept:
        prompt.tools(kept["tools"])
    return _generating(CHAT, kept, prompt, loads_model=not messages)


def parse_generate(body: bytes) -> Call:
    """Read ``POST /api/generate``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _GENERATE)
    prompt = Prompt()
    prompt.messages = 1
    for name in ("prompt", "suffix", "system", "template"):
        prompt.text(kept.get(name, ""))
    _check_template(kept.get("template", ""))
    prompt.ids(len(kept.get("context", ())))
    for encoded in kept.get("images", ()):
        prompt.media(encoded, "images")
    return _generating(GENERATE, kept, prompt, loads_model=not kept.get("prompt"))


def _generating(route: Route, kept: _Fields, prompt: Prompt, *, loads_model: bool) -> Call:
    """The call made of what was read.

    One without a prompt loads the model, and unloads it if it is not to be kept
    alive; upstream answers with one object then, streamed or not.
    """
    model = fields.take_model(kept)
    stream = kept.pop("stream", True)
    asked = _take_asked(kept, loads_model=loads_model)
    if isinstance(kept.get("format"), dict):
        prompt.structure(kept["format"])
    wish = None
    if "num_predict" in kept.get("options", ()):
        wish = fields.output_limit(kept["options"].pop("num_predict"), "options.num_predict")
    return Call(
        route=route,
        model=model,
        stream=stream and not loads_model,
        fields=kept,
        input_bytes=prompt.bytes,
        messages=prompt.messages,
        images=prompt.images,
        media_bytes=prompt.media_bytes,
        output_wish=wish,
        shows_usage=True,
        context_ids=prompt.context_ids,
        asked=asked,
    )


def _take_asked(kept: _Fields, *, loads_model: bool) -> dict[str, float]:
    """Take out of the fields what the client wants of the loaded model, which is shared.

    Refuses to unload it, which is what no time on a call without a prompt asks for.
    """
    options = kept.get("options", {})
    asked: dict[str, float] = {name: options.pop(name) for name in LOAD_OPTIONS if name in options}
    if "keep_alive" in kept:
        asked["keep_alive"] = kept.pop("keep_alive")
        if loads_model and asked["keep_alive"] == 0:
            raise BadRequest("A model cannot be unloaded: it is shared with others.", "keep_alive")
    return asked


_PLAIN_ACTION = re.compile(r"-?\s*(?:(\.(?:System|Prompt|Suffix|Response))|(?:else )?if \.\w+|else|end)\s*-?")


def _check_template(template: str) -> None:
    """Refuse a template that could make more of a prompt than went into it.

    Templates are programs: they can repeat what they are given and pad it to any
    length. One that writes each part at most once stays within what is counted.
    """
    written = []
    # Cut at every beginning: a search for pairs would read the rest of the text again for each of them.
    for piece in template.split("{{")[1:]:
        action, closed, _ = piece.partition("}}")
        plain = _PLAIN_ACTION.fullmatch(action) if closed else None
        if plain is None:
            raise BadRequest(
                "template may use .System, .Prompt, .Suffix, .Response, if, else and end, nothing else.",
                "template",
            )
        written.append(plain.group(1))
    parts = [part for part in written if part]
    if len(parts) != len(set(parts)):
        raise BadRequest("template may write each of its parts only once.", "template")


def _input(value: Any, param: str) -> str | list[str]:
    """One text or several."""
    return value if isinstance(value, str) else fields.items(value, param, fields.text, MAX_INPUTS)


_EMBED: dict[str, Reader | None] = {
    "model": fields.name,
    "input": _input,
    "truncate": fields.flag,
    "dimensions": fields.positive,
    "options": _options,
    "keep_alive": _keep_alive,
}
_EMBEDDINGS: dict[str, Reader | None] = {
    "model": fields.name,
    "prompt": fields.text,
    "options": _options,
    "keep_alive": _keep_alive,
}


def parse_embed(body: bytes) -> Call:
    """Read ``POST /api/embed``; raises ``BadRequest``."""
    return _embedding(EMBED, read_object(loads(body), "", _EMBED))


def parse_embeddings(body: bytes) -> Call:
    """Read ``POST /api/embeddings``, which goes upstream as ``/api/embed``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _EMBEDDINGS)
    kept["input"] = kept.pop("prompt", "")
    return _embedding(EMBEDDINGS, kept)


def _embedding(route: Route, kept: _Fields) -> Call:
    model = fields.take_model(kept)
    inputs = kept.get("input", "")
    texts = [inputs] if isinstance(inputs, str) else inputs
    asked = _take_asked(kept, loads_model=not any(texts))
    kept.get("options", {}).pop("num_predict", None)
    call = embedding_call(route, model, kept, texts)
    call.asked = asked
    return call


def embedding_call(route: Route, model: str, kept: _Fields, texts: list[str]) -> Call:
    """A call that turns each of ``texts`` into a vector."""
    prompt = Prompt()
    for one in texts:
        prompt.text(one)
        prompt.bytes += EMBEDDING_MARKS
    return Call(
        route=route,
        model=model,
        stream=False,
        fields=kept,
        input_bytes=prompt.bytes,
        messages=0,
        images=0,
        output_wish=None,
        shows_usage=True,
    )


# Only the name matters: the answer comes from the catalog, and never with what ``verbose`` adds.
_SHOW: dict[str, Reader | None] = {
    "model": fields.name,
    "name": fields.name,
    "verbose": None,
    "system": None,
    "template": None,
    "options": None,
}


def parse_show(body: bytes) -> str:
    """The name in ``POST /api/show``: ``model``, or the older ``name``; raises ``BadRequest``."""
    kept = read_object(loads(body), "", _SHOW)
    kept["model"] = kept.get("model") or kept.get("name", "")
    return fields.take_model(kept)


_DETAILS = (
    "format",
    "family",
    "families",
    "parameter_size",
    "quantization_level",
    "context_length",
    "embedding_length",
)


def redact_show(shown: _Fields) -> _Fields:
    """What a caller may see of an ``/api/show`` answer.

    Kept are sizes, families, capabilities, sampling defaults and the numbers of
    ``model_info``, which clients read the context length from. Left out are
    system prompt, template, modelfile, licence, messages, tensors, tokenizer,
    paths of the host and where a remote model runs. ``model_info`` is always an
    object: Ollama's own Python client fails without it.
    """
    info = shown.get("model_info")
    parameters = shown.get("parameters")
    capabilities = shown.get("capabilities")
    redacted: _Fields = {
        "details": redact_details(shown.get("details")),
        "model_info": {
            name: value
            for name, value in (info if isinstance(info, dict) else {}).items()
            if _harmless(name, value)
        },
        "capabilities": capabilities if isinstance(capabilities, list) else [],
    }
    if isinstance(parameters, str):
        redacted["parameters"] = parameters
    if isinstance(shown.get("modified_at"), str):
        redacted["modified_at"] = shown["modified_at"]
    return redacted


def _harmless(name: str, value: Any) -> bool:
    """A number, or a short text that is neither part of a tokenizer nor a path."""
    if name.startswith("tokenizer."):
        return False
    if isinstance(value, str):
        return len(value) <= 200 and "/" not in value and "\\" not in value
    return isinstance(value, (int, float))


def redact_details(details: Any) -> _Fields:
    """``details`` of a model. ``parent_model`` may be a path or a hidden model, so it is always empty."""
    known = details if isinstance(details, dict) else {}
    return {"parent_model": "", **{name: known[name] for name in _DETAILS if name in known}}


_TAGS_ENTRY = ("name", "model", "modified_at", "size", "digest", "capabilities")
_PS_ENTRY = ("name", "model", "size", "digest", "expires_at", "size_vram", "context_length")


def redact_entry(entry: _Fields) -> _Fields:
    """What a caller may see of an entry of ``/api/tags``; every key that clients insist on stays."""
    return {**_only(_TAGS_ENTRY, entry), "details": redact_details(entry.get("details"))}


def redact_loaded(entry: _Fields) -> _Fields:
    """What a caller may see of an entry of ``/api/ps``."""
    return {**_only(_PS_ENTRY, entry), "details": redact_details(entry.get("details"))}


def _only(names: tuple[str, ...], entry: _Fields) -> _Fields:
    return {name: entry[name] for name in names if name in entry}
