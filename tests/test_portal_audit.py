"""A tenant's own audit, in the portal."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.test import Client

from audit.recording import record
from tenants.models import Tenant
from tenants.portal_audit import ON_A_PAGE
from tenants.services import change_tenant, create_team, create_tenant
from tests.people import EVERYBODY, OPERATORS, UNKNOWN, Outline, a_browser, a_person

pytestmark = pytest.mark.django_db

PAGE = "/portal/acme/audit/"


@pytest.fixture
def auditor(acme: Tenant) -> Client:
    return a_browser(a_person("auditor", acme))


def told(browser: Client, query: str = "") -> str:
    answer = browser.get(f"{PAGE}{query}")
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_page_is_for_those_who_look_into_a_tenant(acme: Tenant, who: str) -> None:
    browser = a_browser(a_person(who, acme))

    status = browser.get(PAGE).status_code

    if who in ("owner", "admin", "auditor", "superuser"):
        assert status == 200
        assert f'href="{PAGE}"' in browser.get("/portal/acme/").content.decode()
    elif who in ("finance", "member", *OPERATORS):
        # This operator may see usage, and no audit.
        assert status == 403
        assert PAGE not in browser.get("/portal/acme/").content.decode()
    else:
        assert status == (302 if who in UNKNOWN else 404)


def test_a_change_is_told_with_its_exact_values_before_and_after(acme: Tenant, auditor: Client) -> None:
    change_tenant(tenant=acme, actor="ada <b>", models=["tiny:1b", "größer:7b"], week_start=7)

    page = told(auditor)

    assert "tenant.changed" in page
    assert "ada &lt;b&gt;" in page
    [row] = [row for row in page.split("<tr>") if "tenant.changed" in row]
    values = re.sub(r"<[^>]+>", "", row)
    assert "week_start: before 1 after 7" in values
    assert "models: before null after [&quot;tiny:1b&quot;, &quot;größer:7b&quot;]" in values


def test_events_of_others_and_of_the_platform_are_not_there(acme: Tenant, auditor: Client) -> None:
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    create_team(tenant=globex, name="Team of globex", actor="eve")
    with transaction.atomic():
        record(action="epoch.begun", actor="gateway", subject="platform")

    page = told(auditor)

    assert "globex" not in page.lower()
    assert "epoch.begun" not in page
    assert "tenant.created" in told(auditor, f"?subject={acme.pk}")
    assert "No event is like that." in told(auditor, f"?subject={globex.pk}")


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("?action=team.created", {"first", "second"}),
        ("?actor=bob", {"second"}),
        ("?since=2026-03-02", {"second"}),
        ("?before=2026-03-02", {"first"}),
        ("?since=2026-03-01&before=2026-03-03", {"first", "second"}),
    ],
)
def test_events_are_looked_for_by_what_who_and_day_of_the_tenant(
    acme: Tenant, auditor: Client, query: str, seen: set[str]
) -> None:
    # Midnight in Berlin is at 23:00 UTC.
    for name, actor, hour in (("first", "ada", 22), ("second", "bob", 23)):
        with time_machine.travel(datetime(2026, 3, 1, hour, 30, tzinfo=UTC), tick=False):
            create_team(tenant=acme, name=name, actor=actor)

    page = told(auditor, query)

    assert {name for name in ("first", "second") if f"<code>{name}</code>" in page} == seen


def test_page_by_page_each_event_is_seen_once_while_others_are_added(acme: Tenant, auditor: Client) -> None:
    for number in range(2 * ON_A_PAGE):
        create_team(tenant=acme, name=f"team {number}", actor="ada")
    seen: list[str] = []

    query: Any = "?actor=ada"
    while query:
        page = told(auditor, query)
        seen += re.findall(r"<code>(team \d+)</code>", page)
        create_team(tenant=acme, name=f"later {len(seen)}", actor="ada")
        following = re.search(r'href="([^"]+)" rel="next"', page)
        query = following and following[1].replace("&amp;", "&")

    assert seen == [f"team {number}" for number in reversed(range(2 * ON_A_PAGE))]
    assert "There are no older events." not in page
    assert "No event is like that." in told(auditor, "?actor=ada&after=1")


@pytest.mark.parametrize(
    "query", ["?since=soon", "?since=2026-03-02&before=2026-03-01", "?after=x", f"?after={10**30}"]
)
def test_what_cannot_be_looked_for_is_refused_in_words(auditor: Client, query: str) -> None:
    answer = auditor.get(f"{PAGE}{query}")

    assert answer.status_code == 400
    assert 'role="alert"' in answer.content.decode()


def test_nothing_can_be_changed_there(acme: Tenant, auditor: Client) -> None:
    page = told(auditor)

    outline = Outline(page)
    assert outline.tags.count("h1") == 1
    assert outline.inline == []
    # The only form that sends anything signs out.
    assert re.findall(r'<form[^>]*method="post"[^>]*action="([^"]+)"', page) == ["/account/logout/"]
