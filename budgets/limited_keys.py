"""Keys with limits of their own, which are never above those that hold for them anyway."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from audit.models import AuditEvent
from budgets.key_limits import MEASURES
from budgets.limits import Limits, as_if
from budgets.models import Budget, PeriodKind, RateLimit, Scope
from budgets.periods import kind_and_seconds
from budgets.services import (
    change_period,
    remove_budget,
    remove_rate_limit,
    set_budget,
    set_rate_limit,
)
from budgets.words import unit_name, window_name
from keys.models import ApiKey
from keys.services import change_key, issue_key
from tenants.figures import grouped
from tenants.models import Member, ServiceAccount, Tenant

# The longest that each may last, so that what is compared is never too small.
_SECONDS = {
    PeriodKind.HOUR: 3600,
    PeriodKind.DAY: 25 * 3600,
    PeriodKind.WEEK: 7 * 86_400 + 3600,
    PeriodKind.MONTH: 31 * 86_400 + 3600,
    PeriodKind.YEAR: 366 * 86_400,
    PeriodKind.LIFETIME: math.inf,
}
Row = Budget | RateLimit


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """A limit that a key is to have: so much of ``counts`` in each ``period``.

    ``counts`` is a unit of budgets and ``period`` as ``set_budget`` takes it; or
    it is a measure of rate limits, and there is no ``period``.
    """

    counts: str
    limit: int
    period: str = ""


@dataclass(frozen=True, slots=True)
class LimitChange:
    """What becomes of a limit of a key: ``row`` None: it has none yet; ``wanted`` None: it is taken away."""

    row: Row | None
    wanted: OwnLimit | None


def parents_of(
    tenant: Tenant, member: Member | None = None, service_account: ServiceAccount | None = None
) -> list[Row]:
    """The limits that would hold for a key of this owner besides its own, of tenant, team and member."""
    holder = member or service_account
    whose = Q(scope=Scope.TENANT) | Q(scope=Scope.MEMBER, member=member)
    if holder is not None and holder.team_id is not None:
        whose |= Q(scope=Scope.TEAM, team=holder.team_id)
    whose &= Q(tenant=tenant, shadow=False, limit__isnull=False)
    related = ("tenant", "team", "member__user")
    budgets = Budget.objects.filter(whose).select_related(*related).order_by("scope", "unit", "limit")
    rates = RateLimit.objects.filter(whose).select_related(*related).order_by("scope", "measure", "limit")
    return [*budgets, *rates]


def rows_of_keys(key_ids: Iterable[UUID]) -> tuple[QuerySet[Budget], QuerySet[RateLimit]]:
    """The limits of these keys themselves, the older ones first."""
    own = {"scope": Scope.KEY, "key__in": list(key_ids)}
    order = ("created_at", "pk")
    return Budget.objects.filter(**own).order_by(*order), RateLimit.objects.filter(**own).order_by(*order)


def own_limits_of(key: ApiKey) -> list[Row]:
    """The limits of a key itself that can refuse."""
    budgets, rates = rows_of_keys([key.pk])
    return [*budgets.filter(shadow=False), *rates.filter(shadow=False)]


def bound_of(parents: Iterable[Row], one: OwnLimit) -> Row | None:
    """The parent with the least limit that a key's limit could not pass.

    What holds for a longer time holds for each shorter one within it.
    """
    bounds = [
        row for row in parents if counts_of(row) == one.counts and _length(row) >= _seconds_of(one.period)
    ]
    return min(bounds, key=lambda row: row.limit or 0, default=None)


def bound_by_others(row: Row, actor: str) -> int | None:
    """Above what ``actor`` does not lift a limit by themselves: what somebody else has set; None: nobody has.

    A limit that came about without a service was set by somebody else.
    """
    told = AuditEvent.objects.filter(tenant_id=row.tenant_id, subject=str(row.pk))
    changes = told.filter(action__in=["budget.set", "budget.period_changed", "rate_limit.set"])
    theirs = changes.exclude(actor=actor).order_by("-pk").first()
    if theirs is not None:
        set_to: int | None = theirs.details.get("limit", row.limit)
        return set_to
    return None if changes.exists() else row.limit


@sensitive_variables("secret")
@transaction.atomic
def issue_limited_key(
    *,
    tenant: Tenant,
    actor: str,
    limits: Sequence[OwnLimit],
    member: Member | None = None,
    service_account: ServiceAccount | None = None,
    **settings: Any,
) -> tuple[ApiKey, str]:
    """``keys.services.issue_key``, and the limits of the new key in the same transaction.

    Raises ``ValidationError`` as that does, and by what it counts for a limit above one of the parents'.
    """
    parents = parents_of(tenant, member, service_account)
    above = {one.counts: wrong for one in limits if (wrong := _above(parents, one))}
    if above:
        raise ValidationError(above)
    key, secret = issue_key(
        tenant=tenant, member=member, service_account=service_account, actor=actor, **settings
    )
    for one in limits:
        _set(key, one, actor)
    return key, secret


@transaction.atomic
def change_limited_key(
    *, key: ApiKey, actor: str, limits: Mapping[str, LimitChange], lifts: bool, **settings: Any
) -> ApiKey:
    """``keys.services.change_key``, and the limits of the key in the same transaction; returns the key.

    ``limits`` are the changes by names that are the caller's to choose. Unless
    the actor ``lifts`` what others have set, they may only lower it. Another
    period begins when the present one ends, and no change takes back what was
    used, but a limit that was taken away counts from nothing when it is set anew.

    Raises ``ValidationError`` as ``change_key`` does, and by its name for a
    limit that is above one of the parents' or not theirs to lift.
    """
    parents = parents_of(key.tenant, key.member, key.service_account)
    wrong = {
        name: why for name, change in limits.items() if (why := _refused(change, parents, actor, lifts=lifts))
    }
    if wrong:
        raise ValidationError(wrong)
    if settings:
        key = change_key(key=key, actor=actor, **settings)
    # What goes makes room for what comes.
    for name, change in sorted(limits.items(), key=lambda item: item[1].wanted is not None):
        try:
            _carry_out(key, change, actor)
        except ValidationError as exc:
            raise ValidationError({name: exc.messages}) from exc
    return key


def foreseen(limits: Limits, key: ApiKey, changes: Iterable[LimitChange]) -> Limits:
    """``limits`` of ``key``, saved or not, with its own as they would be, in the present periods."""
    changes = list(changes)
    if not changes:
        return limits
    rows = [row for change in changes if (row := _row_of(key, change)) is not None]
    return as_if(limits, rows, {change.row.pk for change in changes if change.row is not None})


def counts_of(row: Row) -> str:
    """What a row counts: the unit of a budget, the measure of a rate limit."""
    return row.unit if isinstance(row, Budget) else row.measure


def only_lower(row: Row, bound: int) -> str:
    """What people are told who may only lower a limit."""
    told = amount_of(row, bound)
    return _("Somebody else has set this limit, so you can only lower it: %(bound)s.") % {"bound": told}


def length_of(row: Row) -> str:
    """The period of a budget as people write it; empty for a rate limit."""
    return row.length if isinstance(row, Budget) else ""


def told(row: Row) -> str:
    """A limit in words: ``the whole tenant: 1,000 requests a day``."""
    whose = {
        Scope.TENANT: _("the whole tenant"),
        Scope.TEAM: _("team %(name)s") % {"name": row.team},
        Scope.MEMBER: _("all keys of %(name)s") % {"name": row.member and row.member.user},
    }[Scope(row.scope)]
    return f"{whose}: {amount_of(row, row.limit or 0)}"


def amount_of(row: Row, limit: int) -> str:
    """So much of what a row limits, in words: ``1,000 requests a day``."""
    counts = counts_of(row)
    return f"{exactly(counts, limit)} {per(counts, length_of(row))}"


def exactly(counts: str, limit: int) -> str:
    """An amount of what a limit counts, to its last digit."""
    return MEASURES[counts].exactly(limit) if counts in MEASURES else grouped(limit)


def per(counts: str, period: str) -> str:
    """What stands behind such an amount: ``requests a day``, ``requests at one time``."""
    if period:
        return f"{MEASURES[counts].unit} {window_name(period)}"
    rate = RateLimit(measure=counts)
    return f"{unit_name(rate.unit)} {window_name(rate.length)}"


def _row_of(key: ApiKey, change: LimitChange) -> Row | None:
    """The limit as it would be, not saved; another period begins when the present one is over."""
    wanted = change.wanted
    if wanted is None:
        return None
    if change.row is not None:
        row = copy.copy(change.row)
        row.limit = wanted.limit
        return row
    own: dict[str, Any] = {"scope": Scope.KEY, "key": key, "tenant": key.tenant, "limit": wanted.limit}
    if not wanted.period:
        return RateLimit(measure=wanted.counts, **own)
    kind, seconds = kind_and_seconds(wanted.period)
    return Budget(unit=wanted.counts, period=kind, seconds=seconds, **own)


def _carry_out(key: ApiKey, change: LimitChange, actor: str) -> None:
    row, wanted = change.row, change.wanted
    if wanted is None:
        if isinstance(row, Budget):
            remove_budget(budget=row, actor=actor)
        elif row is not None:
            remove_rate_limit(rate_limit=row, actor=actor)
        return
    before = row.length if isinstance(row, Budget) else wanted.period
    if row is None or row.limit != wanted.limit:
        _set(key, OwnLimit(wanted.counts, wanted.limit, before), actor)
    if isinstance(row, Budget) and before != wanted.period:
        change_period(budget=row, period=wanted.period, actor=actor)


def _set(key: ApiKey, one: OwnLimit, actor: str) -> None:
    if one.period:
        set_budget(scope=Scope.KEY, key=key, unit=one.counts, period=one.period, limit=one.limit, actor=actor)
    else:
        set_rate_limit(scope=Scope.KEY, key=key, measure=one.counts, limit=one.limit, actor=actor)


def _refused(change: LimitChange, parents: list[Row], actor: str, *, lifts: bool) -> str:
    """Why a change is not to be made, a sentence; empty if it may be."""
    row, wanted = change.row, change.wanted
    bound = None if lifts or row is None else bound_by_others(row, actor)
    if row is None or bound is None:
        return "" if wanted is None else _above(parents, wanted)
    if wanted is None or wanted.period != length_of(row) or wanted.limit > bound:
        return only_lower(row, bound)
    return _above(parents, wanted)


def _above(parents: list[Row], one: OwnLimit) -> str:
    bound = bound_of(parents, one)
    if bound is None or bound.limit is None or one.limit <= bound.limit:
        return ""
    return _("This is above what holds for the key anyway: %(bound)s.") % {"bound": told(bound)}


def _length(row: Row) -> float:
    if isinstance(row, RateLimit):
        return 0
    return row.seconds or _SECONDS.get(PeriodKind(row.period), 0)


def _seconds_of(period: str) -> float:
    """How long a period lasts at most; of a rate limit, which has none, nothing."""
    if not period:
        return 0
    kind, seconds = kind_and_seconds(period)
    return seconds or _SECONDS[PeriodKind(kind)]
