"""Kill switches and running calls."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.timezone import now

from audit.admin import ReadOnlyAdmin, ask_reason
from budgets import services
from budgets.forms import ArmForm
from budgets.live import SHOWN_CALLS, switches_on
from budgets.models import (
    KillSwitch,
    RunningCall,
)
from budgets.running_calls import found_calls
from tenants import generations
from tenants.redis import RedisError


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

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        on = {"may_lift": self.has_lift_permission(request), **switches_on()}
        return super().changelist_view(request, {**(extra_context or {}), **on})

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
        named = [str(switch) for switch in switches]
        confirmation = named[0] if len(named) == 1 else f"{len(named)} kill switches"
        if not reason or request.POST.get("confirmation", "").strip() != confirmation:
            return ask_reason(
                self,
                request,
                switches,
                action="lift",
                title="Lift kill switches",
                confirmation=confirmation,
                effect="What they stop is let through again from the next call on, but for what others stop.",
            )
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

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.get("q", "").strip()
        unknown, calls = False, list[RunningCall]()
        try:
            calls = found_calls(query)
            if request.method == "POST":
                return self._stop(request, calls, query)
        except RedisError:
            unknown = True
        context = {
            **self.admin_site.each_context(request),
            "title": "Running calls",
            "opts": self.opts,
            "calls": calls[:SHOWN_CALLS],
            "more": max(0, len(calls) - SHOWN_CALLS),
            "unknown": unknown,
            "q": query,
            "may_stop": self.has_stop_permission(request),
        }
        return TemplateResponse(request, "admin/budgets/runningcall/change_list.html", context)

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("budgets.stop_runningcall")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> None:
        """There is no page of one call, and no table to look one up in."""

    def _stop(self, request: HttpRequest, found: list[RunningCall], query: str) -> HttpResponse:
        """Show what would be stopped and ask why; with a reason, stop it."""
        if not self.has_stop_permission(request):
            raise PermissionDenied
        calls, which = found, request.POST.get("which", "")
        if which != "all":
            selected = {request.POST["one"]} if "one" in request.POST else set(request.POST.getlist("call"))
            calls = [call for call in found if str(call.request_id) in selected]
        if not calls:
            self.message_user(request, "None of these calls runs any more.", messages.WARNING)
        elif reason := request.POST.get("reason", "").strip():
            stopped = services.stop_calls(
                calls=calls,
                actor=str(request.user),
                reason=reason,
                message=request.POST.get("message", "").strip()[:200],
            )
            self.message_user(request, f"Stopping {len(stopped)} calls.", messages.SUCCESS)
        else:
            context = {
                **self.admin_site.each_context(request),
                "title": "Stop running calls",
                "opts": self.opts,
                "calls": calls,
                "delivered": sum(call.output_tokens for call in calls),
                "which": which,
                "q": query,
            }
            return TemplateResponse(request, "admin/budgets/runningcall/stop.html", context)
        return HttpResponseRedirect(request.get_full_path())
