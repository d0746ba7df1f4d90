"""Proving that the books agree: events, ledger, rollups, counters and exports, at one position of the stream.

It looks and compares, also while calls come and go, and writes nothing but what
came of it. What differs is told with its cause, where that can be told, and what
to do; nothing is put right by itself, for then nobody would learn of the fault.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from budgets import comparisons, exported_totals, usage
from budgets.comparisons import Difference, Expectation, Found
from budgets.counters import HOLDS, redis_in_bytes
from budgets.models import (
    CounterEpoch,
    Happening,
    LedgerEntry,
    ParkedRecord,
    SpooledSettlement,
    Verification,
)
from budgets.notices import tell
from budgets.rollups import Part, unarchived
from budgets.spool import SUFFIX
from budgets.survey import Survey, TooManyWaitError, between_two_drains, survey
from tenants.models import Tenant
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

# The present month, and the whole of the one before until most have closed it.
OPEN_DAYS = 40
KEPT_DAYS = 90
ACTOR = "tollgate"
# Any number; only verifications that are kept take this advisory lock.
LOCK = 0x544F4C4C22
TOLD_IN_NOTICE = 20


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    ``position`` is the id of the newest usage record then, empty if Redis did not tell. ``found`` is
    how many differences there are, of which ``differences`` holds the first. ``unasked`` has for each
    comparison that could not be made why.
    """

    scope: str
    whole: bool
    at: datetime
    seconds: Decimal
    position: str
    figures: dict[str, Any]
    differences: tuple[Difference, ...]
    found: int
    unasked: dict[str, str]

    @property
    def outcome(self) -> str:
        if self.found:
            return Verification.Outcome.DIFFERS
        return Verification.Outcome.UNASKED if self.unasked else Verification.Outcome.AGREES


@dataclass(slots=True)
class _Findings:
    differences: list[Difference] = field(default_factory=list)
    found: int = 0
    unasked: dict[str, str] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        self.differences += found[0]
        self.found += found[1]


def open_part(tenant: Tenant | None = None) -> Part:
    """The accounting days that may still get entries: the last ``OPEN_DAYS``, and tomorrow in the east."""
    today = datetime.now(UTC).date()
    return Part(tenant.pk if tenant else None, today - timedelta(days=OPEN_DAYS), today + timedelta(days=2))


def month_part(first: date, tenant: Tenant | None = None) -> Part:
    """The accounting days of the month that begins with ``first``."""
    return Part(tenant.pk if tenant else None, first, (first + timedelta(days=31)).replace(day=1))


def verify(part: Part) -> Result:
    """Compare this part of the books; counters and what waits are those of now, whatever the part.

    Days whose entries were archived are left out. Raises Django's ``db.Error`` when
    PostgreSQL cannot be asked. A repeat compares again.
    """
    started, at, whole = time.monotonic(), now(), part in (open_part(), Part())
    part = unarchived(part)
    findings = _Findings()
    with between_two_drains() as let_drains_go_on:
        expected = comparisons.expected_counters(part.tenant_id)
        said = _survey(expected, findings)
        let_drains_go_on()
        if said is not None:
            known = CounterEpoch.objects.values_list("epoch", flat=True).first()
            if not known or said.epoch != known:
                findings.unasked["counters"] = "They are being rebuilt, or have to be: nothing is admitted."
            else:
                findings.add(comparisons.counters(expected, said))
        of_events, missing = comparisons.events(part)
        findings.add(of_events)
        findings.add(comparisons.of_rollups(part))
        findings.add(comparisons.costs(part))
        findings.add(comparisons.budgets(part))
        figures = _figures(part, said, missing)
    of_exports, unasked = exported_totals.compare(part)
    findings.add(of_exports)
    if unasked:
        findings.unasked["exports"] = unasked
    return Result(
        scope=in_words(part),
        whole=whole,
        at=at,
        seconds=Decimal(round((time.monotonic() - started) * 1000)) / 1000,
        position="" if said is None else said.position,
        figures=figures,
        differences=tuple(findings.differences),
        found=findings.found,
        unasked=findings.unasked,
    )


def _survey(expected: Iterable[Expectation], findings: _Findings) -> Survey | None:
    try:
        return survey([one.counter.key for one in expected])
    except TooManyWaitError:
        findings.unasked["counters"] = "Too many records wait for the ledger: ask again when there are fewer."
    except RedisError as exc:
        findings.unasked["counters"] = f"Redis cannot be asked: {exc}"
    return None


def in_words(part: Part) -> str:
    """Whose books, and of which days."""
    whose = comparisons.Slugs([part.tenant_id]).of(part.tenant_id) or "all tenants"
    if part.from_day is None and part.before_day is None:
        return f"{whose}, every day"
    return f"{whose}, accounting days from {part.from_day} on, before {part.before_day}"


