"""Where a request comes from.

Anybody can write ``X-Forwarded-For``. It is read only if the connection itself
comes from one of ``TRUSTED_PROXIES``, and from the right, where each proxy adds
whom it was called by: the first address that is not a trusted proxy's is the
client's, whatever stands left of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from tenants.quick_settings import settings

Address = IPv4Address | IPv6Address

# A connection without an address, as through a local socket: all of these are one client.
NOWHERE = IPv4Address("0.0.0.0")  # noqa: S104 - nothing is bound to it

_BRACKETED = re.compile(r"\[([^\]]*)\](?::\d{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):\d{1,5}")


def client_of(headers: Mapping[str, str], meta: Mapping[str, Any]) -> Address:
    """The address of the client, as far as those tell it whom we trust.

    ``meta`` is the request's ``META``, for Django's names of what the connection
    tells. What a trusted proxy writes and nobody can read counts as that
    proxy's own address: garbage never gives anybody a fresh one.
    """
    known = address_in(meta["REMOTE_ADDR"]) or NOWHERE
    for entry in reversed(headers.get("x-forwarded-for", "").split(",")):
        if not _is_trusted(known):
            break
        told = address_in(entry)
        if told is None:
            break
        known = told
    return known


def is_secure(headers: Mapping[str, str], meta: Mapping[str, Any]) -> bool:
    """Whether the client speaks TLS, with us or with a proxy that we trust."""
    if meta["wsgi.url_scheme"] == "https":
        return True
    told = headers.get("x-forwarded-proto", "").rpartition(",")[2]
    return told.strip().lower() == "https" and _is_trusted(address_in(meta["REMOTE_ADDR"]) or NOWHERE)


def address_in(text: str) -> Address | None:
    """The address in an entry such as ``192.0.2.7:4711`` or ``[2001:db8::7]:443``; None if it is none.

    An IPv4 address that is written as one of IPv6 is that IPv4 address.
    """
    text = text.strip()
    found = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((found[1] if found else text).partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def network_of(address: Address) -> bytes:
    """What counts as one place: an IPv4 address, or the 64 bits of IPv6 that a house is given."""
    return address.packed if isinstance(address, IPv4Address) else address.packed[:8]


def _is_trusted(address: Address) -> bool:
    return any(address in network for network in settings.TRUSTED_PROXIES)
