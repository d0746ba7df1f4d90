"""Budgets, rate limits, raises and credit."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now
from unfold.widgets import UnfoldAdminTextInputWidget

from audit.admin import ServiceAdmin, ask_reason
from budgets import limits, services
from budgets.models import WITH_ITS_LIMIT, Budget, LimitRaise, OutageCredit, RateLimit
from budgets.periods import in_words, kind_and_seconds
from budgets.schedules import schedules_of
from tenants.admin import OnePerTenantAdmin
from tenants.forms import ModelNamesForm

WHOSE = ("scope", "tenant", "team", "member", "key", "model", "upstream")
BUDGET_FIELDS = (*WHOSE, "unit", "length", "limit", "shadow", "thresholds")
RATE_LIMIT_FIELDS = (*WHOSE, "measure", "limit", "shadow")
RAISE_FIELDS = ("to", "by", "starts_at", "ends_at", "reason")


class BudgetForm(ModelNamesForm):
    """A budget whose period is written as people write it."""

    length = forms.CharField(
        label="Period",
        widget=UnfoldAdminTextInputWidget,
        help_text="hour, day, week, month, year, lifetime, or a length such as 90m, 36h, 30d.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.instance._state.adding:  # noqa: SLF001, Django's way to ask
            self.initial["length"] = self.instance.length

    def clean_length(self) -> str:
        text: str = self.cleaned_data["length"]
        try:
            kind, seconds = kind_and_seconds(text)
        except ValueError as exc:
            raise ValidationError(str(exc)) from exc
        if self.initial.get("length") == "lifetime" != text:
            raise ValidationError("A lifetime does not end, so no other period can follow it.")
        self.instance.period, self.instance.seconds = kind, seconds
        return text

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if not self.errors:
            try:
                # Of all columns: Django asks only for those whose fields are in the form.
                self.instance.validate_constraints()
            except ValidationError as exc:
                self.add_error(None, ValidationError(exc.messages))


def told(limit: int | None) -> str:
    """A limit in words: none, nothing and a number are three things, and an empty cell is none of them."""
    if limit is None:
        return "no limit"
    return str(limit) if limit else "0, lets nothing through"


class ScopedAdmin(ServiceAdmin):
    """Settings of one scope. Of one that exists what says whose it is stays: another scope is another row."""

    changeable: tuple[str, ...] = ("limit",)
    list_select_related = ["tenant", "team", "member__user", "member__tenant", "key"]
    list_filter = ["scope"]
    search_fields = ["tenant__slug", "model", "upstream", "key__label"]
    autocomplete_fields = ["tenant", "team", "member", "key"]
    list_per_page = 50

    @admin.display(description="whose")
    def whose(self, obj: Budget | RateLimit) -> str:
        return obj.whose

    @admin.display(description="limit", ordering="limit")
    def limit_told(self, obj: Budget | RateLimit) -> str:
        return told(obj.limit)

    @admin.display(description="limit now, raises included")
    def limit_now(self, obj: Budget | RateLimit) -> str:
        return told(limits.limit_now(obj))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).prefetch_related("raises")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        if obj is None:
            return []
        return [str(name) for name in self.get_fields(request, obj) if name not in self.changeable]


@admin.register(Budget)
class BudgetAdmin(ScopedAdmin):
    """How much may be used in a period. Another period is followed from the end of the present one on."""

    form = BudgetForm
    fields = BUDGET_FIELDS
    changeable = ("limit", "length", "thresholds")
    list_display = ["whose", "unit", "length", "limit_told", "limit_now", "shadow", "thresholds"]

    def get_fields(self, request: HttpRequest, obj: Budget | None = None) -> Any:
        return BUDGET_FIELDS if obj is None else (*BUDGET_FIELDS, "present_period")

    @admin.display(description="present period")
    def present_period(self, obj: Budget) -> str:
        """From when to when, by the clock here, and what was set to follow."""
        schedule, moment = schedules_of([obj])[obj.pk], now().timestamp()
        zone, period = schedule.calendar(moment).zone, schedule.period(moment)
        if period.ends_at is None:
            return "for ever"
        starts_at, ends_at = (at.astimezone(zone).isoformat(" ") for at in (period.starts_at, period.ends_at))
        follows = schedule.next_change(moment)
        then = (
            f", then per {in_words(follows[1].kind, follows[1].seconds)} in {follows[1].zone}"
            if follows
            else ""
        )
        return f"{starts_at} to {ends_at}, {zone}{then}"

    def save_model(self, request: HttpRequest, obj: Budget, form: Any, change: bool) -> None:
        actor = str(request.user)
        follows_another = change and "length" in form.changed_data
        if follows_another:
            services.change_period(budget=obj, period=form.cleaned_data["length"], actor=actor)
        values = {name: getattr(obj, name) for name in BUDGET_FIELDS if name != "length"}
        obj.pk = services.set_budget(actor=actor, period=obj.length, **values).pk
        follows = schedules_of([obj])[obj.pk].next_change(now().timestamp()) if follows_another else None
        if follows is not None:
            starts_at = datetime.fromtimestamp(follows[0], follows[1].zone)
            self.message_user(
                request, f"The present period stays as it is; the new ones begin at {starts_at.isoformat()}."
            )

    def delete_model(self, request: HttpRequest, obj: Budget) -> None:
        services.remove_budget(budget=obj, actor=str(request.user))


@admin.register(RateLimit)
class RateLimitAdmin(ScopedAdmin):
    """How fast calls may come."""

    form = ModelNamesForm
    fields = RATE_LIMIT_FIELDS
    list_display = ["whose", "measure", "limit_told", "limit_now", "shadow"]

    def save_model(self, request: HttpRequest, obj: RateLimit, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in RATE_LIMIT_FIELDS}
        obj.pk = services.set_rate_limit(actor=str(request.user), **values).pk

    def delete_model(self, request: HttpRequest, obj: RateLimit) -> None:
        services.remove_rate_limit(rate_limit=obj, actor=str(request.user))


class HoldingFilter(admin.SimpleListFilter):
    """Raises that hold, and those that are over."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("holds", "Holds, or will"), ("over", "Over")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[LimitRaise]) -> QuerySet[LimitRaise]:
        holds = Q(taken_back_at=None, ends_at__gt=now())
        return {"holds": queryset.filter(holds), "over": queryset.exclude(holds)}.get(
            self.value() or "", queryset
        )


