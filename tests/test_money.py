"""Money from tokens and prices to the sum of a month, against exact rational arithmetic."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections import defaultdict
from fractions import Fraction
from math import ceil
from types import ModuleType
from typing import NamedTuple
from uuid import uuid4

import pytest
from django.db import connection
from django.test import TransactionTestCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgets import charges, comparisons, ledger, pricing, rollups, settlements, usage, verification
from budgets.models import LARGEST_GPU_PRICE, LARGEST_PRICE, BudgetPeriod, LedgerEntry, UsageRollup
from budgets.pricing import PinnedPrice
from budgets.reservations import reserve, settle
from budgets.rollups import Part
from budgets.settlements import Moments
from budgets.usage import Selection, by_part, totals
from keys.verification import Caller
from tests.counting import a_budget, a_demand, ada, believed_by_postgres, empty_redis, figures, some_usage
from tests.emptying import empty_tables

pytestmark = pytest.mark.django_db(transaction=True)

RATE_COLUMNS = ("input_price", "cached_price", "output_price", "gpu_price")
MODELS = ("small:1b", "large:70b", "free:1b")


class Spent(NamedTuple):
    """One call: of which model, and what it used."""

    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    gpu_ms: int


RATES = st.builds(
    PinnedPrice,
    id=st.builds(lambda: uuid4().hex),
    input=st.integers(0, 5_000_000) | st.just(LARGEST_PRICE),
    cached=st.integers(0, 100),
    output=st.integers(0, 5_000_000) | st.just(LARGEST_PRICE),
    gpu_second=st.integers(0, 50) | st.just(LARGEST_GPU_PRICE),
)
SPENT = st.integers(0, 4000).flatmap(
    lambda tokens: st.builds(
        Spent,
        model=st.sampled_from(MODELS),
        input_tokens=st.just(tokens),
        cached_tokens=st.integers(0, tokens),
        output_tokens=st.integers(0, 3000),
        gpu_ms=st.integers(0, 20_000),
    )
)


def exactly(call: Spent, price: PinnedPrice) -> Fraction:
    """What a call costs in micro-USD before it is rounded."""
    of_tokens = (
        (call.input_tokens - call.cached_tokens) * price.input
        + call.cached_tokens * price.cached
        + call.output_tokens * price.output
    )
    return Fraction(of_tokens, 10**6) + Fraction(call.gpu_ms * price.gpu_second, 10**3)


async def spend(caller: Caller, calls: list[Spent]) -> None:
    for call in calls:
        demand = a_demand(4000, 3000, model=call.model)
        usage = some_usage(
            call.input_tokens, call.output_tokens, cached_tokens=call.cached_tokens,
            prompt_ns=0, output_ns=call.gpu_ms * 1_000_000,
        )  # fmt: skip
        await settle(await reserve(caller, demand), usage, "completed", Moments(), 200)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(SPENT, min_size=1, max_size=8), prices=st.tuples(RATES, RATES))
def test_the_sum_of_a_month_is_the_sum_of_its_calls_each_rounded_up_once(
    calls: list[Spent], prices: tuple[PinnedPrice, PinnedPrice]
) -> None:
    empty_tables(TransactionTestCase())
    empty_redis()
    believed_by_postgres()
    money = a_budget(None, "micro_usd")
    rates = dict(zip(MODELS, (*prices, PinnedPrice(uuid4().hex, 0, 0, 0)), strict=True))
    caller = ada(money, prices=rates)
    asyncio.run(spend(caller, calls))
    ledger.drain()
    rounded: dict[str, int] = defaultdict(int)
    for call in calls:
        rounded[call.model] += ceil(exactly(call, rates[call.model]))
    whole = sum(rounded.values())

    entries = LedgerEntry.objects.values_list("cost_micro_usd", flat=True)
    assert sorted(entries) == sorted(ceil(exactly(call, rates[call.model])) for call in calls)
    assert sum(UsageRollup.objects.values_list("cost_micro_usd", flat=True)) == whole
    assert sum(BudgetPeriod.objects.values_list("used", flat=True)) == whole
    assert figures(money) == (whole, 0)
    assert totals(Selection(tenant_id=caller.tenant_id))["cost_micro_usd"] == whole
    assert sum(row["cost_micro_usd"] for row in by_part(Selection(), "month")) == whole
    assert {row["model"]: row["cost_micro_usd"] for row in by_part(Selection(), "model")} == dict(rounded)
    # Rounded up once for each call, it is less than a micro-USD a call above the exact sum.
    exact = sum((exactly(call, rates[call.model]) for call in calls), Fraction())
    assert exact <= whole < exact + len(calls)
    result = verification.verify(Part())
    assert (result.differences, result.unasked) == ((), {})


@settings(max_examples=100)
@given(
    tokens=st.tuples(st.integers(0, 2**22), st.integers(0, 2**22)),
    gpu_ms=st.integers(0, 864_000_000),
    price=RATES,
    share=st.fractions(0, 1),
)
def test_postgres_works_the_same_cost_out_of_an_entry(
    tokens: tuple[int, int], gpu_ms: int, price: PinnedPrice, share: Fraction
) -> None:
    """Up to the largest of everything: the arithmetic by which ``verify`` proves each cost."""
    input_tokens, output_tokens = tokens
    call = Spent("", input_tokens, int(input_tokens * share), output_tokens, gpu_ms)

    with connection.cursor() as cursor:
        columns = ("input_tokens", "cached_tokens", "output_tokens", "gpu_ms", *RATE_COLUMNS)
        entry = ", ".join(f"%s::bigint AS {column}" for column in columns)
        cursor.execute(
            f"SELECT {comparisons.cost_of('entry')} FROM (SELECT {entry}) AS entry",  # noqa: S608
            [*call[1:], price.input, price.cached, price.output, price.gpu_second],
        )
        [cost] = cursor.fetchone()

    assert cost == price.cost(*call[1:]) == ceil(exactly(call, price))


def test_no_money_passes_through_a_float_in_the_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name || '.' || column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type IN ('real', 'double precision', 'numeric') "
            "AND table_name ~ '^(budgets|audit)_'"
        )
        not_whole = {name for (name,) in cursor.fetchall()}

    # For how long somebody looked.
    assert not_whole == {"budgets_verification.seconds", "audit_auditcheck.seconds"}


@pytest.mark.parametrize(
    "module",
    [charges, comparisons, ledger, pricing, rollups, settlements, usage],
    ids=lambda one: one.__name__,
)
def test_no_money_passes_through_a_float_in_the_code(module: ModuleType) -> None:
    """What works with costs neither divides into a float nor makes one."""
    tree = ast.parse(inspect.getsource(module))

    divisions = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
    ]
    floats = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "float"
    ]
    assert (divisions, floats) == ([], [])
