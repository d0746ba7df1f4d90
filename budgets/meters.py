"""How far budgets are used, as the live meters of the portal show it.

A live view tells by itself since when it is old, so the ledger never stands in
for the counters here. Limits that a page reads once, and calculates with, are
those of ``limits_seen`` and ``key_limits``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from budgets.limits import with_raises
from budgets.models import Budget, Scope, Unit
from budgets.standing import Standing, standings
from budgets.words import UNITS, amount
from keys.models import ApiKey
from tenants.access import Access, Reach
from tenants.charts import SECONDS

# Amounts stand here with the sign of what they are in.
WHAT = {**UNITS, Unit.MICRO_USD: gettext_lazy("cost"), Unit.GPU_MS: gettext_lazy("GPU time")}
PRESENT: dict[str, Promise] = {
    "hour": gettext_lazy("this hour"),
    "day": gettext_lazy("today"),
    "week": gettext_lazy("this week"),
    "month": gettext_lazy("this month"),
    "year": gettext_lazy("this year"),
    "lifetime": gettext_lazy("for good"),
}
# The nearest first.
SCOPES = [Scope.KEY, Scope.MEMBER, Scope.TEAM, Scope.TENANT]


@dataclass(frozen=True, slots=True)
class Meter:
    """One budget in its present period; amounts in words, to the last digit.

    ``percent`` is how much is used or held, rounded down, 100 at most; None
    without a limit. ``ends_at`` None: it is never whole again.
    """

    whose: str
    what: str
    used: str
    held: str
    left: str
    limit: str
    percent: int | None
    ends_at: datetime | None
    shadow: bool


@dataclass(frozen=True, slots=True)
class Metered:
    """Whose budgets a meter shows: a tenant's, and of it a team's, a member's and a key's."""

    tenant_id: UUID
    team_id: UUID | None = None
    member_id: UUID | None = None
    key_id: UUID | None = None


def metered_key(access: Access, key_id: UUID) -> Metered | None:
    """What the meter of a key shows a person; None: it is no key whose usage they may read."""
    key = ApiKey.objects.filter(tenant=access.tenant, pk=key_id).select_related("member").first()
    return None if key is None else metered_by(access, key)


def metered_by(access: Access, key: ApiKey) -> Metered | None:
    """The same for a key of the tenant that is at hand."""
    own = access.member is not None and key.member_id == access.member.pk
    if access.usage != Reach.WHOLE_TENANT and not own:
        return None
    return Metered(key.tenant_id, key.member.team_id if key.member else None, key.member_id, key.pk)


def metered_person(access: Access) -> Metered | None:
    """What the meter of a tenant shows a person: its budgets and their own; None: nothing."""
    if access.usage == Reach.NOTHING:
        return None
    if access.member is None:
        return Metered(access.tenant.pk)
    return Metered(access.tenant.pk, access.member.team_id, access.member.pk)


def meters(metered: Metered) -> list[Meter]:
    """How these budgets stand, the nearest first. Raises ``RedisError``."""
    return meters_of(standings(budgets_of(metered)))


def budgets_of(metered: Metered) -> list[Budget]:
    """The budgets that a meter shows."""
    ours = Q(scope=Scope.TENANT)
    if metered.team_id is not None:
        ours |= Q(scope=Scope.TEAM, team=metered.team_id)
    if metered.member_id is not None:
        ours |= Q(scope=Scope.MEMBER, member=metered.member_id)
    if metered.key_id is not None:
        ours |= Q(scope=Scope.KEY, key=metered.key_id)
    rows = Budget.objects.filter(ours, tenant=metered.tenant_id)
    return list(with_raises(rows.select_related("tenant", "team", "member__user", "key")))


def meters_of(found: Iterable[Standing]) -> list[Meter]:
    """The meters of budgets that stand like this, the nearest first; of the tenant's own, down to a key's."""
    ours = [one for one in found if one.budget.scope in SCOPES]
    ours.sort(key=lambda one: (SCOPES.index(Scope(one.budget.scope)), one.budget.unit, str(one.budget)))
    return [_meter(one) for one in ours]


def _meter(one: Standing) -> Meter:
    row, limit = one.budget, one.limit
    return Meter(
        whose=_whose(row),
        what=f"{WHAT[row.unit]}, {PRESENT.get(row.period) or _('in %(length)s') % {'length': one.length}}",
        used=_amount(one.used, row.unit),
        held=_amount(one.held, row.unit),
        left="" if one.left is None else _amount(max(0, one.left), row.unit),
        limit="" if limit is None else _amount(limit, row.unit),
        percent=one.percent,
        ends_at=one.ends_at,
        shadow=row.shadow,
    )


def _whose(row: Budget) -> str:
    match Scope(row.scope):
        case Scope.KEY:
            return _("This key")
        case Scope.MEMBER:
            return _("%(name)s, all keys") % {"name": row.member and row.member.user}
        case Scope.TEAM:
            return _("Team %(name)s") % {"name": row.team}
        case _:
            return _("The whole tenant")


def _amount(number: int, unit: str) -> str:
    return f"{SECONDS.exactly(number)} s" if unit == Unit.GPU_MS else amount(number, unit)
