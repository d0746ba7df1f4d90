from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.timezone import now

from audit.admin import ReadOnlyAdmin, ask_reason
from budgets import deliveries, limits, notices, services, webhooks
from budgets.forms import ArmForm
from budgets.models import (
    Budget,
    BudgetPeriod,
    BudgetRaise,
    Delivery,
    Happening,
    KillSwitch,
    LedgerEntry,
    Notice,
    OutageCredit,
    ParkedRecord,
    PeriodClosing,
    Price,
    RateLimit,
    Recipient,
    RunningCall,
    UsageRollup,
    happenings_told_of,
)
from budgets.periods import in_words, kind_and_seconds
from budgets.running_calls import running_calls
from budgets.schedules import schedules_of
from tenants import generations
from tenants.redis import RedisError

# Each may take ten seconds, and somebody waits for the page.
MOST_TRIED_OUT = 3

WHOSE = ("scope", "tenant", "team", "member", "key", "model", "upstream")
BUDGET_FIELDS = (*WHOSE, "unit", "length", "limit", "shadow", "thresholds")
RATE_LIMIT_FIELDS = (*WHOSE, "measure", "limit", "shadow")
RAISE_FIELDS = ("budget", "to", "by", "starts_at", "ends_at", "reason")
PRICE_FIELDS = (
    "model", "tenant", "input_price", "cached_price", "output_price", "gpu_price", "starts_at", "free",
)  # fmt: skip


class BudgetForm(forms.ModelForm):
    """A budget whose period is written as people write it."""

    length = forms.CharField(
        label="Period", help_text="hour, day, week, month, year, lifetime, or a length such as 90m, 36h, 30d."
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


class ScopedAdmin(admin.ModelAdmin):
    """Settings of one scope. Of one that exists what says whose it is stays: another scope is another row."""

    changeable: tuple[str, ...] = ("limit",)
    list_select_related = ["tenant", "team", "member__user", "member__tenant", "key"]
    list_filter = ["scope"]
    search_fields = ["tenant__slug", "model", "upstream", "key__label"]
    autocomplete_fields = ["tenant", "team", "member", "key"]
    show_full_result_count = False

    @admin.display(description="whose")
    def whose(self, obj: Budget | RateLimit) -> str:
        return obj.whose

    @admin.display(description="limit", ordering="limit")
    def limit_told(self, obj: Budget | RateLimit) -> str:
        return told(obj.limit)

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        if obj is None:
            return []
        return [str(name) for name in self.get_fields(request, obj) if name not in self.changeable]

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for row in queryset:
            self.delete_model(request, row)


@admin.register(Budget)
class BudgetAdmin(ScopedAdmin):
    """How much may be used in a period. Another period is followed from the end of the present one on."""

    form = BudgetForm
    fields = BUDGET_FIELDS
    changeable = ("limit", "length", "thresholds")
    list_display = ["whose", "unit", "length", "limit_told", "limit_now", "shadow", "thresholds"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Budget]:
        return super().get_queryset(request).prefetch_related("raises")

    @admin.display(description="limit now, raises included")
    def limit_now(self, obj: Budget) -> str:
        return told(limits.limit_now(obj))

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
        if change and "length" in form.changed_data:
            services.change_period(budget=obj, period=form.cleaned_data["length"], actor=actor)
            follows = schedules_of([obj])[obj.pk].next_change(now().timestamp())
            if follows is not None:
                starts_at = datetime.fromtimestamp(follows[0], follows[1].zone)
                self.message_user(
                    request,
                    f"The present period stays as it is; the new ones begin at {starts_at.isoformat()}.",
                )
        values = {name: getattr(obj, name) for name in BUDGET_FIELDS if name != "length"}
        obj.pk = services.set_budget(actor=actor, period=obj.length, **values).pk

    def delete_model(self, request: HttpRequest, obj: Budget) -> None:
        services.remove_budget(budget=obj, actor=str(request.user))


@admin.register(RateLimit)
class RateLimitAdmin(ScopedAdmin):
    """How fast calls may come."""

    fields = RATE_LIMIT_FIELDS
    list_display = ["whose", "measure", "limit_told", "shadow"]

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

    def queryset(self, request: HttpRequest, queryset: QuerySet[BudgetRaise]) -> QuerySet[BudgetRaise]:
        holds = Q(taken_back_at=None, ends_at__gt=now())
        return {"holds": queryset.filter(holds), "over": queryset.exclude(holds)}.get(
            self.value() or "", queryset
        )


@admin.register(BudgetRaise)
class BudgetRaiseAdmin(admin.ModelAdmin):
    """More of a budget until a moment. A raise is not changed: it is taken back, and another one granted."""

    fields = (*RAISE_FIELDS, "granted_by", "granted_at", "taken_back_at")
    readonly_fields = ("granted_by", "granted_at", "taken_back_at")
    list_display = ["budget", "to", "by", "starts_at", "ends_at", "reason", "granted_by", "taken_back_at"]
    list_select_related = [
        "budget__tenant", "budget__team", "budget__member__user", "budget__member__tenant", "budget__key",
    ]  # fmt: skip
    list_filter = [HoldingFilter]
    search_fields = ["budget__tenant__slug", "reason", "granted_by"]
    autocomplete_fields = ["budget"]
    show_full_result_count = False
    actions = ["take_back"]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: BudgetRaise, form: Any, change: bool) -> None:
        values = {name: getattr(obj, name) for name in RAISE_FIELDS}
        obj.pk = services.raise_budget(actor=str(request.user), **values).pk

    @admin.action(description="Take selected raises back", permissions=["change"])
    def take_back(self, request: HttpRequest, raises: QuerySet[BudgetRaise]) -> HttpResponse | None:
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return ask_reason(self, request, raises, action="take_back", title="Take raises back")
        ended = sum(
            services.take_back_raise(raised=one, actor=str(request.user), reason=reason) for one in raises
        )
        self.message_user(request, f"Took {ended} of {len(raises)} raises back.", messages.SUCCESS)
        return None


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


