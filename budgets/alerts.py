"""Finding out what people have to be told: what has been used of budgets, and what is over.

Run every few seconds, by any number of workers; what was told is told once,
because ``budgets.notices`` writes it down first. It reads settings and counters
and changes neither.

A threshold is crossed when what was *used* reaches its share of the limit that
holds, raises included. What is only held does not count: most of it comes back
when the call ends, and a threshold is told once in a period, so it must not be
told too early.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils.timezone import now

from audit import watching
from audit.models import AuditCheck
from budgets import closing
from budgets.limits import limit_now
from budgets.models import (
    WITH_ITS_LIMIT,
    Budget,
    BudgetPeriod,
    Happening,
    KillSwitch,
    LimitRaise,
    Notice,
    ParkedRecord,
    PeriodClosing,
    RateLimit,
    Recipient,
    Scope,
    kind_of_limit,
)
from budgets.notice_words import limit_named, whose_calls
from budgets.notices import tell
from budgets.standing import Standing, standings
from tenants.models import Tenant

# What ended a short while ago is looked at too: its last calls may have crossed a threshold.
LATE_SECONDS = 900
CLOSINGS_AT_ONE_TIME = 500
PARKED_AT_ONE_TIME = 1000
PARKED_NAMED = 20
# What nobody was told of for longer is no news.
LOOKED_BACK = timedelta(days=1)
WHOSE = ("tenant", "team", "member__user", "member__tenant", "key")


def look() -> int:
    """Tell of all that nobody was told of; return of how many happenings that was.

    Raises ``RedisError`` and Django's ``db.Error``; a repeat tells the rest.
    """
    # A run ends by itself, and nobody knows how many there are: its refusals are told to whoever runs it.
    found = _standings(Budget.objects.exclude(limit=None).exclude(thresholds=[]).exclude(scope=Scope.RUN))
    told = _tell_of_thresholds(found)
    refusing = BudgetPeriod.objects.filter(refused__gt=0, run="").filter(
        Q(period_end=None) | Q(period_end__gt=now() - timedelta(seconds=LATE_SECONDS))
    )
    told += _tell_of_refusals(list(refusing))
    told += _tell_of_ended_raises() + _tell_of_closings() + _tell_of_kill_switches()
    return told + _tell_of_parked_records()


def _standings(budgets: QuerySet[Budget]) -> list[Standing]:
    rows = budgets.select_related(*WHOSE).prefetch_related("raises")
    return standings(list(rows), late_seconds=LATE_SECONDS)


def crossed(used: int, limit: int, thresholds: Sequence[int], told: Sequence[tuple[int, int]]) -> list[int]:
    """The thresholds, in percent, that ``used`` has crossed and nobody was told of, smallest first.

    ``told`` are threshold and use of what was told in this period, whatever the
    limit was then. A threshold is told again only when it lies beyond that use:
    the limit was raised, and what came after has used its share of the new one.
    Of no limit (0) no share can be used.
    """
    return [
        threshold
        for threshold in sorted(set(thresholds))
        if limit > 0
        and used * 100 >= threshold * limit
        and not any(before == threshold and then * 100 >= threshold * limit for before, then in told)
    ]


def _tell_of_thresholds(found: Sequence[Standing]) -> int:
    reached = [one for one in found if one.limit and one.used * 100 >= min(one.budget.thresholds) * one.limit]
    told: defaultdict[tuple[str, datetime], list[tuple[int, int]]] = defaultdict(list)
    notices = Notice.objects.filter(
        happening=Happening.THRESHOLD,
        subject__in={str(one.budget.pk) for one in reached},
        period_start__in={one.starts_at for one in reached},
    )
    for notice in notices:
        if notice.period_start is not None:
            told[notice.subject, notice.period_start].append((notice.threshold or 0, notice.used or 0))
    written = 0
    for one in reached:
        before = told[str(one.budget.pk), one.starts_at]
        new = crossed(one.used, one.limit or 0, one.budget.thresholds, before)
        if new:
            written += _tell_of_crossing(one, new)
    return written


@transaction.atomic
def _tell_of_crossing(stand: Standing, thresholds: list[int]) -> int:
    """Write all down; people are told of the highest, which says the others too."""
    written = 0
    for threshold in thresholds:
        notice = tell(
            happening=Happening.THRESHOLD,
            subject=str(stand.budget.pk),
            values={"threshold": threshold} | values_of(stand),
            facts={"threshold": threshold} | facts_of(stand),
            tenant_id=stand.budget.tenant_id,
            tenant="" if stand.budget.tenant is None else stand.budget.tenant.slug,
            period_start=stand.starts_at,
            threshold=threshold,
            limit=stand.limit,
            used=stand.used,
            quietly=threshold != thresholds[-1],
        )
        written += notice is not None
    return written


def _tell_of_refusals(refusing: Sequence[BudgetPeriod]) -> int:
    """Tell of budgets that refused a call, or in shadow mode would have, for the first time in a period."""
    told = set(
        Notice.objects.filter(
            happening__in=[Happening.EXHAUSTED, Happening.SHADOW_REFUSED],
            period_start__in={row.period_start for row in refusing},
        ).values_list("subject", "period_start")
    )
    new = {
        (row.budget_id, row.period_start)
        for row in refusing
        if (str(row.budget_id), row.period_start) not in told
    }
    written = 0
    for stand in _standings(Budget.objects.filter(pk__in={budget_id for budget_id, _ in new})):
        budget = stand.budget
        if (budget.pk, stand.starts_at) not in new or stand.limit is None:
            continue
        notice = tell(
            happening=Happening.SHADOW_REFUSED if budget.shadow else Happening.EXHAUSTED,
            subject=str(budget.pk),
            values=values_of(stand),
            facts=facts_of(stand),
            tenant_id=budget.tenant_id,
            tenant="" if budget.tenant is None else budget.tenant.slug,
            period_start=stand.starts_at,
            used=stand.used,
        )
        written += notice is not None
    return written


def _tell_of_ended_raises() -> int:
    """Tell of raises whose end has come, or that were taken back."""
    since = now() - LOOKED_BACK
    over = (
        LimitRaise.objects.filter(starts_at__lte=now())
        .filter(
            Q(taken_back_at=None, ends_at__range=(since, now()))
            # One that is taken back before it began never held.
            | Q(taken_back_at__range=(since, now()), taken_back_at__gt=F("starts_at"))
        )
        .select_related(*WITH_ITS_LIMIT)
        .prefetch_related("budget__raises", "rate_limit__raises")
    )
    told = set(
        Notice.objects.filter(
            happening=Happening.RAISE_ENDED, subject__in=[str(one.pk) for one in over]
        ).values_list("subject", flat=True)
    )
    written = 0
    for one in over:
        if str(one.pk) in told:
            continue
        row = one.row
        limit = limit_now(row)
        notice = tell(
            happening=Happening.RAISE_ENDED,
            subject=str(one.pk),
            values={"budget": limit_named(row), "limit": limit},
            facts={
                "raise": {
                    "id": str(one.pk),
                    "to": one.to,
                    "by": one.by,
                    "ended_at": (one.taken_back_at or one.ends_at).isoformat(),
                    "reason": one.reason,
                    "granted_by": one.granted_by,
                },
                kind_of_limit(row): described(row) | {"limit": limit},
            },
            tenant_id=row.tenant_id,
            tenant="" if row.tenant is None else row.tenant.slug,
        )
        written += notice is not None
    return written


def _tell_of_kill_switches() -> int:
    """Tell of switches that were armed, and of those that stop nothing any more."""
    since = now() - LOOKED_BACK
    armed = KillSwitch.objects.filter(armed_at__gt=since)
    over = KillSwitch.objects.filter(
        Q(lift__lifted_at__gt=since) | Q(lift=None, until__range=(since, now()))
    ).select_related("lift")
    happened = [(Happening.KILL_SWITCH_ARMED, one) for one in armed]
    happened += [(Happening.KILL_SWITCH_LIFTED, one) for one in over]
    told = set(
        Notice.objects.filter(
            happening__in=[Happening.KILL_SWITCH_ARMED, Happening.KILL_SWITCH_LIFTED],
            subject__in={str(one.pk) for _, one in happened},
        ).values_list("happening", "subject")
    )
    return sum(
        _tell_of_kill_switch(happening, one)
        for happening, one in happened
        if (happening, str(one.pk)) not in told
    )


def _tell_of_kill_switch(happening: str, switch: KillSwitch) -> bool:
    """Of a tenant's switch it is told what callers are told; who did it and why is for operators."""
    lift = getattr(switch, "lift", None) if happening == Happening.KILL_SWITCH_LIFTED else None
    by, reason = (switch.armed_by, switch.reason) if lift is None else (lift.lifted_by, lift.reason)
    if happening == Happening.KILL_SWITCH_LIFTED and lift is None:
        by = reason = ""
    values: dict[str, Any] = {"stops": whose_calls(switch)}
    if happening == Happening.KILL_SWITCH_ARMED:
        values["until"] = switch.until.isoformat()
    else:
        values["early"] = lift is not None
    internal: dict[str, Any] = {}
    if switch.tenant_id is None:
        internal = {"by": by or None, "reason": reason or None}
    elif happening == Happening.KILL_SWITCH_ARMED:
        values["message"] = switch.message
    notice = tell(
        happening=happening,
        subject=str(switch.pk),
        values=values | internal,
        facts={
            "kill_switch": {
                "id": switch.pk,
                "scope": switch.scope,
                "stops": switch.subject,
                "message": switch.message,
                "armed_at": switch.armed_at.isoformat(),
                "until": switch.until.isoformat(),
            }
            | internal
        },
        tenant_id=switch.tenant_id,
        tenant=switch.tenant,
    )
    return notice is not None


