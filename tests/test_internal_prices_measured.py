"""Calls through the gateway are what a month's report measures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.db.models import Sum
from django.utils.timezone import now

from budgets.internal_prices import LEAST_TIMED_CALLS
from budgets.models import LedgerEntry
from budgets.price_report import report_of
from tests.conftest import House
from tests.measuring import a_dollar_an_hour


def test_calls_of_ollamas_api_are_timed_and_those_of_openais_are_measured_with_them(house: House) -> None:
    a_dollar_an_hour("sim", starts_at=now() - timedelta(days=2))
    for _ in range(LEAST_TIMED_CALLS):
        assert house.ada.chat(stream=False).status_code == 200
    hello = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello there"}]}
    assert house.ada.http.post("/v1/chat/completions", json=hello).status_code == 200
    house.booked(LEAST_TIMED_CALLS + 1)

    report = report_of(datetime.now(UTC).date())

    [model], [upstream] = report.considered, report.costs.upstreams
    measured = model.measured.use
    assert (measured.calls, measured.timed_calls) == (LEAST_TIMED_CALLS + 1, LEAST_TIMED_CALLS)
    sums = LedgerEntry.objects.aggregate(Sum("gpu_ms"), Sum("input_tokens"), Sum("output_tokens"))
    assert (measured.gpu_ms, measured.input_tokens, measured.output_tokens) == tuple(sums.values())
    assert upstream.gpu_ms == measured.gpu_ms > 0
    assert model.figures is not None
    assert model.figures.output_price > 0