@admin.register(OutageCredit)
class OutageCreditAdmin(admin.ModelAdmin):
    """What each process may lend a tenant while Redis cannot be asked; 0 takes it back."""

    fields = ["tenant", "tokens"]
    list_display = ["tenant", "tokens"]
    list_select_related = ["tenant"]
    search_fields = ["tenant__slug"]
    autocomplete_fields = ["tenant"]
    show_full_result_count = False

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: OutageCredit, form: Any, change: bool) -> None:
        services.set_outage_credit(tenant=obj.tenant, tokens=obj.tokens, actor=str(request.user))


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ReadOnlyAdmin):
    """The truth; nobody changes it. Search: id of a request, tenant or key, or name of a model."""

    id_fields = ("request_id", "tenant_id", "key_id")
    list_display = [
        "ended_at", "kind", "tenant", "key", "model", "input_tokens", "output_tokens", "gpu_ms",
        "cost_micro_usd", "exact", "outcome",
    ]  # fmt: skip
    list_filter = ["kind", "exact", "late", "on_credit", "operation"]
    # Not "model__exact": Django takes that for the field ``exact``.
    search_fields = ["=model"]


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


class RecipientForm(forms.ModelForm):
    happenings = forms.MultipleChoiceField(
        choices=[choice for choice in Happening.choices if choice[0] != Happening.TEST],
        initial=happenings_told_of,
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )


