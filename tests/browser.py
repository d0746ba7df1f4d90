"""A real browser for any test: pages without faults, people who sign in, and what a page has to fulfil.

The browser is Debian's Chromium without windows, or the whole of it where that
is what there is, driven by Playwright: one for each process of the run,
started by the first test that wants it. Each page has a context of
its own, so nobody's cookies are another's.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa import app_settings
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
)
from axe_playwright_python.base import AXE_SCRIPT
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.test import Client
from playwright import sync_api
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import ConsoleMessage, Locator, Page, Playwright, Request, Response, sync_playwright

from tenants.models import User
from tests.browser_thread import BrowserThread, expect
from tests.conftest import PATIENCE_SECONDS, House
from tests.people import a_person

# What a page shows has gone through a gateway, a socket and a browser, each as slow as the machine; and a
# live view that takes long to read is read five times as seldom.
PATIENCE_MS = 3 * PATIENCE_SECONDS * 1000
# Some look at twenty pages in half a minute, and a machine with other work takes ten times as long.
# What never comes ends a test sooner, by the patience above.
LONGEST_SECONDS = 600
# Set where a run without a browser would be a run of half the tests.
NEEDED = "TOLLGATE_NEEDS_BROWSER"
# As Debian calls them, the better one first: without windows Chromium does the same with three quarters
# of the work.
PROGRAMS = ("chromium-headless-shell", "chromium")
MISSING = f"no Chromium here; get one by: apt-get install {PROGRAMS[0]} (with {NEEDED}=1 this is a failure)"

FLAGS = (
    # The scripts of a page, and axe, are through before compiling them to be fast would have paid.
    "--js-flags=--no-opt,--no-maglev",
    # Each page is the first of its context, and for that a process that is kept in store is not taken.
    "--renderer-process-limit=1",
)

PASSWORD = "correct horse battery staple"
SECRET = re.compile(r"^tg_[0-9A-Za-z]{58}$")

# The one thing in a page that is another each time.
FORM_TOKEN = re.compile(r'(?<=csrfmiddlewaretoken" value=")[^"]+')

SCREENS = Path(__file__).resolve().parent.parent / "dist" / "screens"
WIDTHS = (360, 1280, 1920)
NARROW, USUAL = WIDTHS[:2]
HEIGHT = 900
SCHEMES = ("light", "dark")
# What axe calls grave enough to keep somebody out.
GRAVE = ("serious", "critical")

# The admin asks for the system's scheme once, when it loads; later it is a matter of its own switch.
SWITCH_ADMIN = """scheme => {
    const root = document.documentElement;
    if (root.matches("[x-data^='theme(']")) Alpine.$data(root).switchTheme(scheme);
}"""
# A font that comes after three seconds shows the names of icons until then, a colour that fades in
# is none of the two that were chosen.
SETTLED = """async () => {
    await document.fonts.ready;
    const ending = document.getAnimations().filter(one => one.effect.getComputedTiming().endTime < Infinity);
    await Promise.allSettled(ending.map(one => one.finished));
}"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test with a browser take longer than others, unless it says itself how long."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))


