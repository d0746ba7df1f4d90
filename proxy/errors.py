"""What a client is told when the gateway says no, in the words of its own dialect.

Refusals are facts of the domain. Here, and nowhere else, they become a status,
a code and a sentence; ``docs/errors.md`` explains each to people.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import ceil
from typing import Any
from uuid import UUID

import orjson

from budgets.exceptions import (
    BacklogFull,
    BudgetCut,
    BudgetExhausted,
    CallStopped,
    ClockDoubtful,
    ConcurrencyLimited,
    CountersUnavailable,
    HoldLost,
    HumanCheckRequired,
    KeyEnded,
    KeyKilled,
    KeyNoLongerValid,
    LimitReached,
    ModelKilled,
    PlatformKilled,
    PriceMissing,
    RateLimited,
    StoppedByOperator,
    TenantKilled,
    TenantSuspended,
    TooLarge,
    UpstreamKilled,
)
from budgets.reservations import Figures, Standing
from keys.exceptions import InvalidKey, KeysUnavailable
from proxy.calls import Dialect, Framing, Route
from proxy.exceptions import (
    AddressRefused,
    BadRequest,
    BodyTooLarge,
    CloudModelRefused,
    Draining,
    EndpointRefused,
    GpuTimeOver,
    HumanCheckFailed,
    HumanCheckUnavailable,
    ModelRefused,
    NoModels,
    OptionRefused,
    OutputCapPassed,
    RouteRefused,
    SecretInUrl,
    UnsupportedMedia,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.replies import Reply
from tenants.exceptions import Refusal
from tenants.ids import new_id
from tenants.model_names import DEFAULT_HOST, DEFAULT_NAMESPACE

# Clients must not come back all at once, so a random part of this is added to what they are told to wait.
JITTER = 0.25
MAX_JITTER_SECONDS = 60
MAX_TEXT_CHARACTERS = 500
JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a refusal is told. ``retry``: whether the same request may succeed soon.

    ``wait``: seconds after which it may, where the refusal does not know better.
    """

    status: int
    type: str
    code: str
    sentence: str
    retry: bool = False
    wait: float | None = None


def _bad(status: int, code: str, sentence: str) -> Answer:
    return Answer(status, "invalid_request_error", code, sentence)


def _forbidden(code: str, sentence: str) -> Answer:
    return Answer(403, "permission_error", code, sentence)


def _later(status: int, code: str, sentence: str, wait: float) -> Answer:
    """One that may succeed when it is tried again after ``wait`` seconds."""
    kind = "rate_limit_error" if status == 429 else "api_error"
    return Answer(status, kind, code, sentence, retry=True, wait=wait)


_BLIND = "Usage cannot be counted at the moment, so nothing is started. Try again."
_FAILED = "The model server failed."

_NO_KEY = Answer(
    401,
    "invalid_request_error",
    "invalid_api_key",
    "The API key is missing or not valid. Send it as 'Authorization: Bearer tg_…'.",
)
_NO_MODEL = Answer(
    403,
    "permission_error",
    "model_not_allowed",
    "This model does not exist, or this key may not use it. /api/tags and /v1/models list those it may use.",
)