@admin.register(Recipient)
class RecipientAdmin(admin.ModelAdmin):
    """Who is told of what. Adding a webhook shows the secret it is signed with, that one time."""

    form = RecipientForm
    fields = ["tenant", "kind", "address", "happenings", "active"]
    list_display = ["shown_address", "kind", "tenant", "happenings", "active"]
    list_select_related = ["tenant"]
    list_filter = ["kind", "active"]
    search_fields = ["tenant__slug"]
    autocomplete_fields = ["tenant"]
    show_full_result_count = False
    actions = ["try_out", "new_secret"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "kind", "address"] if obj else ["active"]

    def save_model(self, request: HttpRequest, obj: Recipient, form: Any, change: bool) -> None:
        actor = str(request.user)
        if change:
            services.change_recipient(
                recipient=obj, actor=actor, happenings=obj.happenings, active=obj.active
            )
            return
        added = services.add_recipient(
            tenant=obj.tenant, kind=obj.kind, address=obj.address, happenings=obj.happenings, actor=actor
        )
        obj.pk, obj.salt = added.pk, added.salt

    def delete_model(self, request: HttpRequest, obj: Recipient) -> None:
        services.remove_recipient(recipient=obj, actor=str(request.user))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Recipient]) -> None:
        for recipient in queryset:
            self.delete_model(request, recipient)

    def response_add(
        self, request: HttpRequest, obj: Recipient, post_url_continue: str | None = None
    ) -> HttpResponse:
        if obj.kind == Recipient.Kind.WEBHOOK:
            return self._show_secret(request, obj, webhooks.secret_of(obj))
        return super().response_add(request, obj, post_url_continue)

    def _show_secret(self, request: HttpRequest, recipient: Recipient, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Secret of the webhook",
            "opts": self.opts,
            "recipient": recipient,
            "secret": secret,
        }
        return TemplateResponse(
            request, "admin/budgets/recipient/secret.html", context, headers={"Cache-Control": "no-store"}
        )

    @admin.action(description="Send a test to selected recipients", permissions=["change"])
    def try_out(self, request: HttpRequest, recipients: QuerySet[Recipient]) -> None:
        if len(recipients) > MOST_TRIED_OUT:
            self.message_user(request, f"Select {MOST_TRIED_OUT} at most.", messages.ERROR)
            return
        for recipient in recipients:
            delivery = deliveries.deliver_now(notices.try_out(recipient, str(request.user)))
            if delivery.state == Delivery.State.DELIVERED:
                self.message_user(request, f"{recipient}: delivered.", messages.SUCCESS)
            else:
                error = delivery.attempts[-1]["error"]
                self.message_user(request, f"{recipient}: {error}. It is tried again.", messages.ERROR)

    @admin.action(description="Give a selected webhook another secret", permissions=["change"])
    def new_secret(self, request: HttpRequest, recipients: QuerySet[Recipient]) -> HttpResponse | None:
        recipient = recipients.first()
        if recipient is None or len(recipients) > 1 or recipient.kind != Recipient.Kind.WEBHOOK:
            self.message_user(request, "Select one webhook.", messages.ERROR)
            return None
        secret = services.new_webhook_secret(recipient=recipient, actor=str(request.user))
        return self._show_secret(request, recipient, secret)


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    """What happened that people are told of. Search: the whole id of a tenant."""

    id_fields = ("tenant_id",)
    list_display = ["at", "happening", "text"]
    list_filter = ["happening", "at"]
    search_fields = ["=subject"]


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    """Notices on their way: to whom, how often it was tried, what went wrong."""

    list_display = ["notice", "to", "state", "begun", "last_error", "next_at", "delivered_at"]
    list_select_related = ["notice"]
    list_filter = ["state"]
    search_fields = ["=to"]

    @admin.display(description="last error")
    def last_error(self, obj: Delivery) -> str:
        return str(obj.attempts[-1]["error"]) if obj.attempts else ""