@contextmanager
def a_chromium(program: str) -> Iterator[Chromium]:
    """A running browser. It ends with us, however we end."""
    with BrowserThread() as thread:
        playwright: Playwright = thread.call(sync_playwright().start)
        sync_api.expect.set_options(timeout=PATIENCE_MS)
        try:
            with playwright.chromium.launch(executable_path=program, args=FLAGS) as running:
                yield running
        finally:
            playwright.stop()


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """Where Chromium is; without one the test is skipped, or fails where that must not be."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        (pytest.fail if os.environ.get(NEEDED) else pytest.skip)(MISSING)
    return program


@pytest.fixture(scope="session")
def chromium(chromium_program: str) -> Iterator[Chromium]:
    """The browser of this process of the run."""
    with a_chromium(chromium_program) as running:
        yield running


class Browser:
    """Opens pages and keeps whatever goes wrong on them; a test's ``browser`` fails for it at the end."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        self._forgiven: list[str] = []
        self.faults: list[str] = []

    def open(self, base_url: str, **options: Any) -> Page:
        """An empty page with no cookies; addresses without a host are of ``base_url``.

        ``options`` are those of Playwright's ``Browser.new_context``.
        """
        options = {"viewport": {"width": USUAL, "height": HEIGHT}, "locale": "en-GB", **options}
        context = self._chromium.new_context(base_url=base_url, **options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"error of a script: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)
        return page

    def forgive(self, pattern: str) -> None:
        """Whatever has the pattern in it is, in this test, no fault."""
        self._forgiven.append(pattern)

    def check(self) -> None:
        """No page had a fault: no error on the console, of a script, of a request, of the content policy."""
        # What Chromium has sent is taken note of with the answer to the next question.
        for context in self._chromium.contexts:
            for page in context.pages:
                page.title()
        left = [fault for fault in self.faults if not any(re.search(one, fault) for one in self._forgiven)]
        assert not left, "\n".join(left)

    def close(self) -> None:
        for context in self._chromium.contexts:
            context.close()

    def _console(self, message: ConsoleMessage) -> None:
        # Requests are told of by themselves, and better.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"console of {message.page and message.page.url}: {message.text}")

    def _failed(self, request: Request) -> None:
        # A page that is left, and a download, break off what loads.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"{request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        # Some tests are about pages that say no. Pages must not fail, and their parts have to be there.
        is_page = response.request.resource_type == "document"
        if response.status >= (500 if is_page else 400):
            self.faults.append(f"{response.request.method} {response.url}: {response.status}")


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Browser]:
    """For tests that open several pages, or pages that are special."""
    browser = Browser(chromium)
    try:
        yield browser
        browser.check()
    finally:
        browser.close()


@pytest.fixture
def page(browser: Browser, house: House) -> Page:
    """A page at the gateway of the house, as wide as a laptop."""
    return browser.open(house.gateway.url)


@pytest.fixture
def owner(house: House) -> User:
    person = a_person("owner", house.acme)
    assert isinstance(person, User)
    return person


@cache
def _hashed() -> str:
    # The gateway knows only real hashes, unlike the tests; it takes a while on purpose.
    hasher = PBKDF2PasswordHasher()
    return hasher.encode(PASSWORD, hasher.salt())


