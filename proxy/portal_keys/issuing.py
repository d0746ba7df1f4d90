"""A new key: what it may call is shown while it is being described, and its secret once it is there."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from budgets.limited_keys import LimitChange, foreseen, issue_limited_key
from budgets.limits import load
from keys.above import Preview
from keys.callers import caller_of
from keys.models import ApiKey
from proxy.catalog import Catalog
from proxy.portal_keys.consequences import known_models, models_of
from proxy.portal_keys.forms import NewKeyForm
from proxy.portal_keys.secret_shown import secret_page
from proxy.portal_keys.showing import key_of
from proxy.previews import preview
from tenants.access import Access, Reach
from tenants.portal import form_on, tenant_page
from tenants.sent_once import SentBefore, form_number, send_once


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_variables("secret")
@tenant_page
def new(request: HttpRequest, access: Access) -> HttpResponse:
    """The form; or the key that it describes, with its secret, in the answer to that one request only."""
    _demand(access)
    known = known_models()
    models = models_of(ApiKey(tenant=access.tenant), known)
    if request.method != "POST":
        return _page(request, access, NewKeyForm(access, models), known, form_number())
    number, form = request.POST.get("form", ""), NewKeyForm(access, models, request.POST)
    if "look" in request.POST:
        return _page(request, access, form, known, number)
    if not form.is_valid():
        return _page(request, access, form, known, number, status=400)
    try:
        with transaction.atomic():
            send_once(access.user, number)
            key, secret = issue_limited_key(
                tenant=access.tenant, actor=str(access.user), limits=form.own_limits(), **form.settings()
            )
    except SentBefore:
        return render(request, "portal/keys/sent_before.html", status=409)
    except ValidationError as exc:
        form.refused(exc)
        return _page(request, access, form, known, number, status=400)
    return secret_page(request, access, key_of(access, key.pk), secret, rotated=False)


@form_on("portal-key-new")
@tenant_page
def may_call(request: HttpRequest, access: Access) -> HttpResponse:
    """The part of the form's page that tells what the key may call, for what is filled in so far."""
    _demand(access)
    known = known_models()
    form = NewKeyForm(access, models_of(ApiKey(tenant=access.tenant), known), request.POST)
    context = {"form": form, "preview": _preview(form, known), "live": True}
    return render(request, "portal/keys/_form_preview.html", context)


def _demand(access: Access) -> None:
    if access.manages_keys == Reach.NOTHING:
        raise PermissionDenied


def _preview(form: NewKeyForm, known: Catalog | None) -> Preview:
    wanted = form.as_key()
    caller = caller_of(wanted)
    own = [LimitChange(None, one) for one in form.own_limits()]
    return preview(caller, known, foreseen(load(caller), wanted, own))


def _page(
    request: HttpRequest,
    access: Access,
    form: NewKeyForm,
    known: Catalog | None,
    number: str,
    status: int = 200,
) -> HttpResponse:
    context: dict[str, Any] = {
        "form": form,
        "number": number,
        "preview": _preview(form, known),
        "longest": access.tenant.max_key_days,
    }
    return render(request, "portal/keys/new.html", context, status=status)
