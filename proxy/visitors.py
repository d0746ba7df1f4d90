"""Telling visitors apart: who calls without a key, by cookie and by address.

The cookie is signed, so nobody can make one up, and says nothing of whose it
is. One that is forged, spoilt or too old is no cookie at all: its bearer is a
new visitor, within what their address may still use.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from budgets.visitors import Visitor, day_of, digest
from keys.callers import Caller
from proxy.addresses import client_of, is_secure, network_of
from tenants.clock import clock

COOKIE = "tollgate_visitor"
DAY_SECONDS = 86_400
LIFETIME_SECONDS = 30 * DAY_SECONDS
# The clocks of several machines are not quite the same.
AHEAD_SECONDS = 60

# Visitor, second of its making, proof of a human with what it holds for, seal; the proof may be empty.
_SHAPE = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{8})\.([0-9a-f]{32}|)\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class _Card:
    """What a cookie says; ``visitor`` and ``proof`` in hex."""

    visitor: str
    made_at: int
    proof: str


@dataclass(frozen=True, slots=True)
class Guest:
    """A visitor, and the cookie they have to be given; empty if theirs is good."""

    visitor: Visitor
    cookie: str
    _card: _Card
    _secure: bool

    def proven(self, caller: Caller) -> Guest:
        """The same with a proof, just now, that a human is there: good on this day for their network."""
        nonce = secrets.token_hex(8)
        card = replace(self._card, proof=nonce + _bound(nonce, caller, self.visitor))
        visitor = replace(self.visitor, proof=digest("proof", card.proof.encode()))
        return Guest(visitor, _cookie(card, secure=self._secure), card, self._secure)


def guest_of(caller: Caller, headers: Mapping[str, str], meta: Mapping[str, Any]) -> Guest | None:
    """The visitor who makes a request; None if it came with a key. ``meta`` is as in ``client_of``."""
    if caller.allowance is None:
        return None
    now = int(time.time())
    found = _card_in(headers.get("cookie", ""), now)
    card = found or _Card(secrets.token_hex(16), now, "")
    if now - card.made_at >= DAY_SECONDS:
        # With the same visitor in it: a new cookie is no new allowance.
        card = replace(card, made_at=now)
    visitor = Visitor(
        session=digest("session", card.visitor.encode()),
        network=digest("network", network_of(client_of(headers, meta))),
        day=day_of(caller, clock.now_ms()),
    )
    if card.proof and hmac.compare_digest(card.proof[16:], _bound(card.proof[:16], caller, visitor)):
        visitor = replace(visitor, proof=digest("proof", card.proof.encode()))
    secure = is_secure(headers, meta)
    return Guest(visitor, "" if card is found else _cookie(card, secure=secure), card, secure)


def _bound(nonce: str, caller: Caller, visitor: Visitor) -> str:
    """What a proof carries of the tenant, the network and the day it holds for, in hex."""
    told = (nonce.encode(), caller.tenant_id.bytes, visitor.network, visitor.day.to_bytes(8))
    return digest("proof is for", *told).hex()[:16]


def _card_in(header: str, now: int) -> _Card | None:
    """What the first good cookie of ours in a ``Cookie`` header says; None if there is none."""
    for part in re.split("[;,]", header):
        name, _, value = part.strip().partition("=")
        shape = _SHAPE.fullmatch(value) if name == COOKIE else None
        if shape is None or not hmac.compare_digest(shape[4], _seal(value[:-33])):
            continue
        made_at = int(shape[2], 16)
        if now - LIFETIME_SECONDS < made_at <= now + AHEAD_SECONDS:
            return _Card(shape[1], made_at, shape[3])
    return None


def _cookie(card: _Card, *, secure: bool) -> str:
    """The ``Set-Cookie`` that hands a card out: no script reads it, no other site sends it along."""
    value = f"{card.visitor}.{card.made_at:08x}.{card.proof}"
    ends = "; Secure" if secure else ""
    return (
        f"{COOKIE}={value}.{_seal(value)}; Max-Age={LIFETIME_SECONDS}; Path=/; HttpOnly; SameSite=Lax{ends}"
    )


def _seal(value: str) -> str:
    return digest("visitor cookie", value.encode()).hex()[:32]
