"""Signing in at an OpenID Connect provider."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tenants.models import User
from tenants.services import add_member, create_tenant, create_user
from tests.gateway import Gateway
from tests.oidc import CLIENT, Provider, running_provider
from tests.test_signing_in import a_browser, in_form

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway_with_provider(django_db_setup: None, provider: Provider) -> Iterator[Gateway]:
    with Gateway(
        OPERATORS_NEED_SECOND_FACTOR="true",
        OIDC_ISSUER=provider.url,
        OIDC_CLIENT_ID=CLIENT,
        OIDC_CLIENT_SECRET="hush",
        OIDC_NAME="the university",
    ) as gateway:
        yield gateway


def sign_in_there(browser: httpx.Client) -> httpx.Response:
    page = browser.get("/account/login/").text
    assert "Sign in with the university" in page
    token = in_form(page, r"\w{64}")
    return browser.post("/account/oidc/oidc/login/?process=login", data={"csrfmiddlewaretoken": token})


def test_whoever_the_provider_has_verified_is_the_person_here(gateway_with_provider, provider):
    ada = create_user(username="ada", email="ada@example.org", actor="test")
    add_member(tenant=create_tenant(slug="acme", name="ACME", actor="test"), user=ada, actor="test")
    provider.claims = {"sub": "17", "email": "ada@example.org", "email_verified": True}

    for _ in range(2):
        with a_browser(gateway_with_provider) as browser:
            answer = sign_in_there(browser)

            assert urlsplit(str(answer.url)).path == "/portal/acme/"
            assert "ACME" in answer.text


def test_an_operator_had_the_second_factor_asked_for_there(gateway_with_provider, provider):
    create_user(username="root", email="root@example.org", is_staff=True, is_superuser=True, actor="test")
    provider.claims = {"sub": "1", "email": "root@example.org", "email_verified": True}

    with a_browser(gateway_with_provider) as browser:
        sign_in_there(browser)

        assert urlsplit(str(browser.get("/admin/").url)).path == "/admin/"


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"sub": "18", "email": "ada@example.org", "email_verified": False}, id="not verified"),
        pytest.param({"sub": "19", "email": "eve@example.org", "email_verified": True}, id="not known here"),
        pytest.param({"sub": "20"}, id="no address"),
    ],
)
def test_others_are_refused(gateway_with_provider, provider, claims):
    create_user(username="ada", email="ada@example.org", actor="test")
    provider.claims = claims

    with a_browser(gateway_with_provider) as browser:
        sign_in_there(browser)

        assert urlsplit(str(browser.get("/portal/").url)).path == "/account/login/"
    assert [user.username for user in User.objects.all()] == ["ada"]
