"""Charges and prices in whole numbers, against exact fractions; Lua's arithmetic against Python's."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from math import ceil
from uuid import uuid4

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgets.charges import LARGEST_TOKENS, Usage, charge, used, within
from budgets.exceptions import BudgetExhausted
from budgets.models import LARGEST_PRICE
from budgets.pricing import PinnedPrice
from budgets.reservations import reserve
from tests.counting import MODEL, a_budget, a_demand, ada, empty_redis, figures

TOKENS = st.integers(0, LARGEST_TOKENS)
MONEY = st.integers(0, LARGEST_PRICE)
UNITS = ["requests", "tokens", "output_tokens", "micro_usd"]


def price(input_price: int, output_price: int, cached_price: int = 0) -> PinnedPrice:
    return PinnedPrice(uuid4().hex, input_price, cached_price, output_price)


@given(TOKENS, TOKENS, MONEY, MONEY)
def test_the_most_a_call_costs_is_its_exact_cost_rounded_up_once(
    input_tokens: int, output_tokens: int, input_price: int, output_price: int
) -> None:
    exact = Fraction(input_tokens * input_price + output_tokens * output_price, 10**6)

    most = charge("micro_usd", input_tokens, price(input_price, output_price)).amount(output_tokens)

    assert most == ceil(exact)


@given(TOKENS, TOKENS, TOKENS, MONEY, MONEY, MONEY)
def test_cost_is_exact_and_rounded_up_once(
    input_tokens: int, cached: int, output_tokens: int, input_price: int, cached_price: int, output_price: int
) -> None:
    assume(cached <= input_tokens)
    parts = [(input_tokens - cached, input_price), (cached, cached_price), (output_tokens, output_price)]
    exact = sum(Fraction(tokens * cost, 10**6) for tokens, cost in parts)

    assert price(input_price, output_price, cached_price).cost(input_tokens, cached, output_tokens) == ceil(
        exact
    )


def test_a_token_that_costs_next_to_nothing_costs_a_micro_dollar() -> None:
    assert price(50_000, 0).cost(1, 0, 0) == 1


@given(
    st.sampled_from(UNITS),
    TOKENS,
    TOKENS,
    st.tuples(MONEY, MONEY, MONEY),
    st.builds(
        Usage,
        input_tokens=st.integers(-(2**60), 2**60),
        cached_tokens=st.integers(-(2**60), 2**60),
        output_tokens=st.integers(-(2**60), 2**60),
        thinking_tokens=st.integers(-(2**60), 2**60),
        load_ns=st.none() | st.integers(-(2**63), 2**63),
        prompt_ns=st.none() | st.integers(-(2**63), 2**63),
        output_ns=st.none() | st.integers(-(2**63), 2**63),
        exact=st.booleans(),
    ),
)
def test_whatever_an_upstream_reports_costs_no_more_than_was_held(
    unit: str, input_bound: int, output_cap: int, prices: tuple[int, int, int], reported: Usage
) -> None:
    input_price, output_price, cached = prices
    pinned = price(input_price, output_price, min(cached, input_price))

    spent = within(reported, input_bound, output_cap)

    assert 0 <= used(unit, spent, pinned, worked=True) <= charge(unit, input_bound, pinned).amount(output_cap)
    assert spent.exact == (reported.exact and spent == reported)
    assert spent.cached_tokens <= spent.input_tokens
    assert spent.thinking_tokens <= spent.output_tokens


@pytest.mark.parametrize("unit", UNITS)
def test_a_call_nobody_worked_on_costs_nothing(unit: str) -> None:
    usage = Usage(5, 0, 5, 0, None, None, None, exact=True)

    assert used(unit, usage, price(10**6, 10**6), worked=False) == 0


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(0, 2**53 - 1) | st.integers(0, 5000),
    input_tokens=TOKENS | st.integers(0, 50),
    wish=st.integers(1, LARGEST_TOKENS) | st.integers(1, 50),
    input_price=MONEY,
    output_price=MONEY,
)
def test_redis_finds_the_largest_output_that_fits(
    limit: int, input_tokens: int, wish: int, input_price: int, output_price: int
) -> None:
    empty_redis()
    money = a_budget(limit, "micro_usd")
    pinned = price(input_price, output_price)
    cost = charge("micro_usd", input_tokens, pinned)
    caller = ada(money, prices={MODEL: pinned})

    try:
        reservation = asyncio.run(reserve(caller, a_demand(input_tokens, wish)))
    except BudgetExhausted:
        assert cost.amount(1) > limit
        return

    cap = reservation.output_cap
    assert figures(money) == (0, cost.amount(cap))
    assert cost.amount(cap) <= limit
    assert cap == wish or cost.amount(cap + 1) > limit
