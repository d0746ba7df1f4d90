"""What somebody sees who was invited: the way from the link in the mail into the tenant."""

from __future__ import annotations

from typing import Any

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import EmailAddress, Login
from allauth.core.ratelimit import consume_or_429
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path, reverse
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from audit.walls import across
from tenants.invitations import (
    InvitationGone,
    accept_invitation,
    accept_with_new_account,
    digest,
    usable,
)
from tenants.models import Invitation, Member, User
from tenants.team_forms import NewAccountForm

# Where the session remembers which token its browser has shown: its digest, as in the database.
SHOWN = "invitation"


@sensitive_variables("token")
@require_safe
@across()
def link(request: HttpRequest, token: str) -> HttpResponse:
    """Take the token out of sight: no page is shown at its address, so no referrer and no history has it."""
    too_many: HttpResponse | None = consume_or_429(request, action="invitation", limit_get=True)
    if too_many is not None:
        return too_many
    found = usable().filter(token_digest=digest(token)).first()
    if found is None:
        return _gone(request)
    request.session[SHOWN] = found.token_digest
    return redirect("invitation")


@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
# Whoever has the link belongs to no tenant yet; what they see is what the link is about.
@across()
def invitation(request: HttpRequest) -> HttpResponse:
    """What one is invited to. POST: accept it, and with a new account where there is none."""
    too_many: HttpResponse | None = consume_or_429(request, action="invitation")
    if too_many is not None:
        return too_many
    found = (
        usable()
        .filter(token_digest=request.session.get(SHOWN, ""))
        .select_related("tenant", "team", "invited_by")
        .first()
    )
    if found is None:
        return _gone(request)
    try:
        if isinstance(request.user, User):
            return _of_a_person(request, found, request.user)
        return _of_somebody_new(request, found)
    except InvitationGone:
        return _gone(request)


def _of_a_person(request: HttpRequest, found: Invitation, user: User) -> HttpResponse:
    """Accept it as whoever is signed in."""
    is_member = Member.objects.filter(tenant=found.tenant, user=user).exists()
    if request.method == "POST" and not is_member:
        try:
            accept_invitation(invitation=found, user=user)
        except ValidationError:
            # They became one while the form was on its way.
            is_member = True
        else:
            return _welcome(request, found)
    context = {
        "invitation": found,
        "is_member": is_member,
        "others": user.email.lower() != found.email.lower(),
    }
    return render(
        request, "account/invitation.html", context, status=409 if request.method == "POST" else 200
    )


def _of_somebody_new(request: HttpRequest, found: Invitation) -> HttpResponse:
    """Make an account, or say that there is one to sign in with."""
    if User.objects.filter(email__iexact=found.email).exists():
        sign_in = f"{reverse('account_login')}?next={reverse('invitation')}"
        return render(request, "account/invitation.html", {"invitation": found, "sign_in": sign_in})
    form = NewAccountForm(found.email, request.POST or None)
    if form.is_valid():
        try:
            user = _created(found, form.cleaned_data)
        except ValidationError as exc:
            # Somebody took the name or the address between the look and the leap.
            form.add_error(None, ValidationError(exc.messages))
        else:
            _welcome(request, found)
            there = reverse("portal-tenant", args=[found.tenant.slug])
            return _signed_in(request, user, there)
    context = {"invitation": found, "form": form}
    return render(request, "account/invitation.html", context, status=400 if form.errors else 200)


@transaction.atomic
def _created(found: Invitation, cleaned: dict[str, Any]) -> User:
    user = accept_with_new_account(invitation=found, **cleaned)
    # Whoever has the link has read the mail.
    EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=True)
    return user


def _signed_in(request: HttpRequest, user: User, there: str) -> HttpResponse:
    response: HttpResponse = perform_password_login(
        request, {"username": user.username}, Login(user=user, redirect_url=there)
    )
    return response


def _welcome(request: HttpRequest, found: Invitation) -> HttpResponse:
    request.session.pop(SHOWN, None)
    messages.success(request, _("Welcome to %(tenant)s.") % {"tenant": found.tenant.name})
    return redirect("portal-tenant", found.tenant.slug)


def _gone(request: HttpRequest) -> HttpResponse:
    """The same for a link that was never sent and one that works no more."""
    request.session.pop(SHOWN, None)
    return render(request, "account/invitation_gone.html", status=404)


urlpatterns = [
    path("invitation/", invitation, name="invitation"),
    path("invitation/<str:token>/", link, name="invitation-link"),
]
