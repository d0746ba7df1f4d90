"""What visitors are counted on, run against a real Redis; and the words in which limits are told."""

from __future__ import annotations

import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from benchmarks.counting import counted
from budgets import ledger, visitors
from budgets.exceptions import BudgetExhausted, ConcurrencyLimited, HumanCheckRequired
from budgets.models import BudgetPeriod, LedgerEntry
from budgets.quotas import Quota, quota, status_of, strictest
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, Standing, look, release, reserve, settle
from budgets.settlements import Moments
from budgets.visitors import FIRST_ID, Visitor, day_of, digest
from keys.callers import Allowance, Caller, load
from keys.models import AnonymousAccess, ApiKey
from keys.services import set_anonymous_access
from tenants.clock import clock
from tenants.redis import PARTITION
from tenants.services import create_tenant
from tests.counting import (
    a_demand,
    ada,
    believed_by_postgres,
    empty_redis,
    everything,
    open_holds,
    redis,
    relayed,
    some_usage,
)


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def host(**allowance: Any) -> Caller:
    """The visitors of a tenant, within ``allowance`` and else without limits."""
    fields = {"visitor_tokens": None, "address_tokens": None, "address_streams": None, "check_after": None}
    return ada(allowance=Allowance(**(fields | {"warning_percent": 80} | allowance)))


def visitor(caller: Caller, session: str = "ada", network: str = "here", proof: str = "") -> Visitor:
    return Visitor(
        session=digest("session", session.encode()),
        network=digest("network", network.encode()),
        day=day_of(caller, clock.now_ms()),
        proof=digest("proof", proof.encode()) if proof else None,
    )


