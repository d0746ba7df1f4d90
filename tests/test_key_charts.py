"""What the charts of a key draw: figures of the ledger and of calls, each on its hour or day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine

from audit.models import RequestEvent
from budgets.key_charts import Span, charts_of
from budgets.key_limits import KeyLimit, limits_of_keys
from budgets.services import set_budget
from keys.models import ApiKey
from keys.services import issue_key
from tenants.charts import Chart
from tenants.ids import new_id
from tenants.models import Tenant
from tests import ledgers
from tests.counting import without_redis
from tests.ledgers import book

pytestmark = pytest.mark.django_db

# In Berlin 00:30 on the 11th.
NOW = datetime(2026, 3, 10, 23, 30, tzinfo=UTC)
ISSUED = datetime(2026, 3, 8, 9, 15, tzinfo=UTC)


@pytest.fixture(autouse=True)
def then() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


@pytest.fixture
def key(acme: Tenant) -> ApiKey:
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")
    ApiKey.objects.update(created_at=ISSUED)
    key.refresh_from_db()
    return key


def used(key: ApiKey, at: datetime, **figures: Any) -> None:
    book(ledgers.of(key.tenant, key_id=key.pk, key=key.label, ended_at=at, **figures))


def called(key: ApiKey, at: datetime, refusal: str = "", first_ms: int = 100, whole_ms: int = 1000) -> None:
    begun = at - timedelta(milliseconds=whole_ms)
    RequestEvent.objects.create(
        request_id=new_id(), at=at, tenant_id=key.tenant_id, key_id=key.pk, route="/api/chat",
        dialect="OLLAMA", status=429 if refusal else 200, refusal=refusal,
        outcome="refused" if refusal else "completed",
        admitted_at=None if refusal else begun, ended_at=None if refusal else at,
        first_byte_at=None if refusal else begun + timedelta(milliseconds=first_ms),
    )  # fmt: skip


def drawn(key: ApiKey, span: Span) -> dict[str, Chart]:
    limits: list[KeyLimit] = limits_of_keys([key.pk])[key.pk]
    return {chart.id: chart for chart in charts_of(key, span, limits, NOW, ZoneInfo("Europe/Berlin"))}


def by_the_clock_here(key: ApiKey) -> dict[str, Chart]:
    """The present period by our clock, which stands still; that of Redis does not."""
    with without_redis():
        return drawn(key, Span.PERIOD)


def values(chart: Chart) -> dict[str, dict[str, int | None]]:
    """By point and series, without the points that are zero everywhere."""
    found = {
        point.value: {one.id: one.values[place] for one in chart.series}
        for place, point in enumerate(chart.points)
    }
    return {value: figures for value, figures in found.items() if any(one != 0 for one in figures.values())}


def test_the_last_day_is_drawn_by_hours_up_to_the_present_one(key: ApiKey) -> None:
    used(key, NOW - timedelta(hours=2), input_tokens=7, output_tokens=20)
    used(key, NOW, input_tokens=1, cached_tokens=0, output_tokens=2)
    used(key, NOW - timedelta(hours=24), input_tokens=500)

    tokens = drawn(key, Span.DAY)["tokens"]

    assert len(tokens.points) == 24
    assert tokens.points[-1].value == "2026-03-10T23:00:00+00:00"
    assert tokens.points[-1].name == "2026-03-11 00:00"
    assert values(tokens) == {
        "2026-03-10T21:00:00+00:00": {"input_tokens": 7, "output_tokens": 20},
        "2026-03-10T23:00:00+00:00": {"input_tokens": 1, "output_tokens": 2},
    }


def test_longer_spans_are_drawn_by_the_days_of_the_tenant(key: ApiKey) -> None:
    used(key, NOW - timedelta(hours=1), output_tokens=20)
    used(key, NOW, output_tokens=2)

    week, month = drawn(key, Span.WEEK)["tokens"], drawn(key, Span.MONTH)["tokens"]

    assert [point.value for point in week.points][::6] == ["2026-03-05", "2026-03-11"]
    assert len(month.points) == 30
    output = {point.value: value for point, value in zip(week.points, week.series[1].values, strict=True)}
    assert output["2026-03-10"] == 20
    assert output["2026-03-11"] == 2


def test_before_the_key_was_issued_there_is_no_data_and_afterwards_zero(key: ApiKey) -> None:
    used(key, NOW, output_tokens=2)

    tokens = drawn(key, Span.WEEK)["tokens"]

    assert list(tokens.series[1].values) == [None, None, None, 0, 0, 0, 2]


def test_without_any_call_there_is_no_data_anywhere(key: ApiKey) -> None:
    assert all(chart.empty for span in Span for chart in drawn(key, span).values())


def test_the_usage_of_another_key_is_not_drawn(acme: Tenant, key: ApiKey) -> None:
    other, _ = issue_key(tenant=acme, label="other", actor="test")
    used(other, NOW, output_tokens=2)
    called(other, NOW, "budget_exhausted")

    assert all(chart.empty for chart in drawn(key, Span.DAY).values())


def test_refused_calls_are_drawn_by_their_reason(key: ApiKey) -> None:
    called(key, NOW, "budget_exhausted")
    called(key, NOW, "budget_exhausted")
    called(key, NOW - timedelta(hours=3), "model_not_found")
    called(key, NOW)

    refusals = drawn(key, Span.DAY)["refusals"]

    assert values(refusals) == {
        "2026-03-10T20:00:00+00:00": {"budget_exhausted": 0, "model_not_found": 1},
        "2026-03-10T23:00:00+00:00": {"budget_exhausted": 2, "model_not_found": 0},
    }


def test_no_refusal_is_a_zero_once_there_were_calls(key: ApiKey) -> None:
    used(key, NOW, output_tokens=2)

    refusals = drawn(key, Span.DAY)["refusals"]

    assert set(refusals.series[0].values) == {0}


def test_waits_are_drawn_as_percentiles_of_the_calls_that_were_answered(key: ApiKey) -> None:
    for first_ms in (100, 200, 300):
        called(key, NOW, first_ms=first_ms, whole_ms=10 * first_ms)
    called(key, NOW, "budget_exhausted")

    charts = drawn(key, Span.DAY)

    hour = "2026-03-10T23:00:00+00:00"
    assert values(charts["first"])[hour] == {"p50": 200, "p95": 290}
    assert values(charts["whole"])[hour] == {"p50": 2000, "p95": 2900}
    assert [value for value in charts["first"].series[0].values if value is not None] == [200]


@pytest.mark.parametrize(
    ("unit", "period", "span", "chart"),
    [
        ("tokens", "hour", Span.DAY, "tokens"),
        ("tokens", "day", Span.WEEK, "tokens"),
        ("micro_usd", "day", Span.MONTH, "cost"),
    ],
)
def test_a_limit_is_drawn_where_a_bar_is_as_long_as_its_period(
    key: ApiKey, unit: str, period: str, span: Span, chart: str
) -> None:
    set_budget(scope="key", key=key, unit=unit, period=period, limit=5_000, actor="test")

    with_limit = {
        (one, name) for one in Span for name, drawing in drawn(key, one).items() if drawing.limit is not None
    }

    assert (span, chart) in with_limit
    others = {found for found in with_limit if found[0] != Span.PERIOD and found != (span, chart)}
    assert others <= {(Span.WEEK, chart), (Span.MONTH, chart)}


def test_the_present_period_is_added_up_towards_its_limit(key: ApiKey) -> None:
    set_budget(scope="key", key=key, unit="tokens", period="month", limit=100, actor="test")
    used(key, NOW - timedelta(hours=24), input_tokens=7, output_tokens=20)
    used(key, NOW, input_tokens=1, cached_tokens=0, output_tokens=2)

    towards = by_the_clock_here(key)["period"]

    assert [point.value for point in towards.points] == [
        "2026-03-08",
        "2026-03-09",
        "2026-03-10",
        "2026-03-11",
    ]
    assert list(towards.series[0].values) == [0, 0, 27, 30]
    assert towards.limit is not None
    assert towards.limit.value == 100


def test_a_short_period_is_drawn_by_hours(key: ApiKey) -> None:
    set_budget(scope="key", key=key, unit="requests", period="day", limit=100, actor="test")
    used(key, NOW)

    towards = by_the_clock_here(key)["period"]

    # The day of Berlin began half an hour ago.
    assert [point.name for point in towards.points] == ["2026-03-11 00:00"]
    assert list(towards.series[0].values) == [1]


def test_a_key_without_limits_is_drawn_over_the_present_month(key: ApiKey) -> None:
    ApiKey.objects.update(created_at=datetime(2026, 1, 1, tzinfo=UTC))
    key.refresh_from_db()

    charts = drawn(key, Span.PERIOD)

    assert "period" not in charts
    assert [point.value for point in charts["tokens"].points][::10] == ["2026-03-01", "2026-03-11"]
