"""Pages about refused calls: which there were, and why each was."""

from __future__ import annotations

from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path, reverse
from django.views.decorators.http import require_safe

from budgets.refusal_explained import event_of, explain_refusal
from budgets.refused_calls import newest_refusals
from tenants.access import Access, Reach
from tenants.portal import tenant_page

MOST_LISTED = 100


@require_safe
@tenant_page
def refusals(request: HttpRequest, access: Access) -> HttpResponse:
    """The last refusals that a person may read, and a field for the id of another request."""
    member_id = reader(access)
    wanted = request.GET.get("request", "").strip()
    if wanted:
        try:
            return redirect("portal-refusal", access.tenant.slug, UUID(wanted))
        except ValueError:
            return _unknown(request, wanted)
    listed = newest_refusals(access.tenant.pk, member_id, MOST_LISTED)
    return render(request, "portal/refusals/refusals.html", {"refusals": listed})


@require_safe
@tenant_page
def refusal(request: HttpRequest, access: Access, request_id: UUID) -> HttpResponse:
    """Why one call was refused, question by question. Somebody else's looks like one that nobody knows."""
    member_id = reader(access)
    explained = explain_refusal(request_id, tenant_id=access.tenant.pk, member_id=member_id)
    if explained is None:
        event = event_of(request_id, tenant_id=access.tenant.pk, member_id=member_id)
        if event is None:
            return _unknown(request, str(request_id))
        usage = reverse("portal-request", args=[access.tenant.slug, request_id])
        return render(request, "portal/refusals/not_refused.html", {"event": event, "usage": usage})
    context = {"explained": explained, "askable": {one.name for one in explained.may_be_raised}}
    return render(request, "portal/refusals/refusal.html", context)


def reader(access: Access) -> UUID | None:
    """Whose calls a person may read about: their own keys', or with None all of the tenant's."""
    if access.usage == Reach.WHOLE_TENANT:
        return None
    if access.usage == Reach.NOTHING or access.member is None:
        raise PermissionDenied
    return access.member.pk


def _unknown(request: HttpRequest, wanted: str) -> HttpResponse:
    return render(request, "portal/refusals/unknown.html", {"wanted": wanted[:80]}, status=404)


urlpatterns = [
    path("refusals/", refusals, name="portal-refusals"),
    path("refusals/<uuid:request_id>/", refusal, name="portal-refusal"),
]
