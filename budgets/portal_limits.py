"""Pages about limits: how each stands, and who is told before one is used up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.timezone import now
from django.utils.translation import get_language, gettext_lazy
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from budgets import deliveries, notices, services, webhooks
from budgets.limits_seen import look_at_limits
from budgets.models import Delivery, Happening, Notice, Recipient, happenings_told_of
from budgets.notice_words import Reader, in_words
from budgets.raise_requests import open_requests
from tenants.access import Access, Reach
from tenants.portal import form_on, tenant_page

# More than anybody reads at once, and drawn within the time that a page may take.
ON_A_PAGE = 50
MOST_RECIPIENTS = 50
# A test goes to any address that somebody typed in.
TESTS_IN_AN_HOUR = 10
LOOKED_BACK = timedelta(days=7)
MOST_FAILURES = 50

# What a tenant may choose; what only operators are told of is not among it.
TOLD_OF = {
    Happening.THRESHOLD: gettext_lazy("a share of a budget is used"),
    Happening.EXHAUSTED: gettext_lazy("a budget refused a call"),
    Happening.SHADOW_REFUSED: gettext_lazy("a shadow budget would have refused a call"),
    Happening.PERIOD_CLOSED: gettext_lazy("a period of a budget is over"),
    Happening.RAISE_ENDED: gettext_lazy("a raise of a limit is over"),
    Happening.RAISE_REQUESTED: gettext_lazy("somebody asks for more of a limit"),
    Happening.RAISE_DECIDED: gettext_lazy("a request for more of a limit was answered"),
    Happening.KILL_SWITCH_ARMED: gettext_lazy("a kill switch stops calls"),
    Happening.KILL_SWITCH_LIFTED: gettext_lazy("a kill switch no longer stops calls"),
    Happening.KEY_EXPIRES: gettext_lazy("a key expires soon"),
}


class ToldOfForm(forms.Form):
    """What a recipient is told of."""

    happenings = forms.MultipleChoiceField(
        label=gettext_lazy("Told when"),
        choices=list(TOLD_OF.items()),
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )


class RecipientForm(ToldOfForm):
    """Somebody who is to be told."""

    kind = forms.ChoiceField(
        label=gettext_lazy("By"),
        choices=[("email", gettext_lazy("e-mail")), ("webhook", gettext_lazy("webhook"))],
    )
    address = forms.CharField(
        label=gettext_lazy("Address"),
        max_length=2000,
        help_text=gettext_lazy("An e-mail address, or the https:// address of a webhook."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    field_order = ("kind", "address", "happenings")


@require_safe
@tenant_page
def limits(request: HttpRequest, access: Access) -> HttpResponse:
    """Every limit on a person, the tightest marked, and who is told of what."""
    return _limits_page(request, access)


@form_on("portal-limits")
@tenant_page
def add(request: HttpRequest, access: Access) -> HttpResponse:
    """Let somebody be told; of a webhook, show the secret it is signed with, this once."""
    _demand(access)
    form = RecipientForm(request.POST)
    if form.is_valid():
        if _recipients(access).count() >= MOST_RECIPIENTS:
            form.add_error(None, _("There are as many recipients as there may be: remove one first."))
        else:
            try:
                recipient = services.add_recipient(
                    tenant=access.tenant, actor=str(access.user), **form.cleaned_data
                )
            except ValidationError as exc:
                form.add_error(None, ValidationError(exc.messages))
            else:
                if recipient.kind == Recipient.Kind.WEBHOOK:
                    return _secret_page(request, recipient, webhooks.secret_of(recipient))
                messages.success(request, _("%(who)s is told from now on.") % {"who": recipient.address})
                return redirect("portal-limits", access.tenant.slug)
    return _limits_page(request, access, form=form, status=400)


@tenant_page
def recipient(request: HttpRequest, access: Access, recipient_id: UUID) -> HttpResponse:
    """One recipient: change what they are told of, try them out, change a secret, remove them."""
    _demand(access)
    found = get_object_or_404(_recipients(access), pk=recipient_id)
    actor = str(access.user)
    form = ToldOfForm(request.POST or None, initial={"happenings": found.happenings})
    act = request.POST.get("act", "") if request.method == "POST" else ""
    if act == "test":
        _try_out(request, access, found)
    elif act == "remove":
        services.remove_recipient(recipient=found, actor=actor)
        messages.success(request, _("%(who)s is told nothing any more.") % {"who": found.shown_address})
        return redirect("portal-limits", access.tenant.slug)
    elif act == "secret" and found.kind == Recipient.Kind.WEBHOOK:
        return _secret_page(request, found, services.new_webhook_secret(recipient=found, actor=actor))
    elif act == "change" and form.is_valid():
        active = "active" in request.POST
        # What operators chose beyond what is shown here stays.
        kept = [one for one in found.happenings if one not in TOLD_OF]
        happenings = [*form.cleaned_data["happenings"], *kept]
        services.change_recipient(recipient=found, actor=actor, happenings=happenings, active=active)
        messages.success(request, _("Saved."))
    if act:
        return redirect("portal-recipient", access.tenant.slug, found.pk)
    return render(
        request,
        "portal/limits/recipient.html",
        {"recipient": found, "form": form, "failures": _failures(access, found)},
    )


def _limits_page(
    request: HttpRequest, access: Access, form: RecipientForm | None = None, status: int = 200
) -> HttpResponse:
    if access.usage == Reach.NOTHING:
        raise PermissionDenied
    seeing = look_at_limits(access, page=request.GET.get("page"), size=ON_A_PAGE)
    whole = access.usage == Reach.WHOLE_TENANT
    recipients = list(_recipients(access)) if whole else []
    context = {
        "seeing": seeing,
        "whole": whole,
        "waiting": open_requests(access).count(),
        "recipients": [(one, [TOLD_OF[h] for h in TOLD_OF if h in one.happenings]) for one in recipients],
        "failures": _failures(access, *recipients) if recipients else [],
        "form": form or RecipientForm(initial={"happenings": happenings_told_of()}),
    }
    return render(request, "portal/limits/limits.html", context, status=status)


def _demand(access: Access) -> None:
    if not access.manages_recipients:
        raise PermissionDenied


def _recipients(access: Access) -> QuerySet[Recipient]:
    """Those of the tenant; those of the platform are no tenant's business."""
    return Recipient.objects.filter(tenant=access.tenant)


