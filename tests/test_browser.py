"""The browser of the tests: it sees what goes wrong and what keeps people out, and ends with the tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from config.children import command_of
from tenants.models import User
from tenants.services import add_member
from tests.browser import Browser, check_page, check_page_once, shoot, sign_in
from tests.browser_thread import expect
from tests.conftest import House, eventually
from tests.gateway import ROOT, environment

STRICT = "default-src 'none'"
PALE = "@media (prefers-color-scheme: dark) { p { color: #777; background: #888 } }"
NOTHING_HERE = "http://127.0.0.1:9/"


@pytest.fixture
def ada(house: House) -> User:
    user = User.objects.create(username="ada", email="ada@example.org")
    add_member(tenant=house.acme, user=user, role="owner", actor="test")
    return user


def shown(browser: Browser, body: str, **headers: str):
    """A page of the test's own making."""
    page = browser.open("http://made.up")
    page.route("http://made.up/", lambda route: route.fulfill(
        body=f"<!doctype html><html lang=en><title>Made up</title><main><h1>Made up</h1>{body}</main>",
        headers={"Content-Type": "text/html", **headers},
    ))  # fmt: skip
    page.route("**/gone.png", lambda route: route.fulfill(status=404))
    page.goto("/")
    return page


@pytest.mark.parametrize(
    ("body", "headers", "fault"),
    [
        pytest.param("<p>Nothing</p>", {}, None, id="nothing"),
        pytest.param("<script>console.error('oh')</script>", {}, "oh", id="an error on the console"),
        pytest.param("<script>no.such()</script>", {}, "no is not defined", id="an error of a script"),
        pytest.param("<img src=gone.png alt=''>", {}, "gone.png: 404", id="a picture that is not there"),
        pytest.param(
            f"<link rel=stylesheet href={NOTHING_HERE}>", {}, "UNSAFE_PORT", id="a request without an answer"
        ),
        pytest.param(
            "<p style='color: red'>Red</p>", {"Content-Security-Policy": STRICT}, "Content Security Policy",
            id="a breach of the content policy",
        ),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_on_a_page_is_a_fault_of_the_test(browser, body, headers, fault):
    shown(browser, body, **headers)

    if fault is None:
        browser.check()
    else:
        with pytest.raises(AssertionError, match=fault):
            browser.check()
        browser.forgive(fault)


@pytest.mark.parametrize(("status", "is_a_fault"), [(404, False), (500, True)])
def test_a_page_may_say_no_and_must_not_fail(browser, status, is_a_fault):
    page = browser.open("http://made.up")
    page.route("http://made.up/", lambda route: route.fulfill(status=status, body="Sorry"))

    page.goto("/")

    assert browser.faults == ([f"GET http://made.up/: {status}"] if is_a_fault else [])
    browser.forgive("500")


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ("<input>", "label: Form elements must have labels"),
        (f"<style>{PALE}</style><p>Pale</p>", "(?s) in dark:.*color-contrast"),
        ("<p style='width: 50rem'>Wide</p>", "width: 50rem"),
        ("<svg class=chart-drawing><text x=9 y=9 text-anchor=end>1,000</text></svg>", "1,000"),
    ],
)  # fmt: skip
def test_what_keeps_people_out_is_found(browser, body, finding):
    page = shown(browser, body)

    with pytest.raises(AssertionError, match=finding):
        check_page(page)


def test_a_page_that_was_looked_at_is_looked_at_again_only_where_it_has_changed(browser):
    form = '<form><input type=hidden name=csrfmiddlewaretoken value="{}"></form>'
    looked_at: set[str] = set()

    check_page_once(shown(browser, form.format("one")), looked_at)
    check_page_once(shown(browser, form.format("another")), looked_at)

    assert len(looked_at) == 1
    with pytest.raises(AssertionError, match="label: Form elements must have labels"):
        check_page_once(shown(browser, form.format("one") + "<input>"), looked_at)


def test_people_sign_in_with_a_password_and_a_code(page, ada):
    sign_in(page, ada)

    expect(page).to_have_url("/portal/acme/")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


@pytest.mark.parametrize("keep", [shoot, check_page])
def test_a_page_is_kept_in_all_widths_and_schemes(browser, monkeypatch, tmp_path, keep):
    monkeypatch.setattr("tests.browser.SCREENS", tmp_path)
    page = shown(browser, "<p>Fine</p>")

    keep(page, "portal")

    assert {picture.name for picture in tmp_path.iterdir()} == {
        f"portal-{width}-{scheme}.png" for width in (360, 1280, 1920) for scheme in ("light", "dark")
    }
    assert page.viewport_size == {"width": 1280, "height": 900}


def test_a_run_that_is_killed_leaves_no_browser_behind(chromium_program):
    program = (
        "import django, signal; django.setup(); from tests.browser import a_chromium\n"
        f"with a_chromium({chromium_program!r}): print(flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        said = run.stdout.readline()
        started = offspring(run.pid)
        run.kill()

    assert said
    assert len(started) > 3
    eventually(lambda: not any(command_of(pid) for pid in started))


def offspring(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    children = [int(child) for child in listed.stdout.split()]
    return children + [below for child in children for below in offspring(child)]