def admit(caller: Caller, who: Visitor | None = None, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(visitor=who or visitor(caller), **demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def give_back(reservation: Reservation) -> None:
    asyncio.run(release(reservation, "upstream_failed", 502))


def stands(caller: Caller, who: Visitor | None = None) -> dict[str, tuple[int, int]]:
    """Used and reserved of each limit, as the view of usage tells them."""
    found = asyncio.run(look(caller, who or visitor(caller)))
    return {one.name: (one.limit - one.remaining - one.held, one.held) for one in found}


def test_the_four_verbs_do_for_visitors_what_they_do_for_those_who_pay() -> None:
    """S1, S9, S31."""
    caller = host(visitor_tokens=1000, address_tokens=5000)

    first = admit(caller, input_tokens=10, output_tokens=100)
    second = admit(caller, input_tokens=20, output_tokens=200)
    reserved = stands(caller)
    end(first, input_tokens=7, output_tokens=20)
    give_back(second)

    assert reserved == {"visitor-tokens-day": (0, 330), "address-tokens-day": (0, 330)}
    assert stands(caller) == {"visitor-tokens-day": (27, 0), "address-tokens-day": (27, 0)}
    assert open_holds() == []


def test_ending_a_visitors_call_again_changes_nothing() -> None:
    """S12, S13, S26."""
    caller = host(visitor_tokens=1000)
    reservation = admit(caller)

    for _ in range(3):
        end(reservation, input_tokens=7, output_tokens=20)
        give_back(reservation)

    assert stands(caller) == {"visitor-tokens-day": (27, 0)}


@pytest.mark.parametrize("tight", ["visitor_tokens", "address_tokens", "address_streams", "check_after"])
def test_when_one_refuses_nothing_is_held_on_the_others(tight: str) -> None:
    """S14, S27."""
    caller = host(**({"visitor_tokens": 10**6, "address_tokens": 10**6} | {tight: 0}))
    before = everything()

    with pytest.raises((BudgetExhausted, ConcurrencyLimited, HumanCheckRequired)):
        admit(caller)

    assert everything() == before


def test_exactly_the_allowance_is_let_in_and_no_token_more() -> None:
    """S8, S30."""
    caller = host(address_tokens=110)

    admit(caller, input_tokens=10, output_tokens=100, least_output=100)

    with pytest.raises(BudgetExhausted):
        admit(caller, visitor(caller, "eve"), input_tokens=1, output_tokens=0, least_output=0)
    assert stands(caller) == {"address-tokens-day": (0, 110)}


def test_the_tightest_of_visitor_and_address_caps_the_answer() -> None:
    reservation = admit(host(visitor_tokens=60, address_tokens=80), input_tokens=10, output_tokens=100)

    assert (reservation.output_cap, reservation.capped_by) == (50, "visitor-tokens-day")


def test_forty_racing_visitors_of_one_network_never_overrun() -> None:
    caller = host(address_tokens=1100)

    async def race() -> list[Reservation | BaseException]:
        calls = [
            reserve(caller, a_demand(visitor=visitor(caller, str(number)), least_output=100))
            for number in range(40)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(race())

    assert sum(isinstance(one, Reservation) for one in found) == 10
    assert stands(caller) == {"address-tokens-day": (0, 1100)}


def test_running_calls_of_a_network_are_bounded_and_free_themselves() -> None:
    """S16."""
    caller = host(address_streams=2)
    first = admit(caller)
    admit(caller, visitor(caller, "eve"))

    with pytest.raises(ConcurrencyLimited):
        admit(caller, visitor(caller, "bob"))
    admit(caller, visitor(caller, "bob", "elsewhere"))
    for _ in range(3):
        end(first)

    assert stands(caller)["address-concurrent-requests"] == (1, 0)
    admit(caller, visitor(caller, "bob"))


def test_a_human_check_is_demanded_after_so_many_requests_and_a_proof_is_good_for_as_many() -> None:
    """S17: what a refused or failed call counts is nothing."""
    caller = host(check_after=2)
    give_back(admit(caller))
    end(admit(caller))
    end(admit(caller, visitor(caller, "eve")))
    proven = visitor(caller, proof="one")

    with pytest.raises(HumanCheckRequired):
        admit(caller)
    end(admit(caller, proven))
    end(admit(caller, proven))
    with pytest.raises(HumanCheckRequired):
        admit(caller, proven)
    end(admit(caller, visitor(caller, proof="two")))


def test_no_limit_zero_and_a_number_are_three_things_to_visitors() -> None:
    admit(host())
    admit(host(visitor_tokens=1000))
    with pytest.raises(BudgetExhausted):
        admit(host(visitor_tokens=0))


def test_ids_are_of_one_tenant_limit_and_day_and_are_told_from_those_of_budgets() -> None:
    """S15."""
    one, other = host(), host()
    who = visitor(one)
    ids = [counter.id for counter in admit(one, who).counters] + [
        counter.id for counter in admit(other, who).counters
    ]
    tomorrow = visitors._limits_of(one, Allowance(1, 1, 1, 1, 80), who, clock.now_ms() + 86_400_000)

    assert len(set(ids)) == 8
    assert not {limit.id for limit in tomorrow if limit.kind == "budget"} & set(ids)
    assert {UUID(text) > FIRST_ID for text in ids} == {True}


@pytest.mark.django_db(transaction=True)
def test_what_visitors_used_comes_back_from_the_ledger_after_a_flush() -> None:
    """S29."""
    believed_by_postgres()
    caller = host(visitor_tokens=1000, address_tokens=1000)
    end(admit(caller), input_tokens=7, output_tokens=20)
    ledger.drain()

    redis().delete(*redis().keys(f"{PARTITION}:budget:*"))
    ensure_epoch(force=True)

    assert stands(caller) == {"visitor-tokens-day": (27, 0), "address-tokens-day": (27, 0)}
    assert LedgerEntry.objects.get().key == "ada's key"


@pytest.mark.django_db
def test_days_of_visitors_are_forgotten_when_their_counters_are() -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    for budget_id, end_at in (
        (FIRST_ID, long_ago),
        (FIRST_ID, datetime.now(UTC)),
        (UUID(int=1), long_ago),
    ):
        BudgetPeriod.objects.create(
            budget_id=budget_id, period_start=end_at - timedelta(days=1), period_end=end_at, used=1
        )

    assert visitors.forget() == 1
    assert BudgetPeriod.objects.count() == 2


def test_a_warm_call_of_a_visitor_costs_two_round_trips_to_redis_and_no_sql() -> None:
    """Without a mark for it, a test that asks PostgreSQL fails."""
    caller = host(visitor_tokens=10**6, address_tokens=10**6, address_streams=5, check_after=5)

    async def call() -> None:
        reservation = await reserve(caller, a_demand(visitor=visitor(caller)))
        await settle(reservation, some_usage(), "completed", Moments(), 200)

    async def round_trips_of_a_warm_call() -> int:
        await call()
        with counted(relays) as found:
            await call()
        return found["redis"].round_trips

    with relayed() as relays:
        assert asyncio.run(round_trips_of_a_warm_call()) == 2


# The words


@pytest.mark.parametrize(
    ("taken", "limit", "percent", "status"),
    [
        (0, 100, 80, "ok"),
        (79, 100, 80, "ok"),
        (80, 100, 80, "warning"),
        (99, 100, 80, "warning"),
        (100, 100, 80, "blocked"),
        (250, 100, 80, "blocked"),
        (0, 0, 80, "blocked"),
        (2, 3, 67, "ok"),
        (3, 4, 75, "warning"),
        (99, 100, 100, "ok"),
    ],
)
def test_the_states_of_a_limit(taken: int, limit: int, percent: int, status: str) -> None:
    """S10, S19, S21."""
    assert status_of(taken, limit, percent) == status


@given(
    used=st.integers(0, 2**40),
    held=st.integers(0, 2**40),
    limit=st.integers(0, 2**40),
    percent=st.integers(1, 100),
)
def test_a_quota_never_contradicts_itself(used: int, held: int, limit: int, percent: int) -> None:
    """S7, S30."""
    standing = Standing("n", "s", "tokens", limit, limit - used - held, None, "day", 86_400, held)

    told = quota(standing, percent)

    assert told.allowed is (told.status != "blocked")
    assert told.allowed is (used + held < limit)
    assert (told.used, told.reserved, told.limit) == (used, held, limit)
    assert told.remaining == max(0, limit - used - held)


def test_the_strictest_budget_is_the_one_with_least_left() -> None:
    """S25."""

    def standing(name: str, unit: str, limit: int, remaining: int, window: str = "day") -> Standing:
        return Standing(name, "s", unit, limit, remaining, None, window, None)

    session, address = standing("visitor", "tokens", 100, 60), standing("address", "tokens", 1000, 50)
    others = [standing("streams", "requests", 2, 0, "now"), standing("rate", "requests", 2, 0, "minute")]
    check = standing(visitors.UNTIL_CHECK, "requests", 5, 0)

    assert strictest([session, address, *others, check]) is address
    assert strictest([*others, check]) is None
    assert quota(session) == Quota(True, "ok", 40, 100, 0, 60)


# Settings


def run(*arguments: str) -> str:
    output = io.StringIO()
    call_command("set_anonymous_access", *arguments, stdout=output)
    return output.getvalue()


@pytest.mark.django_db(transaction=True)
def test_the_command_tells_what_holds_and_keeps_what_is_not_named() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")

    first = json.loads(
        run("--tenant", "acme", "--enable", "--model", "tiny:1b", "--check-after", "5", "--json")
    )
    second = json.loads(run("--tenant", "acme", "--check-after", "none", "--address-tokens", "0", "--json"))

    assert first["enabled"] is True
    assert (first["check_after"], first["visitor_tokens"], first["address_streams"]) == (5, 20_000, 2)
    assert second == first | {"check_after": None, "address_tokens": 0}
    key = ApiKey.objects.get(tenant=acme)
    assert (str(key.pk), key.kind, key.secrets.count()) == (first["key_id"], "anonymous", 0)
    assert "may call tiny:1b" in run("--tenant", "acme")
    assert "nobody" in run("--tenant", "acme", "--disable")
    actions = AuditEvent.objects.filter(action="anonymous_access.set", tenant_id=acme.pk)
    assert actions.count() == 4


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--tenant", "nobody"],
        ["--tenant", "acme", "--visitor-tokens", "-1"],
        ["--tenant", "acme", "--visitor-tokens", "many"],
        ["--tenant", "acme", "--warning-percent", "0"],
        ["--tenant", "acme", "--enable", "--disable"],
    ],
)
def test_the_command_refuses_what_cannot_be(arguments: list[str]) -> None:
    create_tenant(slug="acme", name="ACME", actor="test")

    with pytest.raises(CommandError):
        run(*arguments)

    assert not AnonymousAccess.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_it_is_off_until_somebody_switches_it_on() -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    assert load("@acme") is None

    set_anonymous_access(tenant=acme, actor="test", models=["tiny:1b"])
    assert load("@acme") is None

    set_anonymous_access(tenant=acme, actor="test", enabled=True)
    caller = load("@acme")
    assert caller is not None
    assert (caller.models, caller.allow_all_models) == (frozenset({"tiny:1b"}), False)


@pytest.mark.django_db(transaction=True)
def test_two_who_open_the_door_at_once_make_one_key() -> None:
    from django.db import connection

    acme = create_tenant(slug="acme", name="ACME", actor="test")

    def open_it(_: int) -> None:
        try:
            set_anonymous_access(tenant=acme, actor="test", enabled=True)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(open_it, range(4)))

    assert ApiKey.objects.filter(tenant=acme).count() == 1