def _tell_of_closings() -> int:
    """Tell of closed periods, where somebody wants to hear of them: there may be very many."""
    written = 0
    wanted = set(
        Recipient.objects.filter(active=True, happenings__contains=[Happening.PERIOD_CLOSED]).values_list(
            "tenant", flat=True
        )
    )
    closings = list(closing.not_notified()[:CLOSINGS_AT_ONE_TIME])
    for one in closings:
        if None in wanted or one.tenant_id in wanted:
            written += _tell_of_closing(one)
    closing.notified(closings)
    return written


def _tell_of_closing(one: PeriodClosing) -> bool:
    zone = ZoneInfo(one.time_zone)
    budget = Budget.objects.filter(pk=one.budget_id).select_related(*WHOSE).first()
    tenant = None if one.tenant_id is None else Tenant.objects.filter(pk=one.tenant_id).first()
    notice = tell(
        happening=Happening.PERIOD_CLOSED,
        subject=str(one.budget_id),
        values={
            # Of one that was removed only the name is known.
            "budget": {"name": one.budget or str(one.budget_id), "unit": one.unit}
            if budget is None
            else limit_named(budget),
            "limit": one.limit,
            "used": one.used,
            "refused": one.refused,
            "shadow": one.shadow,
            "period_start": one.period_start.isoformat(),
            "period_end": one.period_end.isoformat(),
        },
        facts={
            "closing": {
                "budget_id": str(one.budget_id),
                "budget": one.budget,
                "unit": one.unit,
                "shadow": one.shadow,
                "limit": one.limit,
                "used": one.used,
                "refused": one.refused,
                "period_start": one.period_start.astimezone(zone).isoformat(),
                "period_end": one.period_end.astimezone(zone).isoformat(),
            }
        },
        tenant_id=one.tenant_id,
        tenant="" if tenant is None else tenant.slug,
        period_start=one.period_start,
        used=one.used,
    )
    return notice is not None