class SwitchStateFilter(admin.SimpleListFilter):
    """Switches that stop calls now, and those that no longer do."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("on", "On"), ("lapsed", "Lifted themselves"), ("lifted", "Lifted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[KillSwitch]) -> QuerySet[KillSwitch]:
        match self.value():
            case "on":
                return queryset.filter(lift=None, until__gt=now())
            case "lapsed":
                return queryset.filter(lift=None, until__lte=now())
            case "lifted":
                return queryset.exclude(lift=None)
            case _:
                return queryset


@admin.register(KillSwitch)
class KillSwitchAdmin(ReadOnlyAdmin):
    """Kill switches are armed and lifted here; what was armed and lifted is kept as it was."""

    id_fields = ("tenant_id", "key_id")
    list_display = ["subject", "state", "reason", "armed_by", "armed_at", "until"]
    list_filter = [SwitchStateFilter, "scope", "armed_at"]
    list_select_related = ["lift"]
    search_fields = ["tenant__exact", "key__exact", "model__exact", "upstream__exact"]
    search_help_text = "Whole name of a tenant, key, model or upstream, or the id of a tenant or key"
    actions = ["lift"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.add_killswitch")

    def has_lift_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.add_killswitchlift")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        if obj is None:
            return [*ArmForm.Meta.fields, "confirmation"]
        return [
            "subject", "state", "reason", "message", "armed_by", "armed_at", "until",
            "lifted_by", "lifted_at", "lift_reason",
        ]  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        return self.get_fields(request, obj) if obj else []

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        # Of one that is there nothing is asked.
        return super().get_form(request, obj, change, **({} if obj else {"form": ArmForm}), **options)

    @admin.display(empty_value="-")
    def lifted_by(self, switch: KillSwitch) -> str | None:
        return switch.lift.lifted_by if switch.state == "lifted" else None

    @admin.display(empty_value="-")
    def lifted_at(self, switch: KillSwitch) -> datetime | None:
        return switch.lift.lifted_at if switch.state == "lifted" else None

    @admin.display(empty_value="-")
    def lift_reason(self, switch: KillSwitch) -> str | None:
        return switch.lift.reason if switch.state == "lifted" else None

    def save_model(self, request: HttpRequest, obj: KillSwitch, form: Any, change: bool) -> None:
        entered = {name: form.cleaned_data[name] for name in ("reason", "message", "until")}
        switch = services.arm_kill_switch(**form.subject, **entered, actor=str(request.user))
        obj.pk = switch.pk
        # Asked after the commit: before it nobody can know.
        transaction.on_commit(lambda: self._tell(request, switch.tenant_id, "Armed"))

    @admin.action(description="Lift selected kill switches", permissions=["lift"])
    def lift(self, request: HttpRequest, switches: QuerySet[KillSwitch]) -> HttpResponse | None:
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return ask_reason(self, request, switches, action="lift", title="Lift kill switches")
        lifted = [
            services.lift_kill_switch(switch=one, actor=str(request.user), reason=reason) for one in switches
        ]
        for tenant_id in {switch.tenant_id for switch in switches}:
            self._tell(request, tenant_id, f"Lifted {sum(lifted)} of {len(lifted)}")
        return None

    def _tell(self, request: HttpRequest, tenant_id: UUID | None, done: str) -> None:
        if generations.in_force(tenant_id):
            self.message_user(request, f"{done}; in force.", messages.SUCCESS)
        else:
            self.message_user(request, f"{done}; pending, because Redis cannot be reached.", messages.WARNING)


@admin.register(RunningCall)
class RunningCallAdmin(ReadOnlyAdmin):
    """Calls that run now, on all processes. They lie in Redis, so the page is ours; each can be ended."""

    SHOWN = 500

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.get("q", "").strip()
        unknown, calls = False, list[RunningCall]()
        try:
            calls = sorted(
                (call for call in running_calls() if _mentions(call, query)),
                key=lambda call: call.admitted_at,
            )
            if request.method == "POST":
                return self._stop(request, calls)
        except RedisError:
            unknown = True
        context = {
            **self.admin_site.each_context(request),
            "title": "Running calls",
            "opts": self.opts,
            "calls": calls[: self.SHOWN],
            "more": max(0, len(calls) - self.SHOWN),
            "unknown": unknown,
            "q": query,
            "may_stop": self.has_stop_permission(request),
        }
        return TemplateResponse(request, "admin/budgets/runningcall/change_list.html", context)

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.stop_runningcall")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> None:
        """There is no page of one call, and no table to look one up in."""

    def _stop(self, request: HttpRequest, calls: list[RunningCall]) -> HttpResponse:
        if not self.has_stop_permission(request):
            raise PermissionDenied
        reason, selected = request.POST.get("reason", "").strip(), set(request.POST.getlist("call"))
        if request.POST.get("which") != "all":
            calls = [call for call in calls if str(call.request_id) in selected]
        if reason:
            stopped = services.stop_calls(
                calls=calls,
                actor=str(request.user),
                reason=reason,
                message=request.POST.get("message", "").strip()[:200],
            )
            self.message_user(request, f"Stopping {len(stopped)} calls.", messages.SUCCESS)
        else:
            self.message_user(request, "Nothing was stopped: give a reason.", messages.ERROR)
        return HttpResponseRedirect(request.get_full_path())


def _mentions(call: RunningCall, query: str) -> bool:
    names = (call.tenant, call.key, call.model, call.upstream, str(call.request_id))
    return not query or any(query.lower() in name.lower() for name in names)
