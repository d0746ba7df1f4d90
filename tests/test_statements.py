"""Statements: their numbers, their lines, and what stands on paper."""

from __future__ import annotations

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader

from budgets import month_closing, statement_pdf, statements
from budgets.corrections import correct_usage
from budgets.models import ClosedMonth, Statement
from budgets.month_closing import close_month
from budgets.open_months import following, month_written
from budgets.pricing import usd_in_full
from budgets.statement_pdf import pdf_of, seconds
from budgets.usage import FIGURES, Selection, totals
from tenants.models import Tenant
from tenants.spreadsheets import harmless
from tests.accounts import PRICE_ID, a_tenant, ago, on, quiet_counters, used
from tests.people import a_browser, a_person
from tests.test_closed_months import in_a_thread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _books(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"
    quiet_counters()


@pytest.fixture
def acme() -> Tenant:
    return a_tenant()


def drawn(tenant: Tenant, month: date) -> Statement:
    return close_month(tenant=tenant, month=month, actor="ada")


def rows(statement: Statement) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(bytes(statement.csv).decode(), newline="")))


def pages(statement: Statement) -> list[str]:
    return [page.extract_text() for page in PdfReader(io.BytesIO(bytes(statement.pdf))).pages]


def of_month(tenant: Tenant, month: date) -> dict[str, int]:
    return totals(Selection(tenant_id=tenant.pk, from_day=month, before_day=following(month)))


# Numbers


