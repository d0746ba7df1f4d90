"""The doors for programs: native Ollama, OpenAI and Anthropic's messages.

Everything that may be refused is refused before a response object exists: only
then is there a status code left to choose.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import orjson
from django.http import HttpRequest

from budgets import quotas
from budgets.estimators import estimators
from budgets.exceptions import CallStopped
from budgets.tallies import tallies
from keys.endpoints import ENDPOINTS, doors_of
from keys.exceptions import InvalidKey
from proxy import human_checks, upstream
from proxy.admission import Admission, Onlooker, admit, read, recognise
from proxy.calls import Call, Dialect, Framing, Route
from proxy.catalog import catalog
from proxy.clamping import described
from proxy.dialects import anthropic, ollama, openai
from proxy.errors import INTERNAL, code_of, dialect_of, headers_of, limit_headers, render, status_of
from proxy.exceptions import NoModels, RouteRefused, SecretInUrl, UnsupportedMedia
from proxy.metering import meter_for
from proxy.permits import expiry_headers, in_utc
from proxy.relay import Stream, outcome_of, whole_answer
from proxy.replies import Reply
from proxy.running import RunningCall
from tenants.exceptions import Refusal
from tenants.ids import new_id
from tenants.quick_settings import settings
from tenants.secret_marks import MARKS

CONTENT_TYPES = {
    Framing.NDJSON: "application/x-ndjson",
    Framing.SSE: "text/event-stream; charset=utf-8",
    Framing.NONE: "application/json; charset=utf-8",
}

# Its answer is a ``Reply``, but in the eyes of Django's types a view returns a response of Django's.
Door = Callable[..., Coroutine[Any, Any, Any]]

# What the books keep as status when nobody was there to be given one (nginx' number).
CLIENT_LEFT = 499


def door(view: Door) -> Door:
    """Give each request its id, and tell a refusal in the dialect of its path.

    The id is always ours, for it is the name under which a call is booked: a
    client that could choose it could have two calls booked as one.
    """

    @functools.wraps(view)
    async def opened(request: HttpRequest, **bound: Any) -> Reply:
        request_id = new_id()
        try:
            # Addresses end up in logs.
            if any(mark in request.META["QUERY_STRING"] for mark in MARKS):
                raise SecretInUrl
            if request.headers.get("content-encoding", "identity") != "identity":
                raise UnsupportedMedia
            reply: Reply = await view(request, request_id, **bound)
        except Refusal as refusal:
            return render(refusal, dialect_of(request.path_info), request_id)
        reply.headers["X-Request-Id"] = str(request_id)
        if dialect_of(request.path_info) is Dialect.ANTHROPIC:
            reply.headers["Request-Id"] = str(request_id)
        reply.headers["Cache-Control"] = "no-store"
        return reply

    return opened


@door
async def infer(
    request: HttpRequest, request_id: UUID, *, route: Route, parse: Callable[[bytes], Call]
) -> Reply:
    """One call of a model, streamed or not, from its admission to its last byte."""
    admission = await admit(request_id, request.headers, request.META, route, parse, request.body)
    call, cap = admission.call, admission.reservation.output_cap
    tenant = admission.reservation.caller.tenant
    # One and the same for all of the call, whatever is published while it runs.
    estimator = estimators.of(admission.target.model.name)
    meter = meter_for(route, estimator, cap=cap, shows_usage=call.shows_usage) if call.stream else None
    running = RunningCall(call, admission, meter, estimator)
    try:
        body = call.upstream_body(admission.target.model.spelling, cap)
        response = await running.answered(
            upstream.open_stream(admission.target.base_url, route.upstream_path, body)
        )
        if meter is None:
            answer = await whole_answer(running, response)
            headers = _headers(admission, Framing.NONE)
            return Reply(200, headers, route.reshape(answer) if route.reshape else answer, tenant)
        stream = Stream(running, meter, response)
        await stream.begin()
        return Reply(200, _headers(admission, route.framing), stream.relay(), tenant)
    except CallStopped as stopped:
        stopped.tenant = tenant
        await running.end(outcome_of(stopped), status_of(stopped), None, 0, code_of(stopped))
        raise
    except Refusal as refusal:
        refusal.tenant = tenant
        # Nothing was delivered, and that was not for the client to help.
        await running.give_back(outcome_of(refusal), status_of(refusal), code_of(refusal))
        raise
    except asyncio.CancelledError:
        # The client left while a model was loading or at work: the prompt is charged by estimate.
        tallies.answered(tenant, route.path, CLIENT_LEFT)
        await running.end("client_left", CLIENT_LEFT, None, 0)
        raise
    except Exception:
        # A fault of ours must not keep the room that was set aside.
        await running.give_back("failed", INTERNAL.status, INTERNAL.code)
        raise


def _headers(admission: Admission, framing: Framing) -> dict[str, str]:
    """The head of a good answer: nothing of upstream's own is in it."""
    reservation = admission.reservation
    headers = {
        "Content-Type": CONTENT_TYPES[framing],
        "X-Accel-Buffering": "no",
        **headers_of(reservation.figures, admission.call.route.dialect),
        **expiry_headers(reservation.caller),
    }
    if reservation.loan is not None:
        headers["X-Tollgate-Credit"] = f"{reservation.loan.tokens};left={reservation.loan.left}"
    if admission.cookie:
        headers["Set-Cookie"] = admission.cookie
    if reservation.capped_by is not None:
        headers["X-Tollgate-Output-Cap"] = f"{reservation.output_cap};by={reservation.capped_by}"
    if admission.call.clamped:
        headers["X-Tollgate-Clamped"] = described(admission.call.clamped)
    return headers


