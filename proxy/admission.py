"""The one place that lets a call through.

Nothing reaches upstream except with the reservation that ``admit`` returns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from budgets import refusals
from budgets.exceptions import (
    CountersUnavailable,
    HumanCheckRequired,
    LimitReached,
    PriceMissing,
    StaleCaller,
)
from budgets.kill_switches import Switch, stopping
from budgets.reservations import Demand, Reservation, Standing, look, refuse_killed, reserve
from keys import verification
from keys.verification import Caller
from proxy import human_checks
from proxy.addresses import Address, client_of
from proxy.calls import Call, Route
from proxy.catalog import Installed, Target, catalog
from proxy.clamping import under
from proxy.errors import answer_to
from proxy.exceptions import AddressRefused, BadRequest, EndpointRefused, ModelRefused, OptionRefused
from proxy.permits import check_permit, note_use
from proxy.visitors import Guest, guest_of
from tenants.clock import clock
from tenants.exceptions import Refusal
from tenants.quick_settings import settings

# Bytes of a role's name and the marks around it that a template may add per message.
MESSAGE_TOKENS = 32
# One that is part of the names of counters, so nothing that could be more than a name.
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A field of a request as we call it; what else a client called one may say anything.
_FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,80}")
# Of a refusal so many are noted: a note lies in Redis until the drain has written it down.
MOST_NAMES_TOLD = 50
MOST_LIMITS_TOLD = 50
# A body larger than this is read in a thread, so that running streams go on meanwhile.
LARGE_BODY_BYTES = 2**20

Headers = Mapping[str, str]
# What Django calls so: the facts of a connection.
Meta = Mapping[str, Any]
Parse = Callable[[bytes], Call]
Asked = TypeVar("Asked")


@dataclass(frozen=True, slots=True)
class Admission:
    """A call that may run: what, where, and with which room set aside for it.

    ``cookie`` is the ``Set-Cookie`` for a visitor who needs a new one, else empty.
    """

    call: Call
    target: Target
    reservation: Reservation
    cookie: str = ""


async def admit(
    request_id: UUID, headers: Headers, meta: Meta, route: Route, parse: Parse, body: bytes
) -> Admission:
    """Ask the ordered questions; return only when every answer is yes.

    Who calls (``InvalidKey``)? What is asked, and is it well formed
    (``BadRequest``)? May the key be used for that, and from there
    (``EndpointRefused``, ``AddressRefused``)? Is a kill switch on (``Killed``)? May the caller use this
    model, and is it installed (``ModelRefused``, ``NoModels``)? What of the
    options does its policy leave (``OptionRefused``)? Is there room in every limit that applies
    (``BudgetExhausted``, ``RateLimited`` …)? The last one is a single step in
    Redis, which also knows whether what this process remembers of the key, its
    tenant and the settings is still true; if not, it is read again, once. A no
    from memory alone is checked in the same way. A visitor of whose network a
    human check is demanded may bring it with the request.
    """
    caller = await verification.identify(headers)
    model, run, guest = "", "", None
    try:
        run = run_of(headers)
        call = await read(parse, body)
        model = call.model
        for _ in range(3):
            try:
                check_permit(caller, route.path, headers, meta)
                switches = await refuse_killed(caller)
                await catalog.catch_up(caller)
                target = catalog.resolve(caller, model, closed_upstreams(switches))
                allowed = under(caller.policy, call)
                guest = guest or guest_of(caller, headers, meta)
                reservation = await reserve(
                    caller, _demand(request_id, allowed, target, run, guest or client_of(headers, meta))
                )
                note_use(caller, target.model.name, headers, meta)
                return Admission(allowed, target, reservation, guest.cookie if guest else "")
            except HumanCheckRequired as demand:
                guest = await _proven(guest, caller, headers, demand)
            except StaleCaller:
                caller = await verification.reload(caller.public_id)
            except (EndpointRefused, AddressRefused, ModelRefused, OptionRefused, PriceMissing):
                if await verification.is_current(caller):
                    raise
                caller = await verification.reload(caller.public_id)
        raise CountersUnavailable
    except Refusal as refusal:
        _note(refusal, request_id, caller, route, model, run)
        raise


async def read(parse: Callable[[bytes], Asked], body: bytes) -> Asked:
    """What ``body`` asks, read in a thread if it is large."""
    return await asyncio.to_thread(parse, body) if len(body) > LARGE_BODY_BYTES else parse(body)


async def _proven(guest: Guest | None, caller: Caller, headers: Headers, demand: HumanCheckRequired) -> Guest:
    """``guest`` once they have passed the check that they brought; raises ``demand`` if they brought none."""
    token = headers.get(human_checks.HEADER)
    if guest is None or token is None:
        raise demand
    await human_checks.pass_check(token)
    return guest.proven(caller)


@dataclass(frozen=True, slots=True)
class Onlooker:
    """Somebody who only looks: a good key, how its limits stand, and the models it may call now."""

    caller: Caller
    standing: list[Standing]
    switches: tuple[Switch, ...]

    def offered(self) -> list[Installed]:
        """The models that a call of the caller would find; raises ``NoModels``."""
        with refusals_of(self.caller):
            return [
                model
                for model in catalog.effective(self.caller)
                if any(self._switch(model.name, name) is None for name in model.upstreams)
            ]

    def find(self, name: str) -> Target:
        """Where ``name`` runs for the caller; raises as ``Catalog.resolve`` does, and ``Killed``."""
        with refusals_of(self.caller):
            target = catalog.resolve(self.caller, name, closed_upstreams(self.switches))
            if switch := self._switch(target.model.name, target.upstream):
                raise switch.refusal()
            return target

    def _switch(self, model: str, upstream: str) -> Switch | None:
        return stopping(self.switches, clock.now_ms(), model, upstream)


async def recognise(headers: Headers, meta: Meta, door: str) -> Onlooker:
    """Who asks for a listing at ``door``, which needs no room but a good key that is good for it."""
    caller = await verification.identify(headers)
    with refusals_of(caller):
        for _ in range(2):
            try:
                check_permit(caller, door, headers, meta)
                switches = await refuse_killed(caller)
                await catalog.catch_up(caller)
                guest = guest_of(caller, headers, meta)
                standing = await look(caller, guest.visitor if guest else None)
                note_use(caller, "", headers, meta)
                return Onlooker(caller, standing, switches)
            except StaleCaller:
                caller = await verification.reload(caller.public_id)
            except (EndpointRefused, AddressRefused):
                if await verification.is_current(caller):
                    raise
                caller = await verification.reload(caller.public_id)
        raise CountersUnavailable


@contextmanager
def refusals_of(caller: Caller) -> Iterator[None]:
    """Say whose call it was that is refused within."""
    try:
        yield
    except Refusal as refusal:
        refusal.tenant = caller.tenant
        raise


def closed_upstreams(switches: tuple[Switch, ...]) -> frozenset[str]:
    """The upstreams that calls are not sent to if their model is installed elsewhere too."""
    if not switches:
        return frozenset()
    now_ms = clock.now_ms()
    return frozenset(one.upstream for one in switches if one.upstream and one.until_ms > now_ms)


def run_of(headers: Mapping[str, str]) -> str:
    """What the client calls the run that the call is part of, empty for none; raises ``BadRequest``."""
    run = headers.get("x-tollgate-run")
    if run is None:
        return ""
    if not _RUN.fullmatch(run):
        raise BadRequest(
            "X-Tollgate-Run must have 1 to 64 characters: letters, digits and . _ - only, "
            "a letter or digit first.",
            "X-Tollgate-Run",
        )
    return run


def _demand(request_id: UUID, call: Call, target: Target, run: str, by: Guest | Address) -> Demand:
    """The most that a call may need: every byte of a prompt counts as a token.

    Of a prompt beyond the model's context, or the smaller one that it is told,
    Ollama drops the beginning, so that bounds it too; the texts of an embedding
    are read one by one.
    """
    generates = call.route.operation != "embedding"
    wish = settings.MAX_OUTPUT_TOKENS if call.output_wish is None else call.output_wish
    prompt = call.input_bytes + call.messages * MESSAGE_TOKENS + target.model.overhead_tokens
    contexts = [size for size in (target.model.context_tokens, call.num_ctx) if size is not None]
    return Demand(
        request_id=request_id,
        route=call.route.path,
        dialect=call.route.dialect.value,
        operation=call.route.operation,
        stream=call.stream,
        model=target.model.name,
        upstream=target.upstream,
        input_tokens=min(prompt, *contexts) if generates and contexts else prompt,
        output_tokens=min(wish, settings.MAX_OUTPUT_TOKENS) if generates else 0,
        least_output=1 if generates else 0,
        run=run,
        visitor=by.visitor if isinstance(by, Guest) else None,
        # Of visitors nothing is kept that says where they came from.
        client="" if isinstance(by, Guest) else str(by),
    )


def _note(refusal: Refusal, request_id: UUID, caller: Caller, route: Route, model: str, run: str) -> None:
    """Leave a request event, so that people can be told why their call was refused."""
    refusal.tenant = caller.tenant
    answer = answer_to(refusal)
    member = caller.member_id
    refusals.note(
        {
            "request_id": request_id.hex,
            "tenant_id": caller.tenant_id.hex,
            "tenant": caller.tenant,
            "key_id": caller.key_id.hex,
            "key": caller.key,
            "route": route.path,
            "dialect": route.dialect.value,
            "model": model,
            "run": run,
            "status": answer.status,
            "refusal": answer.code,
            "refused_by": refusal.refused_by if isinstance(refusal, LimitReached) else [],
            "member_id": None if member is None else member.hex,
            "facts": _facts(refusal, caller),
        }
    )


def _facts(refusal: Refusal, caller: Caller) -> dict[str, Any]:
    """The values that the questions looked at; none of what the client said but the name of a field.

    ``models`` null: every installed one. What there is to say of kill switches stands in PostgreSQL.
    """
    facts: dict[str, Any] = {"expires_at_ms": caller.expires_at_ms}
    if isinstance(refusal, BadRequest):
        facts["field"] = refusal.param if refusal.param and _FIELD.fullmatch(refusal.param) else ""
    if isinstance(refusal, ModelRefused):
        models = None if caller.allow_all_models else sorted(caller.models or ())
        facts["models"] = models and models[:MOST_NAMES_TOLD]
    if isinstance(refusal, EndpointRefused):
        facts["endpoints"] = sorted(caller.scopes or ())
    if isinstance(refusal, AddressRefused):
        facts["networks"] = list(caller.address_blocks or ())[:MOST_NAMES_TOLD]
    if isinstance(refusal, LimitReached):
        facts["limits"] = refusal.looked_at[:MOST_LIMITS_TOLD]
    return facts
