"""Closing a month of a tenant, once it is over and booked, and opening it again.

Closed, the month is frozen by the database, its statement has a number, and
what comes too late is booked in the open month. Opening it again takes two
people. All of it is in the audit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import orjson
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import TruncMonth
from django.utils.timezone import now

from audit.recording import SHELL, record
from budgets import canonical, ledger, spool
from budgets.archives import archived_between
from budgets.counters import EPOCH, redis_in_bytes
from budgets.models import (
    REOPENING_EXPIRES,
    ArchivedMonth,
    ClosedMonth,
    CounterEpoch,
    ParkedRecord,
    Statement,
    UsageRollup,
)
from budgets.open_months import following, one_at_a_time, take
from budgets.periods import Days
from budgets.records import told_in
from budgets.running_calls import running_calls
from budgets.schedules import accounting_days
from budgets.statements import draw_up, selection_of
from budgets.usage import Selection, totals
from tenants.models import Tenant

# Longer than the clock of Redis may go back unnoticed.
PATIENCE = timedelta(seconds=60)


class DetailArchived(Exception):
    """The entries of the month are not in the database any more.

    ``archived`` tells in which files they are.
    """

    def __init__(self, archived: list[ArchivedMonth]) -> None:
        super().__init__(", ".join(one.file for one in archived))
        self.archived = archived


@dataclass(frozen=True, slots=True)
class Outlook:
    """What closing a month would come to: what stands against it, in sentences, and its sums."""

    tenant: Tenant
    month: date
    time_zone: str
    against: list[str]
    entries: int
    totals: dict[str, int]


def outlook(*, tenant: Tenant, month: date, despite_parked: bool = False) -> Outlook:
    """What closing ``month`` would do now. Changes nothing. Raises ``RedisError``."""
    days = accounting_days([tenant.pk])[tenant.pk]
    against = [*_against(tenant, month, days), *_underway(tenant, month, days, despite_parked)]
    if not ledger.has(ledger.newest()):
        against.append(f"{ledger.backlog()} records wait for the ledger.")
    selection = Selection(tenant_id=tenant.pk, from_day=month, before_day=following(month))
    return Outlook(tenant, month, _zone(days, month), against, selection.entries().count(), totals(selection))


def close_month(
    *, tenant: Tenant, month: date, actor: str, reason: str = "", despite_parked: bool = False
) -> Statement:
    """Freeze a month of ``tenant``, told by its first day, and return its statement.

    Everything of the month has to be booked: no call of it runs, nothing waits
    in the spool or for the ledger, and no record is parked; the last may be
    waived. Raises ``ValidationError`` with what stands against it, and
    ``RedisError``.
    """
    days = accounting_days([tenant.pk])[tenant.pk]
    against = [*_against(tenant, month, days), *_underway(tenant, month, days, despite_parked)]
    if not against:
        # Nothing is held, so all that was settled stands before this in the stream.
        settled_to = ledger.newest()
        ledger.drain()
        if not ledger.has(settled_to):
            against.append(f"{ledger.backlog()} records wait for the ledger.")
    if against:
        raise ValidationError(against)
    return _close(tenant, month, days, actor, reason)


# Durable, as the drain before it has told Redis what it has committed.
@transaction.atomic(durable=True)
def _close(tenant: Tenant, month: date, days: Days, actor: str, reason: str) -> Statement:
    one_at_a_time(tenant.pk)
    tenant.refresh_from_db()
    if against := _against(tenant, month, days):
        raise ValidationError(against)
    take(tenant.pk, month)
    closing = ClosedMonth(
        tenant_id=tenant.pk,
        tenant=tenant.slug,
        tenant_name=tenant.name,
        month=month,
        time_zone=_zone(days, month),
        closed_by=actor,
        reason=reason,
        export_sha256=canonical.sha256_of(tenant.pk, month),
    )
    closing.entries = selection_of(closing).entries().count()
    closing.save(force_insert=True)
    statement = draw_up(closing)
    record(
        action="month.closed",
        actor=actor,
        subject=str(closing),
        tenant_id=tenant.pk,
        reason=reason,
        statement=statement.number,
        revision=statement.revision,
        entries=closing.entries,
        export_sha256=closing.export_sha256,
        cost_micro_usd=statement.cost_micro_usd,
    )
    return statement


@transaction.atomic
def request_reopening(*, closing: ClosedMonth, actor: str, reason: str) -> ClosedMonth:
    """Ask that a closed month be opened again; somebody else has a day to agree.

    Raises ``ValidationError`` if it is open, or somebody's question waits for
    an answer.
    """
    if not reason:
        raise ValidationError("Say why the month should be opened again.")
    _refuse_archived(closing)
    moment = now()
    asked = ClosedMonth.objects.filter(
        Q(reopening_asked_at=None) | Q(reopening_asked_at__lt=moment - REOPENING_EXPIRES),
        pk=closing.pk,
        reopened_at=None,
    ).update(reopening_asked_at=moment, reopening_asked_by=actor, reopening_reason=reason)
    closing.refresh_from_db()
    if not asked and closing.reopened_at is not None:
        raise ValidationError(f"{closing} is open.")
    if not asked:
        raise ValidationError(
            f"{closing.reopening_asked_by} has asked for the reopening of {closing} already; "
            "another person has to agree."
        )
    record(
        action="month.reopening_asked",
        actor=actor,
        subject=str(closing),
        tenant_id=closing.tenant_id,
        reason=reason,
        closed_at=closing.closed_at,
    )
    return closing


@transaction.atomic
def confirm_reopening(*, closing: ClosedMonth, actor: str) -> ClosedMonth:
    """Agree that a closed month be opened again, as somebody else has asked within the last day.

    Its statement stays; closing the month again makes another that replaces it.
    Raises ``ValidationError`` for one's own question, one that is too old, and
    where nobody asked.
    """
    one_at_a_time(closing.tenant_id)
    closing = ClosedMonth.objects.select_for_update().get(pk=closing.pk)
    # Whoever archives its entries wants it closed.
    take(closing.tenant_id, closing.month)
    _refuse_archived(closing)
    moment = now()
    if closing.reopened_at is not None:
        raise ValidationError(f"{closing} is open.")
    if not reopening_asked(closing, moment):
        raise ValidationError(f"Nobody has asked for the reopening of {closing} within the last day.")
    if person(closing.reopening_asked_by) == person(actor):
        raise ValidationError("Another person than the one who asked has to agree.")
    closing.reopened_at, closing.reopened_by = moment, actor
    closing.save(update_fields=["reopened_at", "reopened_by"])
    record(
        action="month.reopened",
        actor=actor,
        subject=str(closing),
        tenant_id=closing.tenant_id,
        reason=closing.reopening_reason,
        asked_by=closing.reopening_asked_by,
        closed_at=closing.closed_at,
    )
    return closing


def _refuse_archived(closing: ClosedMonth) -> None:
    if archived_between(closing.month, following(closing.month)):
        raise ValidationError(f"The entries of {closing} are archived; it stays closed.")


def reopening_asked(closing: ClosedMonth, moment: datetime | None = None) -> bool:
    """Whether a question for reopening waits for a second person."""
    asked_at = closing.reopening_asked_at
    return (
        closing.reopened_at is None
        and asked_at is not None
        and asked_at >= (moment or now()) - REOPENING_EXPIRES
    )


def person(actor: str) -> str:
    """Who an actor is, whether at the shell or in the admin."""
    return actor.removesuffix(SHELL).casefold()


def same_as_closed(closing: ClosedMonth) -> bool:
    """Whether the entries of a closed month still are, byte for byte, what they were when it was closed.

    Raises ``DetailArchived`` if they were taken out of the database.
    """
    refuse_without_detail(closing)
    return canonical.sha256_of(closing.tenant_id, closing.month) == closing.export_sha256


def refuse_without_detail(closing: ClosedMonth) -> None:
    """Raise ``DetailArchived`` if entries of a closed month were taken out of the database."""
    if archived := archived_between(closing.month, following(closing.month)):
        raise DetailArchived(archived)


def tenants_to_close(month: date) -> list[Tenant]:
    """The tenants that used something in a month which is not closed."""
    used = UsageRollup.objects.filter(day__gte=month, day__lt=following(month)).values("tenant_id").distinct()
    closed = ClosedMonth.objects.filter(month=month, reopened_at=None).values("tenant_id")
    return list(Tenant.objects.filter(pk__in=used).exclude(pk__in=closed).order_by("slug"))


def _zone(days: Days, month: date) -> str:
    """The zone that a tenant's days followed when a month ended."""
    followed = [zone for since, zone in days.zones[1:] if days.date_of(since) < following(month)]
    return (followed[-1] if followed else days.zones[0][1]).key


