"""Requests for more of a budget."""

from __future__ import annotations

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html

from audit.admin import ReadOnlyAdmin
from budgets.models import RaiseRequest


@admin.register(RaiseRequest)
class RaiseRequestAdmin(ReadOnlyAdmin):
    """Who asked for more of which budget, and what became of it. It is decided on the request's page."""

    id_fields = ("pk", "budget_id", "request_id")
    list_display = ["asked_at", "tenant", "budget", "asked_by", "to", "until", "state", "decided_by"]
    list_select_related = [
        "tenant", "asked_by", "budget__tenant", "budget__team", "budget__member__user",
        "budget__member__tenant", "budget__key",
    ]  # fmt: skip
    list_filter = ["state"]
    search_fields = ["tenant__slug", "asked_by__username", "reason"]
    fields = (
        "page", "tenant", "budget", "asked_by", "asked_at", "to", "until", "reason", "request_id", "state",
        "decided_by", "decided_at", "answer", "raised",
    )  # fmt: skip
    readonly_fields = ("page",)

    @admin.display(description="decide")
    def page(self, obj: RaiseRequest) -> str:
        there = reverse("portal-raise", args=[obj.tenant.slug, obj.pk])
        return format_html('<a href="{}">Its page in the portal</a>', there)
