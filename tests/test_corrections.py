"""Corrections: signed entries more, with a reason and a person, in the open month."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent, RequestEvent
from budgets import booking, ledger
from budgets.corrections import _refuse_impossible, correct_usage
from budgets.models import LedgerEntry
from budgets.month_closing import close_month, same_as_closed
from budgets.usage import SUMS
from tenants.ids import new_id
from tenants.models import Tenant
from tests.accounts import a_tenant, ago, of_ledger, of_rollups, on, quiet_counters, settled, today, used
from tests.test_closed_months import in_a_thread

COPIED = (
    "tenant_id", "tenant", "team_id", "team", "member_id", "member", "key_id", "key", "model", "upstream",
    "route", "operation", "dialect", "stream", "run", "admitted_at", "ended_at", "price_id", "input_price",
    "cached_price", "output_price", "gpu_price", "exact", "estimator", "late", "on_credit", "outcome",
    "status",
)  # fmt: skip


@pytest.fixture
def acme(transactional_db: None, settings: Any, tmp_path: Path) -> Tenant:
    settings.SPOOL_DIR = tmp_path / "spool"
    quiet_counters()
    return a_tenant()


def corrected(request_id: UUID, reason: str = "counted twice", **changes: int) -> LedgerEntry:
    return correct_usage(request_id=request_id, changes=changes, reason=reason, actor="ada")


def test_a_correction_is_an_entry_of_its_own_about_the_same_call(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)), exact=False)

    correction = corrected(entry.request_id, output_tokens=-5, cost_micro_usd=-2)

    stored = LedgerEntry.objects.get(kind="correction")
    assert (stored.request_id, stored.corrects) == (correction.request_id, entry.request_id)
    assert (stored.reason, stored.actor, stored.day) == ("counted twice", "ada", entry.day)
    assert {name: getattr(stored, name) for name in COPIED} == {name: getattr(entry, name) for name in COPIED}
    changes = dict.fromkeys(SUMS, 0) | {"output_tokens": -5, "cost_micro_usd": -2}
    assert {figure: getattr(stored, figure) for figure in SUMS} == changes
    assert stored.closed_month is None
    assert of_ledger(acme) == of_rollups(acme)
    assert of_ledger(acme)["output_tokens"] == 15
    assert of_ledger(acme)["estimated_tokens"] == 25
    assert RequestEvent.objects.count() == 1


def test_a_correction_is_told_in_the_audit(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)))

    correction = corrected(entry.request_id, output_tokens=-5)

    event = AuditEvent.objects.get(action="usage.corrected")
    assert (event.actor, event.reason, event.subject) == ("ada", "counted twice", str(entry.request_id))
    assert event.tenant_id == acme.pk
    assert event.details["changes"] == {"output_tokens": -5}
    assert event.details["correction"] == str(correction.request_id)


def test_what_is_wrong_in_a_closed_month_is_put_right_in_the_open_one(acme: Tenant) -> None:
    month = ago(1)
    entry = used(acme, on(month))
    closing = close_month(tenant=acme, month=month, actor="ada").closing

    correction = corrected(entry.request_id, output_tokens=-5)

    assert (correction.day, correction.closed_month) == (today(acme), month)
    assert same_as_closed(closing)
    assert of_ledger(acme) == of_rollups(acme)


def test_what_is_wrong_in_an_open_month_is_put_right_on_its_day(acme: Tenant) -> None:
    entry = used(acme, on(ago(1)))

    correction = corrected(entry.request_id, output_tokens=-5)

    assert (correction.day, correction.closed_month) == (entry.day, None)


def test_a_request_may_be_corrected_again_down_to_nothing_and_no_further(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)), outcome="orphaned", output_tokens=20)
    settled(acme, on(today(acme)) + timedelta(seconds=1), request_id=entry.request_id, output_tokens=12)
    ledger.drain()

    corrected(entry.request_id, output_tokens=-8)
    with pytest.raises(ValidationError, match="output_tokens is 4; it cannot be -1"):
        corrected(entry.request_id, output_tokens=-5)
    corrected(entry.request_id, output_tokens=-4)

    assert of_ledger(acme)["output_tokens"] == 0
    assert AuditEvent.objects.filter(action="usage.corrected").count() == 2


def test_two_who_correct_at_once_take_no_more_than_there_is(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)), output_tokens=10)

    with ThreadPoolExecutor(4) as pool:
        tries = [in_a_thread(pool, lambda: corrected(entry.request_id, output_tokens=-4)) for _ in range(4)]
        refused = [one.exception(60) for one in tries]

    assert sum(one is None for one in refused) == 2
    assert of_ledger(acme)["output_tokens"] == 2
    assert of_ledger(acme) == of_rollups(acme)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Say what is to be corrected"),
        ({"output_tokens": 0}, "Say what is to be corrected"),
        ({"estimated_tokens": 1}, "There is no figure estimated_tokens"),
        ({"day": 1}, "There is no figure day"),
        ({"cached_tokens": 11}, "cached_tokens would be 11, more than input_tokens, 10"),
        ({"thinking_tokens": 21}, "thinking_tokens would be 21, more than output_tokens, 20"),
        ({"requests": 1}, "It is one request"),
        ({"requests": -2}, "requests is 1; it cannot be -1"),
        ({"gpu_ms": -1501}, "gpu_ms is 1500; it cannot be -1"),
    ],
)
def test_impossible_corrections_are_refused_and_change_nothing(
    acme: Tenant, changes: dict[str, Any], told: str
) -> None:
    entry = used(acme, on(today(acme)))

    with pytest.raises(ValidationError, match=told):
        corrected(entry.request_id, **changes)

    assert LedgerEntry.objects.count() == 1
    assert not AuditEvent.objects.filter(action="usage.corrected").exists()


def test_a_correction_has_a_reason_and_a_request(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)))
    correction = corrected(entry.request_id, output_tokens=-1)

    with pytest.raises(ValidationError, match="Say why"):
        corrected(entry.request_id, reason="", output_tokens=-1)
    for unknown in (new_id(), correction.request_id):
        with pytest.raises(ValidationError, match=f"The ledger has no request {unknown}"):
            corrected(unknown, output_tokens=-1)


def test_the_ledger_books_nothing_twice(acme: Tenant) -> None:
    entry = used(acme, on(today(acme)))

    with pytest.raises(IntegrityError, match="has usage of"):
        booking.book(entry)


FIGURE = st.integers(-50, 50)


@given(
    st.fixed_dictionaries({figure: st.integers(0, 30) for figure in SUMS}),
    st.dictionaries(st.sampled_from(SUMS), FIGURE),
)
def test_whatever_is_let_through_is_a_request_that_can_be(
    net: dict[str, int], changes: dict[str, int]
) -> None:
    after = {figure: net[figure] + changes.get(figure, 0) for figure in SUMS}
    can_be = (
        min(after.values()) >= 0
        and after["cached_tokens"] <= after["input_tokens"]
        and after["thinking_tokens"] <= after["output_tokens"]
        and after["requests"] <= 1
    )

    try:
        _refuse_impossible(net, changes)
    except ValidationError:
        assert not can_be
    else:
        assert can_be
