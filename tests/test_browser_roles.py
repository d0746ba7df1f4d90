"""What each role of ``docs/roles.md`` sees in a browser: menu, deeds, and where it is told no."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission
from playwright.sync_api import Page

from budgets.services import set_budget
from config.admin_menu import GROUPS
from keys.services import issue_key
from tenants.models import Member, Tenant, User
from tenants.services import add_member, create_tenant
from tests import ledgers
from tests.browser import check_page, give_password, shoot
from tests.browser_thread import expect
from tests.conftest import House
from tests.ledgers import book

# Buttons that only look for something, or are the reader's own affair.
READING = {"Show", "Look", "Explain", "Send", "Stop"}
# Links that lead to a deed; every other link of these pages leads to more to read.
LEADING_TO_DEEDS = {"New key", "Ask for more", "Change", "Remove", "Leave"}

EVERYBODYS = ["ACME", "Keys", "Usage", "Limits", "Refusals", "Models", "Playground"]
MANAGE_KEYS = {"New key", "Revoke the chosen keys…", "Disable them…", "Enable them…"}
MANAGE_TEAM = {"Invite", "Create", "Change", "Remove", "Save"}
MENU_OF_ADMIN = ["Dashboard", *(name for _, pages in GROUPS for _, name, _ in pages)]
NOT_ALLOWED, NOT_FOUND = "Not allowed", "Not found"


@dataclass(frozen=True)
class View:
    """The menu in its order, what may be done by the page it is on, and what is asked for in vain by hand."""

    menu: list[str]
    deeds: dict[str, set[str]]
    refused: list[str]
    landing: str = "/portal/acme/"


VIEWS = {
    "operator": View(
        menu=[*EVERYBODYS, "Statements", "Exports", "Team", "Audit"],
        deeds={"Keys": MANAGE_KEYS, "Exports": {"Look first"}, "Team": MANAGE_TEAM},
        refused=["team/leave/", "raises/new/{budget}/"],
        landing="/admin/",
    ),
    "owner": View(
        menu=[*EVERYBODYS, "Statements", "Exports", "Team", "Audit"],
        deeds={
            "Keys": MANAGE_KEYS,
            "Limits": {"Ask for more", "Add"},
            "Exports": {"Look first"},
            "Team": MANAGE_TEAM | {"Leave"},
        },
        refused=[],
    ),
    "admin": View(
        menu=[*EVERYBODYS, "Team", "Audit"],
        deeds={"Keys": MANAGE_KEYS, "Limits": {"Ask for more", "Add"}, "Team": MANAGE_TEAM | {"Leave"}},
        refused=["statements/", "exports/"],
    ),
    "member": View(
        menu=[*EVERYBODYS, "Team"],
        deeds={"Keys": MANAGE_KEYS, "Limits": {"Ask for more"}, "Team": {"Leave"}},
        refused=["statements/", "exports/", "audit/"],
    ),
    "finance": View(
        menu=[*EVERYBODYS, "Statements", "Exports", "Team"],
        deeds={"Exports": {"Look first"}, "Team": {"Leave"}},
        refused=["keys/new/", "audit/", "raises/", "raises/new/{budget}/"],
    ),
    "auditor": View(
        menu=[*EVERYBODYS, "Statements", "Team", "Audit"],
        deeds={"Team": {"Leave"}},
        refused=["keys/new/", "exports/", "raises/", "raises/new/{budget}/"],
    ),
}


def test_every_role_has_a_view() -> None:
    assert set(VIEWS) == {"operator", *Member.Role.values}


@pytest.mark.parametrize("role", VIEWS)
def test_each_role_sees_its_menu_and_its_deeds_and_is_told_no_elsewhere(
    house: House, page: Page, role: str
) -> None:
    view, person = VIEWS[role], somebody(role, house.acme)
    budget = furnish(house.acme, person)

    give_password(page, person, view.landing)
    expect(page).to_have_url(f"{house.gateway.url}{view.landing}")
    check_page(page)
    if role == "operator":
        menu = page.locator("#nav-sidebar")
        for name in MENU_OF_ADMIN:
            expect(menu.get_by_role("link", name=name, exact=True)).to_have_count(1)
        page.goto("/portal/acme/")
    if role == "owner":
        shoot(page, "portal-home-of-owner")

    menu = page.get_by_role("navigation", name="Pages of ACME")
    assert menu.get_by_role("link").all_inner_texts() == view.menu
    offered = {}
    for name in view.menu:
        menu.get_by_role("link", name=name, exact=True).click()
        expect(menu.locator("[aria-current=page]")).to_have_text(name)
        offered[name] = deeds_on(page)
    assert {name: deeds for name, deeds in offered.items() if deeds} == view.deeds

    for path in view.refused:
        told_no(page, f"/portal/acme/{path.format(budget=budget)}", 403, NOT_ALLOWED)
    if role != "operator":
        told_no(page, "/admin/", 403, NOT_ALLOWED)
        told_no(page, "/portal/globex/", 404, NOT_FOUND)
    if role == "auditor":
        # The same for everybody.
        check_page(page)


def somebody(role: str, acme: Tenant) -> User:
    """A person of the role; the operator may do all that operators may."""
    user = User.objects.create(username=role, is_staff=role == "operator")
    if role == "operator":
        user.user_permissions.set(Permission.objects.all())
    else:
        add_member(tenant=acme, user=user, role=role, actor="test")
    return user


def furnish(acme: Tenant, person: User) -> UUID:
    """Let there be something to do for whoever may; returns the id of a budget to ask more of."""
    create_tenant(slug="globex", name="Globex", actor="test")
    other = add_member(tenant=acme, user=User.objects.create(username="other"), actor="test")
    add_member(tenant=acme, user=User.objects.create(username="chief"), role="owner", actor="test")
    mine = Member.objects.filter(user=person).first()
    for member, label in ((mine, "mine"), (other, "of another")):
        if member:
            issue_key(tenant=acme, member=member, label=label, actor="test")
            set_budget(scope="member", member=member, unit="requests", period="day", limit=9, actor="test")
    book(ledgers.of(acme, member_id=other.pk, member="other"))
    budget = set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=9_000, actor="test")
    return budget.pk


def deeds_on(page: Page) -> set[str]:
    """What the page lets its reader do, once the whole of it has come."""
    page.wait_for_load_state()
    content = page.get_by_role("main")
    buttons = {text.strip() for text in content.get_by_role("button").all_inner_texts()}
    links = {text.strip() for text in content.get_by_role("link").all_inner_texts()}
    return (buttons - READING) | (links & LEADING_TO_DEEDS)


def told_no(page: Page, address: str, status: int, heading: str) -> None:
    answer = page.goto(address)
    assert answer is not None
    assert (address, answer.status) == (address, status)
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
