"""FOCUS 1.2: the columns importers ask for, and money that adds up to the ledger."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.django import TransactionTestCase

from budgets import usage
from budgets.exports import PROFILES, totals_of
from budgets.models import ClosedMonth, Statement
from budgets.pricing import PinnedPrice
from tenants.models import CalendarChange, Tenant
from tests.exporting import PRICE, an_entry, an_order, rows_of

pytestmark = pytest.mark.django_db(transaction=True)

# What FOCUS 1.2 calls mandatory, and what its types are.
INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
MONEY = r"-?\d+\.\d{6}"
MANDATORY = {
    "BilledCost": MONEY,
    "BillingAccountId": r"\S+",
    "BillingAccountName": r".+",
    "BillingCurrency": r"USD",
    "BillingPeriodStart": INSTANT,
    "BillingPeriodEnd": INSTANT,
    "ChargeCategory": r"Usage|Purchase|Tax|Credit|Adjustment",
    "ChargeClass": r"|Correction",
    "ChargeDescription": r".+",
    "ChargePeriodStart": INSTANT,
    "ChargePeriodEnd": INSTANT,
    "ContractedCost": MONEY,
    "EffectiveCost": MONEY,
    "InvoiceIssuerName": r".+",
    "ListCost": MONEY,
    "PricingQuantity": r"-?\d+\.\d+",
    "PricingUnit": r"1000000 Tokens|Seconds|Requests",
    "ProviderName": r".+",
    "PublisherName": r".+",
    "ServiceCategory": r"AI and Machine Learning",
    "ServiceName": r".+",
}
OTHERS = {
    "ChargeFrequency": r"Usage-Based",
    "ServiceSubcategory": r"Generative AI",
    "InvoiceId": r"",
    "ConsumedQuantity": r"-?\d+",
    "ConsumedUnit": r"Tokens|Milliseconds|Requests",
    "ListUnitPrice": rf"|{MONEY}",
    "ContractedUnitPrice": rf"|{MONEY}",
    "PricingCategory": r"Standard",
    "PricingCurrency": r"USD",
    "ResourceId": r".+",
    "ResourceName": r".+",
    "ResourceType": r"Model",
    "SkuId": r".+/\w+",
    "SkuMeter": r"Input tokens|Cached input tokens|Output tokens|GPU time|Requests",
    "SkuPriceId": r"|[0-9a-f-]{36}/\w+",
    "SubAccountId": r"[0-9a-f-]{36}",
    "SubAccountName": r".+",
    "Tags": r"\{.+\}",
}
FREE = PinnedPrice("00000000-0000-4000-8000-0000000000ff", 0, 0, 0, 0)


def charges(tenant: Tenant | None, **options: Any) -> list[dict[str, str]]:
    return rows_of(an_order(tenant, "focus", **options))


def costs(rows: list[dict[str, str]]) -> dict[str, int]:
    """Micro-USD by meter."""
    sums: dict[str, int] = defaultdict(int)
    for row in rows:
        sums[row["SkuMeter"]] += int(row["x_CostMicroUsd"])
    return dict(sums)


def test_there_are_21_mandatory_columns_and_the_others_are_known_or_ours() -> None:
    columns = {column.name for column in PROFILES["focus"].columns}

    assert len(MANDATORY) == 21
    assert columns >= MANDATORY.keys() | OTHERS.keys()
    rest = columns - MANDATORY.keys() - OTHERS.keys()
    assert {name for name in rest if not name.startswith("x_")} == {"BillingAccountType", "SubAccountType"}


def test_every_value_has_the_form_that_focus_asks_for(acme: Tenant) -> None:
    an_entry(acme, cached_tokens=40, member="ada", member_id=UUID(int=3), team="research", exact=False)
    an_entry(acme, price=None, model="tiny:1b")
    an_entry(acme, price=FREE, model="free:1b")
    an_entry(acme, kind="adjustment", price=None, requests=1, cost_micro_usd=5)
    rows = charges(acme)

    wrong = [
        (name, row[name])
        for row in rows
        for name, form in (MANDATORY | OTHERS).items()
        if not re.fullmatch(form, row[name])
    ]

    assert wrong == []
    assert {row["SkuMeter"] for row in rows} == set(OTHERS["SkuMeter"].split("|"))


def test_a_charge_of_each_meter_of_a_key_model_and_day(acme: Tenant) -> None:
    for _ in range(3):
        an_entry(acme, cached_tokens=40)
    an_entry(acme, day=date(2026, 10, 16))
    an_entry(acme, model="qwen3:8b")
    an_entry(acme, key_id=UUID(int=5), key="bob's key")

    rows = charges(acme)

    told = [
        (row["x_Day"], json.loads(row["Tags"])["tollgate/key"], row["ResourceId"], row["SkuMeter"])
        for row in rows
    ]
    three = ["Input tokens", "Output tokens", "GPU time"]
    assert told == [
        *(
            ("2026-10-15", "ada's key", "llama3.2:latest", meter)
            for meter in [three[0], "Cached input tokens", *three[1:]]
        ),
        *(("2026-10-15", "ada's key", "qwen3:8b", meter) for meter in three),
        *(("2026-10-15", "bob's key", "llama3.2:latest", meter) for meter in three),
        *(("2026-10-16", "ada's key", "llama3.2:latest", meter) for meter in three),
    ]
    assert [
        (row["ConsumedQuantity"], row["ConsumedUnit"], row["PricingQuantity"], row["PricingUnit"])
        for row in rows[:4]
    ] == [
        ("180", "Tokens", "0.000180", "1000000 Tokens"),
        ("120", "Tokens", "0.000120", "1000000 Tokens"),
        ("150", "Tokens", "0.000150", "1000000 Tokens"),
        ("2700", "Milliseconds", "2.700000", "Seconds"),
    ]
    assert [row["ListUnitPrice"] for row in rows[:4]] == ["0.300000", "0.030000", "1.000000", "0.000025"]
    assert {row["x_Requests"] for row in rows[:4]} == {"3"}


def test_what_rounding_left_goes_to_the_largest_part(acme: Tenant) -> None:
    """60 at 0.3 = 18, 40 at 0.03 = 1.2, 50 at 1 = 50, 0.9 s at 25 = 22.5: 91.7, rounded up to 92."""
    entry = an_entry(acme, cached_tokens=40)

    assert entry.cost_micro_usd == 92
    assert costs(charges(acme)) == {
        "Input tokens": 18,
        "Cached input tokens": 1,
        "Output tokens": 51,
        "GPU time": 22,
    }


def test_of_equal_parts_the_first_gets_it(acme: Tenant) -> None:
    an_entry(
        acme, price=PinnedPrice(PRICE.id, 500_000, 0, 500_000), input_tokens=1, output_tokens=1, gpu_ms=0
    )
    an_entry(acme, price=PinnedPrice(PRICE.id, 1, 0, 1), input_tokens=1, output_tokens=1, gpu_ms=0)

    assert costs(charges(acme)) == {"Input tokens": 2, "Output tokens": 0}


def test_free_models_are_charged_nothing_and_told_all_the_same(acme: Tenant) -> None:
    an_entry(acme, price=FREE)

    rows = charges(acme)

    assert {row["BilledCost"] for row in rows} == {row["ListUnitPrice"] for row in rows} == {"0.000000"}
    assert [int(row["ConsumedQuantity"]) for row in rows] == [100, 50, 900]


def test_a_cost_without_rates_is_on_the_requests(acme: Tenant) -> None:
    an_entry(acme, price=None, cost_micro_usd=70)

    rows = charges(acme)

    assert costs(rows) == {"Input tokens": 0, "Output tokens": 0, "GPU time": 0, "Requests": 70}
    assert [(row["ListUnitPrice"], row["SkuPriceId"]) for row in rows] == [("", "")] * 4
    assert rows[-1]["ConsumedQuantity"] == "1"


DAY, LAST_MONTH = date(2026, 10, 15), date(2026, 9, 15)


@pytest.mark.parametrize(
    ("changes", "of_usage", "told"),
    [
        pytest.param({}, DAY, ("", "usage", "Input tokens of"), id="usage"),
        pytest.param({"kind": "adjustment"}, DAY, ("", "adjustment", "Adjustment: Input"), id="this month's"),
        pytest.param(
            {"kind": "adjustment"},
            LAST_MONTH,
            ("Correction", "adjustment", "Adjustment: Input"),
            id="last month's",
        ),
        pytest.param(
            {"closed_month": date(2026, 9, 1)},
            None,
            ("Correction", "usage", "Late, of 2026-09: Input"),
            id="late",
        ),
        pytest.param(
            {"kind": "correction", "actor": "olga", "reason": "twice"},
            LAST_MONTH,
            ("Correction", "correction", "Correction: Input"),
            id="a person's, of last month",
        ),
        pytest.param(
            {"kind": "correction", "actor": "olga", "reason": "twice"},
            DAY,
            ("", "correction", "Correction: Input"),
            id="a person's, of this month",
        ),
        pytest.param(
            {"kind": "correction", "actor": "olga", "reason": "twice", "closed_month": date(2026, 9, 1)},
            LAST_MONTH,
            ("Correction", "correction", "Late, of 2026-09: Input"),
            id="a person's, of a closed month",
        ),
    ],
)
def test_corrections_of_months_that_are_over_are_told_as_such(
    acme: Tenant, changes: dict[str, Any], of_usage: date | None, told: tuple[str, str, str]
) -> None:
    known = dict(changes)
    if changes.get("kind"):
        first = an_entry(acme, day=of_usage, model="other:1b")
        known |= (
            {"corrects": first.request_id}
            if changes["kind"] == "correction"
            else {"request_id": first.request_id}
        )
    an_entry(acme, **known)

    row = next(row for row in charges(acme) if row["ResourceId"] == "llama3.2:latest")

    assert (row["ChargeClass"], row["x_Kind"]) == told[:2]
    assert row["ChargeDescription"].startswith(told[2])
    assert row["x_ClosedMonth"] == str(changes.get("closed_month", ""))
    assert row["ChargeCategory"] == "Usage"


@pytest.mark.parametrize(
    ("zone", "day", "start", "end", "hours"),
    [
        ("Europe/Berlin", date(2026, 10, 24), "2026-10-23T22:00:00Z", "2026-10-24T22:00:00Z", 24),
        # Clocks go back, and on.
        ("Europe/Berlin", date(2026, 10, 25), "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", 25),
        ("Europe/Berlin", date(2026, 3, 29), "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 23),
        ("UTC", date(2026, 10, 25), "2026-10-25T00:00:00Z", "2026-10-26T00:00:00Z", 24),
        ("Asia/Kathmandu", date(2026, 10, 25), "2026-10-24T18:15:00Z", "2026-10-25T18:15:00Z", 24),
        # There is no midnight on this day: clocks go from there to one o'clock.
        ("Africa/Cairo", date(2026, 4, 24), "2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z", 23),
    ],
)
def test_a_charge_period_is_the_accounting_day(
    acme: Tenant, zone: str, day: date, start: str, end: str, hours: int
) -> None:
    Tenant.objects.filter(pk=acme.pk).update(time_zone=zone, created_at=datetime(2020, 1, 1, tzinfo=UTC))
    CalendarChange.objects.all().delete()
    an_entry(acme, day=day)

    row = charges(acme, from_day=day, before_day=day + timedelta(days=1))[0]

    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"], row["x_TimeZone"]) == (start, end, zone)
    span = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    assert span == timedelta(hours=hours)
    assert row["BillingPeriodStart"] <= start < end <= row["BillingPeriodEnd"]


def test_after_another_zone_was_set_days_of_before_keep_theirs(acme: Tenant) -> None:
    for day in (date(2026, 10, 10), date(2026, 10, 12), date(2026, 10, 14)):
        an_entry(acme, day=day)
    CalendarChange.objects.create(
        tenant_id=acme.pk,
        at=datetime(2026, 10, 11, 12, tzinfo=UTC),
        time_zone_before="Europe/Berlin",
        week_start_before=1,
        time_zone="America/New_York",
        week_start=1,
    )
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tenants_tenant DISABLE TRIGGER USER")
        cursor.execute("UPDATE tenants_tenant SET time_zone = 'America/New_York'")
        cursor.execute("ALTER TABLE tenants_tenant ENABLE TRIGGER USER")

    rows = [row for row in charges(acme) if row["SkuMeter"] == "Input tokens"]

    assert [(row["x_TimeZone"], row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in rows] == [
        ("Europe/Berlin", "2026-10-09T22:00:00Z", "2026-10-10T22:00:00Z"),
        # The first day in the new zone begins with the end of the last one in the old.
        ("America/New_York", "2026-10-11T22:00:00Z", "2026-10-13T04:00:00Z"),
        ("America/New_York", "2026-10-14T04:00:00Z", "2026-10-15T04:00:00Z"),
    ]


def test_charges_of_a_closed_month_name_its_statement(acme: Tenant) -> None:
    an_entry(acme)
    an_entry(acme, day=date(2026, 11, 2))
    closed = ClosedMonth.objects.create(
        tenant_id=acme.pk, tenant="acme", tenant_name="ACME", month=date(2026, 10, 1), time_zone="UTC",
        entries=1, export_sha256="0" * 64, closed_by="olga",
    )  # fmt: skip
    Statement.objects.create(
        number="2026-000001", year=2026, sequence=1, closing=closed, issuer="ACME's, %s", tenant_id=acme.pk,
        tenant="acme", tenant_name="ACME", month=closed.month, time_zone="UTC", requests=1, input_tokens=1,
        cached_tokens=0, output_tokens=1, thinking_tokens=0, estimated_tokens=0, gpu_ms=0, cost_micro_usd=1,
        lines=[], prices=[], csv=b"", csv_sha256="", pdf=b"", pdf_sha256="",
    )  # fmt: skip

    rows = charges(acme, before_day=date(2026, 12, 1))

    told = {(row["x_Day"], row["InvoiceId"], row["InvoiceIssuerName"]) for row in rows}
    assert told == {
        ("2026-10-15", "2026-000001", "ACME's, %s"),
        ("2026-11-02", "", settings.STATEMENT_ISSUER),
    }


def test_tags_are_json_whatever_people_call_things(acme: Tenant) -> None:
    name = 'a "key",\n=1+1 \\ {"x": 1} ünï'
    an_entry(acme, key=name, member="ada", team="")

    tags = json.loads(charges(acme)[0]["Tags"])

    assert tags == {
        "tollgate/key": name,
        "tollgate/key_id": "00000000-0000-4000-8000-00000000000a",
        "tollgate/member": "ada",
    }


def test_the_ledger_of_a_tenant_that_is_gone_is_still_charged_by_days_of_utc(acme: Tenant) -> None:
    an_entry(Tenant(slug="gone", name="Gone"))

    [row, *_] = [row for row in charges(None) if row["SubAccountName"] == "gone"]

    assert (row["ChargePeriodStart"], row["x_TimeZone"]) == ("2026-10-15T00:00:00Z", "UTC")


TOKENS = st.integers(0, 3_000_000)
RATES = st.sampled_from([0, 1, 7, 333_333, 1_000_000, 10**9])


@st.composite
def an_admissible_entry(draw: st.DrawFn) -> dict[str, Any]:
    """What an entry may be: of any price, exact or not; a difference may be of any sign and any cost."""
    price = draw(
        st.one_of(
            st.none(),
            st.builds(
                PinnedPrice, st.just(PRICE.id), RATES, RATES, RATES, st.sampled_from([0, 1, 25, 10**6])
            ),
        )
    )
    input_tokens, output_tokens, gpu_ms = draw(TOKENS), draw(TOKENS), draw(st.integers(0, 10**7))
    entry: dict[str, Any] = {
        "price": price,
        "input_tokens": input_tokens,
        "cached_tokens": draw(st.integers(0, input_tokens)),
        "output_tokens": output_tokens,
        "gpu_ms": gpu_ms,
        "exact": draw(st.booleans()),
        "model": draw(st.sampled_from(["a:1b", "b:1b"])),
        "day": date(2026, 10, draw(st.integers(1, 2))),
    }
    if draw(st.booleans()):
        sign = draw(st.sampled_from([1, -1]))
        entry |= {
            name: sign * entry[name] for name in ("input_tokens", "cached_tokens", "output_tokens", "gpu_ms")
        }
        entry |= {"kind": "adjustment", "cost_micro_usd": draw(st.integers(-(10**12), 10**12))}
    return entry


class TestCosts(TransactionTestCase):
    @hypothesis_settings(max_examples=60)
    @given(st.lists(an_admissible_entry(), max_size=6))
    def test_charges_add_up_to_the_ledger_to_the_micro_usd(self, entries: list[dict[str, Any]]) -> None:
        tenant = Tenant(slug="acme", name="ACME")
        for entry in entries:
            an_entry(tenant, **entry)
        order = an_order(tenant, "focus")

        found, _ = totals_of(order)

        expected = usage.totals(order.selection)
        assert {name: found.get(name, 0) for name in ("cost_micro_usd", "input_tokens", "cached_tokens")} == {
            name: expected[name] for name in ("cost_micro_usd", "input_tokens", "cached_tokens")
        }
        rows = rows_of(order)
        for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
            assert sum(Decimal(row[name]) for row in rows) * 10**6 == expected["cost_micro_usd"]
        for row in rows:
            # Rounding is less than a micro-USD for each entry and meter.
            if row["x_Kind"] == "usage" and row["ListUnitPrice"]:
                exact = Decimal(row["PricingQuantity"]) * Decimal(row["ListUnitPrice"]) * 10**6
                assert abs(int(row["x_CostMicroUsd"]) - exact) < 5 * len(entries)
