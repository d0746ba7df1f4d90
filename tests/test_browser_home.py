"""Journeys in a browser: to the first request, from a refusal to more, and a chat in the playground."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest
from django.utils import translation
from django.utils.timezone import now
from playwright.sync_api import Page

from budgets import ledger, refused_calls, services
from budgets.money import usd_total
from keys.services import issue_key
from proxy.catalog import Catalog
from tenants.models import Member, Tenant, User
from tenants.services import add_member
from tests import ledgers
from tests.browser import Browser, check_page, enter
from tests.browser_thread import expect
from tests.conftest import House, eventually
from tests.ledgers import book


@pytest.fixture(autouse=True)
def discovered(house: House) -> None:
    """What is installed lies in Redis, which was emptied for this test."""
    asyncio.run(Catalog().refresh())


def written_down(house: House) -> None:
    """Wait until a refusal can be read about."""

    def newest() -> object:
        refused_calls.drain()
        return refused_calls.newest_refusals(house.acme.pk, None, 1)

    eventually(newest)


def member_of(tenant: Tenant, name: str, role: str) -> Member:
    return add_member(tenant=tenant, user=User.objects.create(username=name), role=role, actor="test")


@pytest.fixture
def mia(house: House) -> Member:
    return member_of(house.acme, "mia", "member")


@pytest.fixture
def ada(house: House) -> Member:
    return member_of(house.acme, "ada", "owner")


def test_a_newcomer_is_led_to_the_first_request_and_sees_it_arrive(
    page: Page, house: House, mia: Member
) -> None:
    enter(page, mia.user)
    page.goto("/portal/acme/")
    expect(page.get_by_role("heading", name="Three steps to the first answer")).to_be_visible()
    check_page(page)
    caller = house.caller(member=mia)
    page.reload()
    expect(page.get_by_text("Waiting for the first request.")).to_be_visible()

    caller.chat()
    house.booked()

    # By itself.
    expect(page.get_by_text("First request seen.")).to_be_visible()
    page.get_by_role("link", name="What it used").click()
    expect(page.get_by_role("heading", name="Three steps to the first answer")).to_be_hidden()


def test_a_refusal_is_explained_and_then_raised(
    browser: Browser, house: House, mia: Member, ada: Member
) -> None:
    services.set_budget(scope="member", member=mia, unit="requests", period="day", limit=1, actor="test")
    services.set_budget(
        scope="tenant", tenant=house.acme, unit="tokens", period="month", limit=90_000, actor="test"
    )
    caller = house.caller(member=mia)
    assert caller.chat().status_code == 200
    assert caller.chat().status_code == 429
    house.booked()
    written_down(house)
    page, owners = browser.open(house.gateway.url), browser.open(house.gateway.url)
    enter(page, mia.user)
    enter(owners, ada.user)

    page.goto("/portal/acme/")
    expect(page.get_by_text("A budget had not enough left")).to_be_visible()
    check_page(page, "portal-home")
    page.get_by_role("region", name="The last refusals").get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Why was I refused?")).to_be_visible()
    expect(page.get_by_text("✗ Here it ended")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("Member mia.*refused"))).to_be_visible()
    check_page(page, "portal-refusal")
    page.get_by_role("link", name="Ask for more requests a day for member mia").click()
    page.get_by_label("New limit").fill("5")
    page.get_by_label("Why it is needed").fill("The deadline is tonight.")
    check_page(page)
    page.get_by_role("button", name="Ask for it").click()
    expect(page.get_by_role("definition").filter(has_text="open")).to_be_visible()

    owners.goto("/portal/acme/")
    owners.get_by_role("link", name="1 request for more waits for your decision.").click()
    owners.get_by_role("region", name="These wait for your decision").get_by_role("link").click()
    expect(owners.get_by_text("The deadline is tonight.")).to_be_visible()
    check_page(owners, "portal-raise")
    owners.get_by_label("Answer").fill("Good luck.")
    owners.get_by_role("button", name="Grant").click()
    expect(owners.get_by_role("definition").filter(has_text="granted")).to_be_visible()

    page.reload()
    expect(page.get_by_text("Good luck.")).to_be_visible()
    assert caller.chat().status_code == 200
    page.get_by_role("link", name="Limits", exact=True).click()
    expect(page.get_by_text("This one will stop you")).to_be_visible()
    check_page(page, "portal-limits")


def test_the_playground_answers_and_tells_limits_tokens_and_cost(
    page: Page, house: House, ada: Member
) -> None:
    services.set_price(model="tiny:1b", output_price=10**6, actor="test")
    services.set_budget(
        scope="key", key=house.ada.key, unit="tokens", period="day", limit=90_000, actor="test"
    )
    enter(page, ada.user)
    page.goto("/portal/acme/playground/")
    check_page(page)
    page.get_by_label("Secret of a key").fill(house.ada.secret)
    page.get_by_label("Model", exact=True).select_option("tiny:1b")
    page.get_by_label("Message").fill("Hello there")
    page.get_by_role("button", name="Send").click()

    expect(page.get_by_text("The answer is whole.")).to_be_visible()
    (entry,) = house.booked()
    expect(page.locator("#tokens")).to_have_text(f"{entry.input_tokens} in, {entry.output_tokens} out")
    expect(page.locator("#cost")).to_have_text(f"${entry.cost_micro_usd / 10**6:.6f}")
    expect(page.locator("#request")).to_have_text(str(entry.request_id))
    expect(page.locator("#answer")).not_to_be_empty()
    expect(page.get_by_role("row", name="x-ratelimit-limit-tokens 90000")).to_be_visible()
    check_page(page, "portal-playground")
    kept = page.evaluate("() => JSON.stringify([localStorage, sessionStorage, history.state, location.href])")
    assert house.ada.secret not in kept + page.content()
    assert page.context.storage_state()["origins"] == []
    page.goto("/portal/acme/models/")
    check_page(page, "portal-models")
    page.go_back()
    expect(page.get_by_label("Secret of a key")).to_have_value("")


def test_the_playground_speaks_german_to_whoever_reads_it(
    browser: Browser, house: House, ada: Member
) -> None:
    services.set_price(model="tiny:1b", output_price=10**6, actor="test")
    page = browser.open(house.gateway.url, locale="de-DE")
    enter(page, ada.user)
    page.goto("/portal/acme/playground/")
    page.get_by_label("Geheimnis eines Schlüssels").fill(house.ada.secret)
    page.get_by_label("Nachricht").fill("Hallo")
    page.get_by_role("button", name="Senden").click()

    expect(page.get_by_role("status").filter(has_text="Die Antwort ist vollständig.")).to_be_visible()
    (entry,) = house.booked()
    expect(page.locator("#tokens")).to_have_text(f"{entry.input_tokens} hinein, {entry.output_tokens} heraus")
    with translation.override("de"):
        expect(page.locator("#cost")).to_have_text(usd_total(entry.cost_micro_usd))
    check_page(page, "portal-playground-german")


def test_a_refusal_in_the_playground_leads_to_why(browser: Browser, house: House, ada: Member) -> None:
    services.set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=0, actor="test")
    browser.forgive("/v1/chat/completions: 429")
    page = browser.open(house.gateway.url)
    enter(page, ada.user)
    page.goto("/portal/acme/playground/")
    page.get_by_label("Secret of a key").fill(house.ada.secret)
    page.get_by_label("Message").fill("Hello there")
    page.get_by_role("button", name="Send").click()

    expect(page.get_by_text("The call was refused. 429 insufficient_quota")).to_be_visible()
    written_down(house)
    page.get_by_role("link", name="Why was it refused?").click()

    expect(page.get_by_text("A budget had not enough left")).to_be_visible()


def test_a_chat_that_is_stopped_says_so_and_is_booked(page: Page, house: House, ada: Member) -> None:
    house.ollama.fault("silence-2-20000")
    enter(page, ada.user)
    page.goto("/portal/acme/playground/")
    page.get_by_label("Secret of a key").fill(house.ada.secret)
    page.get_by_label("Message").fill("Hello there")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer")).not_to_be_empty()

    page.get_by_role("button", name="Stop").click()

    expect(page.get_by_text("You stopped it. What had come is booked.")).to_be_visible()
    (entry,) = house.booked()
    assert entry.outcome == "client_left"


def test_without_script_the_pages_serve_their_main_purpose(
    browser: Browser, house: House, ada: Member
) -> None:
    page = browser.open(house.gateway.url, java_script_enabled=False)
    enter(page, ada.user)
    services.set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=900, actor="x")

    page.goto("/portal/acme/playground/")
    expect(page.get_by_text("The playground needs JavaScript")).to_be_visible()
    expect(page.get_by_label("Secret of a key")).to_be_hidden()
    page.goto("/portal/acme/limits/")
    page.get_by_label("Address").fill("ops@example.org")
    page.get_by_role("button", name="Add").click()

    expect(page.get_by_role("link", name="ops@example.org")).to_be_visible()


def test_home_of_a_busy_tenant_is_read_by_everybody(page: Page, house: House, ada: Member) -> None:
    key, _ = issue_key(tenant=house.acme, label="nightly", actor="test", expires_at=now() + timedelta(days=2))
    for hours, model in ((1, "tiny:1b"), (3, "small:latest"), (9, "tiny:1b")):
        at = now() - timedelta(hours=hours)
        book(
            ledgers.of(house.acme, key_id=key.pk, key="nightly", model=model, ended_at=at, output_tokens=900)
        )
    services.arm_kill_switch(
        scope="model", model="small:latest", actor="olga", reason="x", message="Soon back."
    )
    house.ada.chat(model="nobody")
    ledger.drain()
    written_down(house)
    enter(page, ada.user)

    page.goto("/portal/acme/")

    expect(page.get_by_text("Soon back.")).to_be_visible()
    expect(page.get_by_text("nightly")).to_have_count(1)
    check_page(page, "portal-home-busy")
