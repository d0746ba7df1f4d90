"""Encrypting what the prompt log keeps: AES-256 in GCM, under the keys in ``PROMPT_LOG_KEYS``.

The first key encrypts, every key decrypts, so a new one is put in front and an
old one taken away when nothing under it is left. A sealed text is bound to its
place: moved to another row, where somebody else may read, it does not open.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

NAME_BYTES = 4
NONCE_BYTES = 12


class Unreadable(Exception):
    """None of our keys opens a sealed text, or it was changed, or it belongs elsewhere."""


def can_seal() -> bool:
    """Whether there is a key to encrypt with."""
    return bool(settings.PROMPT_LOG_KEYS)


def seal(text: str, place: str) -> bytes:
    """``text`` encrypted, to be opened with the same ``place``: the key's name, a nonce, the rest."""
    key: bytes = settings.PROMPT_LOG_KEYS[0]
    nonce = os.urandom(NONCE_BYTES)
    return _name(key) + nonce + AESGCM(key).encrypt(nonce, text.encode(), place.encode())


def unseal(sealed: bytes, place: str) -> str:
    """What was sealed; raises ``Unreadable``."""
    name, nonce = sealed[:NAME_BYTES], sealed[NAME_BYTES : NAME_BYTES + NONCE_BYTES]
    for key in settings.PROMPT_LOG_KEYS:
        if _name(key) == name:
            try:
                return AESGCM(key).decrypt(nonce, sealed[NAME_BYTES + NONCE_BYTES :], place.encode()).decode()
            except InvalidTag as exc:
                raise Unreadable("it was changed, or belongs elsewhere") from exc
    raise Unreadable("its key is not among PROMPT_LOG_KEYS any more")


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"prompt log" + key).digest()[:NAME_BYTES]
