"""A tenant's audit, for those of its people who may look into it: who changed what, and how it was before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django import forms
from django.core.exceptions import PermissionDenied
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils.translation import gettext_lazy as _

from audit.models import AuditEvent
from tenants.access import Access
from tenants.portal import tenant_page

ON_A_PAGE = 50


class Day(forms.DateInput):
    input_type = "date"


class AuditForm(forms.Form):
    """Which events; ``after`` is the event with which the page before ended."""

    action = forms.CharField(label=_("What happened"), required=False, help_text=_("Such as key.revoked."))
    actor = forms.CharField(label=_("Who"), required=False, help_text=_("A name as it is written below."))
    subject = forms.CharField(label=_("To what"), required=False, help_text=_("An id, such as a key's."))
    since = forms.DateField(label=_("From"), required=False, widget=Day)
    before = forms.DateField(label=_("Before"), required=False, widget=Day)
    after = forms.IntegerField(required=False, min_value=1, max_value=2**63 - 1, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = self.cleaned_data
        since, before = cleaned.get("since"), cleaned.get("before")
        if since and before and since >= before:
            self.add_error("before", _("It ends before it begins."))
        return cleaned

    def events(self, zone: ZoneInfo) -> QuerySet[AuditEvent]:
        """What a valid form selects, the newest first; days are those of ``zone``."""
        given = self.cleaned_data
        wanted: dict[str, Any] = {name: given[name] for name in ("action", "actor", "subject") if given[name]}
        for name, lookup in (("since", "at__gte"), ("before", "at__lt")):
            if given[name]:
                wanted[lookup] = datetime.combine(given[name], time(), zone)
        if given["after"]:
            wanted["id__lt"] = given["after"]
        return AuditEvent.objects.filter(**wanted).order_by("-id")

    def without_page(self) -> dict[str, str]:
        """What of the address selects the same from its beginning."""
        return {name: str(value) for name, value in self.cleaned_data.items() if value and name != "after"}


@dataclass(frozen=True, slots=True)
class Value:
    """One thing that an event tells: as it was, as it is, or both."""

    name: str
    before: str | None
    now: str | None


@tenant_page
def events(request: HttpRequest, access: Access) -> HttpResponse:
    """Who changed what of the tenant, the newest first."""
    if not access.reads_audit:
        raise PermissionDenied
    form = AuditForm(request.GET)
    if not form.is_valid():
        return render(request, "portal/audit.html", {"form": form, "invalid": True}, status=400)
    found = form.events(ZoneInfo(access.tenant.time_zone)).filter(tenant_id=access.tenant.pk)
    shown = list(found[: ON_A_PAGE + 1])
    filters = form.without_page()
    context = {
        "form": form,
        "rows": [(event, list(values_of(event.details))) for event in shown[:ON_A_PAGE]],
        "filtered": bool(filters),
        "newest": f"?{urlencode(filters)}" if form.cleaned_data["after"] else "",
        "older": f"?{urlencode(filters | {'after': str(shown[ON_A_PAGE - 1].pk)})}"
        if len(shown) > ON_A_PAGE
        else "",
    }
    return render(request, "portal/audit.html", context)


def values_of(details: dict[str, Any]) -> Iterator[Value]:
    """What an event tells, exactly: each thing that changed with both its values, then the rest."""
    before, after = details.get("before"), details.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield Value(name, *(_written(side[name]) if name in side else None for side in (before, after)))
    elif "before" in details or "after" in details:
        yield Value(
            "", *(_written(details[side]) if side in details else None for side in ("before", "after"))
        )
    for name, value in details.items():
        if name not in ("before", "after"):
            yield Value(name, None, _written(value))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False)


urlpatterns = [path("<slug:slug>/audit/", events, name="portal-audit")]