@door
async def tags(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /api/tags: the models that this key may call."""
    onlooker = await recognise(request.headers, request.META, "/api/tags")
    return _json({"models": [model.entry for model in onlooker.offered()]}, onlooker)


@door
async def show(request: HttpRequest, request_id: UUID) -> Reply:
    """POST /api/show: one of these models, without what its maker or operator wrote into it."""
    onlooker = await recognise(request.headers, request.META, "/api/show")
    name = await read(ollama.parse_show, request.body)
    return _json(onlooker.find(name).model.shown, onlooker)


@door
async def ps(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /api/ps: which of these models are loaded now."""
    onlooker = await recognise(request.headers, request.META, "/api/ps")
    allowed = {model.name for model in onlooker.offered()}
    return _json({"models": await catalog.loaded(allowed)}, onlooker)


@door
async def version(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /api/version: the gateway's own."""
    return _json({"version": settings.VERSION})


@door
async def root(request: HttpRequest, request_id: UUID) -> Reply:
    """GET and HEAD /: what clients look for to see whether somebody is there."""
    return Reply(200, {"Content-Type": "text/plain; charset=utf-8"}, b"Ollama is running")


@door
async def models(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /v1/models: the models that this key may call."""
    onlooker = await recognise(request.headers, request.META, "/v1/models")
    data = [openai.model_object(model.entry) for model in onlooker.offered()]
    return _json({"object": "list", "data": data}, onlooker, Dialect.OPENAI)


@door
async def model(request: HttpRequest, request_id: UUID, name: str) -> Reply:
    """GET /v1/models/{id}: one of them; an id with a slash may be sent percent-encoded or plain."""
    onlooker = await recognise(request.headers, request.META, "/v1/models")
    entry = onlooker.find(name).model.entry
    return _json(openai.model_object(entry), onlooker, Dialect.OPENAI)


@door
async def count_tokens(request: HttpRequest, request_id: UUID) -> Reply:
    """POST /v1/messages/count_tokens: an estimate, as only the model could tell and Ollama cannot ask it."""
    onlooker = await recognise(request.headers, request.META, "/v1/messages/count_tokens")
    call = await read(anthropic.parse_count, request.body)
    estimator = estimators.of(onlooker.find(call.model).model.name)
    return _json({"input_tokens": call.input_estimate(estimator)}, onlooker, Dialect.ANTHROPIC)


@door
async def usage(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /v1/usage: what is left of the caller's limits, in the words that hold for visitors too."""
    onlooker = await recognise(request.headers, request.META, "/v1/usage")
    told = quotas.told(onlooker.caller, onlooker.standing)
    if onlooker.caller.allowance is not None:
        told["human_check"] = human_checks.offer(onlooker.standing)
    return _json(told, onlooker, Dialect.OPENAI)


@door
async def key(request: HttpRequest, request_id: UUID) -> Reply:
    """GET /v1/key: what the caller's own key is, may call, and has left."""
    onlooker = await recognise(request.headers, request.META, "/v1/key")
    caller = onlooker.caller
    if caller.allowance is not None:
        raise InvalidKey("visitors have no key")
    try:
        offered = [model.name for model in onlooker.offered()]
    except NoModels:
        offered = []
    expires_at_ms = caller.expires_at_ms
    told = {
        "object": "key",
        "id": str(caller.key_id),
        "label": caller.key,
        "public_id": caller.public_id,
        "tenant": caller.tenant,
        "team": caller.team or None,
        "member": caller.member or None,
        "service_account": caller.service_account or None,
        "expires_at": None if expires_at_ms is None else in_utc(expires_at_ms),
        "scopes": sorted(ENDPOINTS if caller.scopes is None else caller.scopes),
        "endpoints": doors_of(caller.scopes),
        "address_blocks": caller.address_blocks,
        "models": offered,
        "usage": quotas.told(caller, onlooker.standing),
    }
    return _json(told, onlooker, Dialect.OPENAI)


@door
async def refuse_route(request: HttpRequest, request_id: UUID, **parts: Any) -> Reply:
    """Everything else, known to Ollama or not: one answer, whoever asks."""
    raise RouteRefused


def _json(
    answer: dict[str, Any], onlooker: Onlooker | None = None, dialect: Dialect = Dialect.OLLAMA
) -> Reply:
    headers = {"Content-Type": CONTENT_TYPES[Framing.NONE]}
    if onlooker is None:
        return Reply(200, headers, orjson.dumps(answer))
    headers |= limit_headers(onlooker.standing, dialect) | expiry_headers(onlooker.caller)
    return Reply(200, headers, orjson.dumps(answer), onlooker.caller.tenant)
