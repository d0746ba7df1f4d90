"""What upstreams cost, the report of a month, and decisions on proposed prices."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.management.base import CommandError
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path

from audit.admin import ReadOnlyAdmin, ServiceAdmin
from budgets import price_proposals, price_report, services
from budgets.commands import month_written
from budgets.forms import AcceptForm, DecisionForm
from budgets.internal_prices import hourly_cost, rounded
from budgets.models import PriceProposal, UpstreamCost
from budgets.money import price_told, usd, usd_total

COST_FIELDS = (
    "upstream", "hardware_price", "life_months", "busy_watts", "idle_watts", "kwh_price",
    "other_per_month", "gpus", "starts_at",
)  # fmt: skip
HOURS_IN_THIRTY_DAYS = 720


@admin.register(UpstreamCost)
class UpstreamCostAdmin(ServiceAdmin):
    """What upstreams cost, and the report of a month. A cost is not changed: another one starts later."""

    fields = COST_FIELDS
    list_display = [
        "upstream", "starts_at", "hardware", "life_months", "other", "busy_watts", "idle_watts", "kwh",
        "gpus", "busy_hour", "idle_hour",
    ]  # fmt: skip
    search_fields = ["upstream"]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    @admin.display(description="hardware", ordering="hardware_price")
    def hardware(self, obj: UpstreamCost) -> str:
        return usd_total(obj.hardware_price)

    @admin.display(description="other, a month", ordering="other_per_month")
    def other(self, obj: UpstreamCost) -> str:
        return usd_total(obj.other_per_month)

    @admin.display(description="a kWh", ordering="kwh_price")
    def kwh(self, obj: UpstreamCost) -> str:
        return usd(obj.kwh_price)

    @admin.display(description="a busy hour, of 30 days")
    def busy_hour(self, obj: UpstreamCost) -> str:
        return usd(rounded(hourly_cost(obj, HOURS_IN_THIRTY_DAYS).busy))

    @admin.display(description="an idle hour, of 30 days")
    def idle_hour(self, obj: UpstreamCost) -> str:
        return usd(rounded(hourly_cost(obj, HOURS_IN_THIRTY_DAYS).idle))

    def save_model(self, request: HttpRequest, obj: UpstreamCost, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in COST_FIELDS}
        obj.pk = services.set_upstream_cost(actor=str(request.user), **values).pk

    def delete_model(self, request: HttpRequest, obj: UpstreamCost) -> None:
        services.remove_upstream_cost(cost=obj, actor=str(request.user))

    def get_urls(self) -> list[Any]:
        month = self.admin_site.admin_view(self.month_view)
        return [path("month/", month, name="budgets_upstreamcost_month"), *super().get_urls()]

    def month_view(self, request: HttpRequest) -> HttpResponse:
        """The report of a month, the last one if none is named, and the button that proposes its prices."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = request.GET.get("month", "")
        try:
            month = month_written(asked) if asked else price_proposals.last_month()
        except CommandError as exc:
            raise Http404(str(exc)) from exc
        may_propose = request.user.has_perm("budgets.decide_priceproposal")
        if request.method == "POST":
            if not may_propose:
                raise PermissionDenied
            return self._propose(request, month)
        report = price_report.report_of(month)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Internal prices, {month:%B %Y}",
            "opts": self.opts,
            "month": month,
            "tables": [
                ("Upstreams", price_report.upstream_table(report)),
                ("Models", price_report.model_table(report)),
                ("A million tokens and a second of GPU time", price_report.price_table(report)),
            ],
            "notes": price_report.notes(report),
            "may_propose": may_propose and report.costs.complete,
        }
        return TemplateResponse(request, "admin/budgets/upstreamcost/month.html", context)

    def _propose(self, request: HttpRequest, month: date) -> HttpResponse:
        try:
            answers = price_proposals.propose(month=month, actor=str(request.user))
        except ValidationError as exc:
            self.message_user(request, " ".join(exc.messages), messages.ERROR)
        else:
            made = sum(answer.made for answer in answers)
            self.message_user(request, f"New proposals: {made}. None changes a price before it is accepted.")
        return HttpResponseRedirect(request.get_full_path())