def totp_code(secret: str, ahead: int = 0) -> str:
    """What an authenticator app shows for a secret now, or so many codes later."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // app_settings.TOTP_PERIOD + ahead))


def fill_in_code(field: Locator, secret: str) -> None:
    """Look at the code only once there is somewhere to type it."""
    expect(field).to_be_visible()
    field.fill(totp_code(secret))


def with_password(user: User) -> User:
    """The user, who may now sign in with ``PASSWORD``."""
    user.password = _hashed()
    user.save(update_fields=["password"])
    return user


def give_password(page: Page, user: User, wanted: str = "/account/login/") -> None:
    """Go to the page that is wanted, be asked who one is, and say so with ``PASSWORD``, in any language."""
    with_password(user)
    page.goto(wanted)
    page.locator("[name=login]").fill(user.username)
    page.locator("[name=password]").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page).not_to_have_url(re.compile("/account/login/"))


def sign_in(page: Page, user: User, wanted: str = "/account/login/") -> None:
    """The same with the code of an authenticator app, which is set up for it."""
    Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).delete()
    secret = generate_totp_secret()
    TOTP.activate(user, secret)
    give_password(page, user, wanted)
    fill_in_code(page.locator("[name=code]"), secret)
    page.keyboard.press("Enter")
    expect(page).not_to_have_url(re.compile("/account/"))


def enter(page: Page, user: User) -> None:
    """Be signed in from here on, without the way to it: for tests about what comes after."""
    client = Client()
    client.force_login(user)
    name = settings.SESSION_COOKIE_NAME
    # Playwright wants a host; the page may not be anywhere yet.
    url = page.request.get("/healthz").url
    page.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": url}])


def shown_secret(page: Page) -> str:
    """The secret of a key on the page that shows it once, as soon as the whole of it has come."""
    shown = page.locator("#secret")
    expect(shown).to_have_text(SECRET)
    secret: str = shown.inner_text()
    return secret


def check_page(page: Page, picture: str = "") -> None:
    """The page keeps nobody out: axe finds nothing grave, light or dark, and a narrow screen is enough.

    With the name of a ``picture`` it is kept besides, as by ``shoot``, in less time than one after the other.
    """
    before = page.viewport_size
    for scheme in _schemes(page):
        findings = _findings(page)
        assert not findings, "\n".join([f"{page.url} in {scheme}:", *findings])
        if picture:
            _take(page, picture, scheme)
    wide = sticking_out(page)
    assert not wide, "\n".join([f"{page.url} has no room on a narrow screen for:", *wide])
    page.set_viewport_size(before)  # type: ignore[arg-type]  # the other type of the same two numbers


def check_page_once(page: Page, looked_at: set[str]) -> None:
    """``check_page``, unless the page is to the letter one of those that were ``looked_at`` before."""
    content = FORM_TOKEN.sub("", page.content())
    if content not in looked_at:
        check_page(page)
        looked_at.add(content)


def sticking_out(page: Page) -> list[str]:
    """What has no room on a narrow screen; leaves the page narrow.

    That is what makes the page scroll sideways, outermost first, and texts that a drawing cuts off.
    """
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    found: list[str] = page.evaluate(
        """() => {
            const room = document.documentElement.clientWidth;
            const scrolls = document.documentElement.scrollWidth > room;
            const wide = one => one.getBoundingClientRect().right > room;
            const cut = text => {
                const drawing = text.closest(".chart-drawing").getBoundingClientRect();
                const { left, right } = text.getBoundingClientRect();
                return left < drawing.left - 1 || right > drawing.right + 1;
            };
            return [
                ...[...document.body.querySelectorAll("*")].filter(one => scrolls && wide(one)),
                ...[...document.querySelectorAll(".chart-drawing text")].filter(cut),
            ].map(one => one.cloneNode(one.tagName === "text").outerHTML);
        }"""
    )
    return found


def _schemes(page: Page) -> Iterator[str]:
    """The names of the schemes, the page being in each meanwhile; afterwards it follows the system again."""
    page.wait_for_load_state()
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # a literal of the two
        page.evaluate(SWITCH_ADMIN, scheme)
        page.evaluate(SETTLED)
        yield scheme
    page.emulate_media(color_scheme="null")
    page.evaluate(SWITCH_ADMIN, "auto")


def _findings(page: Page) -> list[str]:
    # Put in by the debugger, to which the content policy does not apply.
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    told = page.evaluate("() => axe.run({resultTypes: ['violations']})")
    return [
        f"{finding['id']}: {finding['help']}: {node['html']} {node['failureSummary']}"
        for finding in told["violations"]
        if finding["impact"] in GRAVE
        for node in finding["nodes"]
    ]


def shoot(page: Page, name: str) -> None:
    """Keep the page as ``dist/screens/<name>-<width>-<scheme>.png``, for people to look at."""
    for scheme in _schemes(page):
        _take(page, name, scheme)


def _take(page: Page, name: str, scheme: str) -> None:
    """The pictures of a page that is in this scheme; afterwards it is as wide as it was."""
    before = page.viewport_size
    SCREENS.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        # A width may begin a transition, as a scheme does.
        page.evaluate(SETTLED)
        page.screenshot(path=SCREENS / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size(before)  # type: ignore[arg-type]  # the other type of the same two numbers
