"""A tenant's people and programs: who is there, who is invited, and who goes."""

from __future__ import annotations

from uuid import UUID

from allauth.core.ratelimit import consume
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from tenants.access import Access
from tenants.invitation_mails import link_of, mail_invitation
from tenants.invitations import InvitationGone, invite, renew_invitation, withdraw_invitation
from tenants.models import Invitation, Member, ServiceAccount, Team
from tenants.portal import form_on, tenant_page
from tenants.services import (
    change_member,
    change_tenant,
    close_service_account,
    create_service_account,
    remove_member,
)
from tenants.team_forms import InvitationForm, LanguageForm, PlaceForm, ServiceAccountForm, TeamForm, WhyForm

MOST_LISTED = 500


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def team(request: HttpRequest, access: Access) -> HttpResponseBase:
    """GET: everybody, or for a member themselves. POST: invite somebody."""
    if not access.member and not access.reads_team:
        raise PermissionDenied
    if request.method != "POST":
        return people_page(request, access)
    demand_management(access)
    form = InvitationForm(access, request.POST)
    if form.is_valid():
        if not consume(request, action="invite"):
            form.add_error(None, _("These were many invitations. Send the next one in an hour."))
        else:
            try:
                invitation, token = invite(tenant=access.tenant, invited_by=access.user, **form.cleaned_data)
            except ValidationError as exc:
                form.add_error(None, only_messages(exc))
            else:
                return _sent(request, access, invitation, token)
    return people_page(request, access, invitation_form=form, status=400)


def people_page(
    request: HttpRequest,
    access: Access,
    *,
    invitation_form: InvitationForm | None = None,
    account_form: ServiceAccountForm | None = None,
    team_form: TeamForm | None = None,
    language_form: LanguageForm | None = None,
    status: int = 200,
) -> HttpResponse:
    """The tenant's people and programs, with whichever form has mistakes."""
    members = Member.objects.filter(tenant=access.tenant).select_related("user", "team")
    context: dict[str, object] = {"reads_all": access.reads_team}
    teams: list[Team] = []
    if access.reads_team:
        open_ones = Invitation.objects.filter(tenant=access.tenant, accepted_at=None, withdrawn_at=None)
        accounts = ServiceAccount.objects.filter(tenant=access.tenant, closed_at=None)
        teams = list(
            Team.objects.filter(tenant=access.tenant).annotate(
                people=Count("members", distinct=True), programs=Count("service_accounts", distinct=True)
            )
        )
        context |= {
            "invitations": open_ones.select_related("team", "invited_by"),
            "accounts": accounts.select_related("team"),
            "teams": teams,
        }
    else:
        members = members.filter(user=access.user)
    listed = list(members[: MOST_LISTED + 1])
    context |= {
        "members": [(member, member.role in access.grants) for member in listed[:MOST_LISTED]],
        "more": len(listed) > MOST_LISTED,
    }
    if access.manages_team:
        context |= {
            "grants": access.grants,
            "invitation_form": invitation_form
            or InvitationForm(access, teams=teams, initial={"role": "member"}),
            "account_form": account_form or ServiceAccountForm(access, teams=teams, prefix="account"),
            "team_form": team_form or TeamForm(prefix="team"),
        }
    if access.chooses_language:
        now = {"language": access.tenant.language}
        context["language_form"] = language_form or LanguageForm(initial=now)
    return render(request, "portal/team/team.html", context, status=status)


@sensitive_variables("token", "link")
def _sent(request: HttpRequest, access: Access, invitation: Invitation, token: str) -> HttpResponse:
    """Mail an invitation; where no mail goes out, show its link this once to whoever invites."""
    link = link_of(request, token)
    if mail_invitation(invitation, link):
        messages.success(request, _("An invitation was sent to %(email)s.") % {"email": invitation.email})
        return redirect("portal-team", access.tenant.slug)
    return render(request, "portal/team/invited.html", {"invitation": invitation, "link": link})