def test_numbers_have_no_gap_where_a_closing_fails(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(statement_pdf, "pdf_of", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drawn(acme, ago(2))

    assert [drawn(acme, month).sequence for month in (ago(2), ago(1))] == [1, 2]
    assert Statement.objects.count() == ClosedMonth.objects.count() == 2


def test_numbers_have_no_gap_where_many_close_at_once() -> None:
    tenants = [a_tenant(f"tenant-{number}") for number in range(6)]

    with ThreadPoolExecutor(3) as pool:
        closings = [in_a_thread(pool, lambda tenant=one: drawn(tenant, ago(1))) for one in tenants]  # type: ignore[misc]
        numbers = sorted(closing.result(60).sequence for closing in closings)

    assert numbers == [1, 2, 3, 4, 5, 6]


def test_numbers_begin_anew_with_the_year_in_which_they_are_drawn_up(acme: Tenant) -> None:
    first = drawn(acme, ago(3))
    with time_machine.travel(datetime(now().year + 1, 1, 1, tzinfo=UTC)):
        second = drawn(acme, ago(4))

    assert (first.number, second.number) == (f"{now().year}-000001", f"{now().year + 1}-000001")


@pytest.mark.parametrize(
    ("sequence", "number"), [(1, "-000001"), (3, "-000003"), (2, "-000003"), (2, "-2"), (0, "-000000")]
)
def test_plain_sql_numbers_no_statement_but_as_the_next_one(acme: Tenant, sequence: int, number: str) -> None:
    statement = drawn(acme, ago(2))
    other = ClosedMonth.objects.create(
        tenant_id=acme.pk, tenant="acme", tenant_name="ACME", month=ago(1), time_zone="UTC", entries=0,
        export_sha256="", closed_by="ada",
    )  # fmt: skip

    statement.pk, statement.closing = None, other
    statement.sequence, statement.number = sequence, f"{statement.year}{number}"

    with (
        pytest.raises(IntegrityError, match="not the next one of its year, which is 2"),
        transaction.atomic(),
    ):
        statement.save(force_insert=True)


# Lines


def test_usage_late_usage_and_corrections_are_lines_of_their_own(acme: Tenant) -> None:
    before, month = ago(2), ago(1)
    wrong = used(acme, on(before), key="nightly")
    drawn(acme, before)
    for tokens in (5, 6):
        used(acme, on(month), key="nightly", output_tokens=tokens)
    used(acme, on(month), key="chat", key_id=UUID(int=2), exact=False)
    with time_machine.travel(on(following(month), "00:00", acme.time_zone).timestamp() - 3600):
        used(acme, on(before), key="nightly", output_tokens=9)
        correct_usage(request_id=wrong.request_id, changes={"output_tokens": -4}, reason="=1+1", actor="ada")

    statement = drawn(acme, month)

    told = [
        (line["part"], line["closed_month"], line["key"], line["requests"], line["output_tokens"])
        for line in statement.lines
    ]
    of_before = f"{before:%Y-%m}"
    assert told == [
        ("usage", "", "chat", 1, 20),
        ("usage", "", "nightly", 2, 11),
        ("late", of_before, "nightly", 1, 9),
        ("correction", of_before, "nightly", 0, -4),
    ]
    assert statement.estimated_tokens == 30
    correction = statement.lines[-1]
    assert (correction["request_id"], correction["reason"], correction["actor"]) == (
        str(wrong.request_id),
        "=1+1",
        "ada",
    )
    assert [row["reason"] for row in rows(statement)] == ["", "", "", "'=1+1", ""]


def test_the_sums_of_ledger_row_csv_and_paper_are_the_same(acme: Tenant) -> None:
    month = ago(1)
    for number in range(12):
        used(
            acme, on(month, f"{number + 10}:00"), key=f"key {number % 5}", key_id=UUID(int=number % 5 + 1),
            model=f"model-{number % 3}", cost_micro_usd=1_234_567 * number, gpu_ms=1001 * number,
            cached_tokens=number % 2, exact=bool(number % 4),
        )  # fmt: skip

    statement = drawn(acme, month)

    ledger = of_month(acme, month)
    *lines, total = rows(statement)
    assert {figure: getattr(statement, figure) for figure in FIGURES} == ledger
    assert {figure: int(total[figure]) for figure in FIGURES} == ledger
    assert {figure: sum(int(line[figure]) for line in lines) for figure in FIGURES} == ledger
    assert total["part"] == "total"
    assert total["cost_usd"] == "81.481422"
    [paper] = pages(statement)
    after_total = paper.split("All of the above", 1)[1]
    for told in (
        str(ledger["requests"]),
        str(ledger["input_tokens"]),
        str(ledger["cached_tokens"]),
        str(ledger["output_tokens"]),
        seconds(ledger["gpu_ms"]),
        usd_in_full(ledger["cost_micro_usd"]),
    ):
        assert told in after_total.split()


def test_a_statement_names_issuer_tenant_zone_days_prices_and_digests(acme: Tenant, settings: Any) -> None:
    settings.STATEMENT_ISSUER = "Computing Centre, Room 4"
    month = ago(1)
    used(acme, on(month))

    statement = drawn(acme, month)

    paper = " ".join(pages(statement)[0].split())
    for told in (
        f"Statement {statement.number}",
        "Issued by Computing Centre, Room 4 on ",
        f"For ACME Laboratories (acme, {acme.pk})",
        f"Month {month:%Y-%m} in the time zone Europe/Berlin: from {month} to before {following(month)}",
        f"tiny:1b {PRICE_ID} 0.300000 0.030000 1.000000 0.000005",
        statement.csv_sha256,
        statement.closing.export_sha256,
        "page 1 of 1",
    ):
        assert told in paper
    assert statement.csv_sha256 == hashlib.sha256(statement.csv).hexdigest()
    assert statement.pdf_sha256 == hashlib.sha256(statement.pdf).hexdigest()


def test_a_month_without_usage_has_a_statement_of_nothing(acme: Tenant) -> None:
    statement = drawn(acme, ago(1))

    assert {getattr(statement, figure) for figure in FIGURES} == {0}
    assert [row["part"] for row in rows(statement)] == ["total"]
    assert "0.000000" in pages(statement)[0]


def test_lines_that_do_not_add_up_close_no_month(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    used(acme, on(ago(1)))
    monkeypatch.setattr(statements, "lines_of", lambda _: [])

    with pytest.raises(RuntimeError, match="do not add up to its requests"):
        drawn(acme, ago(1))

    assert not ClosedMonth.objects.exists()


# Paper


def test_the_same_statement_is_drawn_in_the_same_bytes(acme: Tenant) -> None:
    used(acme, on(ago(1)), key="günther")
    statement = drawn(acme, ago(1))

    again = Statement.objects.get()
    with time_machine.travel(datetime(2031, 5, 5, tzinfo=UTC)):
        assert pdf_of(again) == bytes(again.pdf) == statement.pdf
        assert statements.csv_of(again) == bytes(again.csv) == statement.csv


@pytest.mark.parametrize(
    ("name", "on_paper"),
    [
        ("Zürich, «café»", "Zürich, «café»"),
        ("中文", "<4E2D><6587>"),
        ("مرحبا", "<0645><0631><062D><0628><0627>"),
        ("rocket 🚀", "rocket <1F680>"),
        ("<b>bold</b> & <font size=99>", "<b>bold</b> & <font size=99>"),
        ("line\nbreak\tand\x07bell", "line<000A>break<0009>and<0007>bell"),
        ("left \u202eto right", "left <202E>to right"),
        ("e\u0301", "e<0301>"),
        ("", ""),
    ],
)
def test_names_in_any_script_are_told(acme: Tenant, name: str, on_paper: str) -> None:
    Tenant.objects.filter(pk=acme.pk).update(name=name or "-")
    used(acme, on(ago(1)), key=name or "-", model="model")

    statement = drawn(acme, ago(1))

    paper = "".join("".join(pages(statement)).split())
    assert paper.count("".join((on_paper or "-").split())) >= 2
    assert rows(statement)[0]["key"] == (harmless(name) or "'-")


@given(
    st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=300)
)
def test_no_name_keeps_a_statement_from_being_drawn(name: str) -> None:
    figures = dict.fromkeys(FIGURES, 0)
    texts = {"part": "usage", "closed_month": "", "request_id": "", "reason": "", "actor": ""}
    statement = Statement(
        number="2026-000001", revision=1, issuer=name, tenant_id=UUID(int=1), tenant="acme", tenant_name=name,
        month=date(2026, 10, 1), time_zone="UTC", prices=[], csv_sha256="", drawn_at=now(), **figures,
        lines=[{**texts, "key_id": "", "key": name, "model": name, **figures}],
        closing=ClosedMonth(entries=0, export_sha256="", month=date(2026, 10, 1)),
    )  # fmt: skip

    assert pdf_of(statement).startswith(b"%PDF-")
    [line, _] = csv.DictReader(io.StringIO(statements.csv_of(statement).decode(), newline=""))
    assert line["key"].removeprefix("'") == name


def test_a_long_table_goes_on_over_pages_with_its_head_and_their_numbers(acme: Tenant) -> None:
    figures = dict.fromkeys(FIGURES, 1)
    texts = {"part": "usage", "closed_month": "", "request_id": "", "reason": "", "actor": "", "key_id": ""}
    statement = drawn(acme, ago(1))
    statement.lines = [
        {**texts, "key": f"key {number}", "model": "a-model-" * 12, **figures} for number in range(300)
    ]

    statement.pdf = pdf_of(statement)

    told = pages(statement)
    assert len(told) > 5
    assert all("Requests" in page and "Cost USD" in page for page in told[:-1])
    assert [page.split("page ")[-1].split("\n")[0] for page in told] == [
        f"{number} of {len(told)}" for number in range(1, len(told) + 1)
    ]
    assert all(f"key {number}\n" in "\n".join(told) for number in range(300))


# How things are written


@pytest.mark.parametrize(
    ("micro_usd", "written"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (-1, "-0.000001"),
        (1_000_000, "1.000000"),
        (-12_345_678, "-12.345678"),
        (2**63 - 1, "9223372036854.775807"),
    ],
)
def test_money_is_written_exactly(micro_usd: int, written: str) -> None:
    assert usd_in_full(micro_usd) == written


@pytest.mark.parametrize(
    ("milliseconds", "written"), [(0, "0.000"), (1, "0.001"), (-1500, "-1.500"), (3_600_000, "3600.000")]
)
def test_times_are_written_exactly(milliseconds: int, written: str) -> None:
    assert seconds(milliseconds) == written


@pytest.mark.parametrize(
    ("estimated", "exact", "written"),
    [
        ({}, {"input_tokens": 10, "output_tokens": 20}, "0.0 %"),
        ({"input_tokens": 1, "output_tokens": 0}, {"input_tokens": 999_999, "output_tokens": 0}, "0.1 %"),
        ({"input_tokens": 1, "output_tokens": 1}, {"input_tokens": 2, "output_tokens": 2}, "33.4 %"),
        ({"input_tokens": 10, "output_tokens": 5}, {}, "100.0 %"),
    ],
)
def test_paper_and_portal_tell_the_same_share_of_estimates(
    acme: Tenant, estimated: dict[str, int], exact: dict[str, int], written: str
) -> None:
    for figures, is_exact in ((estimated, False), (exact, True)):
        if figures:
            used(acme, on(ago(1)), exact=is_exact, **figures)

    statement = drawn(acme, ago(1))

    page = a_browser(a_person("finance", acme)).get(f"/portal/{acme.slug}/statements/")
    assert f">{written}<" in page.content.decode()
    assert sum(one.strip() == written for one in pages(statement)[0].splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("=cmd()", "'=cmd()"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("'=1", "''=1"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_no_text_is_a_formula(text: str, safe: str) -> None:
    assert harmless(text) == safe


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-00", "2026", "26-10", "2026-10-01", "0000-01", "0206-10", "9999-12", ""]
)
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no month"):
        month_written(text)


def test_a_month_is_told_by_its_first_day(acme: Tenant) -> None:
    assert month_written("2026-10") == date(2026, 10, 1)
    with pytest.raises(ValidationError, match="first day"):
        month_closing.outlook(tenant=acme, month=date(2026, 10, 2))
