"""One's own account: how one is called and spoken to, and with what one signs in."""

from __future__ import annotations

from copy import copy
from zoneinfo import available_timezones

from allauth.account.models import EmailAddress
from allauth.account.views import email as email_page
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import path
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from audit.walls import across
from tenants.models import Member, User
from tenants.services import change_person


def _zones() -> list[tuple[str, str]]:
    # Names without a place, such as EST, say less than they seem to.
    named = sorted(zone for zone in available_timezones() if "/" in zone and not zone.startswith("Etc/"))
    return [("", _("Of each tenant")), ("UTC", "UTC"), *((zone, zone.replace("_", " ")) for zone in named)]


class AccountForm(forms.ModelForm):  # type: ignore[type-arg]  # the parameter is in the stubs only
    """How a person is called, in which language and in whose time the portal speaks to them."""

    first_name = forms.CharField(label=gettext_lazy("First name"), max_length=150, required=False)
    last_name = forms.CharField(label=gettext_lazy("Last name"), max_length=150, required=False)
    language = forms.ChoiceField(
        label=gettext_lazy("Language"),
        choices=[("", gettext_lazy("As the browser asks for")), *settings.LANGUAGES],
        required=False,
    )
    time_zone = forms.ChoiceField(
        label=gettext_lazy("Time zone"),
        choices=_zones,
        required=False,
        help_text=gettext_lazy("Of the times that you are shown. Days and periods are always the tenant's."),
    )

    class Meta:
        model = User
        fields = ["first_name", "last_name", "language", "time_zone"]


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def account(request: HttpRequest) -> HttpResponse:
    """Everything about oneself on one page, and the way to where each is changed."""
    # A row of its own: a form fills in what was asked for, also when it refuses it.
    user = _row_of(request)
    form = AccountForm(request.POST or None, instance=user)
    if form.is_valid():
        changed = change_person(user=user, actor=str(user), **form.cleaned_data)
        # What is said from here on is said in the language that was just chosen.
        translation.activate(changed.language or translation.get_language_from_request(request))
        messages.success(request, _("It is saved."))
        return redirect("account")
    with across():
        memberships = list(Member.objects.filter(user=user).select_related("tenant", "team"))
    kinds = Authenticator.objects.filter(user=user).values_list("type", flat=True)
    context = {
        "form": form,
        "memberships": memberships,
        "has_app": Authenticator.Type.TOTP in kinds,
        "passkeys": list(kinds).count(Authenticator.Type.WEBAUTHN),
        "has_codes": Authenticator.Type.RECOVERY_CODES in kinds,
        "sessions": UserSession.objects.filter(user=user).count(),
    }
    return render(request, "account/overview.html", context, status=400 if form.errors else 200)


@login_required
@transaction.atomic
def email(request: HttpRequest) -> HttpResponseBase:
    """allauth's page, once it knows of the address that whoever added the person entered.

    It would take that for a change that was never confirmed, and forget it with
    the next one.
    """
    _note_address(_row_of(request))
    return email_page(request)


def _row_of(request: HttpRequest) -> User:
    """A copy of the person who asks; the page is for people who are signed in."""
    assert isinstance(request.user, User)  # noqa: S101 - tells the type checker
    return copy(request.user)


def _note_address(user: User) -> None:
    if not user.email or EmailAddress.objects.filter(user=user, email__iexact=user.email).exists():
        return
    # What another person had once and has no more.
    EmailAddress.objects.filter(email__iexact=user.email).exclude(user=user).delete()
    EmailAddress.objects.filter(user=user, primary=True).update(primary=False)
    EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=True)


urlpatterns = [
    path("", account, name="account"),
    path("email/", email, name="account_email"),
]
