"""The operators' admin in a real browser: no page has a fault, and the dashboard follows what happens."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.urls import reverse
from playwright.sync_api import Page

from tenants.models import User
from tests.browser import SETTLED, check_page, enter
from tests.browser_thread import expect
from tests.conftest import House
from tests.test_admin_lists import address_of, furnished, models_shown, objects_shown

__all__ = ["furnished"]


@pytest.fixture
def olga(house: House, page: Page) -> User:
    """An operator who may do everything, signed in."""
    user = User.objects.create_superuser("olga", "olga@example.org")
    enter(page, user)
    return user


def test_no_page_of_the_admin_has_a_fault_or_breaks_its_policy(
    furnished: House, page: Page, olga: User
) -> None:
    lists = [address_of(model) for model in models_shown()]
    added = [address_of(model, "add") for model in models_shown() if _may_be_added(model)]
    changed = [address_of(type(row), "change", row.pk) for row in objects_shown()]

    for address in [reverse("admin:index"), *lists, *added, *changed]:
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        policy = answer.headers["content-security-policy"]
        assert "'unsafe-eval'" in policy
        assert "http" not in policy
        expect(page.locator("h1")).to_have_count(1)
        page.evaluate(SETTLED)
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, address


def _may_be_added(model: type) -> bool:
    page = admin.site._registry[model]
    return type(page).has_add_permission is admin.ModelAdmin.has_add_permission


def test_the_pages_of_the_admin_keep_nobody_out(furnished: House, page: Page, olga: User) -> None:
    for address in (
        "/admin/",
        "/admin/tenants/tenant/",
        "/admin/tenants/tenant/add/",
        "/admin/budgets/ledgerentry/",
        "/admin/audit/requestevent/",
        "/admin/proxy/upstream/",
    ):
        page.goto(address)
        check_page(page, address.strip("/").replace("/", "-"))


def test_the_details_of_a_call_keep_nobody_out(furnished: House, page: Page, olga: User) -> None:
    page.goto("/admin/audit/requestevent/")
    page.get_by_role("link", name="20").first.click()
    expect(page.get_by_text("Where the time went")).to_be_visible()

    check_page(page, "admin-request")


def test_the_dashboard_follows_a_call_without_a_reload(house: House, page: Page, olga: User) -> None:
    page.goto("/admin/")
    expect(page.locator("[data-live-text]")).to_have_text("Live.")
    expect(page.get_by_text("Nothing is booked today yet.")).to_be_visible()

    assert house.ada.chat().status_code == 200
    house.booked()

    expect(page.get_by_role("link", name="acme")).to_be_visible()


def test_the_menu_is_had_on_a_narrow_screen(house: House, page: Page, olga: User) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto("/admin/")
    ledger = page.get_by_role("link", name="Ledger", exact=False).first
    expect(ledger).not_to_be_visible()

    page.get_by_role("button", name="Menu").locator("visible=true").click()

    expect(page.get_by_role("link", name="Running streams")).to_be_visible()


def test_the_one_search_leads_to_a_tenant(house: House, page: Page, olga: User) -> None:
    page.goto("/admin/")
    page.keyboard.press("Control+k")
    page.locator("#search-input-command").press_sequentially("acm")

    expect(page.get_by_text("Tenant ACME")).to_be_visible()
