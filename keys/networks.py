"""Networks: the address blocks that a key may be used from, and where it was used."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext as _

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What is told of where a secret was used: enough to know the place, too little to know the person.
SHOWN_BITS = {4: 24, 6: 48}
_MAPPED = IPv6Network("::ffff:0:0/96")


class NetworkField(models.Field):  # type: ignore[type-arg]  # the parameters are in the stubs only
    """A column of PostgreSQL's type ``cidr``; in Python a text such as ``192.0.2.0/24``."""

    description = "A network"

    def db_type(self, connection: Any) -> str:
        return "cidr"

    def to_python(self, value: Any) -> Any:
        return value if value is None else network_in(str(value))

    def get_prep_value(self, value: Any) -> Any:
        return self.to_python(super().get_prep_value(value))


def network_in(text: str) -> str:
    """A network as it is stored, from one as people write it; an address is the network of itself.

    IPv4 that is written as IPv6 is IPv4. Raises ``ValidationError`` if it is
    no network, or has bits beyond its length, which would mean another one.
    """
    try:
        network = ip_network(text.strip())
    except ValueError:
        try:
            meant = ip_network(text.strip(), strict=False)
        except ValueError as exc:
            sentence = _("“%(text)s” is no network. Examples: 192.0.2.0/24, 2001:db8::/32.")
            raise ValidationError(sentence % {"text": text}, code="network") from exc
        sentence = _("“%(text)s” has bits beyond its length. Is %(network)s meant?")
        raise ValidationError(sentence % {"text": text, "network": meant}, code="network") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        return f"{inner}/{network.prefixlen - _MAPPED.prefixlen}"
    return str(network)


def holds(blocks: Iterable[str], address: Address) -> bool:
    """Whether one of ``blocks`` holds ``address``."""
    return any(address in network for network in _networks(tuple(blocks)))


def block_of(address: Address) -> str:
    """The network of ``address`` as it is shown to people: 24 bits of IPv4, 48 of IPv6."""
    return str(ip_network((address, SHOWN_BITS[address.version]), strict=False))


# Asked with every call of a key that has some, and changed hardly ever.
@lru_cache(maxsize=4096)
def _networks(blocks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(block) for block in blocks)
