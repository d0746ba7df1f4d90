"""What operators stop in a browser, and what they and members see of it without loading the page again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page

from audit.models import AuditEvent
from budgets.models import KillSwitch
from budgets.services import set_budget
from tenants.models import User
from tests.browser import Browser, check_page, enter, shoot
from tests.browser_thread import expect
from tests.conftest import Caller, House, eventually
from tests.people import a_person
from tests.revoking import LONG

CALLS = "/admin/budgets/runningcall/"
SWITCHES = "/admin/budgets/killswitch/"


# Another tab before it would do the same, in a browser that has a screen.
LOOKED_AT = """hidden => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""

KEEP_SOCKETS = """
    window.sockets = [];
    window.WebSocket = class extends WebSocket {
        constructor(...given) { super(...given); sockets.push(this); }
    };
"""
NEWS = """() => new Promise(heard => sockets.at(-1).addEventListener("message", event => {
    if ("parts" in JSON.parse(event.data)) heard();
}))"""
STATES = "() => sockets.map(one => ['connecting', 'open', 'closing', 'closed'][one.readyState])"


@pytest.fixture
def olga(page: Page, house: House) -> Page:
    """An operator's browser."""
    person = a_person("superuser", house.acme)
    assert isinstance(person, User)
    enter(page, person)
    return page


