"""Changing a key that is there: what that cuts is told while it is filled in, and it is done once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from budgets.limited_keys import change_limited_key, foreseen
from budgets.limits import load
from keys.callers import caller_of
from keys.effects import Effect, measured, running_calls
from keys.models import ApiKey
from keys.states import State
from proxy.catalog import Catalog
from proxy.portal_keys.changing import Stale, unchanged
from proxy.portal_keys.consequences import consequences, known_models, models_of
from proxy.portal_keys.edit_form import EditKeyForm
from proxy.portal_keys.rotating import managed_key
from proxy.portal_keys.showing import key_of, shown, versions_of
from proxy.previews import preview
from tenants.access import Access
from tenants.portal import form_on, tenant_page


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def edit(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """The form with the key as it is; or the change, unless somebody else was quicker."""
    key, known = managed_key(access, key_id), known_models()
    if request.method != "POST":
        return _page(request, access, key, _form(access, key, known), known)
    form, version = _form(access, key, known, request.POST), request.POST.get("version", "")
    if version != versions_of([key])[key.pk] or key.revoked_at is not None:
        return _stale(request, access, form, known)
    if "look" in request.POST:
        return _page(request, access, key, form, known)
    if not form.is_valid():
        return _page(request, access, key, form, known, status=400)
    changes, limits = form.changes(), form.limit_changes()
    if not changes and not limits:
        messages.info(request, _("Nothing was different, so nothing was changed."))
        return redirect("portal-key", access.tenant.slug, key.pk)

    def do(key: ApiKey) -> bool:
        unchanged(
            key,
            version,
            lambda: change_limited_key(
                key=key, actor=str(access.user), limits=limits, lifts=form.lifts, **changes
            ),
        )
        return True

    try:
        effect = measured([key], do)
    except Stale:
        return _stale(request, access, form, known)
    except ValidationError as exc:
        form.refused(exc)
        return _page(request, access, key, form, known, status=400)
    _tell(request, effect)
    return redirect("portal-key", access.tenant.slug, key.pk)


@form_on("portal-key-edit", "key_id")
@tenant_page
def may_call(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """The part of the form's page that tells what the key may call and what is cut, for what is filled in."""
    key, known = managed_key(access, key_id), known_models()
    told = _foretold(key, _form(access, key, known, request.POST), known)
    return render(request, "portal/keys/_form_preview.html", told)


def _form(access: Access, key: ApiKey, known: Catalog | None, *filled_in: Any) -> EditKeyForm:
    return EditKeyForm(access, key, models_of(ApiKey(tenant=access.tenant), known), *filled_in)


def _foretold(key: ApiKey, form: EditKeyForm, known: Catalog | None) -> dict[str, Any]:
    wanted, limits = form.as_key(), form.limit_changes()
    caller = caller_of(wanted)
    return {
        "form": form,
        "preview": preview(caller, known, foreseen(load(caller), wanted, limits.values())),
        "edits": True,
        "consequences": consequences(key, wanted, limits, known),
        "running": running_calls([key]),
    }


def _stale(request: HttpRequest, access: Access, form: EditKeyForm, known: Catalog | None) -> HttpResponse:
    """The key as it is now, in a form of its own, with what was filled in beside it: it is not to be lost."""
    key = key_of(access, form.key.pk)
    touched = _form(access, key, known, form.data).touched()
    return _page(request, access, key, _form(access, key, known), known, status=409, touched=touched)


def _page(
    request: HttpRequest,
    access: Access,
    key: ApiKey,
    form: EditKeyForm,
    known: Catalog | None,
    *,
    status: int = 200,
    touched: list[tuple[str, str]] | None = None,
) -> HttpResponse:
    [row] = shown(access, [key])
    context: dict[str, Any] = {
        "row": row,
        "version": versions_of([key])[key.pk],
        "revoked": row.state == State.REVOKED,
        "stale": status == 409,
        "touched": touched or [],
        "longest": access.tenant.max_key_days,
    }
    return render(request, "portal/keys/edit.html", context | _foretold(key, form, known), status=status)


def _tell(request: HttpRequest, effect: Effect) -> None:
    if effect.seconds is None:
        messages.warning(
            request,
            _("Saved, and pending, because Redis cannot be reached: no call is admitted until it can."),
        )
    else:
        told = _("Saved. It holds everywhere after %(seconds).2f s.")
        messages.success(request, told % {"seconds": effect.seconds})
