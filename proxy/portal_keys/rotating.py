"""Giving a key another secret, and ending the time in which the one before works too."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from keys.lifetimes import Grace
from keys.models import ApiKey
from keys.services import end_grace, rotate_key
from proxy.portal_keys.changing import Stale, unchanged
from proxy.portal_keys.secret_shown import secret_page
from proxy.portal_keys.showing import key_of, manages, shown, versions_of
from tenants.access import Access
from tenants.portal import form_on, tenant_page

GRACES = [
    (Grace.NOW, gettext_lazy("Not at all: it is refused at once")),
    (Grace.HOUR, gettext_lazy("For an hour")),
    (Grace.DAY, gettext_lazy("For 24 hours")),
    (Grace.WEEK, gettext_lazy("For 7 days")),
    (Grace.FIRST_USE, gettext_lazy("Until the new secret is first used")),
]


class GraceForm(forms.Form):
    """For how long the secret before works beside the new one."""

    grace = forms.ChoiceField(
        label=gettext_lazy("The present secret goes on working"),
        choices=GRACES,
        initial=Grace.DAY,
        widget=forms.RadioSelect,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_variables("secret")
@tenant_page
def rotate(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """Ask for the grace; then show the new secret, in the answer to that one request only."""
    key = managed_key(access, key_id)
    if request.method != "POST":
        return _page(request, access, key, GraceForm())
    form = GraceForm(request.POST)
    if not form.is_valid():
        return _page(request, access, key, form, status=400)
    grace = Grace(form.cleaned_data["grace"])
    try:
        key, secret = unchanged(
            key,
            request.POST.get("version", ""),
            lambda: rotate_key(key=key, actor=str(access.user), grace=grace),
        )
    except Stale:
        return _page(request, access, key, form, status=409)
    except ValidationError as exc:
        form.add_error(None, ValidationError(exc.messages))
        return _page(request, access, key, form, status=400)
    return secret_page(request, access, key_of(access, key.pk), secret, rotated=True)


@form_on("portal-key", "key_id")
@tenant_page
def end(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """Let only the newest secret of a key work from now on."""
    key = managed_key(access, key_id)
    if end_grace(key=key, actor=str(access.user)):
        messages.success(request, _("Only the newest secret works now."))
    else:
        messages.info(request, _("Only the newest secret worked already."))
    return redirect("portal-key", access.tenant.slug, key.pk)


@require_safe
@tenant_page
def secrets(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """The part of a page that tells of secrets and their last use, to be asked for again and again."""
    key = key_of(access, key_id)
    return render(request, "portal/keys/_secrets.html", {"row": shown(access, [key])[0]})


def managed_key(access: Access, key_id: UUID) -> ApiKey:
    """A key that a person may change; raises ``Http404`` for one they do not even see."""
    key = key_of(access, key_id)
    if not manages(access, key):
        raise PermissionDenied
    return key


def _page(
    request: HttpRequest, access: Access, key: ApiKey, form: GraceForm, status: int = 200
) -> HttpResponse:
    context: dict[str, Any] = {
        "row": shown(access, [key])[0],
        "version": versions_of([key])[key.pk],
        "form": form,
        "stale": status == 409,
    }
    return render(request, "portal/keys/rotate.html", context, status=status)
