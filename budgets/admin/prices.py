"""Prices."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now

from audit.admin import ServiceAdmin
from budgets import services
from budgets.models import Price, UsageRollup
from tenants.forms import ModelNamesForm

PRICE_FIELDS = (
    "model", "tenant", "input_price", "cached_price", "output_price", "gpu_price", "starts_at", "free",
)  # fmt: skip


MOST_NAMED = 20


def unpriced_models() -> list[str]:
    """Models that were called in the last day and that no price of everybody's holds for now, by name."""
    called = UsageRollup.objects.filter(hour_start__gte=now() - timedelta(days=1)).order_by()
    priced = Price.objects.filter(tenant=None, starts_at__lte=now()).values("model")
    return sorted(called.exclude(model__in=priced).values_list("model", flat=True).distinct()[:MOST_NAMED])


@admin.register(Price)
class PriceAdmin(ServiceAdmin):
    """What models cost. A price is not changed: another one starts later."""

    form = ModelNamesForm
    fields = PRICE_FIELDS
    list_display = (*PRICE_FIELDS[:-2], "starts_at", "state")
    list_filter = ("free",)
    list_before_template = "admin/budgets/price/_unpriced.html"
    list_select_related = ["tenant"]
    search_fields = ["model", "tenant__slug"]
    autocomplete_fields = ["tenant"]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(request, (extra_context or {}) | {"unpriced": unpriced_models()})

    @admin.display(description="state")
    def state(self, obj: Price) -> str:
        """Whether it holds; the price of a model holds until another one of the same tenant starts."""
        if obj.starts_at > now():
            return "starts later"
        later = Price.objects.filter(model=obj.model, tenant=obj.tenant, starts_at__lte=now())
        newer = later.filter(starts_at__gt=obj.starts_at).order_by("starts_at").first()
        free = ", free" if obj.free else ""
        return f"replaced on {newer.starts_at:%Y-%m-%d}" if newer else f"holds{free}"

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in PRICE_FIELDS}
        obj.pk = services.set_price(actor=str(request.user), **values).pk

    def delete_model(self, request: HttpRequest, obj: Price) -> None:
        services.remove_price(price=obj, actor=str(request.user))
