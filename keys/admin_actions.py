"""What operators do to keys in the admin: each action shows first what it will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.debug import sensitive_variables
from unfold.widgets import UnfoldAdminSplitDateTimeWidget

from audit.admin_pages import AdminPage
from keys import effects, services
from keys.above import above
from keys.callers import caller_of
from keys.lifetimes import Grace
from keys.models import ApiKey

Keys = QuerySet[ApiKey]


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label="Reason, for the audit",
        max_length=500,
        help_text="Such as: the laptop was stolen, ticket 4711.",
    )


class EndForm(forms.Form):
    expires_at = forms.SplitDateTimeField(
        label="Expires at",
        widget=UnfoldAdminSplitDateTimeWidget,
        help_text="In UTC: 2026-12-24 18:00. From this moment the keys are refused.",
    )


class RotationForm(forms.Form):
    grace = forms.ChoiceField(
        choices=Grace.choices,
        initial=Grace.DAY,
        widget=forms.RadioSelect,
        label="The secret before works on",
        help_text="For as long as it takes to replace it everywhere; a day is usual.",
    )


class KeyActions(AdminPage):
    """The actions of the list of keys, and what the page of a key has besides its form."""

    actions = ["revoke", "disable", "enable", "expire"]
    change_form_template = "admin/keys/apikey/change_form.html"

    @admin.action(description="Revoke selected keys", permissions=["change"])
    def revoke(self, request: HttpRequest, keys: Keys) -> HttpResponse | None:
        return self._do(request, keys, "Revoke", "Revoked", ReasonForm, services.revoke_key)

    @admin.action(description="Disable selected keys", permissions=["change"])
    def disable(self, request: HttpRequest, keys: Keys) -> HttpResponse | None:
        return self._do(request, keys, "Disable", "Disabled", ReasonForm, services.disable_key)

    @admin.action(description="Enable selected keys", permissions=["change"])
    def enable(self, request: HttpRequest, keys: Keys) -> HttpResponse | None:
        return self._do(request, keys, "Enable", "Enabled", ReasonForm, services.enable_key)

    @admin.action(description="Set the end of selected keys", permissions=["change"])
    def expire(self, request: HttpRequest, keys: Keys) -> HttpResponse | None:
        return self._do(request, keys, "Set the end of", "Set the end of", EndForm, _set_end)

    def _do(
        self,
        request: HttpRequest,
        keys: Keys,
        verb: str,
        done: str,
        kind: type[forms.Form],
        change: Callable[..., bool],
    ) -> HttpResponse | None:
        """Ask, with what it will do beside; once that is answered, do it and tell what it did."""
        chosen = list(keys.select_related("tenant"))
        form = kind(request.POST if "answered" in request.POST else None)
        if form.is_valid():
            actor = str(request.user)
            try:
                effect = effects.measured(
                    chosen, lambda key: change(key=key, actor=actor, **form.cleaned_data)
                )
            except ValidationError as exc:
                form.add_error(None, " ".join(exc.messages))
            else:
                tell_effect(self, request, f"{done} {effect.changed} of {len(chosen)} keys", effect)
                return None
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb} {len(chosen)} {'key' if len(chosen) == 1 else 'keys'}",
            "opts": self.opts,
            "keys": chosen,
            "form": form,
            "action": request.POST["action"],
            "cuts": change in (services.revoke_key, services.disable_key),
            "running": effects.running_calls(chosen),
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/keys/apikey/effect.html", context)

    def get_urls(self) -> list[URLPattern]:
        at = self.admin_site.admin_view
        own = [
            path("<uuid:pk>/rotate/", at(self.rotate_view), name="keys_apikey_rotate"),
            path("<uuid:pk>/end-grace/", at(self.end_grace_view), name="keys_apikey_end_grace"),
        ]
        return [*own, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        key = self.get_object(request, object_id)
        more = {} if key is None else {"preview": above.preview(caller_of(key)), "key": key}
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **more})

    @sensitive_variables("secret")
    def rotate_view(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Ask for the grace, beside what is known of the secrets; then show the new one, this once."""
        key = self._changeable(request, pk)
        form = RotationForm(request.POST or None)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Rotate key {key}",
            "opts": self.opts,
            "key": key,
            "form": form,
            "secrets": key.secrets.select_related("use"),
        }
        if form.is_valid():
            try:
                _, secret = services.rotate_key(
                    key=key, actor=str(request.user), grace=Grace(form.cleaned_data["grace"])
                )
            except ValidationError as exc:
                form.add_error(None, " ".join(exc.messages))
            else:
                shown = {**context, "title": "Key rotated", "secret": secret}
                return TemplateResponse(
                    request, "admin/keys/apikey/issued.html", shown, headers={"Cache-Control": "no-store"}
                )
        return TemplateResponse(request, "admin/keys/apikey/rotate.html", context)

    def end_grace_view(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Let only the newest secret work from now on."""
        key = self._changeable(request, pk)
        if request.method == "POST":
            ended = services.end_grace(key=key, actor=str(request.user))
            self.message_user(
                request,
                "Only the newest secret works now." if ended else "Only the newest secret worked already.",
            )
        return HttpResponseRedirect(reverse("admin:keys_apikey_rotate", args=[pk]))

    def _changeable(self, request: HttpRequest, pk: UUID) -> ApiKey:
        # Whoever may change none is not to learn which there are.
        if not self.has_change_permission(request):
            raise PermissionDenied
        key: ApiKey | None = self.get_object(request, str(pk))
        if key is None:
            raise Http404
        if not self.has_change_permission(request, key):
            raise PermissionDenied
        return key


def tell_effect(page: AdminPage, request: HttpRequest, done: str, effect: effects.Effect) -> None:
    """Tell an operator what was done, when it was in force everywhere, and what it cut."""
    if effect.seconds is None:
        page.message_user(request, f"{done}; pending, because Redis cannot be reached.", messages.WARNING)
        return
    calls = "" if effect.running is None else f" Running calls with them: {effect.running}."
    page.message_user(
        request, f"{done}; in force everywhere after {effect.seconds:.2f} s.{calls}", messages.SUCCESS
    )


def _set_end(*, key: ApiKey, actor: str, expires_at: Any) -> bool:
    if key.expires_at == expires_at:
        return False
    services.change_key(key=key, actor=actor, expires_at=expires_at)
    return True
