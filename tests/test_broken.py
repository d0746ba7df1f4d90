"""What people and programs are told where something of ours broke."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path

from tenants.redis import RedisError
from tests.conftest import House, eventually
from tests.fault_proxy import line_to
from tests.gateway import Gateway, database_url
from tests.people import Outline

FAULTS: dict[str, Exception] = {
    "fault": RuntimeError("a secret of ours"),
    "postgres": OperationalError("a secret of ours"),
    "redis": RedisError("a secret of ours"),
}


def breaking(request: HttpRequest, fault: str) -> HttpResponse:
    raise FAULTS[fault]


urlpatterns = [
    path("portal/breaking/<str:fault>/", breaking),
    path("manage/breaking/<str:fault>/", breaking),
    path("", include("config.urls")),
]
handler500 = "config.broken.broken"


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    logging.disable(logging.ERROR)
    with override_settings(ROOT_URLCONF=__name__):
        yield
    logging.disable(logging.NOTSET)


def ask(address: str, **headers: str) -> Any:
    return Client(raise_request_exception=False).get(address, headers=headers)


@pytest.mark.django_db
@pytest.mark.parametrize(("fault", "status"), [("fault", 500), ("postgres", 503), ("redis", 503)])
def test_people_get_a_page_that_says_what_to_do_and_not_why(fault: str, status: int) -> None:
    page = ask(f"/portal/breaking/{fault}/")

    assert page.status_code == status
    assert ("Retry-After" in page.headers) is (status == 503)
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    content = page.content.decode()
    assert ("Something broke here" in content) is (status == 500)
    assert ("not available at the moment" in content) is (status == 503)
    assert "a secret" not in content
    outline = Outline(content)
    assert (outline.tags.count("h1"), outline.inline) == (1, [])


@pytest.mark.django_db
def test_the_page_is_in_the_language_of_its_reader() -> None:
    page = ask("/portal/breaking/fault/", **{"Accept-Language": "de"})

    assert '<html lang="de">' in page.content.decode()
    assert "Something broke" not in page.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("fault", "status"), [("fault", 500), ("postgres", 503)])
def test_programs_get_problem_details(fault: str, status: int) -> None:
    answer = ask(f"/manage/breaking/{fault}/")

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert "a secret" not in answer.content.decode()


def test_without_postgres_the_portal_says_so_and_comes_back(house: House) -> None:
    with line_to(database_url()) as (line, url), Gateway(DATABASE_URL=url) as gateway:
        signing_in = f"{gateway.url}/account/login/"
        eventually(lambda: shown(signing_in).status_code == 200)
        # A session that is looked up, as that of whoever has signed in.
        cookies = {"sessionid": "a" * 32}
        line.refuse()

        away = eventually(lambda: shown_away(f"{gateway.url}/portal/", cookies))
        line.take_again()

        assert "not available at the moment" in away.text
        assert away.headers["retry-after"]
        eventually(lambda: shown(f"{gateway.url}/portal/", cookies).is_redirect)


def shown(address: str, cookies: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(address, cookies=cookies, trust_env=False, timeout=30)


def shown_away(address: str, cookies: dict[str, str]) -> httpx.Response | None:
    answer = shown(address, cookies)
    return answer if answer.status_code == 503 else None