def _figures(part: Part, said: Survey | None, missing: int) -> dict[str, Any]:
    """What is underway, what is estimated, and how many of the calls that ended stand in the ledger."""
    spooled = SpooledSettlement.objects.count() + _spooled_files()
    parked = ParkedRecord.objects.count()
    where, values = part.where("entry")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(*) FILTER (WHERE price_id IS NOT NULL AND input_price IS NULL) "  # noqa: S608
            f"FROM budgets_ledgerentry AS entry WHERE kind = 'usage' AND {where}",
            values,
        )
        captured, without_rates = cursor.fetchone()
    selection = usage.Selection(part.tenant_id, part.from_day, part.before_day)
    waiting = _not_booked(said)
    ended = captured + missing + spooled + parked + (waiting or 0)
    return {
        "waiting": waiting,
        "spooled": spooled,
        "parked": parked,
        **_holds(said),
        "captured": captured,
        "ended": ended,
        "capture_rate": share(captured, ended),
        "costs_without_rates": without_rates,
        "tenants": [
            {
                "tenant": row["tenant"],
                "requests": row["requests"],
                "tokens": row["input_tokens"] + row["output_tokens"],
                "estimated_tokens": row["estimated_tokens"],
                "estimated_share_per_mille": usage.estimated_share(row),
            }
            for row in usage.by_part(selection, "tenant")
        ],
    }


def share(some: int, of: int) -> str | None:
    """A share to six places, rounded down so that 1 means all; None of nothing."""
    if not of:
        return None
    millionths = some * 1_000_000 // of
    return f"{millionths // 1_000_000}.{millionths % 1_000_000:06d}"


def _not_booked(said: Survey | None) -> int | None:
    """How many calls have ended whose records wait for the ledger, None if nobody knows."""
    if said is None:
        return None
    calls = {record.row.request_id for _, record in said.waiting if record.row.kind == LedgerEntry.Kind.USAGE}
    booked = LedgerEntry.objects.filter(kind=LedgerEntry.Kind.USAGE, request_id__in=calls).count()
    return len(calls) - booked + len(said.unreadable)


def _holds(said: Survey | None) -> dict[str, Any]:
    """Calls that have not ended: how many, how many of processes that are gone, and since when the oldest."""
    if said is None:
        return {"holds": None, "overdue_holds": None, "oldest_hold_seconds": None}
    oldest = None
    try:
        ids = [UUID(request_id.decode()) for request_id in redis_in_bytes().zrange(HOLDS, 0, -1)]
    except (RedisError, ValueError):
        ids = []
    if ids:
        # An id of version 7 begins with the milliseconds since 1970.
        begun = min(request_id.int >> 80 for request_id in ids)
        oldest = max(0, round(said.at.timestamp() - begun / 1000))
    return {"holds": said.holds, "overdue_holds": said.overdue, "oldest_hold_seconds": oldest}


def _spooled_files() -> int:
    """Settlements that wait on this machine's disk; of other machines nobody knows here."""
    return sum(1 for _ in settings.SPOOL_DIR.glob(f"*{SUFFIX}")) if settings.SPOOL_DIR.is_dir() else 0


def verify_and_keep(*, part: Part, asked_by: str) -> Verification:
    """``verify``, with what came of it kept for ``KEPT_DAYS`` and told to the recipients of the platform.

    Told is each difference once, for as long as it is there, and only of the
    whole books: whoever asks about a part has the answer before them. Raises
    Django's ``db.Error``.
    """
    return keep(verify(part), asked_by=asked_by)


@transaction.atomic
def keep(result: Result, *, asked_by: str) -> Verification:
    """Write down what came of a verification, and tell of what was not told before."""
    with connection.cursor() as cursor:
        # Two at once would both find something new.
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    names = {f"{one.check}:{one.name}" for one in result.differences}
    before: set[str] = set()
    if result.whole:
        last = Verification.objects.filter(whole=True).first()
        before = set() if last is None else set(last.standing)
        # Of what could not be asked nobody knows that it is gone.
        names |= {name for name in before if name.partition(":")[0] in result.unasked}
    row = Verification.objects.create(
        at=result.at,
        seconds=result.seconds,
        asked_by=asked_by,
        scope=result.scope,
        whole=result.whole,
        outcome=result.outcome,
        position=result.position,
        figures=result.figures,
        differences=[asdict(one) for one in result.differences],
        found=result.found,
        unasked=result.unasked,
        standing=sorted(names) if result.whole else [],
    )
    new = [one for one in result.differences if f"{one.check}:{one.name}" not in before]
    if result.whole and new:
        _tell_of(row, new)
    Verification.objects.filter(at__lt=now() - timedelta(days=KEPT_DAYS)).delete()
    return row


def _tell_of(row: Verification, new: list[Difference]) -> None:
    logger.error("the books do not agree: %s", json.dumps([asdict(one) for one in new[:TOLD_IN_NOTICE]]))
    tell(
        happening=Happening.BOOKS_DISAGREE,
        subject=str(row.pk),
        values={
            "first": new[0].what,
            "found": row.found,
            "details": [one.what for one in new[:TOLD_IN_NOTICE]],
        },
        facts={
            "verification": {
                "id": str(row.pk),
                "position": row.position or None,
                "found": row.found,
                "new": len(new),
                "differences": [asdict(one) for one in new[:TOLD_IN_NOTICE]],
            }
        },
    )
