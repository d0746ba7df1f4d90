"""Tenants with what they use: the page of the layers below, and what only the books know."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Model, Sum
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.timezone import now

from budgets.models import Budget, Scope, UsageRollup
from budgets.money import usd_total
from budgets.standing import Standing, standings
from budgets.words import amount
from keys.tenant_actions import TenantActions
from tenants.models import Tenant
from tenants.redis import RedisError

# Of more budgets the list says nothing; a page of one tenant does.
MOST_BUDGETS = 5_000

# What a tenant has elsewhere: the list, what it is called, and how it is narrowed to the tenant.
ELSEWHERE = [
    ("keys_apikey", "Keys", "tenant__id__exact"),
    ("budgets_budget", "Budgets", "tenant__id__exact"),
    ("budgets_ratelimit", "Rate limits", "tenant__id__exact"),
    ("budgets_price", "Prices of its own", "tenant__id__exact"),
    ("tenants_member", "Members", "tenant__id__exact"),
    ("tenants_team", "Teams", "tenant__id__exact"),
    ("budgets_recipient", "Recipients of notices", "tenant__id__exact"),
    ("audit_requestevent", "Requests", "tenant_id"),
    ("budgets_ledgerentry", "Ledger", "tenant_id"),
    ("budgets_usagerollup", "Use by the hour", "tenant_id"),
    ("audit_auditevent", "Audit", "tenant_id"),
]

admin.site.unregister(Tenant)


@admin.register(Tenant)
class TenantWithUseAdmin(TenantActions):
    """Tenants with their state, what they used today, and how near their tightest budget is to its end."""

    readonly_fields = [*TenantActions.readonly_fields, "stands", "elsewhere"]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Columns of what was used today, which is asked for once and not row by row."""
        if not hasattr(request, "told_use"):
            request.told_use = _columns(_used_today(), _tightest())  # type: ignore[attr-defined]
        return ["slug", "name", "state", *request.told_use, "time_zone", "created_at"]  # type: ignore[attr-defined]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        return [*fields, "stands", "elsewhere"] if obj else fields

    @admin.display(description="budgets of the whole tenant")
    def stands(self, obj: Tenant) -> str:
        budgets = Budget.objects.filter(scope=Scope.TENANT, tenant=obj).exclude(limit=None)
        try:
            found = standings(list(budgets.select_related("tenant").prefetch_related("raises")))
        except RedisError:
            return "unknown: Redis cannot be asked"
        context = {"budgets": [(stand, _told(stand)) for stand in found]}
        return render_to_string("admin/tenants/tenant/_budgets.html", context)

    @admin.display(description="what it has elsewhere")
    def elsewhere(self, obj: Tenant) -> str:
        links = [
            (called, f"{reverse(f'admin:{page}_changelist')}?{narrowed}={obj.pk}")
            for page, called, narrowed in ELSEWHERE
        ]
        # As it is saved: while a form is put right the slug may be none.
        slug = Tenant.objects.get(pk=obj.pk).slug
        links.append(("Its portal", reverse("portal-tenant", args=[slug])))
        return render_to_string("admin/tenants/tenant/_elsewhere.html", {"links": links})


def _used_today() -> dict[UUID, dict[str, int]]:
    """Cost and tokens of each tenant since midnight of UTC."""
    today = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageRollup.objects.filter(hour_start__gte=today).order_by().values("tenant_id")
    sums = rows.annotate(cost=Sum("cost_micro_usd"), tokens=Sum("input_tokens") + Sum("output_tokens"))
    return {row["tenant_id"]: {"cost": row["cost"], "tokens": row["tokens"]} for row in sums}


def _tightest() -> dict[UUID | None, Standing]:
    """Of each tenant its own budget that is used most; none if Redis is away, or there are too many."""
    rows = Budget.objects.filter(scope=Scope.TENANT).exclude(limit=None)
    budgets = list(rows.select_related("tenant").prefetch_related("raises")[: MOST_BUDGETS + 1])
    if len(budgets) > MOST_BUDGETS:
        return {}
    try:
        found = sorted(standings(budgets), key=lambda stand: stand.percent or 0)
    except RedisError:
        return {}
    return {stand.budget.tenant_id: stand for stand in found}


def _columns(
    used: dict[UUID, dict[str, int]], tightest: dict[UUID | None, Standing]
) -> list[Callable[[Tenant], str | None]]:
    @admin.display(description="cost today (UTC)")
    def cost(obj: Tenant) -> str:
        return usd_total(used[obj.pk]["cost"]) if obj.pk in used else usd_total(0)

    @admin.display(description="tokens today (UTC)")
    def tokens(obj: Tenant) -> str:
        return f"{used[obj.pk]['tokens'] if obj.pk in used else 0:,}"

    @admin.display(description="tightest budget", empty_value="-")
    def budget(obj: Tenant) -> str | None:
        stand = tightest.get(obj.pk)
        return None if stand is None else f"{stand.percent} % of {_told(stand)}"

    return [cost, tokens, budget]


def _told(stand: Standing) -> str:
    unit = stand.budget.unit
    return f"{amount(stand.limit or 0, unit)} {stand.budget.get_unit_display().lower()} per {stand.length}"
