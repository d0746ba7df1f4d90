"""Signing in as people do, in a browser: by app, passkey and recovery code; and out again everywhere."""

from __future__ import annotations

import re

import pytest
from allauth.mfa.models import Authenticator
from playwright.sync_api import Page

from tenants.models import Tenant
from tests.browser import Browser, check_page, check_page_once, fill_in_code, give_password, shoot, sign_in
from tests.browser_thread import expect
from tests.conftest import House

HOME = re.compile(r"/portal/acme/$")
# What people with and without a second factor may open of their account.
ACCOUNT_PAGES = [
    "/account/login/", "/account/password/reset/", "/account/2fa/", "/account/2fa/totp/activate/",
    "/account/2fa/webauthn/add/", "/account/2fa/webauthn/", "/account/2fa/recovery-codes/generate/",
    "/account/2fa/recovery-codes/", "/account/", "/account/email/", "/account/2fa/totp/deactivate/",
    "/account/sessions/",
    "/account/password/change/", "/account/logout/", "/account/signup/", "/account/nothing/",
]  # fmt: skip


@pytest.fixture
def at_localhost(browser: Browser, house: House) -> Page:
    """A page where browsers know passkeys without TLS, and with a security key in the machine."""
    page = browser.open(house.gateway.url.replace("127.0.0.1", "localhost"))
    debugger = page.context.new_cdp_session(page)
    debugger.send("WebAuthn.enable")
    key = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }  # fmt: skip
    debugger.send("WebAuthn.addVirtualAuthenticator", {"options": key})
    return page


def sign_out(page: Page) -> None:
    page.get_by_role("banner").get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/account/login/"))


def wait_for_script(page: Page, address: str) -> None:
    """Until a press of the page's button for passkeys is heard: it does nothing but by script."""
    expect(page).to_have_url(re.compile(address))
    page.wait_for_load_state()


def test_who_needs_a_second_factor_sets_an_app_up_and_signs_in_with_it(page, house, owner):
    Tenant.objects.update(needs_second_factor=True)

    give_password(page, owner)
    expect(page).to_have_url(re.compile("/account/2fa/totp/activate/"))
    secret = page.get_by_label("Authenticator secret").input_value()
    fill_in_code(page.get_by_label("Authenticator code"), secret)
    page.get_by_role("button", name="Activate").click()
    page.get_by_label("I have saved my recovery codes").check()
    page.get_by_role("link", name="Tollgate").click()
    expect(page).to_have_url(HOME)
    sign_out(page)

    Authenticator.objects.filter(type=Authenticator.Type.TOTP).update(last_used_at=None)
    give_password(page, owner)
    fill_in_code(page.get_by_label("Code"), secret)
    page.get_by_role("button", name="Sign In").click()
    expect(page).to_have_url(HOME)


def test_the_code_for_an_app_can_be_scanned_in_the_dark(page, owner):
    give_password(page, owner)
    page.emulate_media(color_scheme="dark")

    page.goto("/account/2fa/totp/activate/")

    # It is drawn in black.
    expect(page.get_by_role("main").get_by_role("img")).to_have_css("background-color", "rgb(255, 255, 255)")


def test_a_recovery_code_opens_once(page, house, owner):
    Tenant.objects.update(needs_second_factor=True)
    give_password(page, owner)
    secret = page.get_by_label("Authenticator secret").input_value()
    fill_in_code(page.get_by_label("Authenticator code"), secret)
    page.get_by_role("button", name="Activate").click()
    code, *_ = page.get_by_label("Unused codes").input_value().split()
    page.get_by_label("I have saved my recovery codes").check()
    sign_out(page)

    give_password(page, owner)
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Sign In").click()
    expect(page).to_have_url(HOME)
    sign_out(page)
    give_password(page, owner)
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Sign In").click()

    expect(page.get_by_text("Incorrect code")).to_be_visible()


def test_a_passkey_is_added_signs_in_and_is_removed(at_localhost, owner):
    page = at_localhost
    give_password(page, owner)
    page.goto("/account/2fa/")
    page.get_by_role("link", name="Add").click()
    wait_for_script(page, "/account/2fa/webauthn/add/")
    page.get_by_label("Name").fill("Laptop")
    page.get_by_role("button", name="Add").click()
    page.get_by_label("I have saved my recovery codes").check()
    page.goto("/account/2fa/webauthn/")
    expect(page.get_by_role("row", name="Laptop")).to_be_visible()
    page.goto("/account/2fa/webauthn/add/")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("alert")).to_have_text("This passkey is on your list already.")
    sign_out(page)

    give_password(page, owner)
    wait_for_script(page, "/account/2fa/authenticate/")
    page.get_by_role("button", name="Use a security key").click()
    expect(page).to_have_url(HOME)

    page.goto("/account/2fa/webauthn/")
    page.get_by_role("link", name="Remove").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("You have no passkey yet.")).to_be_visible()
    assert not Authenticator.objects.filter(type=Authenticator.Type.WEBAUTHN).exists()


def test_a_person_is_told_why_a_passkey_cannot_be_added(page, owner):
    give_password(page, owner)
    page.goto("/account/2fa/webauthn/add/")

    # No passkey is for an IP address.
    page.get_by_role("button", name="Add").click()

    expect(page.get_by_role("alert")).to_contain_text("They need HTTPS and a name")
    check_page(page)


def test_a_person_ends_all_other_sessions(browser, house, page, owner):
    elsewhere = browser.open(house.gateway.url)
    give_password(elsewhere, owner)
    expect(elsewhere).to_have_url(HOME)
    give_password(page, owner)
    page.goto("/account/sessions/")

    page.get_by_role("button", name="End all other sessions").click()
    expect(page.get_by_role("main").get_by_role("button", name="Sign out")).to_be_visible()

    elsewhere.reload()
    expect(elsewhere).to_have_url(re.compile("/account/login/"))
    page.goto("/portal/")
    expect(page).to_have_url(HOME)


def test_no_page_of_an_account_keeps_anybody_out_without_a_second_factor_or_with_one(page, owner):
    looked_at: set[str] = set()

    for come_in in (give_password, sign_in):
        page.context.clear_cookies()
        come_in(page, owner)
        for address in ACCOUNT_PAGES:
            page.goto(address)
            check_page_once(page, looked_at)


def test_the_page_to_sign_in_keeps_nobody_out_and_says_what_was_wrong(page, owner):
    page.goto("/account/login/")
    shoot(page, "sign-in")

    page.get_by_label("Name or e-mail address").fill("owner")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")

    expect(page.get_by_text("are not correct")).to_be_visible()
    check_page(page)
