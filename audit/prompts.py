"""The prompt log: what calls of keys that opted in said and were answered, until it expires."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Max, Q
from django.utils.timezone import now

from audit.models import AuditEvent, LoggedPrompt
from audit.sealing import seal, unseal

BATCH = 1000
WRITE_TIMEOUT = "3s"
ERASED = "prompt.erased"
# Any number; only those who write and those who erase take this advisory lock.
LOCK = 0x544F4C4C50


@dataclass(frozen=True, slots=True)
class Said:
    """The texts of one call, redacted and bounded; ``cut`` if something was left out for its length.

    ``asked_at`` is when it was admitted, ``at`` when it ended.
    """

    request_id: UUID
    tenant_id: UUID
    tenant: str
    key_id: UUID
    key: str
    member_id: UUID | None
    asked_at: datetime
    at: datetime
    days: int
    prompt: str
    answer: str
    cut: bool


def keep(entries: Iterable[Said]) -> None:
    """Keep what was said, encrypted, but for what was asked before its person had all of it erased.

    Raises Django's ``db.Error``; a repeat keeps nothing twice.
    """
    entries = list(entries)
    rows = [_row(one) for one in entries]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [WRITE_TIMEOUT])
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [LOCK])
        members = {one.member_id for one in entries if one.member_id is not None}
        erased = _erased_at(members) if members else {}
        LoggedPrompt.objects.bulk_create(
            [
                row
                for row, one in zip(rows, entries, strict=True)
                if one.member_id not in erased or one.asked_at > erased[one.member_id]
            ],
            ignore_conflicts=True,
        )


def erase(theirs: Q) -> int:
    """Delete what is kept of the calls that ``theirs`` selects; return of how many.

    Belongs in the transaction that records ``ERASED`` with the member as its
    subject. What is still on its way is then not kept either.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    erased, _ = LoggedPrompt.objects.filter(theirs).delete()
    return erased


def _erased_at(members: Iterable[UUID]) -> dict[UUID, datetime]:
    """When these members last had everything erased."""
    events = AuditEvent.objects.filter(action=ERASED, subject__in=map(str, members))
    latest = events.values("subject").annotate(last=Max("at")).values_list("subject", "last").order_by()
    return {UUID(subject): last for subject, last in latest}


def _row(one: Said) -> LoggedPrompt:
    return LoggedPrompt(
        request_id=one.request_id,
        tenant_id=one.tenant_id,
        tenant=one.tenant,
        key_id=one.key_id,
        key=one.key,
        member_id=one.member_id,
        at=one.at,
        expires_at=one.at + timedelta(days=one.days),
        prompt=seal(one.prompt, _place(one.tenant_id, one.request_id, "prompt")),
        answer=seal(one.answer, _place(one.tenant_id, one.request_id, "answer")),
        cut=one.cut,
    )


def opened(row: LoggedPrompt) -> tuple[str, str]:
    """Prompt and answer; raises ``Unreadable``. Whoever asks has to have recorded that."""
    prompt, answer = (
        unseal(bytes(getattr(row, part)), _place(row.tenant_id, row.request_id, part))
        for part in ("prompt", "answer")
    )
    return prompt, answer


def _place(tenant_id: UUID, request_id: UUID, part: str) -> str:
    return f"{tenant_id}/{request_id}/{part}"


def forget_expired() -> int:
    """Delete what is past its lifetime; return how much that was."""
    forgotten = 0
    while True:
        old = LoggedPrompt.objects.filter(expires_at__lte=now()).values("pk")[:BATCH]
        deleted, _ = LoggedPrompt.objects.filter(pk__in=old).delete()
        forgotten += deleted
        if not deleted:
            return forgotten
