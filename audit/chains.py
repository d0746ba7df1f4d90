"""The chains of the audit: whether an event was changed, taken out, put in or moved.

Each tenant's events are a chain, and so are those that belong to none
(``platform``). A trigger links an event when its transaction commits: its
digest is SHA-256 over the digest before, its number in the chain, and every
column, each written as the length of its bytes, a colon, and the bytes:

    event id, microseconds since 1970, actor, origin, action, subject,
    tenant id, reason, details (as PostgreSQL writes ``jsonb``)

The digest before the first is 32 zero bytes. Here the same is worked out again
in Python, so nobody can make it come out right by changing the trigger.

A chain alone cannot tell that its end was cut off, nor that all of it was
written anew by somebody who may do everything in the database: that takes a
checkpoint that was kept elsewhere (``audit.checkpoints``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from django.db import connection, transaction

BEFORE_THE_FIRST = bytes(32)
BATCH = 1_000

# All links with their events, and events without a link, chain by chain in their order.
LINKED = """
SELECT link.chain, link.number, link.digest, link.event_id, event.id IS NOT NULL,
    (extract(epoch FROM event.at) * 1000000)::bigint::text, event.actor, event.origin, event.action,
    event.subject, coalesce(event.tenant_id::text, ''), event.reason, event.details::text
FROM audit_auditlink link LEFT JOIN audit_auditevent event ON event.id = link.event_id
ORDER BY link.chain, link.number
"""
UNLINKED = """
SELECT coalesce(event.tenant_id::text, 'platform'), event.id
FROM audit_auditevent event LEFT JOIN audit_auditlink link ON link.event_id = event.id
WHERE link.event_id IS NULL ORDER BY event.id
"""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not as it was written: in which chain, at which number (None: nowhere), and what."""

    chain: str
    number: int | None
    event_id: int | None
    what: str

    def __str__(self) -> str:
        place = "" if self.number is None else f" at {self.number}"
        event = "" if self.event_id is None else f" (event {self.event_id})"
        return f"{self.chain}{place}{event}: {self.what}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was looked at and what is wrong: length and last digest of each chain."""

    ends: dict[str, tuple[int, bytes]]
    events: int
    troubles: list[Trouble]


Marks = Mapping[tuple[str, int], bytes]


def verify(marks: Marks | None = None) -> Findings:
    """Look at every event and every link, and at ``marks``: digests by chain and number that must be so.

    One snapshot is looked at, so events that come meanwhile are no trouble.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return _verify(marks or {})


def _verify(marks: Marks) -> Findings:
    ends: dict[str, tuple[int, bytes]] = {}
    troubles: list[Trouble] = []
    met: set[tuple[str, int]] = set()
    events = 0
    for chain, number, digest, event_id, there, *columns in _rows(LINKED):
        before_number, before = ends.get(chain, (0, BEFORE_THE_FIRST))
        if number != before_number + 1:
            troubles.append(Trouble(chain, number, None, f"links are gone, from {before_number + 1} on"))
        elif not there:
            troubles.append(Trouble(chain, number, event_id, "the event is gone"))
        elif digest_of(before, number, event_id, columns) != digest:
            troubles.append(Trouble(chain, number, event_id, "the event or its place was changed"))
        if (marked := marks.get((chain, number))) is not None:
            met.add((chain, number))
            if marked != digest:
                troubles.append(Trouble(chain, number, event_id, "a checkpoint says otherwise"))
        ends[chain] = number, digest
        events += there
    for chain, number in sorted(set(marks) - met):
        troubles.append(Trouble(chain, number, None, "a checkpoint knows of a link that is gone"))
    for chain, event_id in _rows(UNLINKED):
        troubles.append(Trouble(chain, None, event_id, "the event has no link"))
        events += 1
    return Findings(ends, events, troubles)


def digest_of(before: bytes, number: int, event_id: int, columns: Iterable[str]) -> bytes:
    """The digest of an event after the digest ``before``, as its link must have it."""
    material = hashlib.sha256(before)
    for text in (str(number), str(event_id), *columns):
        written = text.encode()
        material.update(f"{len(written)}:".encode() + written)
    return material.digest()


def _rows(query: str) -> Iterator[tuple]:  # type: ignore[type-arg]  # of whatever the query selects
    """The rows of a query, a batch at a time: an audit may be larger than memory."""
    with connection.chunked_cursor() as cursor:
        cursor.execute(query)
        while batch := cursor.fetchmany(BATCH):
            for row in batch:
                yield tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
