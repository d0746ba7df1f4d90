"""Live views of what runs, what is stopped and what is used now."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from django.http import Http404, HttpRequest
from django.template.loader import render_to_string

from budgets.meters import Metered, metered_key, metered_person, meters
from budgets.models import KillSwitch
from budgets.running_calls import found_calls
from tenants import generations
from tenants.access import Access
from tenants.live import OperatorView, Parts, TenantView, live

SHOWN_CALLS = 500
SHOWN_SWITCHES = 50


class RunningCallsLive(OperatorView):
    """The running calls that a search finds."""

    permission = "budgets.view_runningcall"

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        super().subject(request)
        return request.GET.get("q", "").strip(), request.user.has_perm("budgets.stop_runningcall")

    def parts(self, subject: tuple[str, bool]) -> Parts:
        query, may_stop = subject
        calls = found_calls(query)
        context = {
            "calls": calls[:SHOWN_CALLS],
            "more": max(0, len(calls) - SHOWN_CALLS),
            "may_stop": may_stop,
        }
        return {"calls": render_to_string("admin/budgets/runningcall/_calls.html", context)}


class KillSwitchesLive(OperatorView):
    """The kill switches that are on."""

    permission = "budgets.view_killswitch"

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        super().subject(request)
        return request.user.has_perm("budgets.add_killswitchlift")

    def parts(self, subject: bool) -> Parts:
        context = {**switches_on(), "may_lift": subject}
        return {"switches": render_to_string("admin/budgets/killswitch/_on.html", context)}


def switches_on() -> dict[str, Any]:
    """For the template: the kill switches that are on, the newest first, each with whether it is in force."""
    found = list(KillSwitch.objects.on()[: SHOWN_SWITCHES + 1])
    in_force = {tenant_id: generations.in_force(tenant_id) for tenant_id in {one.tenant_id for one in found}}
    shown = [(one, in_force[one.tenant_id]) for one in found[:SHOWN_SWITCHES]]
    return {"switches": shown, "more_switches": len(found) > SHOWN_SWITCHES}


class KeyMeter(TenantView):
    """What is left of the budgets of a key, and of all above it."""

    def subject_of(self, access: Access, **parts: Any) -> Hashable:
        return _found(metered_key(access, parts["key_id"])), access.time_zone

    def parts_of(self, subject: tuple[Metered, str]) -> Parts:
        metered, zone = subject
        # What the page of a request would have there.
        context = {"meters": meters(metered), "request": {"access": {"time_zone": zone}}}
        return {"meters": render_to_string("portal/_meters.html", context)}


class TenantMeter(KeyMeter):
    """What is left of the budgets of a tenant, and of the person's own place in it."""

    def subject_of(self, access: Access, **parts: Any) -> Hashable:
        return _found(metered_person(access)), access.time_zone


def _found(metered: Metered | None) -> Metered:
    if metered is None:
        raise Http404
    return metered


urlpatterns = [
    live("portal/<slug:slug>/", TenantMeter()),
    live("portal/<slug:slug>/keys/<uuid:key_id>/", KeyMeter()),
    live("admin/running-calls/", RunningCallsLive()),
    live("admin/kill-switches/", KillSwitchesLive()),
]