@contextmanager
def calling(house: House, caller: Caller | None = None) -> Iterator[Iterator[str]]:
    """A call that runs until somebody ends it; its lines."""
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")
    with (caller or house.ada).http.stream("POST", "/api/chat", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


def is_live(page: Page) -> None:
    expect(page.locator("[data-live-text]")).to_have_text("Live.")


def shows_no_call(page: Page) -> None:
    """What comes over the socket first may be as old as what the test before has looked at."""
    is_live(page)
    expect(page.get_by_text("No call is running.")).to_be_visible()


def test_a_running_stream_is_seen_and_stopped(house: House, olga: Page) -> None:
    olga.goto(CALLS)
    shows_no_call(olga)

    with calling(house) as lines:
        row = olga.get_by_role("row", name="tiny:1b")
        expect(row).to_contain_text("127.0.0.1")
        # As old as the script says, and further with each heartbeat.
        expect(row).to_contain_text(re.compile(r"\d+ s"))
        expect(row).to_contain_text(re.compile(r"[1-9]\d* of "))
        shoot(olga, "admin-running-calls")
        row.get_by_role("button", name="Stop").click()
        shoot(olga, "admin-stop-calls")
        olga.get_by_label("Reason").fill("endless loop")
        olga.get_by_label("told besides").fill("Ask for less.")
        olga.get_by_role("button", name="Stop 1 call").click()
        *_, last = lines

    assert "Ask for less." in last
    expect(olga.get_by_text("Stopping 1 calls.")).to_be_visible()
    expect(olga.get_by_text("No call is running.")).to_be_visible()
    event = AuditEvent.objects.get(action="call.stopped")
    assert (event.actor, event.reason) == ("superuser", "endless loop")


def test_a_button_may_be_pressed_while_the_list_becomes_new(house: House, olga: Page) -> None:
    olga.add_init_script(script=KEEP_SOCKETS)
    olga.goto(CALLS)
    shows_no_call(olga)
    with calling(house):
        stop = olga.get_by_role("row", name="tiny:1b").get_by_role("button", name="Stop")
        stop.hover()
        olga.mouse.down()
        olga.evaluate(NEWS)
        olga.mouse.up()

        expect(olga.get_by_role("button", name="Stop 1 call")).to_be_visible()


def test_what_was_ticked_stays_ticked_when_the_list_is_new(house: House, olga: Page) -> None:
    olga.goto(CALLS)
    shows_no_call(olga)
    with calling(house):
        tick = olga.get_by_role("row", name="key 0").get_by_role("checkbox")
        tick.check()
        with calling(house, house.caller()):
            expect(olga.get_by_role("row", name="key 1")).to_be_visible()

            expect(tick).to_be_checked()
            expect(tick).to_be_focused()


def test_a_kill_switch_is_armed_and_lifted_by_whoever_types_its_name(house: House, olga: Page) -> None:
    olga.goto(SWITCHES)
    is_live(olga)
    watching = olga.context.new_page()
    watching.goto(SWITCHES)
    is_live(watching)

    olga.goto(f"{SWITCHES}add/")
    olga.locator("[name=scope]").select_option("tenant")
    olga.locator("[name=tenant]").fill("acme")
    olga.locator("[name=reason]").fill("runaway agent")
    olga.locator("[name=confirmation]").fill("tenant amce")
    olga.locator("[name=_save]").click()
    expect(olga.get_by_text("To confirm, type: tenant acme")).to_be_visible()
    assert house.ada.chat().status_code == 200
    olga.locator("[name=confirmation]").fill("tenant acme")
    olga.locator("[name=_save]").click()
    expect(olga.get_by_text("Armed; in force.")).to_be_visible()
    assert house.ada.chat().json()["error"].startswith("An operator has stopped all calls of this tenant.")

    on = watching.get_by_role("region", name="On now")
    expect(on).to_contain_text("runaway agent")
    shoot(watching, "admin-kill-switches")
    on.get_by_role("button", name="Lift tenant acme").click()
    watching.get_by_label("Reason").fill("agent fixed")
    watching.get_by_label("To confirm").fill("tenant acme")
    watching.get_by_role("button", name="Lift kill switches").click()

    expect(watching.get_by_role("region", name="On now")).to_contain_text("No kill switch is on.")
    expect(olga.get_by_role("region", name="On now")).to_contain_text("No kill switch is on.")
    assert house.ada.chat().status_code == 200
    assert KillSwitch.objects.get().lift.reason == "agent fixed"


def test_without_a_socket_the_page_asks_for_itself(browser: Browser, house: House) -> None:
    # That there is none is what this is about.
    browser.forgive("WebSocket")
    page = browser.open(house.gateway.url)
    person = a_person("superuser", house.acme)
    assert isinstance(person, User)
    enter(page, person)
    page.route_web_socket(re.compile("/live/"), lambda socket: socket.close(code=4429))
    page.goto(CALLS)
    expect(page.locator("[data-live-text]")).to_have_text(
        re.compile(r"Not live since \d\d:\d\d, asking every 10 s\.")
    )

    with calling(house):
        expect(page.get_by_role("row", name="tiny:1b")).to_be_visible()


def test_without_script_the_page_says_how_it_is_made_anew(browser: Browser, house: House) -> None:
    page = browser.open(house.gateway.url, java_script_enabled=False)
    person = a_person("superuser", house.acme)
    assert isinstance(person, User)
    enter(page, person)
    page.goto(f"{CALLS}?q=acme")
    expect(page.get_by_text("No call is running.")).to_be_visible()

    with calling(house):
        page.get_by_role("link", name="Reload").click()
        expect(page.get_by_role("row", name="tiny:1b")).to_be_visible()


def test_whoever_signs_out_elsewhere_sees_nothing_any_more(house: House, olga: Page) -> None:
    olga.goto(CALLS)
    shows_no_call(olga)
    with calling(house):
        expect(olga.get_by_role("row", name="tiny:1b")).to_be_visible()

        User.objects.filter(username="superuser").update(is_active=False)

        expect(olga.locator("[data-live-text]")).to_have_text("You are signed out.")
        expect(olga.get_by_role("row", name="tiny:1b")).to_have_count(0)


def test_the_meter_of_a_tenant_moves_while_a_call_runs(house: House, page: Page) -> None:
    set_budget(
        scope="tenant", tenant=house.acme, unit="output_tokens", period="month", limit=10_000, actor="test"
    )
    person = a_person("owner", house.acme)
    assert isinstance(person, User)
    enter(page, person)
    page.goto("/portal/acme/")
    is_live(page)
    row = page.get_by_role("row", name="The whole tenant")
    expect(row).to_contain_text("0 %")

    with calling(house):
        expect(row).to_contain_text("50 %")
        check_page(page, "portal-meter")


def test_a_page_that_nobody_looks_at_listens_to_nothing(olga: Page) -> None:
    olga.add_init_script(script=KEEP_SOCKETS)
    olga.goto(CALLS)
    is_live(olga)

    olga.evaluate(LOOKED_AT, True)
    # The first may have been told to come again later.
    eventually(lambda: set(olga.evaluate(STATES)) == {"closed"})
    olga.evaluate(LOOKED_AT, False)

    eventually(lambda: olga.evaluate(STATES)[-1] == "open")
    is_live(olga)
