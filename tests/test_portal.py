"""The frame of the portal: who gets to see which page, and what every answer tells the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from tenants import services
from tenants.access import Reach, access_to, tenants_of
from tenants.models import Member, Tenant, User
from tests.accounts import quiet_counters
from tests.conftest import PATIENCE_SECONDS, House
from tests.crawling import Belongings, addresses
from tests.people import EVERYBODY, MAY_EXPORT, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person

pytestmark = pytest.mark.django_db(transaction=True)

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# Who gets 200. Of the others, those who can sign in get 404, and the rest is asked to sign in.
PAGES = {
    "/portal/acme/": ROLES | OPERATORS,
    "/portal/no-such-tenant/": frozenset(),
    "/portal/ACME/": frozenset(),
}
# Addresses that only take forms, and where these stand.
PAGE_OF_FORM = {
    "team/teams/": "team/",
    "team/language/": "team/",
    "team/invitations/{invitation}/": "team/",
    "team/service-accounts/": "team/",
    "team/teams/{team}/put-in/": "team/teams/{team}/",
    "team/teams/{team}/members/{member}/take-out/": "team/teams/{team}/",
    "team/teams/{team}/service-accounts/{service_account}/take-out/": "team/teams/{team}/",
    "limits/recipients/": "limits/",
    "keys/new/may-call/": "keys/new/",
    "keys/{key}/edit/may-call/": "keys/{key}/edit/",
    "keys/{key}/end-grace/": "keys/{key}/",
}
MAY_READ = dict.fromkeys(["owner", "admin", "finance", "auditor", *OPERATORS], Reach.WHOLE_TENANT) | {
    "member": Reach.OWN_KEYS
}


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("page", PAGES)
def test_each_page_opens_for_those_whose_it_is(acme: Tenant, page: str, who: str) -> None:
    browser = a_browser(a_person(who, acme))

    response = browser.get(page)

    if who in PAGES[page]:
        assert response.status_code == 200
    elif who in UNKNOWN:
        assert (response.status_code, response.headers["Location"]) == (302, f"/account/login/?next={page}")
    else:
        assert response.status_code == 404


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_rules_say_who_reads_and_who_takes_usage_with_them(acme: Tenant, who: str) -> None:
    access = access_to(a_person(who, acme), "acme")

    assert (access.usage if access else Reach.NOTHING) == MAY_READ.get(who, Reach.NOTHING)
    assert bool(access and access.exports) == (who in MAY_EXPORT)


def test_an_operator_needs_the_permission_for_usage_besides_the_one_for_tenants(acme: Tenant) -> None:
    olga = User.objects.create(username="olga", is_staff=True)
    olga.user_permissions.set(Permission.objects.filter(codename="view_tenant"))

    assert list(tenants_of(olga)) == [acme]
    access = access_to(olga, "acme")
    assert access is not None
    assert (access.usage, access.exports) == (Reach.NOTHING, False)


def test_a_tenant_of_others_looks_like_none_at_all(acme: Tenant) -> None:
    browser = a_browser(a_person("foreign owner", acme))

    theirs, nobodys = browser.get("/portal/acme/"), browser.get("/portal/nobody/")

    assert theirs.status_code == nobodys.status_code == 404
    # But for the mask that hides the token of the form for signing out.
    assert without_tokens(theirs.content.decode()) == without_tokens(nobodys.content.decode())


def without_tokens(page: str) -> list[str]:
    return [line for line in page.splitlines() if "csrfmiddlewaretoken" not in line]


def test_a_suspended_tenant_is_still_read_and_says_so(acme: Tenant) -> None:
    browser = a_browser(a_person("finance", acme))
    services.suspend_tenant(tenant=acme, actor="test", reason="unpaid")

    page = browser.get("/portal/acme/").content.decode()

    assert "Suspended:" in page


def test_whoever_is_made_inactive_is_out_at_once(acme: Tenant) -> None:
    browser = a_browser(a_person("owner", acme))
    assert browser.get("/portal/acme/").status_code == 200

    User.objects.filter(username="owner").update(is_active=False)

    assert browser.get("/portal/acme/").status_code == 302


def test_a_form_without_its_token_is_refused_in_words(acme: Tenant) -> None:
    answer = Client(enforce_csrf_checks=True).post("/account/login/", {"login": "mia", "password": "?"})

    assert answer.status_code == 403
    assert "The form was not taken" in answer.content.decode()


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        pytest.param("owner", "/portal/acme/", id="one tenant: straight to it"),
        pytest.param("nobody", None, id="none: told whom to ask"),
    ],
)
def test_the_portal_opens_with_the_tenants_of_the_person(
    acme: Tenant, who: str, expected: str | None
) -> None:
    answer = a_browser(a_person(who, acme)).get("/portal/")

    assert answer.headers.get("Location") == expected
    assert expected or "do not belong to a tenant yet" in answer.content.decode()


def test_operators_look_tenants_up_by_name(acme: Tenant) -> None:
    services.create_tenant(slug="globex", name="Globex", actor="test")
    browser = a_browser(a_person("operator", acme))

    everything = browser.get("/portal/").content.decode()
    found = browser.get("/portal/", {"q": "lobe"}).content.decode()

    assert "/portal/acme/" in everything
    assert "/portal/globex/" in everything
    assert "/portal/acme/" not in found
    assert "/portal/globex/" in found
    assert browser.get("/portal/", {"q": "lo\0be"}).status_code == 200


@pytest.mark.parametrize("page", ["/portal/", "/portal/acme/", "/portal/nobody/"])
def test_every_page_has_landmarks_one_heading_and_nothing_inline(acme: Tenant, page: str) -> None:
    services.create_tenant(slug="globex", name="Globex", actor="test")

    outline = Outline(a_browser(a_person("operator", acme)).get(page).content.decode())

    assert [outline.tags.count(tag) for tag in ("h1", "header", "main", "footer")] == [1, 1, 1, 1]
    assert outline.links[2] == "#content"
    assert outline.inline == []


@pytest.mark.parametrize("page", ["/portal/", "/portal/acme/", "/portal/nobody/"])
def test_every_answer_tells_the_browser_to_be_strict(acme: Tenant, page: str) -> None:
    for who in ("owner", "stranger"):
        headers = a_browser(a_person(who, acme)).get(page).headers

        assert headers["Content-Security-Policy"] == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Frame-Options"] == "DENY"


@pytest.fixture
def everything(transactional_db: None, settings: Any, tmp_path: Path) -> Belongings:
    """A tenant with one of everything, so that each address has something to tell."""
    settings.SPOOL_DIR, settings.EXPORT_DIR = tmp_path / "spool", tmp_path / "exports"
    quiet_counters()
    return Belongings("acme")


def test_every_address_is_there_for_who_types_it_or_loads_it_anew(everything: Belongings) -> None:
    """Also one that forms are sent to: it stands in the address bar when a form has a mistake."""
    browser = a_browser(Member.objects.get(pk=everything["member"]).user)
    portal = [one for one in addresses() if one.route.startswith(("portal/", "account/"))]

    told = {
        f"{method} {one}": browser.generic(method, one.filled("acme", everything)).status_code
        for one in portal
        for method in ("HEAD", "GET")
    }

    assert len(portal) > 60
    assert {asked: status for asked, status in told.items() if status == 405 or status >= 500} == {}


def test_who_loads_anew_what_a_form_was_sent_to_gets_to_the_page_of_the_form(everything: Belongings) -> None:
    browser = a_browser(Member.objects.get(pk=everything["member"]).user)
    found, others = {}, set()

    for sent_to in PAGE_OF_FORM:
        address = f"/portal/acme/{sent_to}".format(**everything)
        found[sent_to] = browser.get(address, follow=True)
        others.add(browser.delete(address).status_code)

    led_to = {sent_to: answer.redirect_chain for sent_to, answer in found.items()}
    assert led_to == {
        sent_to: [(f"/portal/acme/{page}".format(**everything), 302)]
        for sent_to, page in PAGE_OF_FORM.items()
    }
    assert {answer.status_code for answer in found.values()} == {200}
    assert others == {405}


def test_other_pages_keep_their_own_headers(acme: Tenant) -> None:
    assert "Content-Security-Policy" not in Client().get("/manage/v1/openapi.json").headers


def test_the_gateway_serves_the_portal_with_its_stylesheet(house: House) -> None:
    with httpx.Client(base_url=house.gateway.url, trust_env=False, timeout=PATIENCE_SECONDS) as browser:
        page = browser.get("/portal/", follow_redirects=True)
        answers = {
            link: browser.get(link) for link in Outline(page.text).links if link.startswith("/static/")
        }

    assert (page.status_code, page.url.path) == (200, "/account/login/")
    assert POLICY in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert {answer.headers["content-type"].partition(";")[0] for answer in answers.values()} == {
        "text/css",
        "image/svg+xml",
    }
    assert {answer.status_code for answer in answers.values()} == {200}
