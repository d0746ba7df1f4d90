"""Closed months, their statements, and what is archived."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget, UnfoldBooleanSwitchWidget

from audit.admin import ReadOnlyAdmin, ask_reason
from budgets.models import ArchivedMonth, ClosedMonth, Statement
from budgets.month_closing import (
    close_month,
    confirm_reopening,
    outlook,
    reopening_asked,
    request_reopening,
)
from budgets.open_months import month_written
from budgets.papers import KINDS, paper
from budgets.pricing import usd_in_full
from tenants.models import Tenant
from tenants.redis import RedisError


class WhichMonthForm(forms.Form):
    """A tenant and a month of its."""

    tenant = forms.ModelChoiceField(
        Tenant.objects.order_by("slug"),
        to_field_name="slug",
        widget=UnfoldAdminSelectWidget,
        help_text="Whose month it is, by slug.",
    )
    month = forms.CharField(
        widget=UnfoldAdminTextInputWidget(attrs={"type": "month", "placeholder": "2026-10"}),
        help_text="One that is over in the tenant's time zone: 2026-10.",
    )
    despite_parked = forms.BooleanField(
        required=False,
        label="Leave parked records out",
        widget=UnfoldBooleanSwitchWidget,
        help_text="Booked later, they are late usage.",
    )

    def clean_month(self) -> Any:
        try:
            return month_written(self.cleaned_data["month"])
        except ValueError as exc:
            raise ValidationError(str(exc)) from exc


@admin.register(ClosedMonth)
class ClosedMonthAdmin(ReadOnlyAdmin):
    """Months are closed here, after a look at what that comes to, and opened again by two people."""

    id_fields = ("tenant_id",)
    list_display = ["__str__", "state", "number", "entries", "closed_at", "closed_by", "reason"]
    date_hierarchy = "month"
    list_select_related = ["statement"]
    search_fields = ["tenant__exact"]
    search_help_text = "Whole slug of a tenant, or its id"
    actions = ["ask_reopening", "agree_to_reopening"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.close_month")

    def has_reopen_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.reopen_month")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ClosedMonth]:
        return super().get_queryset(request).defer("statement__csv", "statement__pdf", "statement__lines")

    @admin.display(description="statement")
    def number(self, closing: ClosedMonth) -> str:
        return closing.statement.number

    @admin.display(description="state")
    def state(self, closing: ClosedMonth) -> str:
        if closing.reopened_at is not None:
            return f"opened again by {closing.reopening_asked_by} and {closing.reopened_by}"
        if reopening_asked(closing):
            return f"closed; {closing.reopening_asked_by} asks to open it: {closing.reopening_reason}"
        return "closed"

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Which month; then what closing it comes to; then, with a reason, it is closed."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        asked = request.POST or request.GET
        form = WhichMonthForm(asked if "month" in asked else None)
        seen = None
        if form.is_valid():
            try:
                if request.method == "POST":
                    return self._close(request, form.cleaned_data)
                seen = outlook(**form.cleaned_data)
            except ValidationError as exc:
                form.add_error(None, exc)
            except RedisError:
                form.add_error(None, "Nobody knows whether all is booked: Redis cannot be asked.")
        context = {
            **self.admin_site.each_context(request),
            "title": "Close a month",
            "opts": self.opts,
            "form": form,
            "seen": seen,
            "cost": usd_in_full(seen.totals["cost_micro_usd"]) if seen else None,
        }
        return TemplateResponse(request, "admin/budgets/closedmonth/close.html", context)

    def _close(self, request: HttpRequest, which: dict[str, Any]) -> HttpResponse:
        reason = request.POST.get("reason", "").strip()
        statement = close_month(**which, actor=str(request.user), reason=reason)
        self.message_user(
            request,
            f"Closed {statement.closing}: statement {statement.number}, {statement.cost} USD.",
            messages.SUCCESS,
        )
        return HttpResponseRedirect(reverse("admin:budgets_statement_change", args=[statement.pk]))

    @admin.action(description="Ask that selected months be opened again", permissions=["reopen"])
    def ask_reopening(self, request: HttpRequest, closings: QuerySet[ClosedMonth]) -> HttpResponse | None:
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return ask_reason(self, request, closings, action="ask_reopening", title="Ask for reopening")
        for closing in closings:
            try:
                request_reopening(closing=closing, actor=str(request.user), reason=reason)
            except ValidationError as exc:
                self.message_user(request, " ".join(exc.messages), messages.ERROR)
            else:
                self.message_user(
                    request, f"Asked for {closing}. Another person has a day to agree.", messages.SUCCESS
                )
        return None

    @admin.action(description="Agree that selected months are opened again", permissions=["reopen"])
    def agree_to_reopening(
        self, request: HttpRequest, closings: QuerySet[ClosedMonth]
    ) -> HttpResponse | None:
        if "agreed" not in request.POST:
            context = {
                **self.admin_site.each_context(request),
                "title": "Agree that months are opened again",
                "opts": self.opts,
                "closings": closings,
                "checkbox": ACTION_CHECKBOX_NAME,
            }
            return TemplateResponse(request, "admin/budgets/closedmonth/agree.html", context)
        for closing in closings:
            try:
                confirm_reopening(closing=closing, actor=str(request.user))
            except ValidationError as exc:
                self.message_user(request, " ".join(exc.messages), messages.ERROR)
            else:
                self.message_user(request, f"Opened {closing} again.", messages.SUCCESS)
        return None


@admin.register(Statement)
class StatementAdmin(ReadOnlyAdmin):
    """What closed months came to, as it was told to tenants."""

    id_fields = ("tenant_id",)
    list_display = ["number", "tenant", "month", "revision", "requests", "cost", "replaced_by", "papers"]
    date_hierarchy = "month"
    list_select_related = ["replaced_by"]
    search_fields = ["number__exact", "tenant__exact"]
    search_help_text = "Whole number of a statement, whole slug of a tenant, or its id"
    fields = [
        "number", "revision", "replaces", "issuer", "tenant", "tenant_name", "tenant_id", "month",
        "time_zone", "requests", "input_tokens", "cached_tokens", "output_tokens", "thinking_tokens",
        "estimated_tokens", "gpu_ms", "cost", "csv_sha256", "pdf_sha256", "drawn_at", "papers",
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Statement]:
        heavy = [f"{of}{name}" for of in ("", "replaced_by__") for name in ("csv", "pdf", "lines", "prices")]
        return super().get_queryset(request).defer(*heavy)

    def get_urls(self) -> list[Any]:
        papers = [
            path(
                f"<int:pk>/statement.{kind}",
                self.admin_site.admin_view(self.paper_view),
                {"kind": kind},
                name=f"budgets_statement_{kind}",
            )
            for kind in KINDS
        ]
        return papers + super().get_urls()

    def paper_view(self, request: HttpRequest, pk: int, kind: str) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return paper(get_object_or_404(Statement, pk=pk), kind)

    @admin.display(description="papers")
    def papers(self, statement: Statement) -> str:
        pdf, csv = (reverse(f"admin:budgets_statement_{kind}", args=[statement.pk]) for kind in KINDS)
        return format_html('<a href="{}">PDF</a> <a href="{}">CSV</a>', pdf, csv)

    @admin.display(description="replaced by")
    def replaced_by(self, statement: Statement) -> str:
        return statement.replaced_by.number if hasattr(statement, "replaced_by") else ""


@admin.register(ArchivedMonth)
class ArchivedMonthAdmin(ReadOnlyAdmin):
    """Months whose rows lie in files."""

    list_display = ["table", "month", "file", "rows", "sha256", "archived_at"]
    search_fields = ["file"]
