"""Secrets: the strings that clients send, and what is stored of them.

``tg_`` (``tgm_`` for those who manage) + 12 characters of public id + 40 random
characters + 6 characters of checksum, all of them digits and ASCII letters. The
random part carries 238 bits, so one round of a keyed digest is enough to store it
safely. The checksum is the CRC32 of all that precedes it: a mistyped secret, or a
string of another service, is told apart without looking anything up.
"""

from __future__ import annotations

import re
import secrets
import zlib
from functools import cache
from hashlib import blake2b

from tenants.quick_settings import settings
from tenants.secret_marks import CALLING

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"(tgm?_)([0-9A-Za-z]{12})[0-9A-Za-z]{46}")


def mint(mark: str = CALLING) -> tuple[str, str]:
    """A new public id and the secret that contains it."""
    public_id = _random(12)
    body = f"{mark}{public_id}{_random(40)}"
    return public_id, body + _checksum(body)


def public_id_of(secret: str, mark: str = CALLING) -> str | None:
    """The public id in ``secret``, or None if no secret of ours with this mark looks like that."""
    shape = _SHAPE.fullmatch(secret)
    if shape is None or shape[1] != mark or _checksum(secret[:-6]) != secret[-6:]:
        return None
    return shape[2]


def digest(secret: str) -> str:
    """What is stored of a secret: BLAKE2b keyed with ``KEY_PEPPER`` (RFC 7693), 64 hex digits."""
    return blake2b(secret.encode(), key=_key(settings.KEY_PEPPER), digest_size=32).hexdigest()


@cache
def _key(pepper: str) -> bytes:
    """A key of the length that BLAKE2b takes."""
    return blake2b(pepper.encode()).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
