"""The ledger and its sums, to be read."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from audit.admin import ReadOnlyAdmin
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
class LedgerEntryAdmin(ReadOnlyAdmin):
    """The truth; nobody changes it. Search: id of a request, tenant or key, or name of a model."""

    id_fields = ("request_id", "tenant_id", "key_id")
    list_display = [
        "ended_at", "kind", "tenant", "key", "model", "input_tokens", "output_tokens", "gpu_ms",
        "cost_micro_usd", "exact", "estimator", "outcome",
    ]  # fmt: skip
    list_filter = ["kind", "exact", "late", "on_credit", "operation"]
    # Not "model__exact": Django takes that for the field ``exact``.
    search_fields = ["=model"]
    readonly_fields = ["explained"]

    @admin.display(description="how its cost came about", empty_value="-")
    def explained(self, obj: LedgerEntry) -> str | None:
        """A link to the portal, where the lines of the cost are; none if the tenant is gone."""
        tenant = Tenant.objects.filter(pk=obj.tenant_id).first()
        if tenant is None:
            return None
        address = reverse("portal-request", args=[tenant.slug, obj.corrects or obj.request_id])
        return format_html('<a href="{}">line by line, in the portal</a>', address)


@admin.register(UsageRollup)
class UsageRollupAdmin(ReadOnlyAdmin):
    """The ledger by the hour. Search: id of a tenant or key, or name of a model."""

    id_fields = ("tenant_id", "key_id")
    list_display = [
        "hour_start", "tenant", "key", "model", "operation", "requests", "input_tokens", "output_tokens",
        "gpu_ms", "cost_micro_usd",
    ]  # fmt: skip
    search_fields = ["model__exact"]


@admin.register(BudgetPeriod)
class BudgetPeriodAdmin(ReadOnlyAdmin):
    """What the ledger says of each budget and period. Search: the whole id of a budget."""

    id_fields = ("budget_id",)
    list_display = ["budget_id", "period_start", "period_end", "used", "refused"]
    search_fields = ["budget_id"]


@admin.register(PeriodClosing)
class PeriodClosingAdmin(ReadOnlyAdmin):
    """What periods came to that are over. Search: the whole id of a budget or a tenant."""

    id_fields = ("budget_id", "tenant_id")
    list_display = [
        "budget", "period_start", "period_end", "limit_told", "used", "late", "refused", "closed_at",
    ]  # fmt: skip
    list_filter = ["shadow", "unit"]
    search_fields = ["budget_id"]

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
