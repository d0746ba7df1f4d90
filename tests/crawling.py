"""Every address of the site, asked with what belongs to one tenant, and with what belongs to nobody.

The addresses come from the URL table. Where one has an id in it, a line of
``IDS`` says whose id that is, so that both can be put there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.apps import apps
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.timezone import now

from audit.models import AuditEvent
from audit.walls import rows_of
from budgets.exports.jobs import make_exports, order_export
from budgets.month_closing import close_month
from budgets.raise_requests import ask_for_raise
from budgets.services import (
    add_recipient,
    arm_kill_switch,
    raise_limit,
    set_budget,
    set_price,
    set_rate_limit,
)
from config.walls import walled_models
from keys.services import issue_key
from proxy.models import ModelAlias
from proxy.services import save_alias
from tenants.access import Access
from tenants.invitations import invite
from tenants.models import Tenant
from tenants.services import (
    add_member,
    create_service_account,
    create_team,
    create_tenant,
    create_user,
)
from tests.accounts import ago, on, used
from tests.exporting import an_order

# No word that stands on a page: it is taken out of the answers before they are compared.
NO_NAME = "no-such-name"

# By the beginning of an address: which row each of its ids is of. A new address with an id gets a
# line here, with a name of ``Belongings``; one without an id is crawled as it is.
IDS: dict[str, dict[str, str]] = {
    "portal/<slug:slug>/requests/": {"request_id": "request"},
    "portal/<slug:slug>/keys/": {"key_id": "key"},
    "portal/<slug:slug>/playground/": {"request_id": "request"},
    "portal/<slug:slug>/refusals/": {"request_id": "request"},
    "portal/<slug:slug>/raises/new/": {"limit_id": "rate_limit"},
    "portal/<slug:slug>/raises/": {"raise_id": "raise_request"},
    "portal/<slug:slug>/limits/recipients/": {"recipient_id": "alert_recipient"},
    "portal/<slug:slug>/statements/": {"number": "statement"},
    "portal/<slug:slug>/exports/files/": {"link": "export_link"},
    "portal/<slug:slug>/exports/": {"export_id": "export"},
    "portal/<slug:slug>/team/invitations/": {"invitation_id": "invitation"},
    "portal/<slug:slug>/team/teams/": {"team_id": "team"},
    "portal/<slug:slug>/team/teams/<uuid:team_id>/members/": {"team_id": "team", "who": "member"},
    "portal/<slug:slug>/team/teams/<uuid:team_id>/service-accounts/": {
        "team_id": "team",
        "who": "service_account",
    },
    "portal/<slug:slug>/team/members/": {"member_id": "member"},
    "portal/<slug:slug>/team/service-accounts/": {"account_id": "service_account"},
    "manage/v1/tenants/": {"pk": "tenant"},
    "manage/v1/teams/": {"pk": "team"},
    "manage/v1/members/": {"pk": "member"},
    "manage/v1/audit-events/": {"pk": "audit_event"},
    "manage/v1/service-accounts/": {"pk": "service_account"},
    "manage/v1/keys/": {"pk": "key"},
    "manage/v1/exports/": {"pk": "export", "link": "export_link"},
    "manage/v1/budgets/": {"pk": "budget", "raise_id": "budget_raise"},
    "manage/v1/rate-limits/": {"pk": "rate_limit", "raise_id": "rate_limit_raise"},
    "manage/v1/prices/": {"pk": "price"},
    "manage/v1/kill-switches/": {"pk": "kill_switch"},
    "manage/v1/running-calls/": {"pk": "request"},
    "manage/v1/statements/": {"number": "statement"},
    "manage/v1/aliases/": {"pk": "alias"},
    "admin/keys/apikey/": {"pk": "key"},
    "admin/audit/loggedprompt/": {"request_id": "request"},
    "admin/budgets/statement/": {"pk": "statement_row"},
}
# Addresses whose ids are of nothing that a tenant has, and why that is so.
OF_NO_TENANT = {
    "portal/<slug:slug>/keys/change/": "the word of what is done to several keys",
    "manage/v1/upstreams/": "where calls go is the platform's",
    "admin/r/": "leads to a kind of row by its number",
    "admin/tenants/user/<id>/password/": "people are of no tenant",
    "account/": "a person's own, or told by a secret",
}
# What narrows a page or a list, and the row that its value is of.
FILTERS: dict[str, dict[str, str]] = {
    # What any page may look for.
    "portal/": {"q": "slug", "request": "request"},
    "portal/<slug:slug>/keys/": {"q": "key_label", "owner": "key_owner"},
    # Looks for nothing, and tells to the second when a key would end that is made now.
    "portal/<slug:slug>/keys/new/": {},
    "portal/<slug:slug>/keys/change/revoke/": {"key": "key"},
    "portal/<slug:slug>/keys/change/disable/": {"key": "key"},
    "portal/<slug:slug>/keys/change/enable/": {"key": "key"},
    "portal/<slug:slug>/usage/": {
        "key": "key", "team": "team", "member": "member", "request": "request",
    },
    "portal/<slug:slug>/audit/": {"subject": "key", "actor": "person"},
    "manage/v1/": {
        "tenant": "slug", "team": "team", "member": "member", "key": "key", "subject": "key", "slug": "slug",
    },
}  # fmt: skip

_PARAMETER = re.compile(r"<(?:(\w+):)?(\w+)>")


class Unclassified(Exception):
    """The table has an address of which nobody has said what its ids are; the message says what to do."""


@dataclass(frozen=True)
class Address:
    """One line of the URL table, and the methods by which something is done there."""

    route: str
    name: str | None
    methods: tuple[str, ...] = ("GET", "POST")

    def __str__(self) -> str:
        return self.route

    def ids(self) -> dict[str, str]:
        """What each parameter is the id of; raises ``Unclassified``."""
        parameters = {name for _, name in _PARAMETER.findall(self.route)}
        if self.route.startswith("portal/"):
            parameters -= {"slug"}
        told = _longest(IDS, self.route) or {}
        if self.route.startswith("admin/") and parameters == {"object_id"}:
            return {"object_id": self.route.split("/")[2]}
        if parameters <= told.keys() or not parameters or _longest(OF_NO_TENANT, self.route):
            return {name: told[name] for name in parameters if name in told}
        unknown = ", ".join(sorted(parameters - told.keys()))
        raise Unclassified(
            f"Nobody has said what {unknown} of /{self.route} is the id of. Add a line to IDS in "
            "tests/crawling.py, and to Belongings what it is of; or to OF_NO_TENANT, with the reason."
        )

    def filters(self) -> dict[str, str]:
        """The parameters behind the question mark, and what each is the id of."""
        if "/files/" in self.route or "." in self.route:
            return {}
        return _longest(FILTERS, self.route) or {}

    def filled(self, slug: str, ids: Mapping[str, Any]) -> str:
        """The path, at the pages of ``slug``, with these ids; what there is none of is 7."""
        wanted = self.ids()

        def value(match: re.Match[str]) -> str:
            converter, name = match.groups()
            if name == "slug" and self.route.startswith("portal/"):
                return slug
            return str(
                ids[wanted[name]] if name in wanted else uuid.UUID(int=7) if converter == "uuid" else 7
            )

        return "/" + _PARAMETER.sub(value, self.route)

    def narrowed(self, own: Belongings, filters: Mapping[str, str], whose: Mapping[str, Any]) -> str:
        """The address of what is one's own, with these of its filters set to what is somebody's."""
        return f"{self.filled(own.slug, own)}?{urlencode({name: whose[of] for name, of in filters.items()})}"


def _longest(table: Mapping[str, Any], route: str) -> Any:
    found = max((beginning for beginning in table if route.startswith(beginning)), key=len, default=None)
    return None if found is None else table[found]


def addresses() -> list[Address]:
    """The URL table, but for the expressions that catch what is left."""
    return [one for one in _walk(get_resolver("config.urls").url_patterns, "") if "^" not in one.route]


def _walk(patterns: list[Any], beginning: str) -> Iterator[Address]:
    for pattern in patterns:
        route = beginning + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, route)
        else:
            assert isinstance(pattern, URLPattern)
            # The admin's last resort, and what its expressions are made of.
            if "(?P<" not in route:
                # Only the endpoints of the management API say so; of pages any may take a form.
                actions = getattr(pattern.callback, "actions", {"get": "", "post": ""})
                yield Address(route, pattern.name, tuple(method.upper() for method in actions))


class Belongings(dict[str, Any]):
    """A tenant with one of everything: ids by name, by table, and all that must be read nowhere else.

    ``of_nobody`` has the same names, and ids of nothing.
    """

    def __init__(self, slug: str) -> None:
        self.slug, self.name = slug, f"{slug.title()} Laboratories"
        tenant = create_tenant(slug=slug, name=self.name, actor="test")
        self.tenant = tenant
        team = create_team(tenant=tenant, name=f"{slug}-team", actor="test")
        user = create_user(username=f"{slug}-person", email=f"person@{slug}.example", actor="test")
        member = add_member(tenant=tenant, user=user, team=team, role="owner", actor=user.username)
        key, _ = issue_key(tenant=tenant, label=f"{slug}-key", member=member, actor=user.username)
        budget = set_budget(scope="tenant", tenant=tenant, unit="tokens", period="day", limit=9, actor="test")
        raised = raise_limit(
            row=budget, by=1, ends_at=now() + timedelta(hours=1), reason=f"{slug}-reason", actor="test"
        )
        rate = set_rate_limit(
            scope="tenant", tenant=tenant, measure="requests_per_minute", limit=9, actor="test"
        )
        rate_raised = raise_limit(
            row=rate, by=1, ends_at=now() + timedelta(hours=1), reason=f"{slug}-reason", actor="test"
        )
        price = set_price(model=f"{slug}-model:1b", tenant=tenant, input_price=1, actor="test")
        switch = arm_kill_switch(scope="tenant", tenant=tenant, actor="test", reason=f"{slug}-fire")
        alias = save_alias(
            alias=ModelAlias(tenant=tenant, alias=f"{slug}-alias:latest", model="tiny:1b"), actor="test"
        )
        # Of a team, so that owners decide on it and get to see it.
        shared_out = set_budget(scope="team", team=team, unit="tokens", period="day", limit=9, actor="test")
        asked = ask_for_raise(
            access=Access(user, tenant, member), row=shared_out, to=99, until=now() + timedelta(hours=1),
            reason=f"{slug}-deadline",
        )  # fmt: skip
        recipient = add_recipient(
            kind="email", address=f"alerts@{slug}.example", tenant=tenant, actor=user.username
        )
        account = create_service_account(tenant=tenant, name=f"{slug}-build", actor="test")
        invited, _ = invite(tenant=tenant, invited_by=user, email=f"new@{slug}.example", role="member")
        entry = used(tenant, on(ago(1), zone="UTC"), key=f"{slug}-key", key_id=key.pk)
        statement = close_month(tenant=tenant, month=ago(1), actor="test")
        export = order_export(order=an_order(tenant), user=user)
        make_exports()
        export.refresh_from_db()
        super().__init__(
            tenant=tenant.pk, slug=slug, team=team.pk, member=member.pk, person=user.username, key=key.pk,
            budget=budget.pk, budget_raise=raised.pk, rate_limit=rate.pk,
            rate_limit_raise=rate_raised.pk, price=price.pk, alias=alias.pk,
            key_label=key.label, key_owner=f"member:{member.pk}", raise_request=asked.pk,
            alert_recipient=recipient.pk, service_account=account.pk, invitation=invited.pk,
            kill_switch=switch.pk, statement_row=statement.pk, request=entry.request_id,
            statement=statement.number, export=export.pk, export_link=export.link,
            audit_event=AuditEvent.objects.filter(tenant_id=tenant.pk).latest("pk").pk,
        )  # fmt: skip
        self |= {str(model._meta.model_name): _one_of(model, tenant) for model in apps.get_models()} | dict(
            self
        )

    @property
    def marks(self) -> list[str]:
        """Names and ids that nobody else may read; numbers are too common to tell anything."""
        ids = [str(value) for value in self.values() if isinstance(value, uuid.UUID)]
        return [self.slug, self.name, *ids, str(self["export_link"]), str(self["statement"])]

    def of_nobody(self) -> dict[str, Any]:
        """What there is not, by the same names, of the same kinds."""
        return {name: _nothing_like(value) for name, value in self.items()}


def _one_of(model: Any, tenant: Tenant) -> Any:
    """The key of a row of a table that is the tenant's; of tables without a wall, a number."""
    if model not in walled_models():
        return 7
    row = model._base_manager.filter(rows_of(model, tenant.pk)).first()
    return 7 if row is None else row.pk


def _nothing_like(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return uuid.uuid4()
    return (
        value + 10**9 if isinstance(value, int) else "ST-1999-000001" if value.startswith("ST-") else NO_NAME
    )
