"""What operators do to tenants in the admin: each action shows first what it does to keys and calls."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from audit.admin import ask_reason
from keys import effects
from keys.admin_actions import tell_effect
from tenants import services
from tenants.admin import TenantAdmin
from tenants.models import Tenant

Tenants = QuerySet[Tenant]


class TenantActions(TenantAdmin):
    """The page of tenants, with the actions that switch all of their keys off and on."""

    actions = ["suspend", "resume"]

    @admin.action(description="Suspend selected tenants", permissions=["change"])
    def suspend(self, request: HttpRequest, tenants: Tenants) -> HttpResponse | None:
        return self._do(request, tenants, "Suspend", "Suspended", services.suspend_tenant)

    @admin.action(description="Resume selected tenants", permissions=["change"])
    def resume(self, request: HttpRequest, tenants: Tenants) -> HttpResponse | None:
        return self._do(request, tenants, "Resume", "Resumed", services.resume_tenant)

    def _do(
        self,
        request: HttpRequest,
        tenants: Tenants,
        verb: str,
        done: str,
        change: Callable[..., bool],
    ) -> HttpResponse | None:
        """Say what it will do and ask why; once that is answered, do it and tell what it did."""
        chosen = list(tenants)
        reason = request.POST.get("reason", "").strip()
        if not reason:
            suspends = change is services.suspend_tenant
            return ask_reason(
                self,
                request,
                tenants,
                action=request.POST["action"],
                title=f"{verb} tenants",
                effect=suspending(chosen) if suspends else resuming(chosen),
            )
        actor = str(request.user)
        effect = effects.measured_of_tenants(
            chosen, lambda tenant: change(tenant=tenant, actor=actor, reason=reason)
        )
        tell_effect(self, request, f"{done} {effect.changed} of {len(chosen)} tenants", effect)
        return None


def suspending(tenants: list[Tenant]) -> str:
    """What suspending will do, in words; of tenants that are suspended already, nothing."""
    keys = effects.working_keys([one for one in tenants if one.state == Tenant.State.ACTIVE])
    return f"Keys that work now and are refused from the next call on: {len(keys)}. {effects.cut_calls(keys)}"


def resuming(tenants: list[Tenant]) -> str:
    """What resuming will do, in words; of tenants that are not suspended, nothing."""
    keys = effects.working_keys([one for one in tenants if one.state == Tenant.State.SUSPENDED])
    return f"Keys that are refused now and work again from the next call on: {len(keys)}."
