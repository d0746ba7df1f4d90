"""What a tenant may use while Redis cannot be asked: little, known, and booked once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import ledger, spool
from budgets.charges import Charge
from budgets.credit import credit
from budgets.exceptions import BudgetExhausted, CountersUnavailable
from budgets.limits import Limit, limits_for
from budgets.models import LedgerEntry, OutageCredit
from budgets.reservations import Reservation, ending, release, reserve, settle
from budgets.settlements import Moments
from keys.verification import Caller
from tenants.models import Generation
from tenants.services import create_tenant
from tests.counting import (
    a_budget,
    a_demand,
    a_rate,
    ada,
    believed_by_postgres,
    concurrency,
    empty_redis,
    figures,
    open_holds,
    redis,
    some_usage,
)
from tests.fault_proxy import FaultProxy, line_to
from tests.test_budgets_recovery import nobody_listens

pytestmark = pytest.mark.django_db(transaction=True)

CREDIT = 200


@pytest.fixture(autouse=True)
def _house(settings: Any, tmp_path: Path) -> Iterator[None]:
    empty_redis()
    believed_by_postgres()
    ending._recent.clear()
    settings.SPOOL_DIR = tmp_path / "spool"
    credit._loans.clear()
    yield
    credit._loans.clear()


def a_debtor(*limiting: Limit, credit_tokens: int = CREDIT) -> Caller:
    """A caller whose tenant has credit and whose generations PostgreSQL confirms."""
    caller = ada(*limiting, credit_tokens=credit_tokens)
    Generation.objects.get_or_create(subject="platform", defaults={"number": 1})
    Generation.objects.create(subject=caller.tenant_id.hex, number=1)
    return caller


@contextmanager
def an_outage() -> Iterator[None]:
    """Redis is gone for the path of requests; blocking code still reaches it, to look."""
    working = settings.REDIS_URL
    settings.REDIS_URL = nobody_listens()
    try:
        yield
    finally:
        settings.REDIS_URL = working


def admit(caller: Caller, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(**demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def known_to_work(caller: Caller) -> None:
    """Let this process see a call of the caller admitted."""
    end(admit(caller, input_tokens=1, output_tokens=1), input_tokens=1, output_tokens=1)


def test_without_the_setting_nothing_is_lent() -> None:
    caller = a_debtor(a_budget(1000), credit_tokens=0)
    known_to_work(caller)

    with an_outage(), pytest.raises(CountersUnavailable):
        admit(caller)


def test_a_process_lends_its_credit_and_no_more() -> None:
    caller = a_debtor(a_budget(1000))
    known_to_work(caller)

    with an_outage():
        first = admit(caller, input_tokens=10, output_tokens=100)
        second = admit(caller, input_tokens=10, output_tokens=100)
        with pytest.raises(CountersUnavailable):
            admit(caller, input_tokens=1, output_tokens=100)

    assert (first.output_cap, first.capped_by) == (100, None)
    assert (second.output_cap, second.capped_by) == (80, "outage-credit")
    assert first.loan is not None
    assert (first.loan.tokens, first.loan.left) == (110, 90)


def test_what_a_call_did_not_use_is_lent_again_and_what_it_used_is_not() -> None:
    caller = a_debtor(a_budget(1000))
    known_to_work(caller)

    with an_outage():
        end(admit(caller, input_tokens=100, output_tokens=100), input_tokens=30, output_tokens=20)
        following = admit(caller, input_tokens=100, output_tokens=100)
        with pytest.raises(CountersUnavailable):
            admit(caller, input_tokens=1)

    assert following.output_cap == 50


def test_a_call_that_no_model_worked_on_costs_no_credit() -> None:
    caller = a_debtor(a_budget(1000))
    known_to_work(caller)

    with an_outage():
        asyncio.run(release(admit(caller, input_tokens=100, output_tokens=100), "upstream_failed", 502))
        assert admit(caller, input_tokens=100, output_tokens=100).output_cap == 100


def test_credit_is_booked_once_and_marked_and_then_lent_again(settings: Any) -> None:
    budget = a_budget(1000)
    caller = a_debtor(budget)
    known_to_work(caller)

    async def through_an_outage(line: FaultProxy) -> None:
        line.refuse()
        reservation = await reserve(caller, a_demand(input_tokens=100, output_tokens=100))
        await settle(reservation, some_usage(input_tokens=70, output_tokens=60), "completed", Moments(), 200)
        owed = len(credit._loans)
        line.take_again()
        async with asyncio.timeout(30):
            while credit._loans:  # noqa: ASYNC110, what is waited for is another task
                await asyncio.sleep(0.01)
        assert owed == 1

    with line_to(settings.REDIS_URL) as (line, url):
        settings.REDIS_URL = url
        asyncio.run(through_an_outage(line))
    assert spool.replay() == 1
    ledger.drain()
    ledger.drain()

    assert LedgerEntry.objects.count() == 2
    entry = LedgerEntry.objects.get(on_credit=True)
    assert (entry.input_tokens, entry.output_tokens, entry.late) == (70, 60, True)
    assert figures(budget) == (132, 0)


def test_what_redis_held_all_the_same_is_settled_as_a_hold(settings: Any) -> None:
    """The answer to reserve was lost: the hold is there, and is neither taken back nor booked twice."""
    budget = a_budget(1000)
    caller = a_debtor(budget)
    known_to_work(caller)

    async def ask(line: FaultProxy) -> Reservation:
        await limits_for(caller)
        line.lose_reply(b"EVALSHA")
        reservation = await reserve(caller, a_demand(input_tokens=10, output_tokens=100))
        assert open_holds() == [str(reservation.request_id)]
        await settle(reservation, some_usage(input_tokens=7, output_tokens=20), "completed", Moments(), 200)
        return reservation

    with line_to(settings.REDIS_URL) as (line, url):
        settings.REDIS_URL = url
        reservation = asyncio.run(ask(line))
    ledger.drain()

    assert reservation.loan is not None
    assert not credit._loans
    assert figures(budget) == (2 + 27, 0)
    assert LedgerEntry.objects.get(on_credit=True).late is False


@pytest.mark.parametrize(
    ("limiting", "demand", "output_cap"),
    [
        pytest.param(
            a_budget(42), {"input_tokens": 10, "output_tokens": 100}, 30, id="what is left of a budget"
        ),
        pytest.param(
            a_budget(12), {"input_tokens": 10, "output_tokens": 100}, None, id="an exhausted budget"
        ),
        pytest.param(a_budget(1, "requests"), {}, None, id="no request left"),
        pytest.param(a_budget(2, "requests"), {}, 100, id="one request left"),
        pytest.param(a_rate(1), {}, None, id="a rate that is reached"),
        pytest.param(concurrency(1), {}, 100, id="a place that is free again"),
        pytest.param(a_budget(1, hard=False), {}, 100, id="a budget that only reports"),
        pytest.param(a_budget(None), {}, 100, id="no limit"),
    ],
)
def test_credit_is_within_the_last_known_standing(
    limiting: Limit, demand: dict[str, int], output_cap: int | None
) -> None:
    caller = a_debtor(limiting)
    known_to_work(caller)

    with an_outage():
        if output_cap is None:
            with pytest.raises(CountersUnavailable):
                admit(caller, **demand)
        else:
            assert admit(caller, **demand).output_cap == output_cap


def test_calls_on_credit_count_against_each_other() -> None:
    caller = a_debtor(a_budget(2, "requests"), concurrency(2))
    known_to_work(caller)

    with an_outage():
        end(admit(caller, input_tokens=1, output_tokens=1), input_tokens=1, output_tokens=1)
        with pytest.raises(CountersUnavailable):
            admit(caller, input_tokens=1, output_tokens=1)


def test_a_key_this_process_has_not_seen_at_work_gets_no_credit() -> None:
    caller = a_debtor(a_budget(1000))

    with an_outage(), pytest.raises(CountersUnavailable):
        admit(caller)


def test_a_change_since_ends_the_credit() -> None:
    caller = a_debtor(a_budget(1000))
    known_to_work(caller)

    with an_outage():
        admit(caller, input_tokens=1, output_tokens=1)
        Generation.objects.filter(subject=caller.tenant_id.hex).update(number=2)
        with pytest.raises(CountersUnavailable):
            admit(caller, input_tokens=1, output_tokens=1)


def test_without_postgres_nothing_is_lent() -> None:
    caller = a_debtor(a_budget(1000))
    known_to_work(caller)

    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tenants_generation RENAME TO gone")
        try:
            with an_outage(), pytest.raises(CountersUnavailable):
                admit(caller, input_tokens=1, output_tokens=1)
        finally:
            cursor.execute("ALTER TABLE gone RENAME TO tenants_generation")


def test_a_no_from_redis_is_a_no() -> None:
    caller = a_debtor(a_budget(2))
    known_to_work(caller)
    with pytest.raises(BudgetExhausted):
        admit(caller)

    redis().set("{p0}:epoch", "of another ledger")
    with pytest.raises(CountersUnavailable):
        admit(caller, input_tokens=1, output_tokens=1)

    assert not credit._loans


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90), st.booleans(), st.floats(0, 1)), max_size=30)
)
def test_used_and_lent_are_never_more_than_the_credit(
    calls: list[tuple[int, int, bool, float]],
) -> None:
    credit._loans.clear()
    caller = a_debtor(a_budget(None))
    known_to_work(caller)
    used = 0

    with an_outage():
        for input_tokens, output_tokens, ends, part in calls:
            try:
                reservation = admit(caller, input_tokens=input_tokens, output_tokens=output_tokens)
            except CountersUnavailable:
                continue
            most = reservation.output_cap
            if ends:
                spent = int(input_tokens * part), int(most * part)
                end(reservation, input_tokens=spent[0], output_tokens=spent[1])
                used += sum(spent)
            else:
                used += input_tokens + most
            assert used <= CREDIT
            assert sum(loan.tokens for loan in credit._loans) == used


@given(
    st.integers(0, 1000),
    st.integers(0, 999),
    st.integers(0, 2000),
    st.integers(1, 1000),
    st.integers(0, 10**6),
)
def test_the_most_output_is_the_most(whole: int, rest: int, rate: int, per: int, room: int) -> None:
    cost = Charge(whole, rest % per, rate, per)

    most = cost.most_output(room)

    if most < 0:
        assert cost.amount(0) > room
    else:
        assert cost.amount(most) <= room
        assert not rate or cost.amount(most + 1) > room


def test_the_command_says_in_words_and_json_what_it_set() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")

    def run(*arguments: str) -> str:
        out = StringIO()
        call_command("set_outage_credit", "--tenant", "acme", *arguments, stdout=out)
        return out.getvalue()

    assert "up to 500 tokens" in run("--tokens", "500")
    assert json.loads(run("--tokens", "700", "--json"))["tokens"] == 700
    assert "is refused" in run("--tokens", "0")
    with pytest.raises(CommandError):
        run("--tokens", "-1")
    assert OutageCredit.objects.get().tokens == 0
    changes = AuditEvent.objects.filter(action="outage_credit.set").order_by("id")
    assert [(one.details["before"], one.details["tokens"]) for one in changes] == [
        (None, 500),
        (500, 700),
        (700, 0),
    ]
    assert Generation.objects.get(subject=acme.pk.hex).number == 4