@admin.register(PriceProposal)
class PriceProposalAdmin(ReadOnlyAdmin):
    """Prices that follow from what a month cost. They are accepted or declined here, and never changed."""

    list_display = [
        "model", "month", "state", "proposed", "present", "calls", "cost", "proposed_at", "decided_by",
    ]  # fmt: skip
    list_filter = ["state"]
    date_hierarchy = "month"
    search_fields = ["model__startswith", "decided_by__startswith"]
    search_help_text = "Beginning of the name of a model, or of who decided"
    fields = [
        "model", "month", "state", "proposed", "present", "cost", "calls", "timed_calls", "input_tokens",
        "cached_tokens", "output_tokens", "gpu_ms", "costs", "proposed_at", "proposed_by", "decided_at",
        "decided_by", "reason", "price_id", "starts_at",
    ]  # fmt: skip
    actions = ["accept", "decline"]

    def has_decide_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.decide_priceproposal")

    @admin.display(description="proposed price")
    def proposed(self, obj: PriceProposal) -> str:
        return price_told(obj)

    @admin.display(description="price when it was proposed", empty_value="none")
    def present(self, obj: PriceProposal) -> str | None:
        present = obj.present
        return None if present is None else price_told(present)

    @admin.display(description="cost", ordering="cost_micro_usd")
    def cost(self, obj: PriceProposal) -> str:
        return usd_total(obj.cost_micro_usd)

    @admin.action(description="Accept selected proposals", permissions=["decide"])
    def accept(self, request: HttpRequest, proposals: QuerySet[PriceProposal]) -> HttpResponse | None:
        asked = "reason" in request.POST
        starts_at = price_proposals.next_start()
        form = AcceptForm(request.POST if asked else None, initial={"starts_at": starts_at})
        if asked and form.is_valid():
            given = form.cleaned_data
            self._take(
                request,
                proposals,
                lambda one: price_proposals.accept_price(
                    proposal=one,
                    actor=str(request.user),
                    reason=given["reason"],
                    starts_at=given["starts_at"],
                ),
            )
            return None
        if asked:
            starts_at = form.cleaned_data.get("starts_at") or starts_at
        effects = [
            (one, price_proposals.effect_in_words(one, price_proposals.effect_of(one, starts_at)))
            for one in proposals
        ]
        return self._ask(request, "Accept proposed prices", "accept", form, effects, shown=starts_at)

    @admin.action(description="Decline selected proposals", permissions=["decide"])
    def decline(self, request: HttpRequest, proposals: QuerySet[PriceProposal]) -> HttpResponse | None:
        asked = "reason" in request.POST
        form = DecisionForm(request.POST if asked else None)
        if asked and form.is_valid():
            reason = form.cleaned_data["reason"]
            self._take(
                request,
                proposals,
                lambda one: price_proposals.decline_price(
                    proposal=one, actor=str(request.user), reason=reason
                ),
            )
            return None
        effects = [(one, ["The price stays as it is."]) for one in proposals]
        return self._ask(request, "Decline proposed prices", "decline", form, effects)

    def _ask(
        self,
        request: HttpRequest,
        title: str,
        action: str,
        form: forms.Form,
        effects: list[tuple[PriceProposal, list[str]]],
        shown: datetime | None = None,
    ) -> HttpResponse:
        """The page that tells what a decision changes before it is taken."""
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "action": action,
            "checkbox": ACTION_CHECKBOX_NAME,
            "form": form,
            "effects": effects,
            "shown": shown and shown.astimezone(UTC).isoformat(),
        }
        return TemplateResponse(request, "admin/budgets/priceproposal/decide.html", context)

    def _take(
        self,
        request: HttpRequest,
        proposals: QuerySet[PriceProposal],
        decide: Callable[[PriceProposal], object],
    ) -> None:
        """Take a decision on each, and tell on which it could be taken."""
        for one in proposals:
            try:
                decided = decide(one)
            except ValidationError as exc:
                self.message_user(request, f"Not done, {one}: {' '.join(exc.messages)}", messages.ERROR)
                continue
            one.refresh_from_db()
            if decided:
                self.message_user(request, f"{one.get_state_display()}: {one}.", messages.SUCCESS)
            else:
                self.message_user(request, f"Not done, {one}: it was {one.state} before.", messages.WARNING)
