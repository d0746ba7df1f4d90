"""Forms of the admin that ask for more, or otherwise, than a row has columns."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextInputWidget

from budgets.models import KillSwitch
from budgets.services import subject_of_switch
from keys.models import ApiKey
from tenants.models import Tenant


class DecisionForm(forms.Form):
    """Why a proposed price is declined, or accepted."""

    reason = forms.CharField(
        label="Reason, for the audit",
        widget=UnfoldAdminTextInputWidget,
        help_text="Such as: agreed with finance on 3 December.",
    )


class AcceptForm(DecisionForm):
    """When an accepted price starts, too; ``shown`` is the start whose effect the page has told."""

    starts_at = forms.DateTimeField(
        label="Holds from",
        widget=UnfoldAdminTextInputWidget,
        help_text="In UTC: 2026-12-01 00:00. Where a month begins, it has one price throughout.",
    )
    shown = forms.DateTimeField(widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if "starts_at" in cleaned and cleaned["starts_at"] != cleaned.get("shown"):
            self.add_error(None, "From another moment on: look at what it changes, and confirm.")
        return cleaned


class ArmForm(forms.ModelForm):  # type: ignore[type-arg]  # the parameter is in the stubs only
    """What is to be stopped, why and until when; and its name once more, typed by whoever means it."""

    tenant = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Slug; for a tenant, or for a model within a tenant.",
    )
    key = forms.CharField(
        required=False, widget=UnfoldAdminTextInputWidget, help_text="Public id: the 12 characters after tg_."
    )
    confirmation = forms.CharField(
        widget=UnfoldAdminTextInputWidget,
        help_text="Type what is to be stopped: platform, tenant physics, key nightly of physics, "
        "upstream gpu-1, model llama3.2:latest, model llama3.2:latest of physics.",
    )

    class Meta:
        model = KillSwitch
        fields = ["scope", "tenant", "key", "upstream", "model", "reason", "message", "until"]
        widgets = {"reason": UnfoldAdminTextInputWidget}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        tenant, key = self._tenant(cleaned.get("tenant")), self._key(cleaned.get("key"))
        self.subject: dict[str, Any] = {
            "scope": cleaned.get("scope", ""),
            "tenant": tenant,
            "key": key,
            "model": cleaned.get("model", ""),
            "upstream": cleaned.get("upstream", ""),
        }
        columns = subject_of_switch(**self.subject)
        self.instance.tenant_id, self.instance.key_id = columns["tenant_id"], columns["key_id"]
        tenant = tenant if key is None else key.tenant
        return cleaned | {
            "model": columns["model"],
            "tenant": tenant.slug if tenant else "",
            "key": key.label if key else "",
        }

    def validate_unique(self) -> None:
        """Check what columns mean together, also those that are not in the form; then the confirmation."""
        super().validate_unique()
        if self.errors:
            return
        try:
            self.instance.validate_constraints(exclude={"armed_by"})
        except ValidationError as exc:
            self.add_error(None, exc)
        else:
            if self.cleaned_data["confirmation"] != str(self.instance):
                self.add_error("confirmation", f"To confirm, type: {self.instance}")

    def _tenant(self, slug: str | None) -> Tenant | None:
        if not slug:
            return None
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            self.add_error("tenant", f"There is no tenant “{slug}”.")
        return tenant

    def _key(self, public_id: str | None) -> ApiKey | None:
        if not public_id:
            return None
        key = ApiKey.objects.select_related("tenant").filter(secrets__public_id=public_id).first()
        if key is None:
            self.add_error("key", f"There is no key “{public_id}”.")
        return key
