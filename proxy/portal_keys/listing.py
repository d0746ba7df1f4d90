"""The list of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django import forms
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from keys.models import ApiKey
from keys.secrets import public_id_of
from keys.states import EXPIRING, State, in_state
from proxy.portal_keys.showing import keys_of, rates_of, shown
from tenants.access import Access, Reach
from tenants.models import Member, ServiceAccount
from tenants.portal import tenant_page
from tenants.secret_marks import CALLING

ON_A_PAGE = 50
USABLE, EXPIRING_SOON = "", "expiring"
STATES = [
    (USABLE, gettext_lazy("All but revoked")),
    *((state.value, state.label) for state in State),
    (EXPIRING_SOON, gettext_lazy("Expires within 14 days")),
    ("any", gettext_lazy("All")),
]


class ListForm(forms.Form):
    """What of the keys is looked for; with what makes no sense everything is shown."""

    q = forms.CharField(label=gettext_lazy("Name or beginning of the secret"), required=False, max_length=80)
    state = forms.ChoiceField(label=gettext_lazy("State"), choices=STATES, required=False)
    owner = forms.ChoiceField(label=gettext_lazy("Owner"), required=False)

    def __init__(self, access: Access, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if access.keys == Reach.WHOLE_TENANT:
            owner: Any = self.fields["owner"]
            owner.choices = _owners(access)
        else:
            del self.fields["owner"]


@require_safe
@tenant_page
def listing(request: HttpRequest, access: Access) -> HttpResponse:
    """The keys that a person sees, by name, state and owner."""
    keys, asked = keys_of(access), request.GET.copy()
    whole_secret = public_id_of(asked.get("q", "").strip())
    if whole_secret is not None:
        # A field that is shown again must not hold it, nor the links to other pages.
        asked["q"] = CALLING + whole_secret
    form = ListForm(access, asked)
    wanted = form.cleaned_data if form.is_valid() else {}
    page = Paginator(_selected(keys, wanted, access), ON_A_PAGE).get_page(asked.get("page"))
    asked.pop("page", None)
    rates = rates_of(page.object_list)
    rows = [replace(row, rates=rates[row.key.pk]) for row in shown(access, page.object_list)]
    context = {
        "form": form,
        "page": page,
        "rows": rows,
        "as_of": min((row.as_of for row in rows if row.as_of is not None), default=None),
        "query": asked.urlencode(),
        "whole_secret": whole_secret is not None,
        "none_at_all": not rows and not keys.exists(),
        "any_managed": any(row.managed for row in rows),
        "issues": access.manages_keys != Reach.NOTHING,
        "of_own_keys": access.keys == Reach.OWN_KEYS,
    }
    return render(request, "portal/keys/keys.html", context)


def _selected(keys: QuerySet[ApiKey], wanted: dict[str, Any], access: Access) -> QuerySet[ApiKey]:
    state, owner, moment = wanted.get("state", USABLE), wanted.get("owner", ""), now()
    if state == USABLE:
        keys = keys.filter(revoked_at=None)
    elif state == EXPIRING_SOON:
        keys = keys.filter(revoked_at=None, expires_at__gt=moment, expires_at__lte=moment + EXPIRING)
    elif state != "any":
        keys = keys.filter(in_state(State(state), moment))
    kind, _colon, owner_id = owner.partition(":")
    if kind == "me":
        keys = keys.filter(member=access.member)
    elif kind == "tenant":
        keys = keys.filter(member=None, service_account=None)
    elif kind in ("member", "service_account"):
        keys = keys.filter(**{kind: owner_id})
    if text := wanted.get("q", "").strip():
        beginning = text.removeprefix(CALLING)
        # A subquery, because a key has several secrets and is listed once.
        by_secret = ApiKey.objects.filter(secrets__public_id__startswith=beginning).values("pk")
        keys = keys.filter(Q(label__icontains=text) | Q(pk__in=by_secret))
    return keys


def _owners(access: Access) -> list[tuple[str, str]]:
    members = (
        Member.objects.filter(tenant=access.tenant, keys__isnull=False).select_related("user").distinct()
    )
    accounts = ServiceAccount.objects.filter(tenant=access.tenant).order_by("name")
    return [
        ("", _("Anybody")),
        *([("me", _("Me"))] if access.member is not None else []),
        ("tenant", _("The tenant itself")),
        *(
            (f"member:{one.pk}", str(one.user))
            for one in members.select_related("user").order_by("user__username")
        ),
        *(
            (f"service_account:{one.pk}", _("%(name)s (service account)") % {"name": one.name})
            for one in accounts
        ),
    ]
