"""Requests for more of a limit."""

from __future__ import annotations

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html

from audit.admin import ReadOnlyAdmin
from budgets.models import WITH_ITS_LIMIT, RaiseRequest


@admin.register(RaiseRequest)
class RaiseRequestAdmin(ReadOnlyAdmin):
    """Who asked for more of which limit, and what became of it. It is decided on the request's page."""

    id_fields = ("pk", "budget_id", "rate_limit_id", "request_id")
    list_display = ["asked_at", "tenant", "row", "asked_by", "to", "until", "state", "decided_by"]
    list_select_related = ["tenant", "asked_by", *WITH_ITS_LIMIT]
    list_filter = ["state"]
    search_fields = ["tenant__slug", "asked_by__username", "reason"]
    fields = (
        "page", "tenant", "row", "asked_by", "asked_at", "to", "until", "reason", "request_id", "state",
        "decided_by", "decided_at", "answer", "raised",
    )  # fmt: skip
    readonly_fields = ("page", "row")

    @admin.display(description="limit")
    def row(self, obj: RaiseRequest) -> str:
        return str(obj.row)

    @admin.display(description="decide")
    def page(self, obj: RaiseRequest) -> str:
        there = reverse("portal-raise", args=[obj.tenant.slug, obj.pk])
        return format_html('<a href="{}">Its page in the portal</a>', there)
