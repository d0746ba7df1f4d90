"""What the simulated models say, how long it takes and what is counted.

Deterministic. Token counts: a quarter of the UTF-8 bytes of a text, rounded up;
an image counts 256, an id in ``context`` one. Every piece of an answer is one
token, a tool call a quarter of the bytes of its JSON. The answer repeats the
last message's first words and goes on with words chosen by its checksum, 16 to
32 pieces long when nothing else ends it.
"""

import asyncio
import itertools
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.simulator.faults import NO_FAULT, Fault
from proxy.simulator.library import Library, Model
from proxy.simulator.settings import Settings
from proxy.simulator.truth import Record

IMAGE_TOKENS = 256
THINKING_PIECES = 6
REPEATS_ALLOWED = 30
# How far an answer gets that never ends and is not streamed.
WITHHELD_PIECES = 1000
STREAM_ERROR = "an error was encountered while running the model: simulated fault"

_ECHOED_WORDS = 8
_PROMPT_NS = 100_000
_OUTPUT_NS = 1_000_000
# fmt: off
_VOCABULARY = (
    "rain", "river", "stone", "morning", "lantern", "quiet", "harbour", "copper", "winter", "orchard",
    "signal", "paper", "garden", "thunder", "compass", "meadow", "silver", "bridge", "candle", "northern",
)
# fmt: on
_UTF8_WORDS = ("Grüße", "漢字", "жизнь", "🦙🌍", "naïve", "東京", "€uro", "ñandú")
_SEPARATOR_WORDS = ("one\u2028two", "three\u2029four", "five\x85six", "seven\u2028\u2028eight")


class Refused(Exception):
    """Ollama says no before the first piece."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class StreamFailed(Exception):
    """The model fails after some pieces; the text is the error's."""


class Ended(Exception):
    """The stream just ends, without a final object."""


class Garbage(Exception):
    """A line that is no JSON is next, and the end."""


class BreakOff(Exception):
    """The connection is broken now, by a TCP reset or by a plain close."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@dataclass(slots=True)
class Wish:
    """What a request asks a model for, whatever dialect it came in.

    ``spelling`` is the model's name as the client wrote it, ``prompt`` the text
    after the template, ``subject`` what the answer is about. ``cap`` is the
    token limit as given: absent, negative and zero mean what they mean to Ollama.
    ``shape`` are the values that make Ollama reload a model when they change.
    """

    model: Model
    spelling: str
    prompt: str
    subject: str
    stream: bool
    cap: int | None = None
    num_ctx: int | None = None
    stop: Sequence[str] = ()
    think: bool = False
    tools: Sequence[dict[str, Any]] = ()
    form: Any = None
    logprobs: int | None = None
    images: int = 0
    context: Sequence[int] = ()
    truncate: bool = True
    shift: bool = True
    zero_is_a_limit: bool = False
    shape: tuple[Any, ...] = ()
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of an answer."""

    content: str = ""
    thinking: str = ""
    calls: Sequence[dict[str, Any]] = ()


@dataclass(slots=True)
class Final:
    """The end of an answer. ``counters`` has Ollama's native names, without those left out."""

    reason: str
    counters: dict[str, Any]
    calls: Sequence[dict[str, Any]] = ()
    context: Sequence[int] = ()

    @property
    def prompt_tokens(self) -> Any:
        return self.counters.get("prompt_eval_count", 0)

    @property
    def output_tokens(self) -> Any:
        return self.counters.get("eval_count", 0)

    @property
    def cached_tokens(self) -> Any:
        return self.counters.get("prompt_eval_cached_count")


@dataclass(slots=True)
class Plan:
    """A whole answer before it is sent. ``reason`` is why it will end."""

    thinking: list[str]
    content: Iterator[str]
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str = "stop"


