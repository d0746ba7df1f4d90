"""Prices."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from budgets import services
from budgets.models import (
    Price,
)

PRICE_FIELDS = (
    "model", "tenant", "input_price", "cached_price", "output_price", "gpu_price", "starts_at", "free",
)  # fmt: skip


@admin.register(Price)
class PriceAdmin(admin.ModelAdmin):
    """What models cost. A price is not changed: another one starts later."""

    fields = PRICE_FIELDS
    list_display = PRICE_FIELDS
    list_select_related = ["tenant"]
    search_fields = ["model", "tenant__slug"]
    autocomplete_fields = ["tenant"]
    show_full_result_count = False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in PRICE_FIELDS}
        obj.pk = services.set_price(actor=str(request.user), **values).pk

    def delete_model(self, request: HttpRequest, obj: Price) -> None:
        services.remove_price(price=obj, actor=str(request.user))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> None:
        for price in queryset:
            self.delete_model(request, price)