def _failures(access: Access, *recipients: Recipient) -> list[dict[str, Any]]:
    """What did not arrive lately, the newest first, in the words of whoever looks."""
    reader = Reader(get_language() or settings.LANGUAGE_CODE, ZoneInfo(access.time_zone))
    failed = Delivery.objects.filter(recipient__in=recipients, notice__at__gt=now() - LOOKED_BACK)
    failed = failed.filter(
        Q(state=Delivery.State.DEAD) | Q(state=Delivery.State.WAITING, attempts__0__isnull=False)
    )
    return [
        {
            "delivery": one,
            "text": in_words(one.notice, reader),
            "error": deliveries.why_not(one.attempts[-1]) if one.attempts else "",
        }
        for one in failed.select_related("notice").order_by("-id")[:MOST_FAILURES]
    ]


def _try_out(request: HttpRequest, access: Access, recipient: Recipient) -> None:
    tried = Notice.objects.filter(
        tenant_id=access.tenant.pk, happening=Happening.TEST, at__gt=now() - timedelta(hours=1)
    )
    if tried.count() >= TESTS_IN_AN_HOUR:
        messages.error(request, _("That was tried often enough for this hour."))
        return
    delivery = deliveries.deliver_now(notices.try_out(recipient, str(access.user)))
    if delivery.state == Delivery.State.DELIVERED:
        messages.success(request, _("The test was delivered to %(who)s.") % {"who": recipient.shown_address})
    else:
        error = deliveries.why_not(delivery.attempts[-1])
        messages.error(
            request, _("The test was not delivered: %(error)s. It is tried again.") % {"error": error}
        )


def _secret_page(request: HttpRequest, recipient: Recipient, secret: str) -> HttpResponse:
    return render(request, "portal/limits/secret.html", {"recipient": recipient, "secret": secret})


urlpatterns = [
    path("limits/", limits, name="portal-limits"),
    path("limits/recipients/", add, name="portal-recipient-add"),
    path("limits/recipients/<uuid:recipient_id>/", recipient, name="portal-recipient"),
]
