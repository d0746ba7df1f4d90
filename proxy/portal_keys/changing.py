"""Revoking, disabling and enabling keys, one or several: what it will do, and what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods

from budgets.limited_keys import rows_of_keys
from keys import services
from keys.effects import Effect, measured, running_calls
from keys.models import ApiKey
from proxy.portal_keys.showing import managed_keys, shown, versions_of
from tenants.access import Access
from tenants.portal import tenant_page


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is done to keys, and how people are told of it."""

    do: Callable[..., bool]
    title: Promise
    effect: Promise
    button: Promise
    cuts: bool


CHANGES = {
    "revoke": Change(
        services.revoke_key,
        gettext_lazy("Revoke keys"),
        gettext_lazy("A revoked key is refused for good. It stays in the list, and its use in the books."),
        gettext_lazy("Revoke"),
        cuts=True,
    ),
    "disable": Change(
        services.disable_key,
        gettext_lazy("Disable keys"),
        gettext_lazy("A disabled key is refused until it is enabled again."),
        gettext_lazy("Disable"),
        cuts=True,
    ),
    "enable": Change(
        services.enable_key,
        gettext_lazy("Enable keys"),
        gettext_lazy("An enabled key is accepted again, with the same secret and the same limits."),
        gettext_lazy("Enable"),
        cuts=False,
    ),
}


class ReasonForm(forms.Form):
    """Why it is done."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        max_length=500,
        help_text=gettext_lazy("It is kept with the key and in the audit, such as: laptop lost."),
    )


Done = TypeVar("Done")


class Stale(Exception):
    """The key has changed since the page was made."""


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def change(request: HttpRequest, access: Access, what: str) -> HttpResponse:
    """Tell what a change will do to the chosen keys, and do it once there is a reason."""
    asked = request.POST if request.method == "POST" else request.GET
    keys = _chosen(access, asked.getlist("key"))
    if not keys:
        messages.error(request, _("Choose a key first."))
        return redirect("portal-keys", access.tenant.slug)
    if request.method != "POST":
        return _page(request, access, what, keys, ReasonForm())
    form = ReasonForm(request.POST)
    seen = {key.pk: request.POST.get(f"version-{key.pk}", "") for key in keys}
    if any(version != seen[key_id] for key_id, version in versions_of(keys).items()):
        return _page(request, access, what, keys, form, stale=True)
    if not form.is_valid():
        return _page(request, access, what, keys, form)
    reason, actor = form.cleaned_data["reason"], str(access.user)
    left_alone: list[ApiKey] = []

    def do(key: ApiKey) -> bool:
        try:
            return unchanged(key, seen[key.pk], lambda: CHANGES[what].do(key=key, actor=actor, reason=reason))
        except Stale:
            left_alone.append(key)
            return False

    effect = measured(keys, do)
    _tell(request, what, effect, left_alone)
    if len(keys) == 1:
        return redirect("portal-key", access.tenant.slug, keys[0].pk)
    return redirect("portal-keys", access.tenant.slug)


def unchanged(key: ApiKey, version: str, do: Callable[[], Done]) -> Done:
    """``do`` something to a key that nobody else may change meanwhile; raises ``Stale`` if somebody has."""
    with transaction.atomic():
        ApiKey.objects.select_for_update().get(pk=key.pk)
        for rows in rows_of_keys([key.pk]):
            list(rows.select_for_update())
        if versions_of([key])[key.pk] != version:
            raise Stale
        return do()


def _chosen(access: Access, wanted: list[str]) -> list[ApiKey]:
    """The keys with these ids; raises ``Http404`` if one of them is not there, or not theirs to change."""
    try:
        ids = {UUID(one) for one in wanted}
    except ValueError as exc:
        raise Http404 from exc
    keys = managed_keys(access, ids)
    if len(keys) != len(ids):
        raise Http404
    return keys


def _page(
    request: HttpRequest,
    access: Access,
    what: str,
    keys: list[ApiKey],
    form: ReasonForm,
    *,
    stale: bool = False,
) -> HttpResponse:
    wanted, versions = CHANGES[what], versions_of(keys)
    context = {
        "change": wanted,
        "form": form,
        "rows": [(row, versions[row.key.pk]) for row in shown(access, keys)],
        "running": running_calls(keys) if wanted.cuts else 0,
        "heartbeat": settings.HEARTBEAT_SECONDS,
        "stale": stale,
    }
    status = 409 if stale else 400 if form.is_bound else 200
    return render(request, "portal/keys/change.html", context, status=status)


def _tell(request: HttpRequest, what: str, effect: Effect, left_alone: list[ApiKey]) -> None:
    done = {
        "revoke": ngettext("%(count)d key was revoked.", "%(count)d keys were revoked.", effect.changed),
        "disable": ngettext("%(count)d key was disabled.", "%(count)d keys were disabled.", effect.changed),
        "enable": ngettext("%(count)d key was enabled.", "%(count)d keys were enabled.", effect.changed),
    }[what] % {"count": effect.changed}
    if effect.changed and CHANGES[what].cuts:
        done = f"{done} {_when(effect)} {_cut(effect)}"
    level = messages.WARNING if effect.seconds is None else messages.SUCCESS
    messages.add_message(request, level, done.strip())
    if left_alone:
        names = ", ".join(key.label for key in left_alone)
        messages.warning(
            request, _("These had changed meanwhile and were left as they are: %(names)s.") % {"names": names}
        )


def _when(effect: Effect) -> str:
    if effect.seconds is None:
        return _("Pending, because Redis cannot be reached: no call is admitted anyway until it can.")
    return _("Refused everywhere after %(seconds).2f s.") % {"seconds": effect.seconds}


def _cut(effect: Effect) -> str:
    if effect.running is None:
        return ""
    told = ngettext(
        "%(count)d running call is cut within %(seconds)g s.",
        "%(count)d running calls are cut within %(seconds)g s.",
        effect.running,
    )
    return told % {"count": effect.running, "seconds": settings.HEARTBEAT_SECONDS}
