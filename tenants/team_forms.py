"""What is filled in on the pages about a tenant's people and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from allauth.account.adapter import get_adapter
from django import forms
from django.conf import settings
from django.db.models import Q
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from tenants.access import Access
from tenants.models import Member, ServiceAccount, Team, User


class PlaceForm(forms.Form):
    """A role that somebody may give, and a team of the tenant."""

    role = forms.ChoiceField(label=_("Role"))
    team = forms.ModelChoiceField(
        label=_("Team"), queryset=Team.objects.none(), required=False, empty_label=_("No team")
    )

    def __init__(
        self, access: Access, *args: Any, teams: Sequence[Team] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        role = cast("forms.ChoiceField", self.fields["role"])
        role.choices = [(one.value, one.label) for one in Member.Role if one in access.grants]
        _offer_teams(self.fields["team"], access, teams)


class InvitationForm(PlaceForm):
    email = forms.EmailField(
        label=_("E-mail address"), widget=forms.EmailInput(attrs={"autocomplete": "off"})
    )
    field_order = ["email", "role", "team"]


class TeamForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=80, help_text=_("Such as Research."))


class ServiceAccountForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=80, help_text=_("What it is, such as nightly-build."))
    team = forms.ModelChoiceField(
        label=_("Team"), queryset=Team.objects.none(), required=False, empty_label=_("No team")
    )

    def __init__(
        self, access: Access, *args: Any, teams: Sequence[Team] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _offer_teams(self.fields["team"], access, teams)


class WhyForm(forms.Form):
    """Why something is done, for the audit."""

    reason = forms.CharField(label=_("Why (for the audit)"), max_length=500, required=False)


class PutInForm(forms.Form):
    """Who is to come into a team, of those whose place somebody may change; with the team they are in."""

    members = forms.ModelMultipleChoiceField(
        label=_("Members"),
        queryset=Member.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    accounts = forms.ModelMultipleChoiceField(
        label=_("Service accounts"),
        queryset=ServiceAccount.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )

    def __init__(self, access: Access, team: Team, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        elsewhere = Q(team=None) | ~Q(team=team)
        members = Member.objects.filter(elsewhere, tenant=access.tenant, role__in=access.grants)
        accounts = ServiceAccount.objects.filter(elsewhere, tenant=access.tenant, closed_at=None)
        fields: dict[str, Any] = self.fields
        fields["members"].queryset = members.select_related("user", "team").order_by("user__username")
        fields["accounts"].queryset = accounts.select_related("team").order_by("name")
        fields["members"].label_from_instance = lambda one: _with_team(str(one.user), one.team)
        fields["accounts"].label_from_instance = lambda one: _with_team(one.name, one.team)

        for name in [name for name in fields if not fields[name].queryset.exists()]:
            del fields[name]

    @property
    def has_any(self) -> bool:
        """Whether there is anybody to choose."""
        return bool(self.fields)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = self.cleaned_data
        if not self.errors and not any(cleaned.values()):
            raise forms.ValidationError(_("Choose somebody first."))
        return cleaned


def _with_team(name: str, team: Team | None) -> str:
    return name if team is None else gettext("%(name)s, now in %(team)s") % {"name": name, "team": team}


def _offer_teams(field: forms.Field, access: Access, teams: Sequence[Team] | None) -> None:
    """Let a team of the tenant be chosen; ``teams`` are all of these, where a page knows them already."""
    chosen = cast("forms.ModelChoiceField[Team]", field)
    chosen.queryset = Team.objects.filter(tenant=access.tenant)
    if teams is not None:
        chosen.choices = [("", _("No team")), *((team.pk, str(team)) for team in teams)]


class LanguageForm(forms.Form):
    """In which language mails of the tenant are to those who have chosen none."""

    language = forms.ChoiceField(
        label=_("Language of mails"),
        choices=[("", _("none chosen")), *settings.LANGUAGES],
        required=False,
        help_text=_(
            "For people who have chosen none in their account, and for addresses that are nobody's. "
            "While none is chosen it is English, and of an invitation that of whoever sends it."
        ),
    )


class NewAccountForm(forms.Form):
    """Name and password of somebody who is new here, under the rules of every sign-in."""

    username = forms.CharField(
        label=_("User name"), max_length=150, widget=forms.TextInput(attrs={"autocomplete": "username"})
    )
    password = forms.CharField(
        label=_("Password"),
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=_("At least 12 characters, and not a common one."),
    )

    def __init__(self, email: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._email = email

    def clean_username(self) -> str:
        name: str = get_adapter().clean_username(self.cleaned_data["username"])
        return name

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = self.cleaned_data
        if "password" in cleaned:
            person = User(username=cleaned.get("username", ""), email=self._email)
            try:
                get_adapter().clean_password(cleaned["password"], user=person)
            except forms.ValidationError as exc:
                self.add_error("password", exc)
        return cleaned
