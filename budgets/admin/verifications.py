"""Whether the books agree, to be read; and asking again."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import reverse

from audit.admin import ReadOnlyAdmin
from budgets import verdicts, verification
from budgets.models import Verification


@admin.register(Verification)
class VerificationAdmin(ReadOnlyAdmin):
    """What came of comparing the books, hour by hour; and asking again now."""

    list_display = [
        "at",
        "outcome",
        "scope",
        "found",
        "capture_rate",
        "waiting",
        "holds",
        "seconds",
        "asked_by",
    ]
    list_filter = ["outcome", "whole", "at"]
    fields = (
        "at",
        "outcome",
        "scope",
        "seconds",
        "asked_by",
        "figures_told",
        "differences_told",
        "unasked_told",
    )
    change_list_template = "admin/budgets/verification/change_list.html"

    def has_run_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.add_verification")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "POST" and "verify" in request.POST:
            return self._run(request)
        return super().changelist_view(
            request, (extra_context or {}) | {"may_run": self.has_run_permission(request)}
        )

    def _run(self, request: HttpRequest) -> HttpResponse:
        if not self.has_run_permission(request):
            raise PermissionDenied
        row = verification.verify_and_keep(part=verification.open_part(), asked_by=str(request.user))
        level = messages.SUCCESS if row.outcome == Verification.Outcome.AGREES else messages.ERROR
        self.message_user(request, f"{row.get_outcome_display()}.", level)
        return HttpResponseRedirect(reverse("admin:budgets_verification_change", args=[row.pk]))

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.fields

    @admin.display(description="capture rate")
    def capture_rate(self, row: Verification) -> str:
        return str(row.figures["capture_rate"] or "-")

    @admin.display(description="records waiting")
    def waiting(self, row: Verification) -> str:
        return verdicts.number(row.figures["waiting"])

    @admin.display(description="unsettled calls")
    def holds(self, row: Verification) -> str:
        return verdicts.number(row.figures["holds"])

    @admin.display(description="figures")
    def figures_told(self, row: Verification) -> str:
        return render_to_string(
            "admin/budgets/verification/_figures.html",
            {"figures": verdicts.figures_in_words(row), "tenants": verdicts.tenants_in_words(row)},
        )

    @admin.display(description="differences")
    def differences_told(self, row: Verification) -> str:
        return render_to_string(
            "admin/budgets/verification/_differences.html",
            {"differences": row.differences, "more": row.found - len(row.differences)},
        )

    @admin.display(description="not compared")
    def unasked_told(self, row: Verification) -> str:
        return "; ".join(f"{check}: {why}" for check, why in row.unasked.items()) or "-"
