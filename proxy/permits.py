"""What a key is limited to besides models: endpoints and networks, and what it is told of its end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from keys.callers import Caller
from keys.endpoints import scope_of
from keys.last_use import uses
from keys.networks import holds
from proxy.addresses import client_of
from proxy.exceptions import AddressRefused, EndpointRefused
from tenants.clock import clock

EXPIRES = "X-Tollgate-Key-Expires"
TOLD_BEFORE_MS = 7 * 86_400_000


def check_permit(caller: Caller, door: str, headers: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Raise ``EndpointRefused`` or ``AddressRefused`` if the key may not use ``door``, or not from there."""
    if caller.scopes is not None:
        scope = scope_of(door)
        if scope is not None and scope not in caller.scopes:
            raise EndpointRefused
    if caller.address_blocks is not None:
        address = client_of(headers, meta)
        if not holds(caller.address_blocks, address):
            raise AddressRefused(address)


def note_use(caller: Caller, model: str, headers: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Remember that the secret of ``caller`` was let through, for a model or for none."""
    if uses.wanted(caller):
        uses.note(caller, model, client_of(headers, meta))


def expiry_headers(caller: Caller) -> dict[str, str]:
    """In its last week: when the secret stops working, as RFC 3339 in UTC; otherwise nothing."""
    ends = caller.expires_at_ms
    if ends is None or ends - clock.now_ms() > TOLD_BEFORE_MS:
        return {}
    return {EXPIRES: in_utc(ends)}


def in_utc(milliseconds: int) -> str:
    """A moment as RFC 3339 writes it, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat().replace("+00:00", "Z")
