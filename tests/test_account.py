"""One's own account: every page about signing in, the language, the clock, and mail that cannot be sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from django.core.cache import cache
from django.test import Client, override_settings
from django.urls import URLResolver, get_resolver, reverse

from audit.models import AuditEvent
from tenants import services
from tenants.models import Tenant, User
from tests.browser import totp_code
from tests.people import Outline, a_browser, a_person
from tests.receivers import MailServer

PASSWORD = "correct horse battery staple"
SECRET = "JBSWY3DPEHPK3PXP" * 2

# Each address under /account/: who opens it, with what in it, and what they get. Whoever is ``half`` signed
# in has given their password and not their second factor yet.
PAGES: dict[str, tuple[str, dict[str, Any], int]] = {
    "account": ("person", {}, 200),
    "invitation": ("stranger", {}, 404),
    "invitation-link": ("stranger", {"token": "x" * 43}, 404),
    "account_login": ("stranger", {}, 200),
    "account_logout": ("person", {}, 200),
    "account_inactive": ("stranger", {}, 200),
    "account_signup": ("stranger", {}, 200),
    "account_reauthenticate": ("person", {}, 200),
    "account_request_reauthentication_code": ("person", {}, 302),
    "account_confirm_reauthentication_code": ("person", {}, 302),
    "account_email": ("person", {}, 200),
    "account_email_verification_sent": ("stranger", {}, 200),
    "account_change_password": ("person", {}, 200),
    "account_set_password": ("without password", {}, 403),
    "account_reset_password": ("stranger", {}, 200),
    "account_confirm_login_code": ("stranger", {}, 302),
    "account_confirm_email": ("stranger", {"key": "x"}, 200),
    "account_reset_password_from_key_done": ("stranger", {}, 200),
    "account_reset_password_from_key": ("stranger", {"uidb36": "1", "key": "x-y"}, 200),
    "account_reset_password_done": ("stranger", {}, 200),
    "mfa_index": ("with app", {}, 200),
    "mfa_authenticate": ("half", {}, 200),
    "mfa_reauthenticate": ("with app", {}, 200),
    "mfa_activate_totp": ("person", {}, 200),
    "mfa_deactivate_totp": ("with app", {}, 200),
    "mfa_view_recovery_codes": ("with app", {}, 200),
    "mfa_generate_recovery_codes": ("with app", {}, 200),
    "mfa_download_recovery_codes": ("with app", {}, 200),
    "mfa_list_webauthn": ("with app", {}, 200),
    "mfa_add_webauthn": ("person", {}, 200),
    "mfa_reauthenticate_webauthn": ("person", {}, 302),
    "mfa_remove_webauthn": ("person", {"pk": 1}, 404),
    "mfa_edit_webauthn": ("person", {"pk": 1}, 404),
    "socialaccount_login_cancelled": ("stranger", {}, 200),
    "socialaccount_login_error": ("stranger", {}, 401),
    "socialaccount_signup": ("stranger", {}, 302),
    "socialaccount_connections": ("person", {}, 200),
    "openid_connect_login": ("stranger", {"provider_id": "oidc"}, 404),
    "openid_connect_callback": ("stranger", {"provider_id": "oidc"}, 404),
    "usersessions_list": ("person", {}, 200),
}
AS_TEXT = {"mfa_download_recovery_codes"}


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    cache.delete_pattern("*allauth*")  # type: ignore[attr-defined]  # what django-redis adds
    return services.create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin")


@pytest.fixture
def mia(acme: Tenant) -> User:
    mia = services.create_user(username="mia", email="mia@example.org", password=PASSWORD, actor="test")
    services.add_member(tenant=acme, user=mia, actor="test")
    return mia


def signed_in(mia: User, who: str) -> Client:
    """A browser of mia, or of nobody, that signed in as the table says."""
    if who in ("half", "with app"):
        TOTP.activate(mia, SECRET)
        RecoveryCodes.activate(mia)
    if who == "without password":
        mia.set_unusable_password()
        mia.save()
        return a_browser(mia)
    browser = Client()
    if who != "stranger":
        browser.post("/account/login/", {"login": "mia", "password": PASSWORD})
    if who == "with app":
        browser.force_login(mia)
        session = browser.session
        session["account_authentication_methods_user"] = str(mia.pk)
        session["account_authentication_methods"] = [{"method": "password", "at": 4102444800.0}]
        session.save()
    return browser


def names_under(prefix: str) -> set[str]:
    """The names of all addresses that begin so; allauth keeps old ones without a name beside them."""

    def walk(resolver: URLResolver, before: str) -> Iterator[tuple[str, str]]:
        for entry in resolver.url_patterns:
            route = before + str(entry.pattern)
            if isinstance(entry, URLResolver):
                yield from walk(entry, route)
            elif entry.name:
                yield entry.name, route

    return {name for name, route in walk(get_resolver(), "") if route.startswith(prefix)}


def test_every_address_about_accounts_is_in_the_table() -> None:
    assert names_under("account/") == set(PAGES)


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_about_accounts_is_one_of_the_portals(mia: User, name: str, language: str) -> None:
    who, parts, status = PAGES[name]
    browser = signed_in(mia, who)

    answer = browser.get(reverse(name, kwargs=parts), headers={"Accept-Language": language})

    assert answer.status_code == status
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    if status != 302 and name not in AS_TEXT:
        page = answer.content.decode()
        outline = Outline(page)
        assert outline.tags.count("h1") == 1
        assert {"header", "main", "footer"} <= set(outline.tags)
        assert f'<html lang="{language}">' in page
        assert "portal/portal" in page
        assert not [one for one in outline.inline if one not in ("script", "style")]
        assert "style" not in outline.tags
        # What is written between script tags is read and not run.
        for attributes, text in re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL):
            assert "src=" in attributes or 'type="application/json"' in attributes, text


def test_the_overview_leads_to_where_everything_is_changed(mia: User) -> None:
    browser = signed_in(mia, "with app")

    page = browser.get("/account/")

    links = set(Outline(page.content.decode()).links)
    assert {
        "/account/email/", "/account/password/change/", "/account/2fa/", "/account/2fa/webauthn/",
        "/account/sessions/", "/portal/acme/", "/portal/acme/team/leave/",
    } <= links  # fmt: skip
    assert "mia@example.org" in page.content.decode()


def test_a_person_chooses_name_language_and_zone(mia: User) -> None:
    browser = signed_in(mia, "person")

    answer = browser.post(
        "/account/",
        {"first_name": "Mia", "last_name": "Weber", "language": "de", "time_zone": "America/New_York"},
        follow=True,
    )

    mia.refresh_from_db()
    assert (mia.get_full_name(), mia.language, mia.time_zone) == ("Mia Weber", "de", "America/New_York")
    page = answer.content.decode()
    assert '<html lang="de">' in page
    assert "Ihr Konto" in page
    event = AuditEvent.objects.get(action="user.changed")
    assert (event.actor, event.details["after"]["time_zone"]) == ("mia", "America/New_York")
    browser.post(
        "/account/",
        {"first_name": "Mia", "last_name": "Weber", "language": "de", "time_zone": "America/New_York"},
    )
    assert AuditEvent.objects.filter(action="user.changed").count() == 1


@pytest.mark.parametrize(("field", "value"), [("language", "xx"), ("time_zone", "Mars/Olympus")])
def test_what_there_is_not_cannot_be_chosen(mia: User, field: str, value: str) -> None:
    browser = signed_in(mia, "person")

    answer = browser.post("/account/", {"language": "", "time_zone": "", field: value})

    assert answer.status_code == 400
    assert not AuditEvent.objects.filter(action="user.changed").exists()


@pytest.mark.parametrize(
    ("chosen", "asked_for", "spoken"),
    [
        ("", "de-AT,de;q=0.9,en;q=0.5", "de"),
        ("", "fr,en;q=0.5", "en"),
        ("", "", "en"),
        ("de", "en", "de"),
        ("en", "de", "en"),
    ],
)
def test_pages_speak_the_language_that_was_chosen_or_is_asked_for(
    mia: User, chosen: str, asked_for: str, spoken: str
) -> None:
    User.objects.update(language=chosen)
    browser = a_browser(mia)

    answer = browser.get("/portal/acme/usage/", headers={"Accept-Language": asked_for})

    assert f'<html lang="{spoken}">' in answer.content.decode()
    assert answer.headers["Content-Language"] == spoken
    assert "Accept-Language" in answer.headers["Vary"]


def test_programs_and_the_admin_are_answered_in_english(acme: Tenant) -> None:
    superuser = a_person("superuser", acme)
    User.objects.update(language="de")

    with override_settings(OPERATORS_NEED_SECOND_FACTOR=False):
        browser = a_browser(superuser)
        answers = [
            browser.get(path, headers={"Accept-Language": "de"})
            for path in ("/admin/", "/manage/v1/tenants/")
        ]

    assert [answer.headers["Content-Language"] for answer in answers] == ["en", "en"]


def test_times_are_those_of_the_zone_that_a_person_chose(acme: Tenant) -> None:
    owner = a_person("owner", acme)
    assert isinstance(owner, User)
    services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    acme.service_accounts.update(created_at="2026-07-01T22:30:00Z")
    browser = a_browser(owner)

    of_the_tenant = browser.get("/portal/acme/team/").content.decode()
    User.objects.update(time_zone="America/New_York")
    own = browser.get("/portal/acme/team/").content.decode()

    utc = '<time datetime="2026-07-01T22:30:00+00:00" title="2026-07-01 22:30:00 UTC">'
    assert f"{utc}2026-07-02 00:30:00</time>" in of_the_tenant
    assert "Times are those of" not in of_the_tenant
    assert f"{utc}2026-07-01 18:30:00</time>" in own
    assert "Days are those of Europe/Berlin. Times are those of America/New_York." in own


def test_a_new_address_counts_once_its_mail_was_answered(mia: User, mail: MailServer) -> None:
    browser = signed_in(mia, "person")

    answer = browser.post("/account/email/", {"email": "new@example.org", "action_add": ""}, follow=True)

    mia.refresh_from_db()
    assert mia.email == "mia@example.org"
    assert "new@example.org" in answer.content.decode()
    found = re.search(r"http://testserver(/account/confirm-email/\S+)", text_of(mail))
    assert found is not None
    browser.post(found[1])
    mia.refresh_from_db()
    assert mia.email == "new@example.org"
    assert EmailAddress.objects.get(user=mia).verified


@pytest.mark.parametrize("known", [True, False])
def test_without_mail_a_forgotten_password_is_said_to_need_it(mia: User, known: bool) -> None:
    answer = Client().post(
        "/account/password/reset/", {"email": "mia@example.org" if known else "eve@example.org"}
    )

    assert answer.status_code == 503
    assert "No mail can be sent" in answer.content.decode()


def test_a_mail_server_that_is_away_breaks_no_page(mia: User, mail: MailServer) -> None:
    browser = signed_in(mia, "person")

    with override_settings(EMAIL_PORT=1):
        answer = browser.post("/account/email/", {"email": "new@example.org", "action_add": ""})

    assert answer.status_code == 503
    mia.refresh_from_db()
    assert mia.email == "mia@example.org"
    assert not EmailAddress.objects.exists()


def test_the_code_for_an_app_is_shown_under_the_strict_policy(mia: User) -> None:
    page = signed_in(mia, "person").get("/account/2fa/totp/activate/").content.decode()

    assert 'src="data:image/svg+xml' in page
    assert not Authenticator.objects.exists()


def test_what_people_sign_in_with_is_changed_together_with_its_event(mia: User, mail: MailServer) -> None:
    browser = signed_in(mia, "person")
    another = "another horse, another battery"
    browser.post(
        "/account/password/change/", {"oldpassword": PASSWORD, "password1": another, "password2": another}
    )
    page = browser.get("/account/2fa/totp/activate/").content.decode()
    found = re.search(r'value="([A-Z2-7]{32})"', page)
    assert found is not None
    browser.post("/account/2fa/totp/activate/", {"code": totp_code(found[1])})
    browser.post("/account/2fa/recovery-codes/generate/")
    browser.post("/account/2fa/totp/deactivate/")
    browser.post("/account/email/", {"email": "new@example.org", "action_add": ""})
    link = re.search(r"http://testserver(/account/confirm-email/\S+)", text_of(mail))
    assert link is not None
    browser.post(link[1])

    events = AuditEvent.objects.filter(subject=str(mia.pk)).exclude(action="user.created").order_by("id")
    assert [(event.action.removeprefix("user."), event.details.get("kind")) for event in events] == [
        ("password_changed", None),
        ("second_factor_added", "totp"),
        ("second_factor_added", "recovery_codes"),
        ("second_factor_removed", "recovery_codes"),
        ("second_factor_added", "recovery_codes"),
        ("second_factor_removed", "totp"),
        ("second_factor_removed", "recovery_codes"),
        ("email_changed", None),
    ]
    assert {event.actor for event in events} == {"mia"}
    assert [event.details.get("after") for event in events][-1] == "new@example.org"
    assert another not in str([event.details for event in events])


def text_of(mail: MailServer) -> str:
    text: str = mail.mails[-1].message.get_content()  # type: ignore[attr-defined]
    return text


def test_without_its_event_nothing_is_changed(mia: User, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = signed_in(mia, "person")
    browser.raise_request_exception = False

    def fail(**_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("tenants.sign_in_audit.record", fail)
    another = "another horse, another battery"
    answer = browser.post(
        "/account/password/change/", {"oldpassword": PASSWORD, "password1": another, "password2": another}
    )

    assert answer.status_code == 500
    mia.refresh_from_db()
    assert mia.check_password(PASSWORD)