@form_on("portal-team")
@tenant_page
def invitation(request: HttpRequest, access: Access, invitation_id: UUID) -> HttpResponse:
    """Send an invitation again, with another link, or withdraw it."""
    demand_management(access)
    found = get_object_or_404(
        Invitation.objects.select_related("tenant"), tenant=access.tenant, pk=invitation_id
    )
    if found.role not in access.grants:
        raise PermissionDenied
    if "withdraw" in request.POST:
        if withdraw_invitation(invitation=found, actor=str(access.user)):
            messages.success(request, _("The invitation of %(email)s is withdrawn.") % {"email": found.email})
        else:
            messages.warning(request, _("That invitation was accepted or withdrawn meanwhile."))
        return redirect("portal-team", access.tenant.slug)
    if not consume(request, action="invite"):
        messages.error(request, _("These were many invitations. Send the next one in an hour."))
        return redirect("portal-team", access.tenant.slug)
    try:
        renewed, token = renew_invitation(invitation=found, actor=str(access.user))
    except InvitationGone:
        messages.warning(request, _("That invitation was accepted or withdrawn meanwhile."))
        return redirect("portal-team", access.tenant.slug)
    return _sent(request, access, renewed, token)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def member(request: HttpRequest, access: Access, member_id: UUID) -> HttpResponse:
    """Another role or team for somebody."""
    found = _changeable(access, member_id)
    form = PlaceForm(access, request.POST or None, initial={"role": found.role, "team": found.team})
    if form.is_valid():
        try:
            change_member(member=found, actor=str(access.user), **form.cleaned_data)
        except ValidationError as exc:
            form.add_error(None, only_messages(exc))
        except Member.DoesNotExist:
            messages.warning(request, _("Somebody else was quicker: they are no member any more."))
            return redirect("portal-team", access.tenant.slug)
        else:
            messages.success(request, _("%(person)s has another place now.") % {"person": found.user})
            return redirect("portal-team", access.tenant.slug)
    return render(
        request,
        "portal/team/member.html",
        {"member": found, "form": form},
        status=400 if form.errors else 200,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def remove(request: HttpRequest, access: Access, member_id: UUID) -> HttpResponse:
    """What follows if somebody is removed, and doing it."""
    return _let_go(request, access, _changeable(access, member_id))


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def leave(request: HttpRequest, access: Access) -> HttpResponse:
    """What follows if one leaves oneself, and doing it."""
    if access.member is None:
        raise PermissionDenied
    return _let_go(request, access, access.member)


def _let_go(request: HttpRequest, access: Access, leaver: Member) -> HttpResponse:
    own = leaver.user_id == access.user.pk
    error = ""
    if request.method == "POST":
        try:
            revoked = remove_member(member=leaver, actor=str(access.user))
        except ValidationError as exc:
            error = " ".join(exc.messages)
        except Member.DoesNotExist:
            messages.warning(request, _("Somebody else was quicker: they are no member any more."))
            return redirect("portal-team", access.tenant.slug)
        else:
            messages.success(request, _told(access, leaver, revoked, own=own))
            return redirect("portal") if own else redirect("portal-team", access.tenant.slug)
    context = {
        "member": leaver,
        "own": own,
        "keys": leaver.keys.filter(revoked_at=None).order_by("label"),
        "error": error,
    }
    return render(request, "portal/team/leave.html", context, status=400 if error else 200)


def _told(access: Access, leaver: Member, revoked: int, *, own: bool) -> str:
    if own:
        who = _("You are no member of %(tenant)s any more.") % {"tenant": access.tenant.name}
    else:
        who = _("%(person)s is no member any more.") % {"person": leaver.user}
    keys = ngettext("%(count)s key was revoked.", "%(count)s keys were revoked.", revoked)
    return f"{who} {keys % {'count': revoked}}"


@form_on("portal-team")
@tenant_page
def service_accounts(request: HttpRequest, access: Access) -> HttpResponse:
    """Create a service account."""
    demand_management(access)
    form = ServiceAccountForm(access, request.POST, prefix="account")
    if form.is_valid():
        try:
            account = create_service_account(
                tenant=access.tenant, actor=str(access.user), **form.cleaned_data
            )
        except ValidationError as exc:
            form.add_error(None, only_messages(exc))
        else:
            messages.success(
                request, _("Service account %(name)s is there. Give it a key.") % {"name": account.name}
            )
            return redirect("portal-team", access.tenant.slug)
    return people_page(request, access, account_form=form, status=400)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def close_account(request: HttpRequest, access: Access, account_id: UUID) -> HttpResponse:
    """What follows if a service account is closed, and doing it."""
    demand_management(access)
    account = get_object_or_404(ServiceAccount, tenant=access.tenant, pk=account_id, closed_at=None)
    # A form with nothing in it is sent, too.
    form = WhyForm(request.POST if request.method == "POST" else None)
    if form.is_valid():
        revoked = close_service_account(account=account, actor=str(access.user), **form.cleaned_data)
        if revoked is not None:
            keys = ngettext("%(count)s key was revoked.", "%(count)s keys were revoked.", revoked)
            closed = _("Service account %(name)s is closed.") % {"name": account.name}
            messages.success(request, f"{closed} {keys % {'count': revoked}}")
        return redirect("portal-team", access.tenant.slug)
    keys_of = account.keys.filter(revoked_at=None).order_by("label")
    context = {"account": account, "keys": keys_of, "form": form}
    status = 400 if form.errors else 200
    return render(request, "portal/team/close_account.html", context, status=status)


@form_on("portal-team")
@tenant_page
def language(request: HttpRequest, access: Access) -> HttpResponse:
    """Choose the language of mails to those who have chosen none."""
    if not access.chooses_language:
        raise PermissionDenied
    form = LanguageForm(request.POST)
    if not form.is_valid():
        return people_page(request, access, language_form=form, status=400)
    change_tenant(tenant=access.tenant, actor=str(access.user), **form.cleaned_data)
    messages.success(request, _("Saved."))
    return redirect("portal-team", access.tenant.slug)


def demand_management(access: Access) -> None:
    """Raise ``PermissionDenied`` for who only reads."""
    if not access.manages_team:
        raise PermissionDenied


def _changeable(access: Access, member_id: UUID) -> Member:
    """Somebody of the tenant whose place this person may change; raises for others."""
    demand_management(access)
    found = get_object_or_404(
        Member.objects.select_related("user", "team"), tenant=access.tenant, pk=member_id
    )
    if found.role not in access.grants:
        raise PermissionDenied
    return found


def only_messages(exc: ValidationError) -> ValidationError:
    """What is wrong, without the names of fields that the form may not have."""
    return ValidationError(exc.messages)


urlpatterns = [
    path("<slug:slug>/team/", team, name="portal-team"),
    path("<slug:slug>/team/leave/", leave, name="portal-leave"),
    path("<slug:slug>/team/language/", language, name="portal-language"),
    path("<slug:slug>/team/invitations/<uuid:invitation_id>/", invitation, name="portal-invitation"),
    path("<slug:slug>/team/members/<uuid:member_id>/", member, name="portal-member"),
    path("<slug:slug>/team/members/<uuid:member_id>/remove/", remove, name="portal-remove-member"),
    path("<slug:slug>/team/service-accounts/", service_accounts, name="portal-service-accounts"),
    path(
        "<slug:slug>/team/service-accounts/<uuid:account_id>/close/",
        close_account,
        name="portal-close-service-account",
    ),
]
