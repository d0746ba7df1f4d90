"""Sending a notice to a URL that somebody typed in.

Signed as https://www.standardwebhooks.com has it, so that its libraries verify
it. A URL is not trusted: its name is looked up once, every address it has must
be one that may be called, and the connection goes to the address that was
looked at. Redirects are not followed, no proxy of the environment is used, of
the answer only the status is read, and all of it may take ``TOTAL_SECONDS``.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext_noop

from budgets.exceptions import NotDelivered
from budgets.models import Recipient, trouble_with_url

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Global addresses by Python's tables that lead into IPv4, wherever that is.
TUNNELS = [
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "::/96")
]


def secret_of(recipient: Recipient) -> str:
    """The secret with which a recipient's webhooks are signed: ``whsec_`` and base64 of 32 bytes."""
    return "whsec_" + base64.b64encode(_signing_key(recipient)).decode()


def _signing_key(recipient: Recipient) -> bytes:
    text = f"webhook:{recipient.pk.hex}:{recipient.salt}".encode()
    return hmac.digest(settings.KEY_PEPPER.encode(), text, "sha256")


def signed_headers(recipient: Recipient, delivery_id: str, body: bytes) -> dict[str, str]:
    """The headers that tell the receiver who sent ``body``, when, and whether it is a repeat."""
    timestamp = str(int(time.time()))
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(_signing_key(recipient), signed, "sha256")).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Send ``body`` to ``url``; return the status of the answer.

    Raises ``NotDelivered``, with a reason that has nothing of the path in it.
    """
    if trouble := trouble_with_url(url):
        raise NotDelivered(trouble)
    parts = urlsplit(url)
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    address = _address_of(host, port, secure)
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        connected = socket.create_connection((str(address), port), timeout=CONNECT_SECONDS)
    except OSError as exc:
        raise NotDelivered(gettext_noop("no connection: %(reason)s"), reason=_reason(exc)) from exc
    with contextlib.ExitStack() as stack:
        stack.callback(connected.close)
        connected.settimeout(TOTAL_SECONDS)
        # TLS takes the socket over, so the end of the time needs a handle of its own.
        handle = connected.dup()
        stack.callback(handle.close)
        end = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [handle])
        end.daemon = True
        end.start()
        stack.callback(end.cancel)
        try:
            if secure:
                connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
                stack.callback(connected.close)
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            connection = kind(host, port)
            connection.sock = connected
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        except ssl.SSLError as exc:
            if exc.reason:
                raise NotDelivered("TLS: %(reason)s", reason=exc.reason) from exc
            raise NotDelivered(gettext_noop("TLS: no agreement")) from exc
        except (OSError, http.client.HTTPException) as exc:
            if time.monotonic() >= deadline:
                limit = f"{TOTAL_SECONDS:g}"
                raise NotDelivered(gettext_noop("no answer within %(seconds)s s"), seconds=limit) from exc
            raise NotDelivered(_reason(exc)) from exc


def _cut(connected: socket.socket) -> None:
    """End a connection whose other side takes its time, byte by byte for all we know."""
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _reason(exc: Exception) -> str:
    """What went wrong, in words of the system and never of the other side."""
    if isinstance(exc, TimeoutError):
        return gettext_noop("no answer in time")
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return type(exc).__name__


def _address_of(host: str, port: int, secure: bool) -> Address:
    """The address to call for ``host``, once all it has have been found harmless."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise NotDelivered(gettext_noop("the name of the webhook cannot be looked up")) from exc
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    for address in addresses:
        if _is_named(address):
            continue
        if not _is_public(address):
            inside = gettext_noop("%(address)s is not a public address, and not in WEBHOOK_NETWORKS")
            raise NotDelivered(inside, address=str(address))
        if not secure:
            raise NotDelivered(gettext_noop("a public webhook is an https:// address"))
    return addresses[0]


def _is_named(address: Address) -> bool:
    """Whether the operator has named a network with this address."""
    networks = [ipaddress.ip_network(network, strict=False) for network in settings.WEBHOOK_NETWORKS]
    return any(address in network for network in networks if network.version == address.version)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        if any(address in network for network in TUNNELS):
            return False
    return address.is_global and not address.is_multicast
