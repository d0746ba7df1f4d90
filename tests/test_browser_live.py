"""Live views when something goes: the page says so, and comes back by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page

from config.embedded import Valkey
from proxy.simulator.server import SimulatorThread
from tenants.models import User
from tests.browser import Browser, enter
from tests.browser_thread import expect
from tests.conftest import House, furnish
from tests.counting import with_redis_at
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway
from tests.people import a_person
from tests.revoking import LONG

CALLS = "/admin/budgets/runningcall/"


def state_of(page: Page) -> Locator:
    return page.locator("[data-live-state]")


@pytest.fixture
def operator(house: House) -> User:
    person = a_person("superuser", house.acme)
    assert isinstance(person, User)
    return person


def test_a_lost_socket_is_told_of_and_the_page_is_live_again_by_itself(house, browser, operator):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")
    # What breaks is what the test wants.
    browser.forgive("WebSocket|net::ERR")
    with line_to(house.gateway.url) as (line, url):
        page = browser.open(url)
        enter(page, operator)
        page.goto(CALLS)
        expect(state_of(page)).to_contain_text("Live.")
        expect(page.get_by_text("No call is running.")).to_be_visible()

        line.refuse()
        expect(state_of(page)).to_contain_text(re.compile(r"Not live since \d\d:\d\d"))
        with house.ada.http.stream("POST", "/api/chat", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            line.take_again()

            expect(state_of(page)).to_contain_text("Live.")
            expect(page.get_by_role("cell", name="tiny:1b")).to_be_visible()


@pytest.fixture
def line_to_redis(
    transactional_db: None, ollama: SimulatorThread, valkey: Valkey
) -> Iterator[tuple[FaultProxy, House]]:
    """A gateway with a Redis of its own, and the line between them."""
    with with_redis_at(valkey.url), line_to(valkey.url) as (line, url):
        furnish(ollama)
        with Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS="0.25") as gateway:
            with House(gateway, ollama).opened() as house:
                yield line, house
            line.take_again()


def test_while_redis_is_away_the_page_says_that_its_figures_are_old(
    line_to_redis: tuple[FaultProxy, House], browser: Browser
) -> None:
    line, house = line_to_redis
    operator = a_person("superuser", house.acme)
    assert isinstance(operator, User)
    page = browser.open(house.gateway.url)
    enter(page, operator)
    page.goto(CALLS)
    expect(state_of(page)).to_contain_text("Live.")

    line.refuse()
    expect(state_of(page)).to_contain_text("the figures cannot be read")
    assert house.ada.chat().status_code == 503
    assert "Redis cannot be asked" in page.request.get(CALLS).text()

    line.take_again()
    expect(state_of(page)).to_contain_text("Live.")
    expect(page.get_by_text("No call is running.")).to_be_visible()
