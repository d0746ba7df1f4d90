"""What estimates are made by, to be read."""

from __future__ import annotations

from django.contrib import admin

from audit.admin import ReadOnlyAdmin
from budgets.models import Estimate
from budgets.usage import in_percent


@admin.register(Estimate)
class EstimateAdmin(ReadOnlyAdmin):
    """What was learned of the bytes that a model makes a token of, version by version."""

    list_display = [
        "model", "version", "side", "up_to_bytes", "bytes_per_token", "within", "calls", "published_at",
    ]  # fmt: skip
    list_filter = ["side"]
    search_fields = ["=model"]

    @admin.display(ordering="error_per_mille")
    def within(self, obj: Estimate) -> str:
        return f"± {in_percent(obj.error_per_mille)}"