def tokens_of(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def load_seconds(
    library: Library, settings: Settings, wish_model: Model, shape: tuple[Any, ...], fault: Fault
) -> float:
    """How long the model takes to load for this request; 0 if it is loaded already."""
    if not library.needs_load(wish_model, shape):
        return fault.load_ms / 1000
    library.load(wish_model, shape)
    return settings.load_delay + fault.load_ms / 1000


def prompt_tokens(wish: Wish, settings: Settings) -> int:
    """Tokens of the prompt after truncation; raise ``Refused`` if it is too long and may not be cut."""
    count = tokens_of(wish.prompt) + wish.images * IMAGE_TOKENS + len(wish.context)
    limit = wish.num_ctx or settings.num_ctx
    if count > limit and not wish.truncate:
        raise Refused(
            400,
            "the prompt is longer than the context length currently available to the model; "
            "shorten it or raise the context length",
        )
    return min(count, limit)


def counters(prompt: int, output: int | None, load: float, fault: Fault) -> dict[str, Any]:
    """The counters of a final object; Go leaves out what is zero. ``output`` of ``None``: an embedding."""
    if fault.counters == "missing":
        return {}
    absurd: dict[str, Any] = {"zero": 0, "negative": -5, "huge": 2**60, "text": "12"}
    if fault.counters:
        value = absurd[fault.counters]
        prompt_count, output_count = value, None if output is None else value
    else:
        prompt_count, output_count = prompt, output
    prompt_ns, output_ns = prompt * _PROMPT_NS, (output or 0) * _OUTPUT_NS
    result = {
        "total_duration": int(load * 1e9) + prompt_ns + output_ns + 50_000,
        "load_duration": int(load * 1e9) + 20_000,
        "prompt_eval_count": prompt_count,
        "prompt_eval_cached_count": fault.cached,
        "prompt_eval_duration": prompt_ns,
        "eval_count": output_count,
        "eval_duration": output_ns,
    }
    if output is None:
        for name in ("prompt_eval_duration", "eval_count", "eval_duration"):
            del result[name]
    kept_zeros = ("prompt_eval_count", "eval_count") if fault.counters == "zero" else ()
    return {name: value for name, value in result.items() if value or (value == 0 and name in kept_zeros)}


async def generate(
    wish: Wish, fault: Fault, settings: Settings, library: Library, record: Record
) -> AsyncIterator[Piece | Final]:
    """The steps of an answer in their time, a ``Final`` last; what goes wrong is raised."""
    load = load_seconds(library, settings, wish.model, wish.shape, fault)
    prompt = prompt_tokens(wish, settings)
    record.prompt_tokens = prompt
    await asyncio.sleep(load + settings.first_byte_delay + fault.first_ms / 1000)
    if fault.old_status and wish.stream:
        raise StreamFailed(STREAM_ERROR)
    if fault.old_status or fault.error_after == 0:
        raise Refused(500, STREAM_ERROR)
    plan = _plan(wish, fault, settings, prompt)
    sent = 0
    fails = fault is not NO_FAULT
    if fails:
        await _fail_if_due(fault, sent)
    for piece in _pieces(plan, fault):
        # Looked up each time: whoever sets it lets running answers go faster or slower, too.
        if sent and (delay := settings.piece_delay if fault.slow_ms is None else fault.slow_ms / 1000):
            await asyncio.sleep(delay)
        record.output_tokens += 1 if not piece.calls else tokens_of(json.dumps(list(piece.calls)))
        yield piece
        record.pieces.append(piece.thinking + piece.content)
        sent += 1
        if fails:
            await _fail_if_due(fault, sent)
        if fault.endless and not wish.stream and sent == WITHHELD_PIECES:
            # Nothing of it is sent, so no reader holds it back: it would fill the memory.
            await asyncio.Event().wait()
    calls = plan.calls if fault.tool != "early" else []
    if calls:
        record.output_tokens += tokens_of(json.dumps(calls))

    library.keep(wish.model, wish.keep_alive)
    final = Final(
        reason="" if fault.no_reason else plan.reason,
        counters=counters(prompt, record.output_tokens, load, fault),
        calls=calls,
        context=range(1000, 1000 + (fault.context or len(wish.context) + prompt + record.output_tokens)),
    )
    record.counters, record.done_reason = final.counters, plan.reason
    yield final


def _pieces(plan: Plan, fault: Fault) -> Iterator[Piece]:
    for text in plan.thinking:
        yield Piece(thinking=text)
    if plan.calls and fault.tool == "early":
        yield Piece(calls=plan.calls)
    for text in plan.content:
        yield Piece(content=text)


async def _fail_if_due(fault: Fault, sent: int) -> None:
    if fault.silence_after == sent:
        await asyncio.sleep(fault.silence_ms / 1000)
    if fault.error_after == sent:
        raise StreamFailed(STREAM_ERROR)
    if sent in (fault.reset_after, fault.cut_after):
        raise BreakOff(reset=sent == fault.reset_after)
    if fault.garbage_after == sent:
        raise Garbage
    if fault.end_after == sent or (fault.repeat and sent == REPEATS_ALLOWED):
        raise Ended


def _plan(wish: Wish, fault: Fault, settings: Settings, prompt: int) -> Plan:
    """Decide the whole answer: its pieces, its end and the reason for it."""
    context = wish.num_ctx or settings.num_ctx
    most = 10 * context
    cap = most if wish.cap is None or wish.cap < 0 else min(wish.cap, most)
    if wish.cap == 0 and not wish.zero_is_a_limit:
        cap = most
    if not wish.shift:
        cap = min(cap, max(0, context - prompt))
    thoughts = fault.thinking if fault.thinking is not None else THINKING_PIECES * wish.think
    thinking = list(itertools.islice(_words("thinking " + wish.subject, 0), thoughts))
    if fault.endless:
        return Plan(thinking, _content(wish, fault))

    if wish.tools and not wish.form:
        calls = [_call(wish.tools[0])]
        needed = len(thinking) + tokens_of(json.dumps(calls))
        return (
            Plan(thinking[:cap], iter(()), calls)
            if needed <= cap
            else Plan(thinking[:cap], iter(()), reason="length")
        )
    content = _cut_at_stop(
        list(itertools.islice(_content(wish, fault), _length(wish, fault, settings))), wish.stop
    )
    if len(thinking) + len(content) > cap:
        return Plan(thinking[:cap], iter(content[: max(0, cap - len(thinking))]), reason="length")
    return Plan(thinking, iter(content))


def _length(wish: Wish, fault: Fault, settings: Settings) -> int | None:
    if wish.form:
        return None
    if fault.repeat:
        return REPEATS_ALLOWED
    for wanted in (fault.pieces, settings.pieces):
        if wanted is not None:
            return wanted
    return 16 + zlib.crc32(wish.subject.encode("utf-8", "surrogatepass")) % 17


def _content(wish: Wish, fault: Fault) -> Iterator[str]:
    if wish.form:
        text = json.dumps(sample(wish.form) if isinstance(wish.form, dict) else {"answer": wish.subject[:40]})
        return (text[n : n + 4] for n in range(0, len(text), 4))
    if fault.repeat:
        return itertools.repeat(" again")
    if fault.line_mib:
        return itertools.chain(["a" * (fault.line_mib * 2**20)], _words(wish.subject, _ECHOED_WORDS))
    if fault.split_utf8:
        return (f" {word}" for word in itertools.cycle(_UTF8_WORDS))
    if fault.separators:
        return (f" {word}" for word in itertools.cycle(_SEPARATOR_WORDS))
    if wish.model.remote:
        return itertools.chain(["answered", " by", " the", " cloud:"], _words(wish.subject, _ECHOED_WORDS))
    return _words(wish.subject, _ECHOED_WORDS)


def _words(subject: str, echoed: int) -> Iterator[str]:
    """Endless: the first words of ``subject``, then words of our own; all but the first after a space."""
    start = zlib.crc32(subject.encode("utf-8", "surrogatepass")) % len(_VOCABULARY)
    own = itertools.islice(itertools.cycle(_VOCABULARY), start, None)
    words = itertools.chain(subject.split()[:echoed], own)
    yield next(words)
    for word in words:
        yield " " + word


def _cut_at_stop(content: list[str], stop: Sequence[str]) -> list[str]:
    """``content`` up to the first stop string, which is not part of the answer."""
    text = "".join(content)
    ends = [at for word in stop if word and (at := text.find(word)) >= 0]
    if not ends:
        return content
    kept, left = [], min(ends)
    for piece in content:
        if left <= 0:
            break
        kept.append(piece[:left])
        left -= len(piece)
    return kept


def _call(tool: dict[str, Any]) -> dict[str, Any]:
    """A call of ``tool`` in Ollama's native shape, its arguments sampled from the schema."""
    function = tool.get("function") or {}
    arguments = sample(function.get("parameters") or {"type": "object"})
    name = str(function.get("name", ""))
    return {
        "id": f"call_{zlib.crc32(name.encode()):08x}",
        "function": {"index": 0, "name": name, "arguments": arguments},
    }


def sample(schema: Any) -> Any:
    """The same small value for the same JSON schema."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            return sample(schema[choice][0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        return {key: sample(value) for key, value in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [sample(schema.get("items") or {"type": "string"})]
    return {"string": "Paris", "integer": 7, "number": 1.5, "boolean": True}.get(kind)


def vector(text: str, dimensions: int) -> list[float]:
    """A direction of unit length that depends on ``text`` alone."""
    seed = zlib.crc32(re.sub(r"\s+", " ", text).encode("utf-8", "surrogatepass"))
    raw = [((seed * (n + 1) * 2_654_435_761) % 2_000_003) / 1_000_001.5 - 1.0 for n in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5 or 1.0
    return [round(value / length, 8) for value in raw]
