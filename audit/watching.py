"""Looking at the audit again and again, a stretch at a time: whether it is as it was written.

``audit.chains.verify`` looks at all of it, which takes minutes when it is large.
A look here takes a second: at the events of the last day, at the end of every
chain that a checkpoint knows, and at the next ``STRETCH`` events of a round that
comes by every event in the end. Each link is compared with the one before it in
its chain, wherever in the round that is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.utils.timezone import now

from audit import checkpoints
from audit.chains import BEFORE_THE_FIRST, Trouble, digest_of
from audit.models import AuditCheck

STRETCH = 20_000
# Of a day with more events than these the newest are looked at; the round comes by the others.
NEWEST = 20_000
LATELY = timedelta(days=1)
TROUBLES_KEPT = 20
# Any number; only those who look take this advisory lock.
LOCK = 0x544F4C4C51

# The links of some events, each with its event, the link before it, and what a checkpoint says of it.
LINKS = """
SELECT link.event_id, link.chain, link.number, link.digest, previous.digest, mark.digest,
    event.id IS NOT NULL,
    (extract(epoch FROM event.at) * 1000000)::bigint::text, event.actor, event.origin, event.action,
    event.subject, coalesce(event.tenant_id::text, ''), event.reason, event.details::text
FROM audit_auditlink link
LEFT JOIN audit_auditevent event ON event.id = link.event_id
LEFT JOIN audit_auditlink previous ON previous.chain = link.chain AND previous.number = link.number - 1
LEFT JOIN audit_auditcheckpoint mark ON mark.chain = link.chain AND mark.number = link.number
WHERE link.event_id > %s AND link.event_id <= %s ORDER BY link.event_id
"""
# Events between two ids that no link leads to. One that is being written has no link yet.
UNLINKED = """
SELECT coalesce(event.tenant_id::text, 'platform'), event.id
FROM audit_auditevent event LEFT JOIN audit_auditlink link ON link.event_id = event.id
WHERE event.id > %s AND event.id <= %s AND link.event_id IS NULL ORDER BY event.id
"""
# The last checkpoint of each chain, and the link that it is of.
ENDS = """
SELECT mark.at, mark.chain, mark.number, mark.digest, mark.signature, link.event_id, link.digest
FROM (
    SELECT DISTINCT ON (chain) * FROM audit_auditcheckpoint ORDER BY chain, number DESC
) AS mark
LEFT JOIN audit_auditlink link ON link.chain = mark.chain AND link.number = mark.number
"""


def look() -> AuditCheck | None:
    """Look once, and write down what came of it; None while another process looks.

    Raises Django's ``db.Error``. A repeat looks at what is new then, and at the
    stretch that follows.
    """
    begun = time.monotonic()
    with transaction.atomic():
        if not _one("SELECT pg_try_advisory_xact_lock(%s)", LOCK):
            return None
        last = AuditCheck.objects.first()
        newest = _one("SELECT coalesce(max(event_id), 0) FROM audit_auditlink")
        reached = last.reached if last else 0
        end = _one(
            "SELECT max(event_id) FROM (SELECT event_id FROM audit_auditlink WHERE event_id > %s "
            "ORDER BY event_id LIMIT %s) AS stretch",
            reached,
            STRETCH,
        )
        lately = _one("SELECT min(id) - 1 FROM audit_auditevent WHERE at > %s", now() - LATELY)
        # What is looked at anyway is not looked at twice.
        new = max(newest if lately is None else lately, newest - NEWEST, end or 0)
        stretches = [(reached, end or reached), (new, newest)]
        found = [trouble for stretch in stretches for trouble in _within(*stretch)] + list(_at_the_ends())
        events = sum(_one("SELECT count(*) FROM audit_auditlink WHERE event_id > %s AND event_id <= %s", *one)
                     for one in stretches)  # fmt: skip
        return AuditCheck.objects.create(
            seconds=time.monotonic() - begun,
            events=events,
            reached=0 if end is None or end >= newest else end,
            found=len(found),
            troubles=[str(trouble) for trouble in found[:TROUBLES_KEPT]],
        )


def _within(after: int, until: int) -> Iterator[Trouble]:
    """What is wrong with the events whose ids are in ``(after, until]``."""
    if after >= until:
        return
    for event_id, chain, number, digest, before, marked, there, *columns in _rows(LINKS, after, until):
        if before is None and number != 1:
            yield Trouble(chain, number, None, "the link before it is gone")
        elif not there:
            yield Trouble(chain, number, event_id, "the event is gone")
        elif digest_of(before or BEFORE_THE_FIRST, number, event_id, columns) != digest:
            yield Trouble(chain, number, event_id, "the event or its place was changed")
        if marked not in (None, digest):
            yield Trouble(chain, number, event_id, "a checkpoint says otherwise")
    for chain, event_id in _rows(UNLINKED, after, until):
        yield Trouble(chain, None, event_id, "the event has no link")


def _at_the_ends() -> Iterator[Trouble]:
    """What the last checkpoints know of the ends of chains, and is not so."""
    for at, chain, number, digest, signature, event_id, linked in _rows(ENDS):
        if not checkpoints.is_ours(at, chain, number, digest, signature):
            yield Trouble(chain, number, event_id, "its checkpoint was not signed by this gateway")
        elif linked is None:
            yield Trouble(chain, number, None, "a checkpoint knows of a link that is gone")
        elif linked != digest:
            yield Trouble(chain, number, event_id, "a checkpoint says otherwise")


def _one(query: str, *values: Any) -> Any:
    return next(_rows(query, *values))[0]


def _rows(query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        for row in cursor.fetchall():
            yield tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