@admin.register(LimitRaise)
class LimitRaiseAdmin(ServiceAdmin):
    """More of a limit until a moment. A raise is not changed: it is taken back, and another one granted."""

    fields = ("budget", "rate_limit", *RAISE_FIELDS, "granted_by", "granted_at", "taken_back_at")
    readonly_fields = ("granted_by", "granted_at", "taken_back_at")
    list_display = ["row", "to", "by", "starts_at", "ends_at", "reason", "granted_by", "taken_back_at"]
    list_select_related = list(WITH_ITS_LIMIT)
    list_filter = [HoldingFilter]
    search_fields = ["budget__tenant__slug", "rate_limit__tenant__slug", "reason", "granted_by"]
    autocomplete_fields = ["budget", "rate_limit"]
    actions = ["take_back"]

    @admin.display(description="limit")
    def row(self, obj: LimitRaise) -> str:
        return str(obj.row)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: LimitRaise, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in RAISE_FIELDS}
        obj.pk = services.raise_limit(row=obj.row, actor=str(request.user), **values).pk

    @admin.action(description="Take selected raises back", permissions=["change"])
    def take_back(self, request: HttpRequest, raises: QuerySet[LimitRaise]) -> HttpResponse | None:
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return ask_reason(self, request, raises, action="take_back", title="Take raises back")
        ended = sum(
            services.take_back_raise(raised=one, actor=str(request.user), reason=reason) for one in raises
        )
        self.message_user(request, f"Took {ended} of {len(raises)} raises back.", messages.SUCCESS)
        return None


@admin.register(OutageCredit)
class OutageCreditAdmin(OnePerTenantAdmin):
    """What each process may lend a tenant while Redis cannot be asked; 0 takes it back."""

    fields = ["tenant", "tokens"]
    list_display = ["tenant", "tokens"]

    def save_model(self, request: HttpRequest, obj: OutageCredit, form: Any, change: bool) -> None:
        services.set_outage_credit(tenant=obj.tenant, tokens=obj.tokens, actor=str(request.user))