ANSWERS: dict[type[Refusal], Answer] = {
    BadRequest: _bad(400, "invalid_request", "The request is not valid."),
    SecretInUrl: _bad(
        400,
        "secret_in_url",
        "The address holds an API key, where logs keep it. Send it as a header, and replace this key.",
    ),
    TooLarge: _bad(400, "too_many_tokens", "The request may need more tokens than can be counted."),
    InvalidKey: _NO_KEY,
    KeyNoLongerValid: _NO_KEY,
    RouteRefused: _forbidden("route_not_allowed", "This gateway does not serve this route."),
    EndpointRefused: _forbidden("endpoint_not_allowed", "This key may not use this endpoint."),
    AddressRefused: _forbidden("address_not_allowed", "This key may not be used from this address."),
    ModelRefused: _NO_MODEL,
    CloudModelRefused: _NO_MODEL,
    OptionRefused: _forbidden("option_not_allowed", "This key may not use a field that the request has."),
    PriceMissing: _forbidden(
        "price_missing", "A budget counts money and this model has no price yet. Ask the operator to set one."
    ),
    KeyEnded: Answer(
        401,
        "invalid_request_error",
        "key_ended",
        "This call was stopped: its API key was revoked or has expired.",
    ),
    TenantSuspended: _forbidden("tenant_suspended", "This call was stopped: its tenant was suspended."),
    PlatformKilled: _forbidden("kill_switch_platform", "An operator has stopped all calls."),
    TenantKilled: _forbidden("kill_switch_tenant", "An operator has stopped all calls of this tenant."),
    KeyKilled: _forbidden("kill_switch_key", "An operator has stopped all calls of this key."),
    UpstreamKilled: _forbidden(
        "kill_switch_upstream", "An operator has stopped all calls to this model's server."
    ),
    ModelKilled: _forbidden("kill_switch_model", "An operator has stopped all calls to this model."),
    StoppedByOperator: _forbidden("call_stopped", "An operator stopped this call."),
    HumanCheckRequired: _forbidden(
        "human_check_required",
        "A human has to be seen first. Solve the check and repeat with its token in X-Tollgate-Human-Check.",
    ),
    HumanCheckFailed: _forbidden(
        "human_check_failed", "The human check was not passed, or its token was used before. Solve a new one."
    ),
    BodyTooLarge: _bad(413, "body_too_large", "The request body is too large."),
    UnsupportedMedia: _bad(415, "unsupported_encoding", "Send the request body without Content-Encoding."),
    BudgetExhausted: Answer(
        429, "insufficient_quota", "insufficient_quota", "A budget has not enough left for this request."
    ),
    GpuTimeOver: Answer(
        429,
        "insufficient_quota",
        "gpu_time_over",
        "A budget has no more GPU time for this request, so it was cut.",
    ),
    BudgetCut: Answer(
        429,
        "insufficient_quota",
        "budget_cut",
        "This call was stopped: a budget was lowered below what is used and held of it.",
    ),
    RateLimited: _later(429, "rate_limit_exceeded", "A rate limit is reached.", 1),
    ConcurrencyLimited: _later(
        429, "concurrency_limit_exceeded", "As many requests are running already as may run at one time.", 1
    ),
    OutputCapPassed: Answer(
        502, "api_error", "output_cap_passed", "The model went on beyond its limit of tokens and was cut."
    ),
    UpstreamUnreachable: _later(502, "upstream_unreachable", "The model server cannot be reached.", 2),
    UpstreamFailed: _later(502, "upstream_failed", _FAILED, 1),
    UpstreamRefused: _later(502, "upstream_failed", _FAILED, 1),
    UpstreamTimeout: _later(504, "upstream_timeout", "The model server took too long.", 2),
    NoModels: _later(503, "no_models", "No model is known to be installed at the moment.", 5),
    KeysUnavailable: _later(503, "keys_unavailable", "Keys cannot be checked at the moment. Try again.", 2),
    CountersUnavailable: _later(503, "counters_unavailable", _BLIND, 2),
    ClockDoubtful: _later(503, "clock_doubtful", "The clocks here do not agree, so nothing is started.", 10),
    BacklogFull: _later(503, "backlog_full", _BLIND, 10),
    HoldLost: _later(
        503, "hold_lost", "This call was stopped: the gateway lost the room set aside for it. Try again.", 1
    ),
    HumanCheckUnavailable: _later(
        503, "human_check_unavailable", "The human check cannot be looked at just now. Try again.", 5
    ),
    Draining: _later(503, "draining", "This gateway process is about to stop. Try again.", 1),
}

# What Ollama's own refusals become where that differs from ``ANSWERS[UpstreamRefused]``.
UPSTREAM_REFUSED: dict[int, Answer] = {
    400: _bad(400, "upstream_refused", "The model server did not accept the request."),
    404: Answer(404, "not_found_error", "model_not_found", "The model is not installed any more."),
    503: _later(503, "upstream_busy", "The model server is busy. Try again.", 5),
}

# For a fault of ours, of which nothing is told.
INTERNAL = Answer(500, "api_error", "internal_error", "The gateway failed. Tell its operator the request id.")

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def answer_to(refusal: BaseException) -> Answer:
    """How ``refusal`` is told; an exception that is none gets the neutral answer of a fault of ours."""
    if isinstance(refusal, UpstreamRefused) and refusal.status in UPSTREAM_REFUSED:
        return UPSTREAM_REFUSED[refusal.status]
    for kind in type(refusal).__mro__:
        if kind in ANSWERS:
            return ANSWERS[kind]
    return INTERNAL


def status_of(refusal: BaseException) -> int:
    """The status with which ``refusal`` is told."""
    return answer_to(refusal).status


def code_of(refusal: BaseException) -> str:
    """The code with which ``refusal`` is told, or would be in a dialect that has codes."""
    return answer_to(refusal).code


