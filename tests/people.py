"""Everybody who might open a page, and what a page is made of."""

from __future__ import annotations

from html.parser import HTMLParser

from django.contrib.auth.models import AnonymousUser, Permission
from django.test import Client

from budgets.services import set_budget
from keys.services import issue_key
from tenants import services
from tenants.models import Member, Tenant, User

EVERYBODY = [
    "owner", "admin", "finance", "auditor", "member", "foreign owner", "operator", "superuser", "staff",
    "nobody", "inactive owner", "inactive superuser", "stranger",
]  # fmt: skip
ROLES = frozenset({"owner", "admin", "finance", "auditor", "member"})
OPERATORS = frozenset({"operator", "superuser"})
UNKNOWN = frozenset({"inactive owner", "inactive superuser", "stranger"})
MAY_EXPORT = frozenset({"owner", "finance", *OPERATORS})
READS_STATEMENTS = MAY_EXPORT | {"auditor"}


def a_person(who: str, acme: Tenant) -> User | AnonymousUser:
    """Somebody as the tables of this module call them."""
    if who == "stranger":
        return AnonymousUser()
    staff = {"is_staff": who in ("operator", "staff") or "superuser" in who}
    user = User.objects.create(
        username=who, is_active="inactive" not in who, is_superuser="superuser" in who, **staff
    )
    if who == "operator":
        may = Permission.objects.filter(codename__in=["view_tenant", "view_ledgerentry"])
        user.user_permissions.set(may)
    role = who.removeprefix("inactive ").removeprefix("foreign ")
    if role in Member.Role.values:
        tenant = acme
        if who.startswith("foreign"):
            tenant = services.create_tenant(slug="globex", name="Globex", actor="test")
        services.add_member(tenant=tenant, user=user, role=role, actor="test")
    return user


def furnished(slug: str) -> Tenant:
    """A tenant with something of its own behind every wall: a team, a key, a budget."""
    tenant = services.create_tenant(slug=slug, name=slug, actor="test")
    services.create_team(tenant=tenant, name=f"Team of {slug}", actor="test")
    issue_key(tenant=tenant, label=f"key of {slug}", actor="test")
    set_budget(scope="tenant", tenant=tenant, unit="tokens", period="day", limit=9, actor="test")
    return tenant


def a_member(tenant: Tenant, name: str, role: str = "member") -> Member:
    """Somebody who has not been there before, with an address for mail."""
    user = services.create_user(username=name, email=f"{name}@example.org", actor="test")
    return services.add_member(tenant=tenant, user=user, role=role, actor="test")


def a_browser(person: User | AnonymousUser) -> Client:
    browser = Client()
    if isinstance(person, User):
        browser.force_login(person)
    return browser


class Outline(HTMLParser):
    """What a page is made of: tags in their order, and all that the policy would not let through."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inline: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.inline.append(tag)
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
            if name == "href":
                self.links.append(value or "")
