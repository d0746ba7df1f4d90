"""The first page of a tenant: what is left, what needs care, what was refused, and how to begin."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils.timezone import now

from budgets import ledger, refused_calls, services
from keys.models import ApiKey
from keys.services import issue_key, revoke_key
from proxy.catalog import Catalog
from tenants.models import Member, Tenant, User
from tests import ledgers
from tests.conftest import House, eventually
from tests.counting import without_redis
from tests.ledgers import book
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.test_usage_pages import text_of

HOME = "/portal/acme/"


def page_of(browser: Client) -> str:
    answer = browser.get(HOME)
    assert answer.status_code == 200
    return answer.content.decode()


def told(browser: Client) -> str:
    return text_of(page_of(browser))


def of_now(acme: Tenant, **changes: Any) -> Any:
    return ledgers.of(acme, ended_at=now(), admitted_at=now(), **changes)


@pytest.fixture
def owner(house: House) -> Client:
    return a_browser(a_person("owner", house.acme))


@pytest.mark.parametrize("who", EVERYBODY)
def test_it_opens_for_those_whose_it_is(house: House, who: str) -> None:
    status = a_browser(a_person(who, house.acme)).get(HOME).status_code

    assert status == (200 if who in ROLES | OPERATORS else 302 if who in UNKNOWN else 404)


def test_an_operator_who_may_not_see_usage_sees_that_there_is_a_tenant(house: House) -> None:
    olga = User.objects.create(username="olga", is_staff=True)
    olga.user_permissions.set(Permission.objects.filter(codename="view_tenant"))
    budget: dict[str, Any] = {"scope": "tenant", "tenant": house.acme, "unit": "tokens", "period": "day"}
    services.set_budget(limit=123_456, actor="test", **budget)

    shown = told(a_browser(olga))

    assert "You may see this tenant, and not what it uses" in shown
    assert "123,456" not in shown


def test_it_tells_what_is_left_of_the_tightest_budget_of_money_and_of_tokens(
    house: House, owner: Client
) -> None:
    whose: dict[str, Any] = {"scope": "tenant", "tenant": house.acme, "actor": "test"}
    services.set_price(model="tiny:1b", output_price=10**6, actor="test")
    services.set_budget(unit="micro_usd", period="month", limit=2_000_000, **whose)
    services.set_budget(unit="tokens", period="month", limit=50_000, **whose)
    services.set_budget(scope="platform", unit="tokens", period="day", limit=90_000, actor="test")
    assert house.ada.chat().status_code == 200
    (entry,) = house.booked()
    tokens = entry.input_tokens + entry.output_tokens

    shown = told(owner)

    assert f"Tokens {50_000 - tokens:,} left of 50,000" in shown
    assert f"{tokens} used" in shown
    assert f"${(2_000_000 - entry.cost_micro_usd) / 10**6:.6f} left of $2.00" in shown
    assert "It is too early to tell" in shown
    assert f"1 request, {entry.input_tokens} tokens in, {entry.output_tokens} tokens out" in shown
    assert "the whole tenant, a month" in shown


def test_a_budget_that_will_be_empty_says_when_in_the_zone_of_the_tenant(house: House, owner: Client) -> None:
    Tenant.objects.filter(pk=house.acme.pk).update(time_zone="Asia/Tokyo")
    budget = services.set_budget(
        scope="tenant", tenant=house.acme, unit="requests", period="lifetime", limit=10_000, actor="test"
    )
    services.set_budget(
        scope="tenant", tenant=house.acme, unit="tokens", period="lifetime", limit=100_000, actor="test"
    )
    house.ada.chat()
    house.booked()
    type(budget).objects.update(created_at=now() - timedelta(days=20))

    page = page_of(owner)

    match = re.search(r'data-outlook="runs out".*?empty on ([A-Z][a-z]+day) (\d\d:\d\d)', page, re.DOTALL)
    assert match is not None
    instant = re.search(r'datetime="([^"]+)"', page[match.end() :])
    assert instant is not None

    local = datetime.fromisoformat(instant[1]).astimezone(ZoneInfo("Asia/Tokyo"))
    assert (match[1], match[2]) == (f"{local:%A}", f"{local:%H:%M}")


def test_the_last_day_is_drawn_by_model_and_leads_to_its_figures(house: House, owner: Client) -> None:
    book(of_now(house.acme, model="tiny:1b"), of_now(house.acme, model="small:latest", output_tokens=40))
    book(ledgers.of(house.acme, model="old:1b", ended_at=now() - timedelta(hours=30)))

    page = page_of(owner)

    figures = dict(re.findall(r'data-series="([^"]+)" data-value="(\d+)"', page))
    assert figures == {"tiny:1b": "27", "small:latest": "47"}
    lines = owner.get(HOME, {"chart": "models.csv"}).content.decode().split()
    assert lines[-1].endswith(",47,27")
    assert "old:1b" not in page


def test_without_data_nothing_is_a_zero(house: House, owner: Client) -> None:
    shown = told(owner)

    assert "There is no data. That is not a zero" in shown
    assert "Nothing is booked in this month yet" in shown
    assert "No budget limits what you spend" in shown


def test_keys_that_need_care_are_told_with_the_reason(house: House, owner: Client) -> None:
    def key(label: str, **options: Any) -> ApiKey:
        return issue_key(tenant=house.acme, label=label, actor="test", **options)[0]

    key("ends-soon", expires_at=now() + timedelta(days=3))
    key("ends-late", expires_at=now() + timedelta(days=30))
    lies, used, gone, near = key("lies-around"), key("in-use"), key("is-gone"), key("is-near")
    ApiKey.objects.filter(pk__in=[lies.pk, used.pk, gone.pk]).update(created_at=now() - timedelta(days=100))
    book(of_now(house.acme, key_id=used.pk, key="in-use"))
    revoke_key(key=gone, actor="test", reason="x")
    services.set_budget(scope="key", key=near, unit="tokens", period="day", limit=0, actor="test")

    care = told(owner).partition("Keys that need care")[2].partition("The last refusals")[0]

    assert "ends-soon expires:" in care
    assert "lies-around Nobody has used it for 90 days" in care
    assert "is-near 100 % of its tokens a day" in care
    assert not [label for label in ("ends-late", "in-use", "is-gone") if label in care]


def test_the_last_refusals_lead_to_why(house: House, owner: Client) -> None:
    refused = house.ada.chat(model="nobody")

    def shown() -> str:
        refused_calls.drain()
        page = page_of(owner)
        return page if "model_not_allowed" in page else ""

    page = eventually(shown)
    assert f"/portal/acme/refusals/{refused.headers['x-request-id']}/" in page
    assert "Nobody is told which of the two it is." in page


def test_a_member_sees_what_is_their_own(house: House) -> None:
    mia = a_person("member", house.acme)
    member = Member.objects.get(user=mia.pk)
    own, _ = issue_key(tenant=house.acme, member=member, label="mine", actor="test")
    book(of_now(house.acme, member_id=member.pk, key_id=own.pk, key="mine", model="mine:1b"))
    book(of_now(house.acme, key_id=house.ada.key.pk, model="theirs:1b", output_tokens=7_000))
    services.set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=0, actor="test")

    shown = told(a_browser(mia))

    assert "mine:1b" in shown
    assert "theirs:1b" not in shown
    assert "7,0" not in shown
    assert str(house.ada.key) not in shown.partition("Keys that need care")[2]


def test_nothing_of_another_tenant_is_shown(house: House) -> None:
    stranger = a_browser(a_person("foreign owner", house.acme))
    book(of_now(house.acme, model="theirs:1b"))
    services.arm_kill_switch(scope="tenant", tenant=house.acme, actor="olga", reason="x", message="of acme")
    house.ada.chat()
    refused_calls.drain()

    shown = text_of(stranger.get("/portal/globex/").content.decode())

    assert "theirs:1b" not in shown
    assert "of acme" not in shown
    assert "A kill switch" not in shown


def test_the_simulated_model_server_is_pointed_out(house: House, owner: Client) -> None:
    asyncio.run(Catalog().refresh())

    assert "The model server is simulated" in told(owner)


@pytest.mark.parametrize("scope", ["platform", "tenant", "key"])
def test_a_kill_switch_is_told_as_long_as_it_is_on(house: House, owner: Client, scope: str) -> None:
    whose: dict[str, Any] = {"tenant": {"tenant": house.acme}, "key": {"key": house.ada.key}}
    switch = services.arm_kill_switch(
        scope=scope, actor="olga", reason="a secret", message="Back at noon.", **whose.get(scope, {})
    )

    shown = told(owner)
    services.lift_kill_switch(switch=switch, actor="olga", reason="over")

    assert "A kill switch is on." in shown
    assert "Back at noon." in shown
    assert "a secret" not in shown
    assert "A kill switch is on." not in told(owner)


def test_a_member_is_not_told_of_the_switch_of_somebody_elses_key(house: House) -> None:
    mia = a_browser(a_person("member", house.acme))
    services.arm_kill_switch(scope="key", key=house.ada.key, actor="olga", reason="x", message="Look here")

    assert "A kill switch is on." not in told(mia)


def test_while_redis_is_away_the_page_says_so_and_shows_the_books(house: House, owner: Client) -> None:
    services.set_budget(
        scope="tenant", tenant=house.acme, unit="tokens", period="month", limit=50_000, actor="test"
    )
    house.ada.chat()
    (entry,) = house.booked()

    with without_redis():
        shown = told(owner)

    assert "The counters are unavailable." in shown
    assert f"{entry.input_tokens + entry.output_tokens} used" in shown
    assert "Booked until" in shown
    assert "The counters are unavailable." not in told(owner)


@pytest.mark.parametrize(("who", "makes"), [("owner", True), ("finance", False), ("auditor", False)])
def test_only_who_may_make_a_key_is_led_to_where_they_are_made(house: House, who: str, makes: bool) -> None:
    shown = told(a_browser(a_person(who, house.acme)))

    assert "Three steps to the first answer" in shown
    assert ("Make one on the page of keys." in shown) == makes
    assert ("Ask an owner of the tenant for one." in shown) == (not makes)


def test_a_newcomer_is_led_to_the_first_request_and_sees_it_arrive(house: House) -> None:
    mia = a_person("member", house.acme)
    browser, member = a_browser(mia), Member.objects.get(user=mia.pk)
    without_key = browser.get(HOME)

    caller = house.caller(member=member)
    waiting = browser.get(HOME)
    asked = browser.get(HOME, headers={"HX-Request": "true"})
    assert caller.chat().status_code == 200

    def arrived() -> Any:
        ledger.drain()
        answer = browser.get(HOME)
        return answer if "Three steps" not in answer.content.decode() else None

    after = eventually(arrived)
    assert "Three steps to the first answer" in without_key.content.decode()
    assert "hx-get" not in without_key.content.decode()
    assert "Waiting for the first request." in waiting.content.decode()
    assert 'hx-get="/portal/acme/"' in waiting.content.decode()
    assert asked.status_code == 204
    assert "First request seen." in browser.get(HOME, headers={"HX-Request": "true"}).content.decode()
    assert "hx-get" not in after.content.decode()


def test_the_first_request_counts_when_it_was_refused_too(house: House, owner: Client) -> None:
    house.ada.chat(model="nobody")

    def begun() -> bool:
        refused_calls.drain()
        return "Three steps" not in page_of(owner)

    assert eventually(begun)


def test_the_page_has_one_heading_landmarks_and_nothing_inline(house: House, owner: Client) -> None:
    book(of_now(house.acme, model='<b onclick="x">'))
    services.arm_kill_switch(scope="platform", actor="olga", reason="x", message="<script>")

    outline = Outline(page_of(owner))

    assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert outline.inline == []


def test_a_key_that_has_expired_is_told_to_have(house: House, owner: Client) -> None:
    issue_key(tenant=house.acme, label="over", actor="test", expires_at=now() + timedelta(days=1))

    with time_machine.travel(now() + timedelta(hours=11), tick=False):
        assert "over expires:" in told(owner)
    ApiKey.objects.filter(label="over").update(
        created_at=now() - timedelta(days=9), expires_at=now() - timedelta(days=1)
    )
    assert "over has expired:" in told(owner)
