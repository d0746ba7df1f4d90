"""Keys issued together with limits of their own, which are never above those that hold for them anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from budgets.key_limits import MEASURES
from budgets.models import Budget, PeriodKind, Scope
from budgets.services import set_budget
from budgets.words import window_name
from keys.models import ApiKey
from keys.services import issue_key
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


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """A limit that a key is to have: so much of ``unit`` in each ``period``, a kind of calendar period."""

    unit: str
    period: str
    limit: int


def parents_of(
    tenant: Tenant, member: Member | None = None, service_account: ServiceAccount | None = None
) -> list[Budget]:
    """The budgets that would hold for a key of this owner besides its own, of tenant, team and member."""
    holder = member or service_account
    whose = Q(scope=Scope.TENANT) | Q(scope=Scope.MEMBER, member=member)
    if holder is not None and holder.team_id is not None:
        whose |= Q(scope=Scope.TEAM, team=holder.team_id)
    rows = Budget.objects.filter(whose, tenant=tenant, shadow=False, limit__isnull=False)
    return list(rows.select_related("tenant", "team", "member__user").order_by("scope", "unit", "limit"))


def bound_of(parents: Iterable[Budget], unit: str, period: str) -> Budget | None:
    """The parent with the least limit that a key's limit of ``unit`` in each ``period`` could not pass.

    What holds for a longer time holds for each shorter one within it.
    """
    bounds = [
        one
        for one in parents
        if one.unit == unit and one.limit is not None and _length(one) >= _SECONDS[PeriodKind(period)]
    ]
    return min(bounds, key=lambda one: one.limit or 0, default=None)


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
    """``keys.services.issue_key``, and the budgets of the new key in the same transaction.

    Raises ``ValidationError`` as that does, and by its unit for a limit above one of the parents'.
    """
    parents = parents_of(tenant, member, service_account)
    above = {one.unit: _above(bound) for one in limits if (bound := _passed(parents, one)) is not None}
    if above:
        raise ValidationError(above)
    key, secret = issue_key(
        tenant=tenant, member=member, service_account=service_account, actor=actor, **settings
    )
    for one in limits:
        set_budget(scope=Scope.KEY, key=key, unit=one.unit, period=one.period, limit=one.limit, actor=actor)
    return key, secret


def told(budget: Budget) -> str:
    """A budget in words: ``the whole tenant: 1,000 requests a day``."""
    whose = {
        Scope.TENANT: _("the whole tenant"),
        Scope.TEAM: _("team %(name)s") % {"name": budget.team},
        Scope.MEMBER: _("all keys of %(name)s") % {"name": budget.member and budget.member.user},
    }[Scope(budget.scope)]
    measure = MEASURES[budget.unit]
    amount = measure.exactly(budget.limit or 0)
    return f"{whose}: {amount} {measure.unit} {window_name(budget.length)}"


def _passed(parents: list[Budget], one: OwnLimit) -> Budget | None:
    bound = bound_of(parents, one.unit, one.period)
    return bound if bound is not None and bound.limit is not None and one.limit > bound.limit else None


def _above(bound: Budget) -> str:
    return _("This is above what holds for the key anyway: %(bound)s.") % {"bound": told(bound)}


def _length(budget: Budget) -> float:
    return budget.seconds or _SECONDS.get(PeriodKind(budget.period), 0)
