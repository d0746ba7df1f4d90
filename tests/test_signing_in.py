"""How people sign in at a real gateway: password, second factor, recovery, throttles, sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.hashers import make_password
from django.core.cache import cache
from django.core.management import CommandError, call_command

from audit.models import AuditEvent
from config.second_factor import WHY
from tenants.models import Tenant, User
from tenants.services import add_member, create_tenant, create_user
from tests.browser import totp_code
from tests.gateway import Gateway

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "correct horse battery staple"
# Hashed once: it takes a while on purpose, and the gateway knows only the real ones.
HASHED = make_password(PASSWORD, hasher="pbkdf2_sha256")


@pytest.fixture(scope="module")
def strict(django_db_setup: None) -> Iterator[Gateway]:
    """A gateway as it is by default: operators need a second factor."""
    with Gateway(OPERATORS_NEED_SECOND_FACTOR="true") as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _nobody_has_tried_yet(strict: Gateway) -> None:
    """Throttles remember who tried before."""
    cache.delete_pattern("*allauth*")  # type: ignore[attr-defined]  # what django-redis adds


@pytest.fixture
def root() -> User:
    return a_person("root", operator=True)


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test")


def a_person(name: str, operator: bool = False) -> User:
    user = create_user(
        username=name,
        email=f"{name}@example.org",
        actor="test",
        is_staff=operator,
        is_superuser=operator,
    )
    User.objects.filter(pk=user.pk).update(password=HASHED)
    return user


@contextmanager
def a_browser(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, follow_redirects=True, trust_env=False, timeout=30) as browser:
        yield browser


def send(browser: httpx.Client, page: str, **fields: str) -> httpx.Response:
    """Fill in the form of a page and send it, as a browser would."""
    token = in_form(browser.get(page).text, r"\w{64}")
    return browser.post(page, data={"csrfmiddlewaretoken": token, **fields})


def sign_in(browser: httpx.Client, login: str, password: str = PASSWORD) -> httpx.Response:
    return send(browser, "/account/login/", login=login, password=password)


def set_up_totp(browser: httpx.Client) -> tuple[str, str]:
    """Set an authenticator up; returns its secret, and the page that follows."""
    # Each look at the page is another secret.
    page = browser.get("/account/2fa/totp/activate/")
    secret, token = in_form(page.text, "[A-Z2-7]{32}"), in_form(page.text, r"\w{64}")
    answer = browser.post(str(page.url), data={"csrfmiddlewaretoken": token, "code": totp_code(secret)})
    assert answer.status_code == 200, answer.text
    return secret, answer.text


def in_form(page: str, value: str) -> str:
    found = re.search(f'value="({value})"', page)
    assert found is not None, page
    return found[1]


def signed_in(browser: httpx.Client) -> bool:
    answer = browser.get("/portal/")
    return urlsplit(str(answer.url)).path.startswith("/portal")


@pytest.mark.parametrize("login", ["ada", "ada@example.org", "ADA@example.org"])
def test_people_sign_in_by_name_or_address(strict, acme, login):
    add_member(tenant=acme, user=a_person("ada"), actor="test")

    with a_browser(strict) as browser:
        answer = sign_in(browser, login)
        assert urlsplit(str(answer.url)).path == "/portal/acme/"
        assert "ACME" in answer.text

        send(browser, "/account/logout/")
        assert not signed_in(browser)


@pytest.mark.parametrize(("login", "password"), [("ada", "wrong"), ("nobody", PASSWORD), ("ada", "")])
def test_whoever_is_not_known_is_told_no_more_than_that(strict, login, password):
    a_person("ada")

    with a_browser(strict) as browser:
        answer = sign_in(browser, login, password)

        assert urlsplit(str(answer.url)).path == "/account/login/"
        assert not signed_in(browser)
        if password:
            assert "The username and/or password you specified are not correct." in answer.text


def test_the_admin_is_entered_by_the_same_door(strict, root):
    with a_browser(strict) as browser:
        answer = browser.get("/admin/")

        url = urlsplit(str(answer.url))
        assert (url.path, parse_qs(url.query)) == ("/account/login/", {"next": ["/admin/"]})


def test_an_operator_without_a_second_factor_can_only_set_one_up(strict, root):
    with a_browser(strict) as browser:
        sign_in(browser, "root")

        for page in ("/admin/", "/admin/tenants/tenant/", "/portal/"):
            answer = browser.get(page)
            assert urlsplit(str(answer.url)).path == "/account/2fa/totp/activate/"
            assert str(WHY) in answer.text
        answer = browser.get("/manage/v1/kill-switches/")
        assert (answer.status_code, answer.json()["detail"]) == (403, str(WHY))

        set_up_totp(browser)
        assert browser.get("/admin/").status_code == 200
        assert browser.get("/manage/v1/kill-switches/").status_code == 200


def test_with_a_second_factor_the_password_alone_opens_nothing(strict, root):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        secret, _ = set_up_totp(browser)

    with a_browser(strict) as browser:
        answer = sign_in(browser, "root")
        assert urlsplit(str(answer.url)).path == "/account/2fa/authenticate/"
        assert not signed_in(browser)
        sign_in(browser, "root")
        assert "Incorrect code" in send(browser, "/account/2fa/authenticate/", code="000000").text
        # The code that set it up is used; the next one is another.
        Authenticator.objects.filter(type="totp").update(last_used_at=None)
        answer = send(browser, "/account/2fa/authenticate/", code=totp_code(secret))
        assert signed_in(browser)


@pytest.mark.parametrize(("ahead", "opens"), [(1, True), (-2, False)])
def test_a_code_opens_half_a_minute_before_and_after_its_time(strict, root, ahead, opens):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        secret, _ = set_up_totp(browser)

    with a_browser(strict) as browser:
        sign_in(browser, "root")
        send(browser, "/account/2fa/authenticate/", code=totp_code(secret, ahead))

        assert signed_in(browser) is opens


def test_recovery_codes_open_once_each_and_are_shown_once(strict, root):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        _, shown = set_up_totp(browser)
        codes = re.findall(r"\b\d{8}\b", shown)
        assert len(codes) == 10
        assert not re.findall(r"\b\d{8}\b", browser.get("/account/2fa/recovery-codes/").text)

    for opens in (True, False):
        with a_browser(strict) as browser:
            sign_in(browser, "root")
            send(browser, "/account/2fa/authenticate/", code=codes[0])
            assert signed_in(browser) is opens


def test_what_authenticators_hold_lies_encrypted_in_the_database(strict, root):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        secret, _ = set_up_totp(browser)

    kept = str(list(Authenticator.objects.values_list("data", flat=True)))
    assert "secret" in kept
    assert secret not in kept


def test_a_tenant_may_want_a_second_factor_of_its_people(strict, acme):
    add_member(tenant=acme, user=a_person("ada"), actor="test")
    Tenant.objects.update(needs_second_factor=True)

    with a_browser(strict) as browser:
        answer = sign_in(browser, "ada")
        assert urlsplit(str(answer.url)).path == "/account/2fa/totp/activate/"
        set_up_totp(browser)
        assert urlsplit(str(browser.get("/portal/").url)).path == "/portal/acme/"


def test_after_some_wrong_passwords_a_right_one_has_to_wait(strict):
    a_person("ada")

    with a_browser(strict) as browser:
        for _ in range(5):
            sign_in(browser, "ada", "wrong")
        answer = sign_in(browser, "ada")

        assert "Too many failed login attempts" in answer.text
        assert not signed_in(browser)


def test_a_person_sees_their_sessions_and_ends_the_others(strict, acme):
    add_member(tenant=acme, user=a_person("ada"), actor="test")

    with a_browser(strict) as here, a_browser(strict) as elsewhere:
        sign_in(here, "ada")
        sign_in(elsewhere, "ada")
        page = here.get("/account/sessions/").text
        assert page.count("127.0.0.1") == 2

        send(here, "/account/sessions/")

        assert signed_in(here)
        assert not signed_in(elsewhere)


def test_signing_in_leads_nowhere_else(strict, acme):
    add_member(tenant=acme, user=a_person("ada"), actor="test")

    with a_browser(strict) as browser:
        answer = send(
            browser, "/account/login/", login="ada", password=PASSWORD, next="https://evil.example/"
        )

    assert urlsplit(str(answer.url)).path == "/portal/acme/"


def test_nobody_signs_up(strict):
    with a_browser(strict) as browser:
        answer = browser.get("/account/signup/")
        assert "sign_up" not in answer.text
        assert browser.post("/account/signup/", data={"username": "eve"}).status_code == 403
    assert not User.objects.exists()


@pytest.mark.parametrize(
    "page", ["/account/login/", "/account/password/reset/", "/account/signup/", "/account/nothing/"]
)
def test_pages_about_accounts_are_as_strict_as_those_of_the_portal(strict, page):
    with a_browser(strict) as browser:
        answer = browser.get(page)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert "<style" not in answer.text
    assert " style=" not in answer.text


def test_a_lost_second_factor_is_taken_away_at_a_shell(strict, root, capsys):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        set_up_totp(browser)

    call_command("reset_second_factor", "root@example.org", reason="phone lost")
    assert capsys.readouterr().out == "Took recovery_codes, totp of root away.\n"
    call_command("reset_second_factor", "root", reason="again")
    assert capsys.readouterr().out == "root has no second factor.\n"

    event = AuditEvent.objects.get(action="user.second_factor_reset")
    assert (event.reason, event.details["taken"]) == ("phone lost", ["recovery_codes", "totp"])
    with a_browser(strict) as browser:
        assert urlsplit(str(sign_in(browser, "root").url)).path == "/account/2fa/totp/activate/"
    with pytest.raises(CommandError, match="nobody called 'eve'"):
        call_command("reset_second_factor", "eve", reason="x")


def test_what_people_sign_in_with_is_not_shown_in_the_admin(strict, root):
    with a_browser(strict) as browser:
        sign_in(browser, "root")
        set_up_totp(browser)
        index = browser.get("/admin/").text

    assert "/admin/tenants/tenant/" in index
    for app in ("mfa", "account", "socialaccount", "usersessions"):
        assert f"/admin/{app}/" not in index
