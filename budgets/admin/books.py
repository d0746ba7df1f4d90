"""The ledger and its sums, to be read."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from audit.admin import ReadOnlyAdmin
from audit.growing import GrowingList, among_newest, narrowing, uuid_in, when
from budgets.admin.finding import FINDS, calls_found, tenant_called
from budgets.admin.limits import told
from budgets.models import (
    BudgetPeriod,
    LedgerEntry,
    ParkedRecord,
    PeriodClosing,
    UsageRollup,
)
from tenants.models import Tenant


@admin.register(LedgerEntry)
class LedgerEntryAdmin(GrowingList, ReadOnlyAdmin):
    """The truth; nobody changes it."""

    newest_by = "ended_at"
    list_display = [
        "ended_at", "kind", "tenant", "key", "model", "input_tokens", "output_tokens", "gpu_ms",
        "cost_micro_usd", "exact", "estimator", "outcome",
    ]  # fmt: skip
    list_filter = [
        narrowing("tenant_id", "tenant"),
        narrowing("key_id", "key"),
        when("ended_at"),
        among_newest("kind", "kind", {kind: (kind, Q(kind=kind)) for kind in LedgerEntry.Kind.values}),
        among_newest(
            "marked",
            "mark",
            {
                "estimated": ("Estimated", Q(exact=False)),
                "late": ("Settled late", Q(late=True)),
                "credit": ("On credit", Q(on_credit=True)),
                "unpriced": ("Without a price", Q(price_id=None)),
            },
        ),
    ]
    search_help_text = FINDS
    compared = ("model", "run", "outcome", "tenant", "key")
    readonly_fields = ["explained"]

    def found(self, rows: QuerySet[LedgerEntry], term: str) -> QuerySet[LedgerEntry] | None:
        return calls_found(rows, term)

    @admin.display(description="how its cost came about", empty_value="-")
    def explained(self, obj: LedgerEntry) -> str | None:
        """A link to the portal, where the lines of the cost are; none if the tenant is gone."""
        tenant = Tenant.objects.filter(pk=obj.tenant_id).first()
        if tenant is None:
            return None
        address = reverse("portal-request", args=[tenant.slug, obj.corrects or obj.request_id])
        return format_html('<a href="{}">line by line, in the portal</a>', address)


@admin.register(UsageRollup)
class UsageRollupAdmin(GrowingList, ReadOnlyAdmin):
    """The ledger by the hour."""

    newest_by = "hour_start"
    list_display = [
        "hour_start", "tenant", "key", "model", "operation", "route_known", "requests", "input_tokens",
        "output_tokens", "gpu_ms", "cost_micro_usd",
    ]  # fmt: skip
    list_filter = [narrowing("tenant_id", "tenant"), when("hour_start")]
    search_help_text = "Slug or id of a tenant, or a whole model, key, operation or route"
    compared = ("model", "key", "operation", "route")

    def found(self, rows: QuerySet[UsageRollup], term: str) -> QuerySet[UsageRollup] | None:
        tenant = tenant_called(term)
        return None if tenant is None else rows.filter(tenant_id=tenant)

    @admin.display(description="route", empty_value="not known")
    def route_known(self, obj: UsageRollup) -> str | None:
        """The route; none of what was archived before rollups had one."""
        return obj.route or None


@admin.register(BudgetPeriod)
class BudgetPeriodAdmin(GrowingList, ReadOnlyAdmin):
    """What the ledger says of each budget and period."""

    newest_by = "period_end"
    list_display = ["budget_id", "run", "period_start", "period_end", "used", "refused"]
    list_filter = [when("period_end")]
    search_help_text = "Whole id of a budget, or a whole run"
    compared = ("run",)

    def found(self, rows: QuerySet[BudgetPeriod], term: str) -> QuerySet[BudgetPeriod] | None:
        budget_id = uuid_in(term)
        return rows.filter(budget_id=budget_id) if budget_id else None


@admin.register(PeriodClosing)
class PeriodClosingAdmin(GrowingList, ReadOnlyAdmin):
    """What periods came to that are over."""

    newest_by = "period_end"
    list_display = [
        "budget", "period_start", "period_end", "limit_told", "used", "late", "refused", "closed_at",
    ]  # fmt: skip
    list_filter = [
        narrowing("tenant_id", "tenant"),
        when("period_end"),
        among_newest(
            "over",
            "outcome",
            {"over": ("Refused calls", Q(refused__gt=0)), "shadow": ("Shadow", Q(shadow=True))},
        ),
    ]
    search_help_text = "Slug or id of a tenant, or the whole id of a budget"
    compared = ("budget__startswith",)

    def found(self, rows: QuerySet[PeriodClosing], term: str) -> QuerySet[PeriodClosing] | None:
        tenant, budget_id = tenant_called(term), uuid_in(term)
        if tenant is not None:
            return rows.filter(tenant_id=tenant)
        return rows.filter(budget_id=budget_id) if budget_id else None

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodClosing]:
        return super().get_queryset(request).prefetch_related("late_usage")

    @admin.display(description="limit", ordering="limit")
    def limit_told(self, obj: PeriodClosing) -> str:
        return told(obj.limit)

    @admin.display(description="booked later")
    def late(self, obj: PeriodClosing) -> int:
        return sum(late.used for late in obj.late_usage.all())


@admin.register(ParkedRecord)
class ParkedRecordAdmin(ReadOnlyAdmin):
    """Usage records that could not be booked; each needs a person."""

    list_display = ["parked_at", "stream_id", "reason"]
    search_fields = ["stream_id"]
