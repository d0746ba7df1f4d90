"""A call as it was understood: which route, which model, which fields, how much at most.

The routes on which a model works are all here; what is not in ``ROUTES`` does
not reach a model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from budgets.estimators import DEFAULT, Estimator


class Dialect(enum.Enum):
    """Whose words a client speaks, and in whose words it is refused."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Framing(enum.Enum):
    """How a streamed answer is cut into pieces on the wire."""

    NDJSON = "ndjson"
    SSE = "sse"
    NONE = "none"


class Cap(enum.Enum):
    """Where upstream reads how many tokens it may generate, and nowhere else."""

    NUM_PREDICT = "options.num_predict"
    MAX_TOKENS = "max_tokens"
    MAX_OUTPUT_TOKENS = "max_output_tokens"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One door through which a model is called.

    ``path`` is ours, ``upstream_path`` the constant that is asked of Ollama.
    ``asks_usage``: a stream carries counters only if it is asked to.
    ``reshape`` turns upstream's whole answer into the one of this route where
    the two differ.
    """

    name: str
    dialect: Dialect
    operation: str
    path: str
    upstream_path: str
    framing: Framing
    cap: Cap
    asks_usage: bool = False
    reshape: Callable[[bytes], bytes] | None = None


def single_embedding(answer: bytes) -> bytes:
    """What ``/api/embeddings`` answers, made from what ``/api/embed`` did: one vector, no counters."""
    vectors = orjson.loads(answer).get("embeddings")
    return orjson.dumps({"embedding": vectors[0] if vectors else []})


CHAT = Route("chat", Dialect.OLLAMA, "chat", "/api/chat", "/api/chat", Framing.NDJSON, Cap.NUM_PREDICT)
GENERATE = Route(
    "generate",
    Dialect.OLLAMA,
    "completion",
    "/api/generate",
    "/api/generate",
    Framing.NDJSON,
    Cap.NUM_PREDICT,
)
EMBED = Route("embed", Dialect.OLLAMA, "embedding", "/api/embed", "/api/embed", Framing.NONE, Cap.NONE)
# Ollama's own /api/embeddings says nothing of what it used, so its successor is asked instead.
EMBEDDINGS = Route(
    "embeddings",
    Dialect.OLLAMA,
    "embedding",
    "/api/embeddings",
    "/api/embed",
    Framing.NONE,
    Cap.NONE,
    reshape=single_embedding,
)
V1_CHAT = Route(
    "v1.chat",
    Dialect.OPENAI,
    "chat",
    "/v1/chat/completions",
    "/v1/chat/completions",
    Framing.SSE,
    Cap.MAX_TOKENS,
    asks_usage=True,
)
V1_COMPLETIONS = Route(
    "v1.completions",
    Dialect.OPENAI,
    "completion",
    "/v1/completions",
    "/v1/completions",
    Framing.SSE,
    Cap.MAX_TOKENS,
    asks_usage=True,
)
V1_EMBEDDINGS = Route(
    "v1.embeddings", Dialect.OPENAI, "embedding", "/v1/embeddings", "/v1/embeddings", Framing.NONE, Cap.NONE
)
V1_RESPONSES = Route(
    "v1.responses",
    Dialect.OPENAI,
    "chat",
    "/v1/responses",
    "/v1/responses",
    Framing.SSE,
    Cap.MAX_OUTPUT_TOKENS,
)
V1_MESSAGES = Route(
    "v1.messages", Dialect.ANTHROPIC, "chat", "/v1/messages", "/v1/messages", Framing.SSE, Cap.MAX_TOKENS
)

ROUTES = (
    CHAT,
    GENERATE,
    EMBED,
    EMBEDDINGS,
    V1_CHAT,
    V1_COMPLETIONS,
    V1_EMBEDDINGS,
    V1_RESPONSES,
    V1_MESSAGES,
)


@dataclass(slots=True)
class Call:
    """One request for a model, read and checked.

    ``model`` is spelt as the client did. ``fields`` are what goes upstream,
    without model, stream and cap, and hold nothing that was not checked.

    ``input_bytes`` bounds the tokens that the prompt can become: its UTF-8
    bytes, plus one for each of ``context_ids`` (ids of tokens, sent as such),
    plus ``media_bytes``, which bound what ``images`` become. What a template puts
    around each of ``messages`` comes on top. ``output_wish`` is the number of tokens that the
    client asked for at most, None when it set no limit.

    ``asked`` are the options that the client wants the model loaded with, and
    ``keep_alive`` in seconds (infinite: for ever). Nothing of it goes upstream
    but what ``proxy.clamping`` puts into ``fields``; what that changed is in
    ``clamped``, and the size of context it asks for in ``num_ctx``.

    ``stream``: the answer comes in frames. ``shows_usage``: the client wants the counters of a stream.
    """

    route: Route
    model: str
    stream: bool
    fields: dict[str, Any]
    input_bytes: int
    messages: int
    images: int
    output_wish: int | None
    shows_usage: bool
    context_ids: int = 0
    media_bytes: int = 0
    asked: dict[str, float] = field(default_factory=dict)
    clamped: dict[str, int | bool | None] = field(default_factory=dict)
    num_ctx: int | None = None

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of a prompt that is text and nothing else; None for one that is more."""
        return None if self.context_ids or self.media_bytes else self.input_bytes

    def input_estimate(self, estimator: Estimator) -> int:
        """How many tokens the prompt probably is, for want of a count; at least one."""
        text = self.input_bytes - self.context_ids - self.media_bytes
        media = DEFAULT.prompt_tokens(self.media_bytes)
        return max(1, estimator.prompt_tokens(text) + media + self.context_ids)

    def upstream_body(self, model: str, output_cap: int) -> bytes:
        """The body to send: built anew, with the model as it is installed and our own cap.

        Embeddings have no cap; for everything else ``output_cap`` has to be
        positive, since Ollama takes zero and less for no limit at all.
        """
        route = self.route
        body: dict[str, Any] = {"model": model, **self.fields}
        if route.cap is not Cap.NONE:
            if output_cap < 1:
                raise ValueError("upstream takes a cap below one for no limit")
            body["stream"] = self.stream
            if route.cap is Cap.NUM_PREDICT:
                body["options"] = {**self.fields.get("options", {}), "num_predict": output_cap}
            else:
                body[route.cap.value] = output_cap
            if self.stream and route.asks_usage:
                body["stream_options"] = {"include_usage": True}
        # Lone surrogates did not get past the reading of the request, so there is always UTF-8 for it.
        return orjson.dumps(body)
