"""Identifiers of rows and requests."""

import os
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = ((1 << 12) - 1) << 64 | (1 << 62) - 1


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): milliseconds since 1970, then 74 random bits.

    Newer ones sort after older ones, so an index over them grows at its end.
    """
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10)) & _RANDOM_BITS
    return UUID(int=milliseconds << 80 | _VERSION_7 | _VARIANT | noise)