def dialect_of(path: str) -> Dialect:
    """The dialect that a client at ``path`` speaks, whether or not there is a door."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path == "/v1" or path.startswith("/v1/") else Dialect.OLLAMA


def render(refusal: BaseException, dialect: Dialect, request_id: UUID) -> Reply:
    """The answer that tells ``refusal`` to a client."""
    answer = answer_to(refusal)
    headers = {
        "Content-Type": JSON,
        "Cache-Control": "no-store",
        "X-Request-Id": str(request_id),
        **_retry_headers(refusal, answer),
    }
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if dialect is Dialect.ANTHROPIC:
        headers["Request-Id"] = str(request_id)
    if isinstance(refusal, LimitReached):
        headers.update(limit_headers(refusal.standing, dialect))
    tenant = refusal.tenant if isinstance(refusal, Refusal) else ""
    body = orjson.dumps(_body(refusal, answer, dialect, request_id))
    return Reply(answer.status, headers, body, tenant, answer.code)


def answer_for(path: str, refusal: BaseException) -> Reply:
    """The answer to a request at ``path`` that no view has given an id."""
    return render(refusal, dialect_of(path), new_id())


def last_frame(refusal: BaseException, route: Route) -> bytes:
    """How a streamed answer that breaks is ended: an error in its own framing, never an end mark."""
    answer = answer_to(refusal)
    if route.framing is Framing.NDJSON:
        return orjson.dumps({"error": _sentence(refusal, answer)}) + b"\n"
    if route.dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + orjson.dumps(_anthropic(refusal, answer)) + b"\n\n"
    event = _openai(refusal, answer)
    if route.path != "/v1/responses":
        return b"data: " + orjson.dumps(event) + b"\n\n"
    # OpenAI's own event has the parts of the error at the top; its clients raise on one called ``error``.
    # Its number only has to be above those of the events before it.
    named = {"type": "error", **event["error"], **event, "sequence_number": 2**31 - 1}
    named["type"] = "error"
    return b"event: error\ndata: " + orjson.dumps(named) + b"\n\n"


def _body(refusal: BaseException, answer: Answer, dialect: Dialect, request_id: UUID) -> dict[str, Any]:
    if dialect is Dialect.OPENAI:
        return _openai(refusal, answer)
    if dialect is Dialect.ANTHROPIC:
        return {**_anthropic(refusal, answer), "request_id": str(request_id)}
    return {"error": _sentence(refusal, answer)}


def _openai(refusal: BaseException, answer: Answer) -> dict[str, Any]:
    param = refusal.param if isinstance(refusal, BadRequest) else None
    return {
        "error": {
            "message": _sentence(refusal, answer),
            "type": answer.type,
            "param": param,
            "code": answer.code,
        }
    }


def _anthropic(refusal: BaseException, answer: Answer) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(answer.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": _sentence(refusal, answer)}}


def _sentence(refusal: BaseException, answer: Answer) -> str:
    """The answer's sentence, or what the refusal itself knows better."""
    if isinstance(refusal, BadRequest):
        return refusal.sentence
    if isinstance(refusal, UpstreamRefused) and answer.status == 400:
        return _presentable(refusal.text) or answer.sentence
    if isinstance(refusal, CallStopped) and refusal.message:
        return f"{answer.sentence} {refusal.message}"
    if isinstance(refusal, LimitReached) and refusal.standing:
        return f"{answer.sentence} {_described(refusal.standing[0])}"
    return answer.sentence


def _presentable(text: str) -> str:
    """An error text of Ollama's as a client may see it, or nothing.

    The server inside Ollama answers with JSON, of which only the message is
    passed on. Host and namespace that Ollama fills in are taken out of names. A
    text with an address or a path of the host in it is not passed on.
    """
    told = _message_in(text) if text.startswith("{") else text
    told = told.replace(f"{DEFAULT_HOST}/{DEFAULT_NAMESPACE}/", "")
    if re.search(r"://|(?:^|[\s\"'=(])(?:/|[A-Za-z]:\\)\w", told):
        return ""
    return told[:MAX_TEXT_CHARACTERS]


def _message_in(text: str) -> str:
    """The message in an error that is written as JSON, or nothing."""
    try:
        inner = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    error = inner.get("error", inner)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _described(standing: Standing) -> str:
    """One limit in a sentence: ``Limit tenant-tokens-day: 900 of 1000 tokens used, back in 2h5m0s.``"""
    used = standing.limit - standing.remaining
    back = "" if standing.reset_seconds is None else f", back in {_duration(standing.reset_seconds)}"
    return f"Limit {standing.name}: {used} of {standing.limit} {_UNITS[standing.unit]} used or held{back}."


