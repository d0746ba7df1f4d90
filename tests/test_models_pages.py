"""The pages about models: which may be called by which key, for how much, and the place to try one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client

from budgets import services
from keys.services import issue_key
from proxy.catalog import Catalog
from proxy.models import Upstream
from proxy.services import save_upstream
from tenants.models import Member, Tenant
from tests.conftest import House
from tests.counting import without_redis
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.test_usage_pages import rows_of, text_of

PAGES = ["/portal/acme/models/", "/portal/acme/playground/"]


@pytest.fixture(autouse=True)
def discovered(house: House) -> None:
    """What is installed lies in Redis, which was emptied for this test."""
    asyncio.run(Catalog().refresh())


@pytest.fixture
def owner(house: House) -> Client:
    return a_browser(a_person("owner", house.acme))


def rows(browser: Client) -> dict[str, str]:
    """The line of each model, by its name."""
    found = rows_of(browser.get("/portal/acme/models/"))
    return {row.split()[0]: row for row in found}


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("page", PAGES)
def test_each_page_opens_for_those_whose_it_is(house: House, page: str, who: str) -> None:
    status = a_browser(a_person(who, house.acme)).get(page).status_code

    assert status == (200 if who in ROLES | OPERATORS else 302 if who in UNKNOWN else 404)


def test_what_is_listed_is_what_the_door_lists(house: House, owner: Client) -> None:
    bob = house.caller(models=["tiny:1b"], allow_all_models=False)
    ids = {entry["id"] for entry in house.ada.http.get("/v1/models").json()["data"]}

    listed = rows(owner)

    assert {name.removesuffix(":latest") for name in listed} == {name.removesuffix(":latest") for name in ids}
    assert f"{house.ada.key}, {bob.key}" in listed["tiny:1b"]
    assert str(bob.key) not in listed["small:latest"]
    assert "8,192" in listed["tiny:1b"]
    assert "1.2B Q4_K_M" in listed["tiny:1b"]
    assert "simulated: answers are made up" in listed["tiny:1b"]


def test_a_member_sees_what_their_own_keys_may_call(house: House) -> None:
    mia = a_person("member", house.acme)
    member = Member.objects.get(user=mia.pk)
    browser = a_browser(mia)
    assert "You have no key yet" in text_of(browser.get("/portal/acme/models/").content.decode())
    issue_key(
        tenant=house.acme,
        member=member,
        label="mine",
        actor="test",
        models=["tiny:1b"],
        allow_all_models=False,
    )

    assert list(rows(browser)) == ["tiny:1b"]


def test_the_price_is_the_tenants_own_with_the_day_since_which_it_holds(house: House, owner: Client) -> None:
    since = datetime(2026, 1, 5, 12, tzinfo=UTC)
    services.set_price(model="tiny:1b", input_price=3_000_000, output_price=9_000_000, actor="test")
    services.set_price(
        model="tiny:1b", input_price=1_500_000, output_price=2_000_000, tenant=house.acme, starts_at=since,
        actor="test",
    )  # fmt: skip
    globex = Tenant.objects.create(slug="globex", name="G")
    services.set_price(model="small:latest", input_price=7_000_000, tenant=globex, actor="test")

    listed = rows(owner)

    assert "$1.50 $2.00 2026-01-05 12:00:00" in listed["tiny:1b"]
    assert "No price is set" in listed["small:latest"]


def test_a_model_that_is_stopped_says_so(house: House, owner: Client) -> None:
    services.arm_kill_switch(scope="model", model="tiny:1b", actor="olga", reason="x")
    assert "✗ stopped by an operator" in rows(owner)["tiny:1b"]
    assert "✓ on 1 server" in rows(owner)["small:latest"]

    services.arm_kill_switch(scope="upstream", upstream="sim", actor="olga", reason="x")

    assert all("✗ stopped" in row for row in rows(owner).values())


def test_with_nothing_discovered_it_says_what_that_means(house: House, owner: Client) -> None:
    sim = Upstream.objects.get()
    sim.enabled = False
    save_upstream(upstream=sim, actor="test")

    for page in PAGES:
        answer = owner.get(page)
        assert answer.status_code == 200
    assert "every call is refused with no_models" in text_of(owner.get(PAGES[0]).content.decode())


def test_while_redis_is_away_nothing_is_claimed(house: House, owner: Client) -> None:
    with without_redis():
        shown = [text_of(owner.get(page).content.decode()) for page in PAGES]

    assert all("It cannot be told at the moment which models are installed" in page for page in shown)


def test_the_playground_tells_a_line_for_a_terminal_where_there_is_no_script(
    house: House, owner: Client
) -> None:
    page = owner.get(PAGES[1]).content.decode()

    assert "curl -N http://testserver/v1/chat/completions" in page.partition('id="without-script"')[2]
    assert '<script src="/static/portal/playground.js" defer></script>' in page


def test_the_field_for_the_secret_is_none_that_a_form_would_send(house: House, owner: Client) -> None:
    page = owner.get(PAGES[1]).content.decode()
    field = page.partition('<input id="secret"')[2].partition(">")[0]

    assert 'autocomplete="off"' in field
    assert "name=" not in field


def test_a_cost_is_told_once_it_is_booked_and_to_nobody_else(house: House, owner: Client) -> None:
    services.set_price(model="tiny:1b", output_price=10**6, actor="test")
    request_id = house.ada.chat().headers["x-request-id"]
    page = f"/portal/acme/playground/{request_id}/"
    member = a_browser(a_person("member", house.acme))
    stranger = a_browser(a_person("foreign owner", house.acme))
    before = owner.get(page).json()
    (entry,) = house.booked()

    told: dict[str, Any] = owner.get(page).json()

    assert before == {}
    assert told == {
        "cost": f"${entry.cost_micro_usd / 10**6:.6f}",
        "input_tokens": entry.input_tokens,
        "output_tokens": entry.output_tokens,
        "exact": True,
    }
    assert member.get(page).json() == {}
    assert stranger.get(page.replace("acme", "globex")).json() == {}
    assert stranger.get(page).status_code == 404


def test_the_pages_have_one_heading_landmarks_and_nothing_inline(house: House, owner: Client) -> None:
    for page in PAGES:
        outline = Outline(owner.get(page).content.decode())
        assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
        assert outline.inline == []
