"""The portal's pages about exports: order one, see how far it is, fetch it."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from budgets import usage
from budgets.exports import serving
from budgets.exports.forms import ExportForm, last_month
from budgets.exports.jobs import fitting, linked, order_export
from budgets.exports.serving import is_small, streamed
from budgets.models import Export
from budgets.money import usd_total
from tenants.access import Access
from tenants.portal import tenant_page

MOST_LISTED = 50
REFRESH_SECONDS = 2


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def exports(request: HttpRequest, access: Access) -> HttpResponseBase:
    """GET: the form, what it would give, and one's exports. POST: the file at once, or a page to wait at."""
    _demand(access)
    posted = request.method == "POST"
    filled_in = request.POST if posted else request.GET
    form = ExportForm(filled_in or None, initial=last_month(access.tenant))
    if posted and form.is_valid():
        try:
            return _ordered(request, access, form)
        except ValidationError as exc:
            form.add_error(None, exc)
    return render(
        request,
        "portal/exports.html",
        {
            "form": form,
            "preview": _preview(access, form) if form.is_bound and form.is_valid() else None,
            "exports": [(one, *_days(one)) for one in _own(access)[:MOST_LISTED]],
        },
        status=400 if posted else 200,
    )


def _ordered(request: HttpRequest, access: Access, form: ExportForm) -> HttpResponseBase:
    order = form.order(access.tenant)
    if "download" in request.POST:
        if is_small(order, fitting(order)):
            return streamed(order, access.user)
        messages.info(
            request, _("This takes longer than one likes to wait; the file is made in the background.")
        )
    export = order_export(order=order, user=access.user)
    return redirect("portal-export", access.tenant.slug, export.pk)


def _preview(access: Access, form: ExportForm) -> dict[str, object] | None:
    """How large it will be and what it will add up to; None with the reason in the form."""
    order = form.order(access.tenant)
    try:
        size = fitting(order)
    except ValidationError as exc:
        form.add_error(None, exc)
        return None
    totals = usage.breakdown(order.selection, ()).total
    cost = usd_total(totals["cost_micro_usd"])
    return {"size": size, "small": is_small(order, size), "totals": totals, "cost": cost}


@require_safe
@tenant_page
def export(request: HttpRequest, access: Access, export_id: UUID) -> HttpResponse:
    """One export. As long as it is not made, the page comes again by itself."""
    _demand(access)
    found = get_object_or_404(_own(access), pk=export_id)
    cost = usd_total(found.sidecar["totals"]["cost_micro_usd"]) if found.sidecar else ""
    from_day, before_day = _days(found)
    context = {"export": found, "from_day": from_day, "before_day": before_day, "cost": cost}
    response = render(request, "portal/export.html", context)
    if found.state in (Export.State.WAITING, Export.State.RUNNING):
        response["Refresh"] = str(REFRESH_SECONDS)
    return response


@require_safe
@tenant_page
def file(request: HttpRequest, access: Access, link: str) -> HttpResponseBase:
    """The file that a link leads to."""
    return serving.from_file(_linked(access, link))


@require_safe
@tenant_page
def sidecar(request: HttpRequest, access: Access, link: str) -> HttpResponse:
    """What is in that file."""
    found = _linked(access, link)
    response = JsonResponse(found.sidecar, json_dumps_params={"indent": 2, "ensure_ascii": False})
    response["Content-Disposition"] = f'attachment; filename="{found.sidecar["file"]}.json"'
    return response


def _days(export: Export) -> tuple[date, date]:
    """The first day of an export and the first that is not in it."""
    selection = export.order["selection"]
    return date.fromisoformat(selection["from_day"]), date.fromisoformat(selection["before_day"])


def _demand(access: Access) -> None:
    if not access.exports:
        raise PermissionDenied


def _own(access: Access) -> QuerySet[Export]:
    return Export.objects.filter(user_id=access.user.pk, tenant_id=access.tenant.pk)


def _linked(access: Access, link: str) -> Export:
    """The export of a link of this person at this tenant; raises ``Http404``."""
    _demand(access)
    found = linked(user_id=access.user.pk, link=link)
    if found is None or found.tenant_id != access.tenant.pk:
        raise Http404
    return found


urlpatterns = [
    path("<slug:slug>/exports/", exports, name="portal-exports"),
    path("<slug:slug>/exports/<uuid:export_id>/", export, name="portal-export"),
    path("<slug:slug>/exports/files/<slug:link>/", file, name="portal-export-file"),
    path("<slug:slug>/exports/files/<slug:link>/sidecar/", sidecar, name="portal-export-sidecar"),
]