def _against(tenant: Tenant, month: date, days: Days) -> list[str]:
    """What the books say against closing a month."""
    if month.day != 1:
        raise ValidationError("A month is told by its first day.")
    against = []
    # Over by both clocks: one of them may have jumped.
    moment = min(now(), datetime.fromtimestamp(redis_in_bytes().time()[0], UTC)) - PATIENCE
    if days.date_of(moment.timestamp()) < following(month):
        zone = _zone(days, month)
        against.append(f"{month:%Y-%m} is not over in {zone}, or has been for less than a minute.")
    closed = set(
        ClosedMonth.objects.filter(tenant_id=tenant.pk, reopened_at=None).values_list("month", flat=True)
    )
    if month in closed:
        against.append(f"{month:%Y-%m} of {tenant.slug} is closed already.")
    used = UsageRollup.objects.filter(tenant_id=tenant.pk, day__lt=month).order_by()
    earlier = set(used.annotate(month=TruncMonth("day")).values_list("month", flat=True).distinct()) - closed
    if earlier:
        named = ", ".join(f"{one:%Y-%m}" for one in sorted(earlier))
        against.append(f"Earlier months of {tenant.slug} are open: {named}. Close them first.")
    return against


def _underway(tenant: Tenant, month: date, days: Days, despite_parked: bool) -> list[str]:
    """What of a month has not reached the ledger, or nobody can tell."""
    against = []
    known = CounterEpoch.objects.values_list("epoch", flat=True).first()
    if known is None or redis_in_bytes().get(EPOCH) != known.encode():
        against.append("The counters in Redis cannot be believed before they are rebuilt.")
    running = sum(
        1
        for call in running_calls(tenant_id=tenant.pk)
        if days.date_of(call.admitted_at.timestamp()) < following(month)
    )
    if running:
        against.append(f"{running} calls that began in the month still run.")
    if spooled := spool.waiting():
        against.append(f"{spooled} settlements wait in the spool, of whichever tenant.")
    parked = 0 if despite_parked else _parked(tenant.pk)
    if parked:
        against.append(f"{parked} records are parked that may belong to the month.")
    return against


def _parked(tenant_id: UUID) -> int:
    """How many parked records are of a tenant, or of nobody knows whom."""
    records = ParkedRecord.objects.values_list("record", flat=True)
    return sum(_whose(text) in (None, str(tenant_id)) for text in records)


def _whose(record_as_text: str) -> str | None:
    try:
        return str(UUID(told_in(orjson.loads(record_as_text))["call"]["tenant_id"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
