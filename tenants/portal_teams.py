"""The teams of a tenant: who shares a budget, who comes in and who goes out."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import ProtectedError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import path
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods

from tenants.access import Access
from tenants.models import Member, ServiceAccount, Team
from tenants.portal import form_on, tenant_page
from tenants.portal_team import demand_management, only_messages, people_page
from tenants.services import create_team, delete_team, put_into_team, rename_team, take_out_of_team
from tenants.team_forms import PutInForm, TeamForm


@form_on("portal-team")
@tenant_page
def teams(request: HttpRequest, access: Access) -> HttpResponse:
    """Create a team."""
    demand_management(access)
    form = TeamForm(request.POST, prefix="team")
    if form.is_valid():
        try:
            created = create_team(
                tenant=access.tenant, name=form.cleaned_data["name"], actor=str(access.user)
            )
        except ValidationError as exc:
            form.add_error("name", only_messages(exc))
        else:
            messages.success(request, _("Team %(name)s is there. Put somebody in.") % {"name": created.name})
            return redirect("portal-one-team", access.tenant.slug, created.pk)
    return people_page(request, access, team_form=form, status=400)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def team(request: HttpRequest, access: Access, team_id: UUID) -> HttpResponse:
    """GET: who is in a team. POST: another name for it."""
    if not access.reads_team:
        raise PermissionDenied
    found = _team(access, team_id)
    if request.method != "POST":
        return _page(request, access, found)
    demand_management(access)
    form = TeamForm(request.POST)
    if form.is_valid():
        try:
            renamed = rename_team(team=found, actor=str(access.user), **form.cleaned_data)
        except ValidationError as exc:
            form.add_error("name", only_messages(exc))
        except Team.DoesNotExist:
            return _gone(request, access)
        else:
            messages.success(request, _("The team is called %(name)s now.") % {"name": renamed.name})
            return redirect("portal-one-team", access.tenant.slug, found.pk)
    return _page(request, access, found, name_form=form, status=400)


@form_on("portal-one-team", "team_id")
@tenant_page
def put_in(request: HttpRequest, access: Access, team_id: UUID) -> HttpResponse:
    """Put members and service accounts into a team."""
    demand_management(access)
    found = _team(access, team_id)
    form = PutInForm(access, found, request.POST)
    if form.is_valid():
        try:
            count = put_into_team(team=found, actor=str(access.user), **form.cleaned_data)
        except ValidationError as exc:
            form.add_error(None, only_messages(exc))
        else:
            told = ngettext("%(count)s is in the team now.", "%(count)s are in the team now.", count)
            messages.success(request, told % {"count": count})
            return redirect("portal-one-team", access.tenant.slug, found.pk)
    return _page(request, access, found, put_in_form=form, status=400)


@form_on("portal-one-team", "team_id")
@tenant_page
def take_out(request: HttpRequest, access: Access, team_id: UUID, kind: str, who: UUID) -> HttpResponse:
    """Take a member or a service account out of a team."""
    demand_management(access)
    found, actor = _team(access, team_id), str(access.user)
    if kind == "members":
        member = get_object_or_404(Member.objects.select_related("user"), tenant=access.tenant, pk=who)
        if member.role not in access.grants:
            raise PermissionDenied
        name, taken = str(member.user), take_out_of_team(team=found, actor=actor, members=[member])
    else:
        account = get_object_or_404(ServiceAccount, tenant=access.tenant, pk=who)
        name, taken = account.name, take_out_of_team(team=found, actor=actor, accounts=[account])
    if taken:
        messages.success(request, _("%(name)s is in no team now.") % {"name": name})
    else:
        messages.warning(request, _("%(name)s was not in this team any more.") % {"name": name})
    return redirect("portal-one-team", access.tenant.slug, found.pk)


@require_http_methods(["GET", "HEAD", "POST"])
@tenant_page
def remove(request: HttpRequest, access: Access, team_id: UUID) -> HttpResponse:
    """What follows if a team is removed, and doing it; only of one that nobody is in."""
    demand_management(access)
    found = _team(access, team_id)
    used = found.members.exists() or found.service_accounts.exists()
    if request.method == "POST":
        try:
            delete_team(team=found, actor=str(access.user))
        except ProtectedError:
            used = True
        except Team.DoesNotExist:
            return _gone(request, access)
        else:
            messages.success(request, _("Team %(name)s is removed.") % {"name": found.name})
            return redirect("portal-team", access.tenant.slug)
    context = {"team": found, "used": used}
    status = 409 if request.method == "POST" else 200
    return render(request, "portal/team/remove_team.html", context, status=status)


def _team(access: Access, team_id: UUID) -> Team:
    return get_object_or_404(Team, tenant=access.tenant, pk=team_id)


def _gone(request: HttpRequest, access: Access) -> HttpResponse:
    messages.warning(request, _("Somebody else was quicker: the team is removed."))
    return redirect("portal-team", access.tenant.slug)


def _page(
    request: HttpRequest,
    access: Access,
    team: Team,
    *,
    name_form: TeamForm | None = None,
    put_in_form: PutInForm | None = None,
    status: int = 200,
) -> HttpResponse:
    members = team.members.select_related("user").order_by("user__username")
    context: dict[str, object] = {
        "team": team,
        "members": [(member, member.role in access.grants) for member in members],
        "accounts": team.service_accounts.order_by("name"),
    }
    if access.manages_team:
        context |= {
            "name_form": name_form or TeamForm(initial={"name": team.name}),
            "put_in_form": put_in_form or PutInForm(access, team),
        }
    return render(request, "portal/team/one_team.html", context, status=status)


urlpatterns = [
    path("<slug:slug>/team/teams/", teams, name="portal-teams"),
    path("<slug:slug>/team/teams/<uuid:team_id>/", team, name="portal-one-team"),
    path("<slug:slug>/team/teams/<uuid:team_id>/put-in/", put_in, name="portal-put-into-team"),
    path(
        "<slug:slug>/team/teams/<uuid:team_id>/members/<uuid:who>/take-out/",
        take_out,
        {"kind": "members"},
        name="portal-take-member-out",
    ),
    path(
        "<slug:slug>/team/teams/<uuid:team_id>/service-accounts/<uuid:who>/take-out/",
        take_out,
        {"kind": "service-accounts"},
        name="portal-take-account-out",
    ),
    path("<slug:slug>/team/teams/<uuid:team_id>/remove/", remove, name="portal-remove-team"),
]
