"""Signed notes of how long each chain of the audit was, and what its last digest was.

One is made of every chain that has grown (beat, every hour). A checkpoint is
one line of JSON, whose ``signature`` is Ed25519 over the line without it:

    {"at":"2026-11-27T10:00:00+00:00","chain":"platform","digest":"…","number":17,"signature":"…"}

Lines that were kept on another machine show what nobody can show with the
database alone: that the end of a chain was cut off, or the whole of it written
anew. The key is derived from ``KEY_PEPPER``, so it is not in the database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from audit.chains import Marks
from audit.models import AuditCheckpoint

GROWN = """
SELECT * FROM (
    SELECT DISTINCT ON (chain) chain, number, digest FROM audit_auditlink ORDER BY chain, number DESC
) AS last
WHERE NOT EXISTS (
    SELECT FROM audit_auditcheckpoint noted WHERE noted.chain = last.chain AND noted.number = last.number
)
"""


class Forged(ValueError):
    """A line is no checkpoint of this gateway."""


def make() -> int:
    """Note the end of every chain that has grown since its last checkpoint; return how many were noted."""
    at = now()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(GROWN)
        ends = [(chain, number, bytes(digest)) for chain, number, digest in cursor.fetchall()]
        new = [
            AuditCheckpoint(at=at, chain=end[0], number=end[1], digest=end[2], signature=_sign(at, *end))
            for end in ends
        ]
        return len(AuditCheckpoint.objects.bulk_create(new, ignore_conflicts=True))


def lines() -> Iterator[str]:
    """All checkpoints, one line each, the oldest first."""
    for one in AuditCheckpoint.objects.order_by("id").iterator():
        line = _line(one.at, one.chain, one.number, bytes(one.digest))
        yield _written(line | {"signature": bytes(one.signature).hex()})


def marks_in(kept: Iterable[str]) -> Marks:
    """What kept lines say a chain's digests must be; raises ``Forged`` for a line that is none of ours."""
    marks: dict[tuple[str, int], bytes] = {}
    for number, line in enumerate(kept, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            at = datetime.fromisoformat(told["at"])
            mark, digest = (str(told["chain"]), int(told["number"])), bytes.fromhex(told["digest"])
            signature = bytes.fromhex(told["signature"])
        except (ValueError, KeyError, TypeError) as exc:
            raise Forged(f"line {number} is no checkpoint") from exc
        if not is_ours(at, *mark, digest, signature):
            raise Forged(f"line {number} was not signed by this gateway")
        marks[mark] = digest
    return marks


def is_ours(at: datetime, chain: str, number: int, digest: bytes, signature: bytes) -> bool:
    """Whether a checkpoint carries a signature of this gateway."""
    try:
        _key().public_key().verify(signature, _written(_line(at, chain, number, digest)).encode())
    except InvalidSignature:
        return False
    return True


def public_key() -> str:
    """What anybody can check the signatures with, as hexadecimal digits."""
    return _key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _sign(at: datetime, chain: str, number: int, digest: bytes) -> bytes:
    return _key().sign(_written(_line(at, chain, number, digest)).encode())


def _line(at: datetime, chain: str, number: int, digest: bytes) -> dict[str, Any]:
    return {"at": at.isoformat(), "chain": chain, "digest": digest.hex(), "number": number}


def _written(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), sort_keys=True)


def _key() -> Ed25519PrivateKey:
    seed = hashlib.blake2b(settings.KEY_PEPPER.encode()[:64], digest_size=32, person=b"audit signature")
    return Ed25519PrivateKey.from_private_bytes(seed.digest())
