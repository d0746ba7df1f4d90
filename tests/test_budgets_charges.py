"""Charges and prices in whole numbers, against exact fractions; Lua's arithmetic against Python's."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from math import ceil
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgets.charges import BOUND, LARGEST_TOKENS, Usage, charge, used, within
from budgets.exceptions import BudgetExhausted
from budgets.models import LARGEST_GPU_PRICE, LARGEST_PRICE, Unit
from budgets.pricing import PinnedPrice
from budgets.reservations import LEAST_GPU_MS, reserve
from tests.counting import MODEL, a_budget, a_demand, ada, empty_redis, figures, some_usage

TOKENS = st.integers(0, LARGEST_TOKENS)
MONEY = st.integers(0, LARGEST_PRICE)
GPU_PRICE = st.integers(0, LARGEST_GPU_PRICE)
GPU_MS = st.integers(0, 3_600_000)


def price(input_price: int, output_price: int, cached_price: int = 0, gpu_price: int = 0) -> PinnedPrice:
    return PinnedPrice(uuid4().hex, input_price, cached_price, output_price, gpu_price)


@given(TOKENS, TOKENS, GPU_MS, MONEY, MONEY, GPU_PRICE)
def test_the_most_a_call_costs_is_its_exact_cost_rounded_up_once(
    input_tokens: int, output_tokens: int, gpu_ms: int, input_price: int, output_price: int, gpu_price: int
) -> None:
    exact = Fraction(input_tokens * input_price + output_tokens * output_price, 10**6)
    exact += Fraction(gpu_ms * gpu_price, 1000)

    pinned = price(input_price, output_price, gpu_price=gpu_price)
    most = charge("micro_usd", input_tokens, pinned).amount(output_tokens, gpu_ms)

    assert most == ceil(exact)


@given(TOKENS, TOKENS, TOKENS, GPU_MS, st.tuples(MONEY, MONEY, MONEY, GPU_PRICE))
def test_cost_is_exact_and_rounded_up_once(
    input_tokens: int, cached: int, output_tokens: int, gpu_ms: int, prices: tuple[int, int, int, int]
) -> None:
    assume(cached <= input_tokens)
    input_price, output_price, cached_price, gpu_price = prices
    parts = [(input_tokens - cached, input_price), (cached, cached_price), (output_tokens, output_price)]
    exact = sum(Fraction(tokens * cost, 10**6) for tokens, cost in parts) + Fraction(gpu_ms * gpu_price, 1000)

    pinned = price(input_price, output_price, cached_price, gpu_price)

    assert pinned.cost(input_tokens, cached, output_tokens, gpu_ms) == ceil(exact)


def test_a_token_that_costs_next_to_nothing_costs_a_micro_dollar() -> None:
    assert price(50_000, 0).cost(1, 0, 0, 0) == 1


@given(
    st.sampled_from(Unit.values),
    st.tuples(TOKENS, TOKENS, GPU_MS),
    st.tuples(MONEY, MONEY, MONEY, GPU_PRICE),
    st.builds(
        Usage,
        input_tokens=st.integers(-(2**60), 2**60),
        cached_tokens=st.integers(-(2**60), 2**60),
        output_tokens=st.integers(-(2**60), 2**60),
        thinking_tokens=st.integers(-(2**60), 2**60),
        load_ns=st.none() | st.integers(-(2**63), 2**63),
        prompt_ns=st.none() | st.integers(-(2**63), 2**63),
        output_ns=st.none() | st.integers(-(2**63), 2**63),
        estimator=st.sampled_from(["", "default", "learned:3"]),
        wall_ms=st.integers(0, 2**60),
    ),
)
def test_whatever_an_upstream_reports_costs_no_more_than_was_held(
    unit: str, bounds: tuple[int, int, int], prices: tuple[int, int, int, int], reported: Usage
) -> None:
    input_bound, output_cap, gpu_cap_ms = bounds
    input_price, output_price, cached, gpu_price = prices
    pinned = price(input_price, output_price, min(cached, input_price), gpu_price)

    spent = within(reported, input_bound, output_cap, gpu_cap_ms)

    most = charge(unit, input_bound, pinned).amount(output_cap, gpu_cap_ms)
    assert 0 <= used(unit, spent, pinned, worked=True) <= most
    moved = "" if spent == reported else BOUND
    assert spent.estimator == (reported.estimator or moved)
    assert spent.cached_tokens <= spent.input_tokens
    assert spent.thinking_tokens <= spent.output_tokens


@pytest.mark.parametrize("unit", Unit.values)
def test_a_call_nobody_worked_on_costs_nothing(unit: str) -> None:
    usage = some_usage(5, 5)

    assert used(unit, usage, price(10**6, 10**6), worked=False) == 0


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(0, 2**53 - 1) | st.integers(0, 5000),
    input_tokens=TOKENS | st.integers(0, 50),
    wish=st.integers(1, LARGEST_TOKENS) | st.integers(1, 50),
    prices=st.tuples(MONEY, MONEY, st.just(0) | GPU_PRICE),
)
def test_redis_finds_the_largest_output_that_fits(
    limit: int, input_tokens: int, wish: int, prices: tuple[int, int, int]
) -> None:
    empty_redis()
    money = a_budget(limit, "micro_usd")
    input_price, output_price, gpu_price = prices
    pinned = price(input_price, output_price, gpu_price=gpu_price)
    cost = charge("micro_usd", input_tokens, pinned)
    caller = ada(money, prices={MODEL: pinned})

    try:
        reservation = asyncio.run(reserve(caller, a_demand(input_tokens, wish)))
    except BudgetExhausted:
        assert cost.amount(1, LEAST_GPU_MS if gpu_price else 0) > limit
        return

    cap, gpu_ms = reservation.output_cap, reservation.gpu_cap_ms or 0
    assert figures(money) == (0, cost.amount(cap, gpu_ms))
    assert cost.amount(cap, gpu_ms) <= limit
    # Of the time, too, as much as fits; it gives way when no output is left to give.
    lease_ms = 1000 * django_settings.LEASE_SECONDS
    assert cap == wish or cost.amount(cap + 1, lease_ms if gpu_price else 0) > limit
    assert gpu_ms == (lease_ms if gpu_price else 0) or (
        (cap == 1 or not output_price) and cost.amount(cap, gpu_ms + 1) > limit
    )
