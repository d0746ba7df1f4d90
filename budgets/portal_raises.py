"""Pages about asking for more of a limit: asking, and saying yes or no."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path, reverse
from django.utils import timezone
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_safe

from budgets import raise_requests
from budgets.limits import limit_now
from budgets.limits_seen import limit_seen_by
from budgets.models import LARGEST, Budget, RaiseRequest, RateLimit
from budgets.money import MICRO
from budgets.schedules import schedules_of
from tenants.access import Access
from tenants.forms import told_in_every_zone
from tenants.portal import tenant_page

MOST_LISTED = 100


class AmountForm(forms.Form):
    """An amount of a limit's unit and a moment; money is in dollars, moments in the zone of the page."""

    def __init__(self, *args: Any, unit: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unit = unit
        money = unit == "micro_usd"
        self.fields["to"] = (
            forms.DecimalField(
                label=_("New limit, in US dollars"),
                max_digits=15,
                decimal_places=6,
                min_value=Decimal("0.000001"),
            )
            if money
            else forms.IntegerField(label=_("New limit"), min_value=1, max_value=LARGEST)
        )
        self.order_fields(["to", "until"])

    until = forms.DateTimeField(
        label=gettext_lazy("Until"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        validators=[told_in_every_zone],
    )

    def clean_until(self) -> datetime:
        until: datetime = self.cleaned_data["until"]
        if until <= now():
            raise ValidationError(_("A raise ends in the future."))
        return until

    def clean_to(self) -> int:
        to = self.cleaned_data["to"]
        return int(to * MICRO) if self.unit == "micro_usd" else int(to)


class AskForm(AmountForm):
    """What somebody asks for, and why."""

    reason = forms.CharField(
        label=gettext_lazy("Why it is needed"),
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text=gettext_lazy("Those who decide read this."),
    )


class DecideForm(AmountForm):
    """What is granted, and what the person is told."""

    answer = forms.CharField(
        label=gettext_lazy("Answer"),
        max_length=1000,
        required=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text=gettext_lazy("The person is told this. A no needs it."),
    )


@require_safe
@tenant_page
def raises(request: HttpRequest, access: Access) -> HttpResponse:
    """What waits for this person's decision, and what they asked for themselves."""
    _demand(access)
    context = {
        "waiting": raise_requests.open_requests(access)[:MOST_LISTED],
        "own": raise_requests.own_requests(access)[:MOST_LISTED],
    }
    return render(request, "portal/raises/raises.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def ask(request: HttpRequest, access: Access, limit_id: UUID) -> HttpResponse:
    """Ask for more of a limit; ``?request=`` is the refused call that led here."""
    if not access.asks_for_raises:
        raise PermissionDenied
    row = limit_seen_by(access, limit_id)
    if row is None:
        raise Http404
    limit = limit_now(row) or 0
    with timezone.override(ZoneInfo(access.time_zone)):
        form = AskForm(request.POST or None, unit=row.unit, initial=_proposed(row, limit))
        if request.method == "POST" and form.is_valid():
            try:
                asked = raise_requests.ask_for_raise(
                    access=access,
                    row=row,
                    request_id=_request_id(request),
                    pages=request.build_absolute_uri(reverse("portal-raises", args=[access.tenant.slug])),
                    **form.cleaned_data,
                )
            except ValidationError as exc:
                _add(form, exc)
            else:
                messages.success(request, _("It was asked for. You are told what becomes of it."))
                return redirect("portal-raise", access.tenant.slug, asked.pk)
        status = 400 if form.is_bound else 200
        context = {
            "form": form,
            "row": row,
            "limit": limit,
            "shared_out": row.scope in raise_requests.SHARED_OUT,
            "led_here": _request_id(request),
        }
        return render(request, "portal/raises/ask.html", context, status=status)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def raise_request(request: HttpRequest, access: Access, raise_id: UUID) -> HttpResponse:
    """One request: for whoever asked, how it stands; for whoever may decide, yes or no."""
    _demand(access)
    found = get_object_or_404(raise_requests.all_of(access), pk=raise_id)
    own, decides = found.asked_by_id == access.user.pk, raise_requests.may_decide(access, found)
    if not (own or decides):
        raise Http404
    with timezone.override(ZoneInfo(access.time_zone)):
        initial = {"to": _shown(found.row, found.to), "until": found.until}
        form = DecideForm(request.POST or None, unit=found.row.unit, initial=initial)
        if request.method == "POST" and _decided(request, access, found, form):
            return redirect("portal-raise", access.tenant.slug, found.pk)
        context = {
            "asked": found,
            "limit": limit_now(found.row),
            "own": own,
            "decides": decides and found.state == RaiseRequest.State.OPEN,
            "over": found.until <= now(),
            "form": form,
        }
        status = 400 if request.method == "POST" else 200
        return render(request, "portal/raises/raise.html", context, status=status)


def _decided(request: HttpRequest, access: Access, found: RaiseRequest, form: DecideForm) -> bool:
    """Do what was asked for by the button; False with the reason in the form."""
    act = request.POST.get("act", "")
    page = request.build_absolute_uri()
    try:
        if act == "withdraw":
            done: object = raise_requests.withdraw_request(request=found, access=access)
        elif act == "decline":
            # Only the answer counts, also where the other fields have mistakes.
            form.is_valid()
            answer = form.cleaned_data.get("answer", "")
            done = raise_requests.decline_request(request=found, access=access, answer=answer, page=page)
        elif act == "grant" and form.is_valid():
            done = raise_requests.grant_request(request=found, access=access, page=page, **form.cleaned_data)
        else:
            return False
    except ValidationError as exc:
        _add(form, exc)
        return False
    if not done:
        messages.warning(request, _("Somebody has decided this already, or it was withdrawn."))
    return True


def _add(form: forms.Form, exc: ValidationError) -> None:
    """Put an error where people look for it."""
    form.is_valid()
    if hasattr(exc, "error_dict"):
        for name, errors in exc.message_dict.items():
            form.add_error(name if name in form.fields else None, errors)
    else:
        form.add_error(None, exc.messages)


def _proposed(row: Budget | RateLimit, limit: int) -> dict[str, Any]:
    """Half as much again, until the present period ends; for a week if it ends only later, or never."""
    until = now() + timedelta(days=7)
    if isinstance(row, Budget):
        until = min(until, schedules_of([row])[row.pk].period(now().timestamp()).ends_at or until)
    return {"to": _shown(row, min(LARGEST, limit + max(1, limit // 2))), "until": until}


def _shown(row: Budget | RateLimit, number: int) -> Decimal | int:
    """An amount as its field takes it."""
    return Decimal(number) / MICRO if row.unit == "micro_usd" else number


def _request_id(request: HttpRequest) -> UUID | None:
    try:
        return UUID(request.GET.get("request", ""))
    except ValueError:
        return None


def _demand(access: Access) -> None:
    if not (access.asks_for_raises or access.grants_raises):
        raise PermissionDenied


urlpatterns = [
    path("raises/", raises, name="portal-raises"),
    path("raises/new/<uuid:limit_id>/", ask, name="portal-raise-ask"),
    path("raises/<uuid:raise_id>/", raise_request, name="portal-raise"),
]
