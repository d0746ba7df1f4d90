"""What was used, read in a browser: on pages, in files and statements; by keyboard and without scripts."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.urls import resolve
from playwright.sync_api import Download, Locator, Page

from audit import months
from benchmarks.ledger_rows import FILL
from budgets import rollups
from budgets.exports.jobs import make_exports
from budgets.models import Statement
from budgets.month_closing import close_month
from budgets.rollups import Part
from config.celery import app as celery
from tenants.models import User
from tests.accounts import ago, on, today, used
from tests.browser import PATIENCE_MS, Browser, check_page_once, enter, shoot, sign_in
from tests.browser_thread import expect
from tests.conftest import House
from tests.gateway import ROOT, environment

# Above what is counted beforehand, and far above what is written while one waits.
MANY = 105_000
# So long may a worker take to start, or to make a file.
MADE_MS = 2 * PATIENCE_MS
FIGURES = ["requests", "cost_micro_usd", "input_tokens", "output_tokens", "cached_tokens", "gpu_ms"]
COLUMNS = ["Requests", "Cost, USD", "Input tokens", "Output tokens", "Cached input", "GPU time, ms"]


@pytest.fixture
def signed_in(page: Page, owner: User) -> Page:
    enter(page, owner)
    return page


def this_month(house: House) -> tuple[date, date]:
    first = today(house.acme).replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


def figures_of(row: Locator, heads: list[str]) -> dict[str, int]:
    """The figures of a row of the page; money has six decimals there, so these are millionths."""
    cells = dict(zip(heads, row.get_by_role("cell").all_inner_texts(), strict=True))
    return {name: int(re.sub("[,.]", "", cells[head])) for name, head in zip(FIGURES, COLUMNS, strict=True)}


def on_the_page(page: Page) -> dict[str, dict[str, int]]:
    """The figures of the table by the first cell of each row, once all of them have come."""
    page.wait_for_load_state()
    table = page.get_by_role("region", name="Usage")
    heads = [head.rstrip(" ↓↑") for head in table.get_by_role("columnheader").all_inner_texts()][1:]
    rows = table.get_by_role("row").all()[1:]
    return {row.get_by_role("rowheader").inner_text(): figures_of(row, heads) for row in rows}


def by_command(first: date, before: date) -> dict[str, dict[str, int]]:
    """The same, as ``show_usage`` tells it."""
    told = StringIO()
    call_command(
        "show_usage", "--tenant=acme", "--by=model", f"--from={first}", f"--before={before}", "--json",
        stdout=told,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(told.getvalue())
    rows = {row["model"]: row for row in found["rows"]} | {"Total": found["total"]}
    return {name: {figure: row[figure] for figure in FIGURES} for name, row in rows.items()}


def fetched(page: Page, button: Locator) -> Download:
    """What a press of the button saves, once it is there to be pressed and the page is whole."""
    expect(button).to_be_visible(timeout=MADE_MS)
    page.wait_for_load_state()
    with page.expect_download(timeout=MADE_MS) as waiting:
        button.click()
    return waiting.value


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(file.read_text())))


def look_at_this_month(page: Page, house: House, rows: str) -> None:
    """Fill in what to export of the present month, and look at it first."""
    first, before = this_month(house)
    page.goto("/portal/acme/exports/")
    page.get_by_label("From").fill(first.isoformat())
    page.get_by_label("Before").fill(before.isoformat())
    page.get_by_label("Rows").select_option(rows)
    page.get_by_role("button", name="Look first").click()


def test_the_page_the_file_and_the_command_tell_the_same_figures(house, signed_in):
    page = signed_in
    for _ in range(3):
        assert house.ada.chat(options={"num_predict": 5}).status_code == 200
    assert house.ada.chat(model="tiny:1b", stream=False).status_code == 200
    house.booked(4)

    page.goto("/portal/acme/usage/?by=model")
    shown = on_the_page(page)
    look_at_this_month(page, house, rows="model")
    file = fetched(page, page.get_by_role("button", name="Download now"))

    exported = {row["model"]: {name: int(row[name]) for name in FIGURES} for row in rows_of(file.path())}
    assert shown["Total"]["requests"] == 4
    assert shown["Total"]["output_tokens"] > 0
    assert shown == by_command(*this_month(house))
    assert exported == {name: row for name, row in shown.items() if name != "Total"}


def test_a_file_is_made_in_the_background_and_is_what_its_checksum_says(house, signed_in):
    page = signed_in
    for day in range(1, 4):
        used(house.acme, on(ago(1).replace(day=day), zone="UTC"), model=f"model-{day}")

    page.goto("/portal/acme/exports/")
    page.get_by_label("Rows").select_option("requests")
    page.get_by_role("button", name="Look first").click()
    expect(page.get_by_text("from 3 entries of the ledger")).to_be_visible()
    page.get_by_role("button", name="Make a file in the background").click()
    expect(page.get_by_text("It waits for its turn.")).to_be_visible()
    make_exports()
    # The page comes again by itself.
    file = fetched(page, page.get_by_role("link", name="Download"))

    content = file.path().read_bytes()
    assert hashlib.sha256(content).hexdigest() == page.get_by_text(re.compile("^[0-9a-f]{64}$")).inner_text()
    assert {row["model"] for row in rows_of(file.path())} == {"model-1", "model-2", "model-3"}
    shoot(page, "export")


@contextmanager
def a_worker() -> Iterator[None]:
    """A Celery worker of its own, as people start it."""
    arguments = ["--pool", "threads", "--concurrency", "1", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "--app", "config.celery", "worker", *arguments],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(timeout=30)


@contextmanager
def nobody_reads_the_ledger() -> Iterator[None]:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE budgets_ledgerentry IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_large_range_is_looked_at_made_by_the_worker_and_adds_up_to_what_pages_and_commands_tell(
    house, signed_in
):
    page, first = signed_in, ago(1)
    months.ensure("budgets_ledgerentry", [first])
    with connection.cursor() as cursor:
        cursor.execute(FILL, {"rows": MANY, "tenant_id": house.acme.pk, "tenant": "acme", "first_day": first})
        # As the database does by itself, in a while.
        cursor.execute("ANALYZE budgets_ledgerentry")
    rollups.rebuild(part=Part(), actor="test", write=True)
    before = today(house.acme).replace(day=1)

    page.goto("/portal/acme/exports/")
    page.get_by_label("Rows").select_option("requests")
    page.get_by_role("button", name="Look first").click()
    expect(page.get_by_role("button", name="Make a file in the background")).to_be_visible()
    looked_at = page.locator("dl.facts").last.inner_text()
    expect(page.get_by_role("button", name="Download now")).to_have_count(0)
    page.get_by_role("button", name="Make a file in the background").click()
    expect(page.get_by_text("It waits for its turn.")).to_be_visible()
    with a_worker():
        with nobody_reads_the_ledger():
            celery.send_task("budgets.tasks.make_exports")
            expect(page.get_by_text("It is being made")).to_be_visible(timeout=MADE_MS)
            expected = int(page.get_by_role("progressbar").get_attribute("max") or 0)
        file = fetched(page, page.get_by_role("link", name=re.compile("^Download")))

    rows, content = 0, hashlib.sha256(file.path().read_bytes()).hexdigest()
    sums = dict.fromkeys(FIGURES, 0)
    with file.path().open(newline="") as lines:
        for row in csv.DictReader(lines):
            rows += 1
            for name in FIGURES:
                sums[name] += int(row[name])
    told = page.locator("dl.facts").last.inner_text()
    assert rows == MANY
    assert abs(expected - MANY) < MANY / 10
    assert told == looked_at
    assert page.get_by_text(re.compile("^[0-9a-f]{64}$")).inner_text() == content
    page.goto(f"/portal/acme/usage/?by=model&from={first}&before={before}")
    assert on_the_page(page)["Total"] == sums == by_command(first, before)["Total"]
    page.goto("/portal/acme/exports/")
    page.reload()
    expect(page.get_by_role("row").filter(has_text=content[:12])).to_contain_text(f"{MANY:,}")
    shoot(page, "exports")


def test_a_statement_is_read_and_its_papers_are_fetched(house, signed_in):
    page = signed_in
    used(house.acme, on(ago(1), zone="UTC"), cost_micro_usd=1_234_567)
    statement: Statement = close_month(tenant=house.acme, month=ago(1), actor="test")

    page.goto("/portal/acme/")
    page.get_by_role("link", name="Statements").click()
    row = page.get_by_role("row", name=statement.number)
    paper = fetched(page, row.get_by_role("link", name="PDF"))
    table = fetched(page, row.get_by_role("link", name="CSV"))

    expect(row).to_contain_text("1.234567")
    assert paper.path().read_bytes() == bytes(statement.pdf)
    assert table.path().read_bytes() == bytes(statement.csv)
    row.get_by_role("link", name="Requests").click()
    assert on_the_page(page)["Total"]["cost_micro_usd"] == 1_234_567


def test_usage_is_narrowed_by_the_keyboard_alone(house, signed_in):
    page = signed_in
    used(house.acme, on(today(house.acme), zone="UTC"), model="tiny:1b")
    page.goto("/portal/acme/usage/")

    def focused() -> str:
        name: str = page.evaluate("() => document.activeElement.name || document.activeElement.textContent")
        return name.strip()

    page.keyboard.press("Tab")
    assert focused() == "Skip to the content"
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        if focused() == "by":
            break
    for _ in range(12):
        page.keyboard.press("ArrowDown")
        if page.evaluate("() => document.activeElement.value") == "model":
            break
    while focused() != "Show":
        page.keyboard.press("Tab")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")

    expect(page).to_have_url(re.compile("[?&]by=model"))
    assert outline != "none"
    assert list(on_the_page(page)) == ["tiny:1b", "Total"]


def test_usage_is_read_and_fetched_with_scripts_switched_off(browser: Browser, house, owner):
    used(house.acme, on(today(house.acme), zone="UTC"), model="tiny:1b", cost_micro_usd=23)
    page = browser.open(house.gateway.url, java_script_enabled=False)

    sign_in(page, owner)
    page.get_by_role("link", name="Usage").click()
    page.get_by_label("Told apart by").select_option("model")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="tiny:1b").click()
    assert on_the_page(page)["Total"]["cost_micro_usd"] == 23
    look_at_this_month(page, house, rows="day")
    file = fetched(page, page.get_by_role("button", name="Download now"))
    page.get_by_role("button", name="Sign out").click()

    assert [row["cost_micro_usd"] for row in rows_of(file.path())] == ["23"]
    expect(page).to_have_url(re.compile("/account/login/"))


def test_no_page_of_the_portal_keeps_anybody_out_be_it_empty_or_with_usage(house, signed_in):
    looked_at: set[str] = set()
    empty = linked_from(signed_in, "/portal/acme/", looked_at)
    used(house.acme, on(ago(1), zone="UTC"))
    used(house.acme, on(today(house.acme), zone="UTC"))
    close_month(tenant=house.acme, month=ago(1), actor="test")

    furnished = linked_from(signed_in, "/portal/acme/", looked_at)

    assert {"portal-tenant", "portal-usage", "portal-exports", "portal-statements"} <= empty
    assert {"portal-entries", "portal-request", "portal-statement-pdf"} <= furnished - empty


def linked_from(page: Page, start: str, looked_at: set[str]) -> set[str]:
    """Check a page and one of each kind that links of the portal lead to from there; returns their names."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        address = waiting.pop(0)
        name = resolve(urlsplit(address).path).view_name
        if name in seen:
            continue
        seen.add(name)
        if not page.request.get(address).headers["content-type"].startswith("text/html"):
            continue
        page.goto(address)
        check_page_once(page, looked_at)
        # With path and query, as ``goto`` takes them.
        waiting += page.evaluate(
            """() => [...document.links].filter(one => one.origin === location.origin)
                .map(one => one.pathname + one.search).filter(one => one.startsWith("/portal/"))"""
        )
    return seen