def _retry_headers(refusal: BaseException, answer: Answer) -> dict[str, str]:
    """When to come again, each client at another moment; and not to, where that cannot help soon."""
    wait = getattr(refusal, "retry_after", answer.wait)
    headers = {}
    if not answer.retry or wait is None:
        headers["X-Should-Retry"] = "false"
    if wait is not None:
        # Chance spreads the clients here; it decides nothing.
        seconds = wait + random.random() * min(wait * JITTER, MAX_JITTER_SECONDS)  # noqa: S311
        headers["Retry-After"] = str(max(1, ceil(seconds)))
        headers["Retry-After-Ms"] = str(max(1, ceil(seconds * 1000)))
    return headers


def limit_headers(standings: Iterable[Standing], dialect: Dialect) -> dict[str, str]:
    """How every limit of a call stands, in the standard names and in those of the dialect.

    The standard pair (``RateLimit-Policy`` and ``RateLimit``, IETF draft 11)
    names every limit. OpenAI's and Anthropic's names have room for one limit per
    unit, which is the one with the least left; how many calls may run at one
    time has no place there. What has no value is left out.
    """
    # Items of the first: quota, unit and window in seconds; of the second: what remains, and seconds
    # until some of it comes back.
    policies, left, tightest = [], [], dict[str, Standing]()
    for one in standings:
        name, _, unit, quota, rest, back, window, length, _ = one
        policies.append(_policy(name, quota, unit, window, length))
        rest_told = max(0, rest)
        left.append(f'"{name}";r={rest_told}' if back is None else f'"{name}";r={rest_told};t={ceil(back)}')
        if window != "now" and (unit not in tightest or rest < tightest[unit].remaining):
            tightest[unit] = one
    if not left:
        return {}
    headers = {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}
    for unit, limit, remaining, reset in _NAMES_OF_LIMITS[dialect]:
        least = tightest.get(unit)
        if least is None:
            continue
        headers[limit] = str(least.limit)
        headers[remaining] = str(max(0, least.remaining))
        if least.reset_seconds is not None:
            as_instant = dialect is Dialect.ANTHROPIC
            headers[reset] = _instant(least.reset_seconds) if as_instant else _duration(least.reset_seconds)
    return headers


# Calls that were admitted as one are told the same.
@lru_cache(maxsize=1_000)
def headers_of(figures: Figures, dialect: Dialect) -> Mapping[str, str]:
    """``limit_headers`` of what the counters of a call said."""
    return limit_headers(figures.standing, dialect)


_UNITS = {
    "requests": "requests",
    "tokens": "tokens",
    "output_tokens": "output tokens",
    "micro_usd": "millionths of a dollar",
    "gpu_ms": "milliseconds of GPU time",
}

# Per dialect: a unit, and the headers that tell its limit, what remains of it and when it comes back.
_OPENAI_NAMES = [
    (unit, f"X-RateLimit-Limit-{name}", f"X-RateLimit-Remaining-{name}", f"X-RateLimit-Reset-{name}")
    for unit, name in (("requests", "Requests"), ("tokens", "Tokens"))
]
_NAMES_OF_LIMITS = {
    Dialect.OPENAI: _OPENAI_NAMES,
    # Ollama has no names of its own for them.
    Dialect.OLLAMA: _OPENAI_NAMES,
    Dialect.ANTHROPIC: [
        (
            unit,
            f"Anthropic-RateLimit-{name}-Limit",
            f"Anthropic-RateLimit-{name}-Remaining",
            f"Anthropic-RateLimit-{name}-Reset",
        )
        for unit, name in (("requests", "Requests"), ("tokens", "Tokens"), ("output_tokens", "Output-Tokens"))
    ],
}


# Told in every answer, and the same as long as nobody changes the limit.
@lru_cache(maxsize=10_000)
def _policy(name: str, limit: int, unit: str, window: str, window_seconds: int | None) -> str:
    """A limit as an item of ``RateLimit-Policy``: quota, unit, and window in seconds."""
    quota_unit = "concurrent-requests" if window == "now" else unit.replace("_", "-")
    length = "" if window_seconds is None else f";w={window_seconds}"
    return f'"{name}";q={limit};qu="{quota_unit}"{length}'


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``, ``24h0m0s``."""
    milliseconds = max(0, ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, whole = divmod(ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{whole}s" if hours else f"{minutes}m{whole}s"


def _instant(seconds: float) -> str:
    """The instant in so many seconds, as Anthropic writes it (RFC 3339, UTC)."""
    return datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
