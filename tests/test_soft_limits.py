"""Soft limits as callers and people meet them: raises, shadow mode and warnings."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.utils.timezone import now

from audit.models import RequestEvent
from budgets import alerts, ledger, services
from budgets.models import BudgetPeriod, Delivery
from tests.conftest import House, eventually


def test_a_raise_is_in_the_headers_and_gone_from_them_after_its_end(house: House) -> None:
    key = house.ada.key
    budget = services.set_budget(
        scope="key", key=key, unit="requests", period="lifetime", limit=1, actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").headers.get("x-ratelimit-limit-requests") == "1")
    assert house.ada.chat().status_code == 200
    assert house.ada.chat().status_code == 429

    granted = services.raise_limit(
        row=budget, to=3, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="test"
    )

    eventually(lambda: house.ada.http.get("/v1/models").headers["x-ratelimit-limit-requests"] == "3")
    assert house.ada.chat().status_code == 200
    services.take_back_raise(raised=granted, actor="test", reason="over")
    eventually(lambda: house.ada.http.get("/v1/models").headers["x-ratelimit-limit-requests"] == "1")
    assert house.ada.chat().status_code == 429


def refused_of(budget_id: UUID) -> int:
    ledger.drain()
    row = BudgetPeriod.objects.filter(budget_id=budget_id).first()
    return row.refused if row else 0


def test_a_shadow_budget_lets_calls_through_and_says_which_it_would_have_refused(house: House) -> None:
    budget = services.set_budget(
        scope="key", key=house.ada.key, unit="requests", period="day", limit=1, shadow=True, actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").status_code == 200)

    assert [house.ada.chat().status_code for _ in range(3)] == [200, 200, 200]

    house.booked(3)
    assert refused_of(budget.pk) == 2
    told = (
        RequestEvent.objects.filter(key_id=house.ada.key.pk)
        .order_by("at")
        .values_list("status", "refusal", "refused_by")
    )
    assert list(told) == [(200, "", [])] + 2 * [(200, "", ["key-requests-day"])]


def test_a_budget_that_refuses_is_named_and_counted(house: House) -> None:
    budget = services.set_budget(
        scope="key", key=house.ada.key, unit="requests", period="day", limit=1, actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").headers.get("x-ratelimit-limit-requests") == "1")

    assert [house.ada.chat().status_code for _ in range(3)] == [200, 429, 429]

    eventually(lambda: refused_of(budget.pk) == 2)
    refused = RequestEvent.objects.filter(status=429, key_id=house.ada.key.pk)
    assert list(refused.values_list("refused_by", flat=True)) == 2 * [["key-requests-day"]]


def test_a_call_larger_than_a_whole_budget_says_nothing_about_what_is_left_of_it(house: House) -> None:
    budget = services.set_budget(
        scope="key", key=house.ada.key, unit="tokens", period="day", limit=3, actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").headers.get("x-ratelimit-limit-tokens") == "3")

    assert house.ada.chat().status_code == 429

    def events() -> list[list[str]]:
        ledger.drain()
        refused = RequestEvent.objects.filter(status=429, key_id=house.ada.key.pk)
        return list(refused.values_list("refused_by", flat=True))

    assert eventually(events) == [["key-tokens-day"]]
    assert refused_of(budget.pk) == 0


def test_a_rate_limit_in_shadow_mode_refuses_nobody(house: House) -> None:
    services.set_rate_limit(
        scope="key", key=house.ada.key, measure="requests_per_minute", limit=1, shadow=True, actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").status_code == 200)

    assert [house.ada.chat().status_code for _ in range(2)] == [200, 200]

    house.booked(2)
    told = (
        RequestEvent.objects.filter(key_id=house.ada.key.pk)
        .order_by("at")
        .values_list("refused_by", flat=True)
    )
    assert list(told) == [[], ["key-requests-minute"]]


def told() -> list[tuple[str, int | None]]:
    """Happening and threshold of what people were told."""
    deliveries = Delivery.objects.select_related("notice").order_by("notice__at", "id")
    return [(one.notice.happening, one.notice.threshold) for one in deliveries]


def test_people_are_told_of_what_callers_used_and_were_refused(house: House) -> None:
    """From the port of the gateway to the deliveries, with the tasks of the worker in between."""
    services.add_recipient(kind="email", address="ada@acme.test", actor="test")
    services.set_budget(
        scope="key", key=house.ada.key, unit="requests", period="day", limit=2, thresholds=[50], actor="test"
    )
    eventually(lambda: house.ada.http.get("/v1/models").headers.get("x-ratelimit-limit-requests") == "2")

    house.ada.chat()
    eventually(lambda: alerts.look() or told())
    assert told() == [("threshold", 50)]
    assert [house.ada.chat().status_code for _ in range(2)] == [200, 429]

    def all_told() -> bool:
        ledger.drain()
        alerts.look()
        return told() == [("threshold", 50), ("exhausted", None)]

    eventually(all_told)
