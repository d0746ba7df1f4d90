"""Watch what passes by, and know at any moment what it amounts to.

A meter is given each whole frame of a stream and says what of it the client
gets. It reads the JSON of a frame only where cheap bytes say that counters, an
end mark or an error may be in it: inside a JSON string a quote is always
escaped, so ``"usage":`` and its like cannot come from the text of a model; that
they stand at the right place is then checked on the parsed frame.

What frames and counters look like: Ollama's own API (final object of a stream)
and the OpenAI and Anthropic references (``usage`` of a chunk, of
``response.completed``, of ``message_delta``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeGuard

import orjson

from budgets.charges import Usage
from budgets.estimators import Estimator
from proxy.calls import Call, Framing, Route
from proxy.exceptions import OutputCapPassed, UpstreamFailed

# A frame longer than this may carry many tokens at once, so its text is measured.
LONG_FRAME_BYTES = 512

_NO_USAGE_YET = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """What upstream itself says a call has used: tokens, and nanoseconds.

    Nothing is checked yet. ``total_tokens`` is used where one of its parts is missing.
    """

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int = 0
    total_tokens: int | None = None
    load_ns: int | None = None
    prompt_ns: int | None = None
    output_ns: int | None = None


class Meter:
    """Counts one stream; the dialects differ only in ``_read``.

    ``pieces`` is the number of frames with text that went by, each of them one
    token or more. ``ended`` is true once the dialect's own end mark was seen.
    ``output_bytes`` are those of the text of the answer, where its last frame
    brings all of it once more.
    """

    __slots__ = (
        "_cap", "_estimate", "_estimator", "_shows_usage", "counters", "ended", "output_bytes", "pieces",
    )  # fmt: skip

    def __init__(self, estimator: Estimator, *, cap: int, shows_usage: bool) -> None:
        self._estimator = estimator
        self._cap = cap
        self._shows_usage = shows_usage
        self._estimate = 0
        self.pieces = 0
        self.counters: Counters | None = None
        self.output_bytes: int | None = None
        self.ended = False

    def take(self, frame: bytes) -> bytes:
        """Count a frame and return what the client gets of it, which may be nothing.

        Raises ``UpstreamFailed`` when the frame is upstream's own report of an
        error, and ``OutputCapPassed`` when upstream ignores the cap that it was
        told: then the frame is one too many and is not passed on.
        """
        passed = self._read(frame)
        if not self.ended and passed and self._has_text(frame):
            if self.pieces >= self._cap:
                raise OutputCapPassed
            self.pieces += 1
            self._estimate += 1 if len(frame) < LONG_FRAME_BYTES else max(1, self._tokens_of(frame))
        return passed

    def _tokens_of(self, frame: bytes) -> int:
        parsed = _object(frame) if frame.startswith(b"{") else _event(frame)
        return self._estimator.answer_tokens(text_in(parsed))

    def _read(self, frame: bytes) -> bytes:
        raise NotImplementedError

    def _has_text(self, frame: bytes) -> bool:
        raise NotImplementedError

    @property
    def output_estimate(self) -> int:
        """Output tokens that went by, as far as frames and bytes tell."""
        return min(self._estimate, self._cap)


class NativeMeter(Meter):
    """``/api/chat`` and ``/api/generate``: lines, the last one with ``done`` and the counters."""

    __slots__ = ()

    def _read(self, frame: bytes) -> bytes:
        if not frame.startswith(b"{"):
            raise UpstreamFailed("a line of the answer was not JSON")
        if b'"done":true' in frame:
            answer = _object(frame)
            if answer.get("done") is True:
                self.ended = True
                self.counters = native_counters(answer)
                if self.counters is None or not self.counters.output_tokens:
                    # An answer may be this one line, and its text counts then as any other.
                    self._estimate += self._estimator.answer_tokens(text_in(answer))
        elif b'"error":' in frame and _object(frame).get("error") is not None:
            raise UpstreamFailed("upstream reported an error in the middle of its answer")
        return frame

    def _has_text(self, frame: bytes) -> bool:
        return not (b'"content":""' in frame or b'"response":""' in frame) or (
            b'"thinking":"' in frame or b'"tool_calls":' in frame
        )


class ChatMeter(Meter):
    """``/v1/chat/completions`` and ``/v1/completions``: events up to ``[DONE]``.

    Upstream is always asked for usage. The event that carries it is kept from a
    client that did not ask, and so are the zeros that ``/v1/completions`` then
    puts into every event.
    """

    __slots__ = ()

    def _read(self, frame: bytes) -> bytes:
        if b'"usage":' in frame:
            chunk = _event(frame)
            usage = chunk.get("usage")
            if isinstance(usage, dict) and chunk.get("choices") == []:
                self.counters = openai_counters(usage)
                return frame if self._shows_usage else b""
            return frame if self._shows_usage else frame.replace(_NO_USAGE_YET, b"")
        if frame.startswith(b"data: [DONE]"):
            self.ended = True
        elif b'"model":""' in frame or b'"error":' in frame:
            chunk = _event(frame)
            if chunk.get("model") == "" or chunk.get("error") is not None:
                # In the middle of a stream upstream swallows its error and sends one odd chunk instead.
                raise UpstreamFailed("upstream gave up in the middle of its answer")
        return frame

    def _has_text(self, frame: bytes) -> bool:
        return not (
            b'"content":""' in frame
            or b'"delta":{}' in frame
            or b'"text":""' in frame
            or b'"choices":[]' in frame
        ) or (b'"reasoning":"' in frame or b'"tool_calls":' in frame)


class ResponsesMeter(Meter):
    """``/v1/responses``: named events, the last one with the whole response and its usage."""

    __slots__ = ()

    def _read(self, frame: bytes) -> bytes:
        if frame.startswith((b"event: response.completed", b"event: response.incomplete")):
            response = _event(frame).get("response")
            self.ended = True
            if isinstance(response, dict):
                self.output_bytes = text_in(response)
                if isinstance(usage := response.get("usage"), dict):
                    self.counters = openai_counters(usage)
        elif frame.startswith((b"event: response.failed", b"event: error")):
            raise UpstreamFailed("upstream gave up in the middle of its answer")
        return frame

    def _has_text(self, frame: bytes) -> bool:
        return b".delta\n" in frame or b".delta\r\n" in frame


class MessagesMeter(Meter):
    """``/v1/messages``: named events; the true usage comes with ``message_delta``, near the end."""

    __slots__ = ()

    def _read(self, frame: bytes) -> bytes:
        if frame.startswith(b"event: message_delta"):
            usage = _event(frame).get("usage")
            if isinstance(usage, dict):
                self.counters = openai_counters(usage)
        elif frame.startswith(b"event: message_stop"):
            self.ended = True
        elif frame.startswith(b"event: error"):
            raise UpstreamFailed("upstream gave up in the middle of its answer")
        return frame

    def _has_text(self, frame: bytes) -> bool:
        return frame.startswith(b"event: content_block_delta")


_METERS: dict[str, type[Meter]] = {
    "/api/chat": NativeMeter,
    "/api/generate": NativeMeter,
    "/v1/chat/completions": ChatMeter,
    "/v1/completions": ChatMeter,
    "/v1/responses": ResponsesMeter,
    "/v1/messages": MessagesMeter,
}


def meter_for(route: Route, estimator: Estimator, *, cap: int, shows_usage: bool) -> Meter:
    """A fresh meter for a streamed answer of ``route``."""
    return _METERS[route.upstream_path](estimator, cap=cap, shows_usage=shows_usage)


def frame_end(framing: Framing) -> bytes:
    """The bytes that end a frame."""
    return b"\n" if framing is Framing.NDJSON else b"\n\n"


def counters_in(answer: dict[str, Any]) -> Counters | None:
    """The counters of a whole, unstreamed answer of any dialect, or None when it has none.

    An answer that was cut by upstream's guard against repetition says
    ``"done":false`` or has no finish reason, and zeros for usage: no counters.
    Vectors have no output to count.
    """
    usage = answer.get("usage")
    if isinstance(usage, dict):
        if _only_loaded(answer):
            return Counters(0, 0)
        counted = openai_counters(usage)
        told = counted.input_tokens or counted.output_tokens or counted.total_tokens
        return counted if told else None
    if "embeddings" in answer:
        return _embedding_counters(answer)
    return native_counters(answer)


def _only_loaded(answer: dict[str, Any]) -> bool:
    """Whether a whole answer of ``/v1/completions`` says that its model was loaded and nothing else."""
    match answer.get("choices"):
        case [{"finish_reason": "load"}]:
            return True
    return False


def _embedding_counters(answer: dict[str, Any]) -> Counters:
    """Those of vectors. Of its work upstream only tells the whole time and that of loading the model."""
    total_ns, load_ns = answer.get("total_duration"), answer.get("load_duration", 0)
    timed = _is_count(total_ns) and _is_count(load_ns) and total_ns >= load_ns
    return Counters(
        # A vector was made of something.
        input_tokens=answer.get("prompt_eval_count") or (None if answer["embeddings"] else 0),
        output_tokens=0,
        load_ns=load_ns or None,
        prompt_ns=total_ns - load_ns if timed else None,
    )


def native_counters(answer: dict[str, Any]) -> Counters | None:
    """The counters of a final native object; upstream leaves out those that are zero.

    An object with neither count has not been counted at all, except that
    loading a model is known to use no tokens.
    """
    if answer.get("done_reason") in ("load", "unload"):
        return Counters(0, 0, output_ns=0)
    if "prompt_eval_count" not in answer and "eval_count" not in answer:
        return None
    return Counters(
        input_tokens=answer.get("prompt_eval_count"),
        output_tokens=answer.get("eval_count"),
        cached_tokens=answer.get("prompt_eval_cached_count", 0),
        load_ns=answer.get("load_duration"),
        prompt_ns=answer.get("prompt_eval_duration"),
        output_ns=answer.get("eval_duration"),
    )


def openai_counters(usage: dict[str, Any]) -> Counters:
    """The counters of a ``usage`` object, in OpenAI's older or newer names or Anthropic's.

    Anthropic's three input fields do not overlap, so they are added up; in
    OpenAI's, the cached tokens are a part of the prompt's.
    """
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens", 0) if isinstance(details, dict) else 0
    input_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
    for apart in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        extra = usage.get(apart)
        if extra and _is_count(extra) and _is_count(input_tokens):
            input_tokens += extra
            if apart == "cache_read_input_tokens":
                cached = extra
    return Counters(
        input_tokens,
        usage.get("completion_tokens", usage.get("output_tokens")),
        cached_tokens=cached,
        total_tokens=usage.get("total_tokens"),
    )


_NOT_COUNTED = Counters(None, None)


def usage_of(
    call: Call,
    counters: Counters | None,
    output_estimate: int,
    wall_ms: int,
    estimator: Estimator,
    output_bytes: int | None = None,
) -> Usage:
    """What a call has used: upstream's counts, and an estimate for what it did not count.

    ``wall_ms`` is how long upstream had the call, ``output_bytes`` the text of its
    answer where that is known. That nothing is charged beyond the hold is seen to
    where the call is settled.
    """
    counted = counters or _NOT_COUNTED
    input_tokens, output_tokens = counted.input_tokens, counted.output_tokens
    if not (_is_count(input_tokens) and _is_count(output_tokens) and input_tokens and output_tokens):
        input_tokens, output_tokens = _parts(counters, output_estimate)
    exact = input_tokens is not None and output_tokens is not None
    return Usage(
        input_tokens=call.input_estimate(estimator) if input_tokens is None else input_tokens,
        cached_tokens=counted.cached_tokens if _is_count(counted.cached_tokens) else 0,
        output_tokens=output_estimate if output_tokens is None else output_tokens,
        thinking_tokens=0,
        load_ns=counted.load_ns if _is_count(counted.load_ns) else None,
        prompt_ns=counted.prompt_ns if _is_count(counted.prompt_ns) else None,
        output_ns=counted.output_ns if _is_count(counted.output_ns) else None,
        estimator="" if exact else estimator.name,
        wall_ms=wall_ms,
        input_bytes=call.text_bytes,
        output_bytes=output_bytes or None,
    )


def _parts(counters: Counters | None, output_estimate: int) -> tuple[int | None, int | None]:
    """Input and output as far as upstream's counts tell; None for what has to be estimated.

    A negative number, or something that is no number, is no count. A part that
    is missing is what the total leaves for it, if there is a total; that of
    vectors, which have no output, is all prompt.
    """
    if counters is None:
        return None, None
    input_tokens, output_tokens = counters.input_tokens, counters.output_tokens
    total = counters.total_tokens if _is_count(counters.total_tokens) else 0
    if total and input_tokens and _is_count(input_tokens) and not _is_count(output_tokens):
        output_tokens = max(0, total - input_tokens)
    if not output_tokens:
        # Upstream leaves out a zero. It is none, though, where something went by.
        output_tokens = None if output_estimate else 0
    if not input_tokens and (output_tokens != 0 or counters.total_tokens):
        # What has an answer had a prompt, which some versions do not count when it was cached.
        input_tokens = None
    output = output_tokens if _is_count(output_tokens) else output_estimate
    if not _is_count(input_tokens) and total > output:
        input_tokens = total - output
    return (
        input_tokens if _is_count(input_tokens) else None,
        output_tokens if _is_count(output_tokens) else None,
    )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(frame: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(frame)
    except orjson.JSONDecodeError as exc:
        raise UpstreamFailed("a line of the answer was not JSON") from exc
    return value if isinstance(value, dict) else {}


def _event(frame: bytes) -> dict[str, Any]:
    """The JSON of an event's ``data:`` line."""
    for line in frame.split(b"\n"):
        if line.startswith(b"data:"):
            return _object(line[5:])
    return {}


def text_in(value: Any) -> int:
    """UTF-8 bytes of the generated text in an answer or a part of one."""
    return sum(len(text.encode()) for text in texts_in(value))


def texts_in(value: Any) -> Iterator[str]:
    """The generated text in an answer or a part of one, piece by piece."""
    if isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in _TEXT and isinstance(item, str):
                yield item
            elif name in _WRITTEN:
                yield item if isinstance(item, str) else orjson.dumps(item).decode()
            elif name in _NESTED:
                yield from texts_in(item)


_TEXT = frozenset({"content", "response", "thinking", "reasoning", "text", "delta", "partial_json"})
_NESTED = frozenset({"message", "choices", "delta", "tool_calls", "function", "output", "content", "summary"})
# What a model writes to a tool: JSON, as text or as it stands.
_WRITTEN = frozenset({"arguments", "input"})
