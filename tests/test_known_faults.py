"""Faults that gateways of this kind are known for, and that this one must not have.

``docs/required-behaviours.md`` says which fault is whose, and names the tests
of those that other files show.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import global_settings
from django.core.management import CommandError, call_command

from budgets import ledger
from budgets.charges import charge
from budgets.exceptions import BudgetExhausted
from budgets.models import BudgetPeriod, LedgerEntry
from budgets.pricing import PinnedPrice
from budgets.reservations import Reservation, release, reserve, settle
from budgets.services import set_budget
from budgets.settlements import Moments
from keys.verification import Caller
from proxy.admission import admit as admit_call
from tests.conftest import eventually
from tests.counting import (
    a_budget,
    a_demand,
    ada,
    always,
    believed_by_postgres,
    empty_redis,
    figures,
    some_usage,
)

ROOT = Path(__file__).resolve().parent.parent
SCREEN = 55
APPS = ("config", "proxy", "budgets", "keys", "tenants", "audit")


@pytest.fixture
def counters(transactional_db: None) -> None:
    empty_redis()
    believed_by_postgres()


def admit(caller: Caller, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(**demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def sources() -> dict[str, str]:
    """The modules that run in production, without migrations."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for app in APPS
        for path in (ROOT / app).rglob("*.py")
        if "migrations" not in path.parts
    }


def test_one_function_lets_calls_through_and_it_fits_a_screen():
    """N1."""
    assert len(inspect.getsource(admit_call).splitlines()) <= SCREEN

    calling = {name for name, text in sources().items() if re.search(r"(?<!def )\breserve\(", text)}

    assert {name for name in calling if not name.startswith("budgets/")} == {"proxy/admission.py"}


def test_a_call_is_booked_in_the_period_that_admitted_it_however_late_it_ends(counters):
    """N35."""
    budget = a_budget(1000, window="fixed", schedule=always("fixed", seconds=1))
    reservation = admit(ada(budget), input_tokens=10)
    [counter] = reservation.counters
    assert counter.start is not None
    assert counter.end is not None
    period_end = counter.end

    eventually(lambda: time.time() > period_end + 1)
    end(reservation, input_tokens=7, output_tokens=20)
    ledger.drain()

    [period] = BudgetPeriod.objects.all()
    assert (period.used, period.period_start) == (27, datetime.fromtimestamp(counter.start, UTC))
    entry = LedgerEntry.objects.get()
    assert entry.admitted_at.timestamp() < period_end <= entry.ended_at.timestamp()


def test_a_used_up_budget_is_whole_again_in_its_next_period_though_nothing_ran_meanwhile(counters):
    """B11, B12, B19, W17: steady calls do not make a period longer, and no job has to end it."""
    budget = a_budget(100, window="fixed", schedule=always("fixed", seconds=1))
    caller = ada(budget)
    periods = set()

    for _ in range(3):

        def admitted() -> Reservation | None:
            try:
                return admit(caller, input_tokens=10, output_tokens=90, least_output=90)
            except BudgetExhausted:
                return None

        reservation = eventually(admitted)
        periods.add(reservation.counters[0].start)
        end(reservation, input_tokens=10, output_tokens=90)

    assert len(periods) == 3
    assert max(periods) - min(periods) >= 2


def test_exactly_the_limit_fits_and_then_nothing_does(counters):
    """S8, S30, W5: allowed and refused are never both true."""
    budget = a_budget(100)
    caller = ada(budget)

    admitted = admit(caller, input_tokens=10, output_tokens=90)
    with pytest.raises(BudgetExhausted) as refused:
        admit(caller, input_tokens=0, output_tokens=1)

    assert figures(budget) == (0, 100)
    assert [standing.remaining for standing in admitted.standing] == [0]
    assert [standing.remaining for standing in refused.value.standing] == [0]


def test_ending_one_call_frees_the_room_of_no_other(counters):
    """S31, S26: a hold belongs to a request, whatever amount it ends with and however often it is told."""
    budget = a_budget(1000)
    caller = ada(budget)
    one, other = admit(caller, input_tokens=10), admit(caller, input_tokens=10)

    for _ in range(3):
        end(one, input_tokens=10, output_tokens=100)
    assert figures(budget) == (110, 110)

    asyncio.run(release(other, "upstream_failed", 502))
    asyncio.run(release(other, "upstream_failed", 502))
    assert figures(budget) == (110, 0)


def test_money_is_whole_micro_dollars():
    """S2, S6, W11, B27: 4000 tokens in and 4000 out, at 30 and 60 micro-USD each."""
    price = PinnedPrice(uuid4().hex, 30_000_000, 30_000_000, 60_000_000)

    cost = charge("micro_usd", 4000, price).amount(4000)

    assert cost == 360_000
    assert type(cost) is int


def test_a_name_that_nobody_knows_is_an_error_and_never_passed_over(db: None):
    """B28."""
    with pytest.raises(TypeError):
        set_budget(scope="platform", unit="tokens", period="day", limit=1, actor="x", max_limit=1)  # type: ignore[call-arg]
    for misspelt in (["--max-limit", "5"], ["--scoop", "platform"]):
        with pytest.raises(CommandError):
            call_command("set_budget", *misspelt, stdout=StringIO(), stderr=StringIO())


def test_every_setting_is_read_by_something():
    """W23: none is defined and forgotten."""
    text = sources()
    defined = set(
        re.findall(r"^([A-Z][A-Z_]+)(?:: [^=]+)? = env\b", text.pop("config/settings.py"), re.MULTILINE)
    )
    assert len(defined) > 20
    everything = "\n".join(text.values())
    read_by_libraries = {
        name for name in defined if hasattr(global_settings, name) or name.startswith("CELERY_")
    }

    assert {name for name in defined - read_by_libraries if f"settings.{name}" not in everything} == set()
