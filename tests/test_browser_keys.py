"""What people do with keys, in a real browser: create, copy, use, rotate and revoke them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Error, Page

from budgets.services import set_budget
from keys.models import ApiKey
from keys.services import issue_key
from tenants.models import Member, User
from tenants.services import add_member
from tests.browser import Browser, check_page, enter, shown_secret
from tests.browser_thread import expect
from tests.conftest import House, eventually

CUT = re.compile(r"1 key was revoked\. Refused everywhere after \d+\.\d\d s\. 1 running call is cut")
LIST, NEW = "/portal/acme/keys/", "/portal/acme/keys/new/"


@pytest.fixture
def ada(house: House) -> User:
    user = User.objects.create(username="ada", email="ada@example.org")
    add_member(tenant=house.acme, user=user, role="owner", actor="test")
    return user


def create(page: Page, name: str = "laptop") -> str:
    """Fill in the form as it stands; returns the secret that the next page shows."""
    page.goto(NEW)
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Create and show the secret").click()
    return shown_secret(page)


def ask(house: House, secret: str) -> int:
    """The status of one call with a secret."""
    return httpx.post(
        f"{house.gateway.url}/api/chat",
        json={"model": "tiny:1b", "stream": False, "messages": [{"role": "user", "content": "hello"}]},
        headers={"Authorization": f"Bearer {secret}"},
        timeout=30,
        trust_env=False,
    ).status_code


def test_a_key_is_created_copied_and_tried_out(
    house: House, browser: Browser, ada: User, tmp_path: Path
) -> None:
    page = browser.open(house.gateway.url, permissions=["clipboard-read", "clipboard-write"])
    enter(page, ada)
    secret = create(page)

    page.get_by_role("button", name="Copy the secret").click()
    expect(page.get_by_role("status").filter(has_text="The secret is copied.")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as .env file").click()
    download.value.save_as(tmp_path / "env")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The answer is whole.")).to_be_visible()
    answer = page.get_by_label("Answer").inner_text()

    assert copied == secret
    assert (tmp_path / "env").read_text() == page.locator("#environment").text_content()
    assert f"OPENAI_API_KEY={secret}" in (tmp_path / "env").read_text()
    assert answer.strip()
    [entry] = house.booked()
    assert (entry.key, entry.member, entry.outcome) == ("laptop", "ada", "completed")
    assert ask(house, secret) == 200


def test_what_scripts_say_is_german_for_whoever_reads_german(
    house: House, browser: Browser, ada: User
) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    page = browser.open(house.gateway.url, locale="de-DE", permissions=permissions)
    enter(page, ada)
    page.goto(NEW)
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Anlegen und Geheimnis zeigen").click()

    page.get_by_role("button", name="Geheimnis kopieren").click()
    expect(page.get_by_role("status").filter(has_text="Das Geheimnis ist kopiert.")).to_be_visible()
    page.get_by_role("button", name="Senden").click()
    expect(page.get_by_text("Die Antwort ist vollständig.")).to_be_visible()
    [entry] = house.booked()
    told = page.locator("[data-headers]")
    expect(told).to_contain_text(f"{entry.input_tokens} hinein, {entry.output_tokens} heraus")

    # The gateway does not answer: what the browser says of that is in no language of ours.
    browser.forgive("ERR_FAILED")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="Senden").click()
    expect(page.locator("[data-state]")).to_have_text("Das Gateway ist nicht erreichbar.")


def test_neither_the_way_back_nor_a_reload_shows_the_secret_again(
    house: House, browser: Browser, ada: User
) -> None:
    browser.forgive("ERR_CACHE_MISS")
    page = browser.open(house.gateway.url)
    enter(page, ada)
    secret = create(page)

    page.reload()
    reloaded = page.content()
    other = create(page, "desktop")
    page.get_by_role("link", name="I have kept it").click()
    expect(page.get_by_role("heading", name="Key desktop")).to_be_visible()
    went_back = back(page)

    assert "cannot be shown again" in reloaded
    assert secret not in reloaded
    assert other not in went_back
    assert ApiKey.objects.filter(label__in=["laptop", "desktop"]).count() == 2


def back(page: Page) -> str:
    """What is shown then; nothing of ours where the browser asks first whether to send the form again."""
    try:
        page.go_back()
    except Error as exc:
        if "ERR_CACHE_MISS" not in exc.message:
            raise
        page.close()
        return ""
    content: str = page.content()
    return content


def test_a_page_that_the_browser_kept_has_no_secret_any_more(house: House, page: Page, ada: User) -> None:
    enter(page, ada)
    secret = create(page)
    # By the script that takes the secret away.
    expect(page.get_by_role("button", name="Copy the secret")).to_be_visible()

    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")

    assert secret not in page.content()
    expect(page.get_by_text("cannot be shown again")).to_be_visible()


def test_without_script_a_key_is_created_and_everything_can_be_read(
    house: House, browser: Browser, ada: User
) -> None:
    page = browser.open(house.gateway.url, java_script_enabled=False)
    enter(page, ada)

    page.goto(NEW)
    page.get_by_role("checkbox", name="embeddings").uncheck()
    page.get_by_role("button", name="Show it for what is filled in").click()
    may_call = page.locator("#may-call")
    expect(may_call).not_to_contain_text("/v1/embeddings")
    expect(may_call).to_contain_text("/v1/chat/completions")
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create and show the secret").click()

    secret = shown_secret(page)
    expect(page.get_by_role("button", name="Copy the secret")).to_be_hidden()
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    expect(page.locator("#environment")).to_contain_text(f"OPENAI_API_KEY={secret}")
    assert ask(house, secret) == 200


def test_what_the_key_may_call_follows_what_is_filled_in(house: House, page: Page, ada: User) -> None:
    enter(page, ada)
    page.goto(NEW)
    shown = page.locator("#may-call")

    expect(shown).to_contain_text("/v1/embeddings")
    page.get_by_role("checkbox", name="embeddings").uncheck()
    expect(shown).not_to_contain_text("/v1/embeddings")
    page.get_by_role("radio", name="Only these").check()
    page.get_by_role("checkbox", name="tiny:1b").check()
    expect(shown).to_contain_text("tiny:1b")
    expect(shown).not_to_contain_text("emb:latest")
    page.get_by_label("Only from these networks").fill("192.0.2.0/24")
    page.get_by_label("Name").focus()
    expect(shown).to_contain_text("192.0.2.0/24")


@contextmanager
def a_stream(house: House, secret: str) -> Iterator[list[str]]:
    """The lines of a long answer as they come, while they come."""
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    lines: list[str] = []

    def read() -> None:
        body = {
            "model": "tiny:1b",
            "messages": [{"role": "user", "content": "hello"}],
            "options": {"num_predict": 2000},
        }
        with httpx.stream(
            "POST", f"{house.gateway.url}/api/chat", json=body,
            headers={"Authorization": f"Bearer {secret}"}, timeout=60, trust_env=False,
        ) as response:  # fmt: skip
            lines.extend(response.iter_lines())

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        yield lines
        reading.result(timeout=60)


def test_a_secret_is_rotated_and_the_page_tells_when_the_other_has_had_its_day(
    house: House, page: Page, ada: User
) -> None:
    key, before = issue_key(
        tenant=house.acme, label="laptop", actor="test", member=Member.objects.get(user=ada)
    )
    enter(page, ada)
    page.goto(f"{LIST}{key.pk}/")

    page.get_by_role("link", name="Rotate").click()
    page.get_by_label("Until the new secret is first used").check()
    page.get_by_role("button", name="Rotate and show the new secret").click()
    after = shown_secret(page)
    while_both_work = ask(house, before)
    page.get_by_role("link", name="I have kept it").click()
    expect(page.locator("#secrets")).to_contain_text("until the new secret is first used")
    with_the_new_one = ask(house, after)
    # Nobody loads the page again: it asks by itself.
    expect(page.locator("#secrets")).to_contain_text("no, since")

    assert (while_both_work, with_the_new_one) == (200, 200)
    # The page reads what is written down, the gateway hears of it a moment later.
    eventually(lambda: ask(house, before) == 401)


def test_a_key_is_revoked_and_its_running_stream_is_cut(house: House, page: Page, ada: User) -> None:
    enter(page, ada)
    secret = create(page)
    page.get_by_role("link", name="I have kept it").click()

    with a_stream(house, secret) as lines:
        eventually(lambda: lines)
        page.goto(f"{LIST}{ApiKey.objects.get(label='laptop').pk}/")
        page.get_by_role("link", name="Revoke").click()
        expect(page.get_by_text("1 call of them runs now")).to_be_visible()
        page.get_by_label("Reason").fill("laptop lost")
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("status").filter(has_text="revoked")).to_contain_text(CUT)

    assert '"done":true' not in lines[-1]
    assert ask(house, secret) == 401


def test_a_model_is_taken_away_while_a_stream_runs_and_the_page_has_said_what_happens(
    house: House, page: Page, ada: User
) -> None:
    enter(page, ada)
    secret = create(page)
    page.get_by_role("link", name="I have kept it").click()
    key = ApiKey.objects.get(label="laptop")

    with a_stream(house, secret) as lines:
        eventually(lambda: lines)
        page.get_by_role("link", name="Change", exact=True).click()
        told = page.locator("#may-call")
        expect(told).to_contain_text("Nothing, as far as it is filled in.")
        # What is filled in before the script has come, it does not hear of.
        page.wait_for_load_state()
        page.get_by_label("Name").fill("mail only")
        page.get_by_role("radio", name="Only these").check()
        page.get_by_role("checkbox", name="emb:latest").check()
        # Nobody asks for it: it follows what is filled in.
        expect(told).to_contain_text("No longer to be called:")
        expect(told).to_contain_text("tiny:1b")
        check_page(page, "edit-key-cuts")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("status").filter(has_text="It holds everywhere after")).to_be_visible()
        while_it_runs = ask(house, secret)
        # What is left of the stream comes at once.
        house.ollama.settings.piece_delay = 0

    key.refresh_from_db()
    assert (key.label, key.models) == ("mail only", ["emb:latest"])
    assert while_it_runs == 403
    # It went on to its end.
    assert '"done":true' in lines[-1]


def test_without_script_a_key_is_changed_and_the_second_of_two_is_told(
    house: House, browser: Browser, ada: User
) -> None:
    key, _ = issue_key(tenant=house.acme, label="laptop", actor="test")
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="month", limit=500, actor="test")
    first, second = (browser.open(house.gateway.url, java_script_enabled=False) for _ in range(2))
    for page in (first, second):
        enter(page, ada)
        page.goto(f"{LIST}{key.pk}/edit/")

    first.get_by_role("checkbox", name="embeddings").uncheck()
    first.get_by_role("button", name="Show it for what is filled in").click()
    expect(first.locator("#may-call")).to_contain_text("No longer open to it:")
    first.get_by_role("spinbutton", name="Tokens, in and out").fill("501")
    first.get_by_role("button", name="Save").click()
    expect(first.locator(".wrong")).to_contain_text("the whole tenant: 500 tokens a month")
    first.get_by_role("spinbutton", name="Tokens, in and out").fill("500")
    first.get_by_role("button", name="Save").click()
    expect(first.get_by_role("status").filter(has_text="Saved.")).to_be_visible()
    second.get_by_label("Name").fill("desktop")
    second.get_by_role("button", name="Save").click()

    expect(second.get_by_role("alert")).to_contain_text("Somebody has changed the key")
    expect(second.get_by_text("desktop")).to_be_visible()
    expect(second.get_by_label("Name")).to_have_value("laptop")
    key.refresh_from_db()
    assert (key.label, "embeddings" in (key.scopes or ())) == ("laptop", False)


def test_the_meter_of_a_key_moves_with_its_calls(house: House, page: Page, ada: User) -> None:
    key, secret = issue_key(tenant=house.acme, label="laptop", actor="test")
    set_budget(scope="key", key=key, unit="requests", period="lifetime", limit=10, actor="test")
    enter(page, ada)
    page.goto(f"{LIST}{key.pk}/")
    meter = page.locator("[data-live-part=meters]")

    expect(meter).to_contain_text("0 %")
    assert ask(house, secret) == 200
    # Nobody loads the page again.
    expect(meter).to_contain_text("10 %")


def test_keys_are_chosen_in_the_list_and_revoked_together(house: House, page: Page, ada: User) -> None:
    for label in ("one", "two", "three"):
        issue_key(tenant=house.acme, label=label, actor="test")
    enter(page, ada)
    page.goto(LIST)

    page.get_by_role("checkbox", name="Choose one").check()
    page.get_by_role("checkbox", name="Choose three").check()
    page.get_by_role("button", name="Revoke the chosen keys").click()
    page.get_by_label("Reason").fill("clearing up")
    page.get_by_role("button", name="Revoke").click()

    expect(page.get_by_role("status")).to_contain_text("2 keys were revoked.")
    assert set(ApiKey.objects.filter(revoked_reason="clearing up").values_list("label", flat=True)) == {
        "one",
        "three",
    }


def test_the_pages_keep_nobody_out(house: House, page: Page, ada: User) -> None:
    enter(page, ada)
    create(page)
    check_page(page)
    key = ApiKey.objects.get(label="laptop")
    pages = {
        "keys": LIST,
        "new-key": NEW,
        "key": f"{LIST}{key.pk}/",
        "edit-key": f"{LIST}{key.pk}/edit/",
        "rotate": f"{LIST}{key.pk}/rotate/",
        "revoke": f"{LIST}change/revoke/?key={key.pk}",
    }

    for name, address in pages.items():
        page.goto(address)
        check_page(page, name)


def test_a_key_is_created_by_keyboard_alone(house: House, page: Page, ada: User) -> None:
    enter(page, ada)
    page.goto(NEW)

    page.get_by_label("Name").focus()
    page.keyboard.type("laptop")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("Create and show"):
            break
    page.keyboard.press("Enter")

    expect(page.locator("#secret")).to_be_visible()