@transaction.atomic
def _tell_of_parked_records() -> int:
    """Tell the recipients of the platform of records that could not be booked: of many at once together."""
    # One that another worker tells of is locked until that has committed.
    parked = list(
        ParkedRecord.objects.select_for_update(skip_locked=True)
        .filter(told=False)
        .order_by("pk")[:PARKED_AT_ONE_TIME]
    )
    if not parked:
        return 0
    first = parked[0]
    tell(
        happening=Happening.RECORD_PARKED,
        subject=first.stream_id,
        values={
            "record": first.stream_id,
            "reason": first.reason[:200],
            "count": len(parked),
            "details": [f"{one.stream_id}: {one.reason[:200]}" for one in parked[:PARKED_NAMED]],
        },
        facts={
            "parked": [
                {"stream_id": one.stream_id, "reason": one.reason[:200], "at": one.parked_at.isoformat()}
                for one in parked[:PARKED_NAMED]
            ],
            "count": len(parked),
        },
    )
    ParkedRecord.objects.filter(pk__in=[one.pk for one in parked]).update(told=True)
    return 1


@transaction.atomic
def watch_audit() -> AuditCheck | None:
    """Look at the audit, and tell the recipients of the platform if it is not as it was written.

    None while another process looks. A trouble is told once: what is still wrong
    a look later is no news, and what is put right and breaks again is none either.
    """
    check = watching.look()
    if check is not None and check.found:
        tell(
            happening=Happening.AUDIT_BROKEN,
            subject=check.troubles[0],
            values={"first": check.troubles[0], "found": check.found, "details": check.troubles},
            facts={"audit": {"found": check.found, "troubles": check.troubles}},
        )
    return check


def values_of(stand: Standing) -> dict[str, Any]:
    """The same as a notice keeps it, to be put into words."""
    return {
        "budget": limit_named(stand.budget, stand.length),
        "shadow": stand.budget.shadow,
        "limit": stand.limit,
        "used": stand.used,
        "held": stand.held,
        "refused": stand.refused,
        "period_start": stand.starts_at.isoformat(),
        "period_end": stand.ends_at and stand.ends_at.isoformat(),
        "empty_at": stand.empty_at and stand.empty_at.isoformat(),
    }


def facts_of(stand: Standing) -> dict[str, Any]:
    """How a budget stands, as webhooks are told: whole numbers, instants in the zone of its calendar."""
    return {
        "budget": described(stand.budget)
        | {
            "limit": stand.limit,
            "limit_without_raises": stand.budget.limit,
            "used": stand.used,
            "held": stand.held,
            "refused": stand.refused,
            "period_start": stand.starts_at.isoformat(),
            "period_end": stand.ends_at and stand.ends_at.isoformat(),
            "empty_at": stand.empty_at and stand.empty_at.isoformat(),
        }
    }


def described(row: Budget | RateLimit) -> dict[str, Any]:
    how_often = {"period": row.length} if isinstance(row, Budget) else {"measure": row.measure}
    return {
        "id": str(row.pk),
        "whose": row.whose,
        "scope": row.scope,
        "unit": row.unit,
        **how_often,
        "shadow": row.shadow,
    }
