"""Who is calling: from the headers of a request to a snapshot of its key.

On a warm request this costs a checksum, a digest and a look into a dictionary:
no SQL, no thread, no Redis. A snapshot may be old; it carries the generations
it was read with, and the script that admits a call refuses an old one
(``tenants.generations``). Then ``reload`` reads it again.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from keys import secrets
from keys.callers import VISITORS, Caller, load
from keys.exceptions import SUCCEEDED, SUSPENDED, InvalidKey, KeysUnavailable
from tenants import generations, snapshots
from tenants.clock import clock
from tenants.database import DatabaseError
from tenants.redis import RedisError

__all__ = ["Caller", "identify", "is_current", "reload", "reload_running"]

logger = logging.getLogger(__name__)

CALLERS = 20_000
UNKNOWN_SECRETS = 10_000
UNKNOWN_SECONDS = 5.0
# What is switched on for visitors has to work at once, and a tenant's name is worth less than a secret.
CLOSED_SECONDS = 1.0
UNKNOWN_PER_SECOND = 200.0
LOAD_SECONDS = 3.0
# How often a caller is read that changes while it is read.
ATTEMPTS = 3

# With which somebody without a secret names the tenant whose visitor they are.
TENANT_HEADER = "x-tollgate-tenant"
_SLUG = re.compile(r"[a-z0-9-]{1,50}")


async def identify(headers: Mapping[str, str]) -> Caller:
    """The caller whose secret is in ``Authorization: Bearer`` or ``x-api-key``.

    Without either, the visitors of the tenant named in ``X-Tollgate-Tenant``.
    ``headers`` is asked for names in lower case. Raises ``InvalidKey`` if the
    secret opens nothing or nobody is let in without one, whatever the reason,
    and ``KeysUnavailable`` if a secret that this process does not know cannot
    be looked up.
    """
    if TENANT_HEADER in headers and "authorization" not in headers and "x-api-key" not in headers:
        return await _visitors_of(headers[TENANT_HEADER])
    secret = _secret_in(headers)
    public_id = secrets.public_id_of(secret)
    if public_id is None:
        raise InvalidKey("malformed secret")
    digest = secrets.digest(secret)
    known = _known()
    caller = known.get(public_id) or await known.look_up(public_id, digest)
    if not hmac.compare_digest(caller.digest, digest):
        raise InvalidKey("wrong secret")
    try:
        return _still_valid(caller)
    except InvalidKey:
        # What is remembered may only say no while it is the newest: a tenant may have been resumed.
        if await is_current(caller):
            raise
    return await reload(public_id)


async def _visitors_of(slug: str) -> Caller:
    """The visitors of a tenant; one refusal, and one way to it, for every tenant that lets nobody in."""
    if _SLUG.fullmatch(slug) is None:
        raise InvalidKey("malformed tenant")
    public_id = VISITORS + slug
    known = _known()
    return known.get(public_id) or await known.look_up(public_id, public_id)


async def is_current(caller: Caller) -> bool:
    """Whether nothing has changed since the snapshot was read. Raises ``KeysUnavailable`` without Redis."""
    try:
        return await _is_newest(caller)
    except RedisError as exc:
        raise KeysUnavailable(retry_after=1.0) from exc


async def _is_newest(caller: Caller) -> bool:
    return await generations.newest(*caller.generations) == list(caller.generations.values())


async def reload(public_id: str) -> Caller:
    """Read a caller again, because its snapshot turned out to be old.

    What it returns was read after this call began, and its generations are in
    Redis. Raises as ``identify`` does.
    """
    return _not_succeeded(await reload_running(public_id))


async def reload_running(public_id: str) -> Caller:
    """``reload`` for a call that runs: a secret that has given way to a newer one lets it end in peace."""
    caller = await _known().read_again(public_id)
    if caller is None:
        raise InvalidKey("unknown secret")
    return _alive(caller)


def _secret_in(headers: Mapping[str, str]) -> str:
    authorization = headers.get("authorization")
    api_key = headers.get("x-api-key")
    if authorization is None:
        if api_key is None:
            raise InvalidKey("no secret")
        return api_key
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidKey("not a bearer secret")
    if api_key is not None and api_key != secret:
        raise InvalidKey("two secrets")
    return secret


def _still_valid(caller: Caller) -> Caller:
    return _not_succeeded(_alive(caller))


def _not_succeeded(caller: Caller) -> Caller:
    if caller.succeeded:
        raise InvalidKey(SUCCEEDED)
    return caller


def _alive(caller: Caller) -> Caller:
    if caller.revoked:
        raise InvalidKey("revoked")
    if caller.disabled:
        raise InvalidKey("disabled")
    if not caller.tenant_active:
        raise InvalidKey(SUSPENDED)
    if caller.expires_at_ms is not None and caller.expires_at_ms <= clock.now_ms():
        raise InvalidKey("expired")
    return caller


async def _read(public_id: str) -> Caller | None:
    """The caller with this public id, as new as Redis knows it can be; None if there is no such secret.

    Redis is asked first: without it nothing is admitted, so nobody need wait
    for the database. While that is away, what another process has read is
    taken. Raises ``RedisError``, ``DatabaseError`` and ``TimeoutError``.
    """
    kept = await snapshots.kept("caller", public_id, Caller)
    if kept is not None and not await _is_newest(kept):
        kept = None
    for _ in range(ATTEMPTS):
        caller = await snapshots.read_or_kept(lambda: load(public_id), kept, LOAD_SECONDS)
        if caller is None or caller is kept:
            return caller
        if await generations.assure(caller.generations):
            break
    await snapshots.keep("caller", public_id, caller)
    return caller


@dataclass(frozen=True, slots=True)
class _Flight:
    """One look at the database, for all who ask for the same caller meanwhile."""

    started_at: float
    landing: asyncio.Future[Caller | None]

    async def caller(self) -> Caller | None:
        try:
            # A client that leaves must not take the flight from the others.
            return await asyncio.shield(self.landing)
        except (TimeoutError, DatabaseError, RedisError) as exc:
            raise KeysUnavailable(retry_after=1.0) from exc


class _Known:
    """The callers that one event loop knows; those not seen for longest are forgotten first."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._unknown_until: OrderedDict[str, float] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._allowance = UNKNOWN_PER_SECOND
        self._allowance_at = time.monotonic()

    def get(self, public_id: str) -> Caller | None:
        caller = self._callers.get(public_id)
        if caller is not None:
            self._callers.move_to_end(public_id)
        return caller

    async def look_up(self, public_id: str, digest: str) -> Caller:
        """Read a caller not known yet.

        A secret that nobody knows is remembered for some seconds, and look-ups
        that find nothing are limited: guessing must not become the database's
        load. Beyond the limit nobody can say whether a key is good.
        """
        if self._unknown_until.get(digest, 0.0) > time.monotonic():
            raise InvalidKey("unknown secret")
        flight = self._flights.get(public_id)
        if flight is None:
            self._take_allowance()
            flight = self._start(public_id)
        caller = await flight.caller()
        if caller is None:
            self._unknown_until[digest] = time.monotonic() + _unknown_seconds(public_id)
            if len(self._unknown_until) > UNKNOWN_SECRETS:
                self._unknown_until.popitem(last=False)
            raise InvalidKey("unknown secret")
        return caller

    async def read_again(self, public_id: str) -> Caller | None:
        """Read a caller anew; a flight that left before this was called may bring old news."""
        asked_at = time.monotonic()
        flight = self._flights.get(public_id)
        while flight is not None and flight.started_at < asked_at:
            await flight.caller()
            # One that has landed stays on the list until the loop has turned; awaiting it does not.
            await asyncio.sleep(0)
            flight = self._flights.get(public_id)
        return await (flight or self._start(public_id)).caller()

    def _start(self, public_id: str) -> _Flight:
        landing = asyncio.create_task(_read(public_id), name="caller")
        flight = self._flights[public_id] = _Flight(time.monotonic(), landing)
        landing.add_done_callback(lambda landed: self._land(public_id, landed))
        return flight

    def _land(self, public_id: str, landed: asyncio.Future[Caller | None]) -> None:
        del self._flights[public_id]
        if landed.cancelled():
            return
        trouble = landed.exception()
        if trouble is not None:
            logger.warning("the caller %s cannot be read: %r", public_id, trouble)
            return
        caller = landed.result()
        self._callers.pop(public_id, None)
        if caller is None:
            return
        self._allowance += 1  # what the look-up took, for it was no guess
        self._callers[public_id] = caller
        if len(self._callers) > CALLERS:
            self._callers.popitem(last=False)

    def _take_allowance(self) -> None:
        now = time.monotonic()
        refilled = self._allowance + (now - self._allowance_at) * UNKNOWN_PER_SECOND
        self._allowance, self._allowance_at = min(refilled, UNKNOWN_PER_SECOND), now
        if self._allowance < 1:
            raise KeysUnavailable(retry_after=1.0)
        self._allowance -= 1


def _unknown_seconds(public_id: str) -> float:
    """How long it is remembered that nobody is known by this id."""
    return CLOSED_SECONDS if public_id.startswith(VISITORS) else UNKNOWN_SECONDS


_known_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Known] = weakref.WeakKeyDictionary()


def _known() -> _Known:
    """What the running event loop knows, empty at first."""
    loop = asyncio.get_running_loop()
    known = _known_by_loop.get(loop)
    if known is None:
        known = _known_by_loop[loop] = _Known()
    return known
