"""What an hour, a second and a token cost: exactly, and with nothing left over."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.internal_prices import (
    LEAST_TIMED_CALLS,
    HourlyCost,
    NothingToPropose,
    Use,
    attribute,
    hourly_cost,
    per_mille,
    rounded,
    rounded_up,
    token_cost,
    whole_amounts,
)
from budgets.money import usd, usd_exactly, usd_total

USD = 1_000_000


@dataclass
class Entered:
    """An upstream of $36,000 over three years, $100 a month, 1,000 W and 200 W at $0.25."""

    hardware_price: int = 36_000 * USD
    life_months: int = 36
    busy_watts: int = 1000
    idle_watts: int = 200
    kwh_price: int = 250_000
    other_per_month: int = 100 * USD
    gpus: int = 2


def test_an_hour_costs_its_part_of_the_month_and_the_power_it_draws() -> None:
    hour = hourly_cost(Entered(), 720)

    assert hour.busy == Fraction(1100 * USD, 720) + 250_000
    assert hour.idle == Fraction(1100 * USD, 720) + 50_000


@pytest.mark.parametrize("hours_in_month", [672, 696, 720, 744])
def test_what_does_not_depend_on_work_is_the_same_in_each_month(hours_in_month: int) -> None:
    hour = hourly_cost(Entered(busy_watts=0, idle_watts=0), hours_in_month)

    assert hour.busy * hours_in_month == hour.idle * hours_in_month == 1100 * USD


def test_the_whole_life_adds_up_to_what_the_hardware_cost() -> None:
    odd = Entered(hardware_price=10**9 + 7, life_months=37, other_per_month=0, busy_watts=0, idle_watts=0)
    months = [672, 696, 720, 744] * 9 + [720]

    assert sum(hourly_cost(odd, hours).idle * hours for hours in months) == 10**9 + 7


HOUR = HourlyCost(busy=Fraction(4 * USD), idle=Fraction(USD))


@pytest.mark.parametrize(
    ("gpu_ms", "by_model", "idle"),
    [
        pytest.param({}, {}, 10 * USD, id="nothing worked"),
        pytest.param({"a": 36_000_000}, {"a": 20 * USD}, 5 * USD, id="half the time"),
        pytest.param(
            {"a": 54_000_000, "b": 18_000_000}, {"a": 30 * USD, "b": 10 * USD}, 0, id="all the time"
        ),
        pytest.param(
            {"a": 216_000_000, "b": 72_000_000},
            {"a": 30 * USD, "b": 10 * USD},
            0,
            id="side by side, four times",
        ),
        pytest.param({"a": 36_000_000, "b": 0}, {"a": 20 * USD}, 5 * USD, id="one that took no time"),
    ],
)
def test_hours_are_shared_out_by_gpu_time(
    gpu_ms: dict[str, int], by_model: dict[str, int], idle: int
) -> None:
    """Ten hours of two GPUs are 72,000 seconds of one."""
    shared = attribute(HOUR, seconds=Fraction(36_000), gpus=2, gpu_ms=gpu_ms)

    assert {model: int(cost) for model, cost in shared.by_model.items()} == by_model
    assert shared.idle == idle
    assert shared.capacity_ms == 72_000_000
    assert shared.busy_ms == min(72_000_000, sum(gpu_ms.values()))


amounts = st.integers(0, 10**12)
entered = st.builds(
    Entered,
    hardware_price=amounts,
    life_months=st.integers(1, 1200),
    busy_watts=st.integers(5000, 10**6),
    idle_watts=st.integers(0, 5000),
    kwh_price=st.integers(0, 10**8),
    other_per_month=amounts,
    gpus=st.integers(1, 1024),
)
worked = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**13), max_size=6)
lengths = st.integers(1, 744 * 3600 * 10**6).map(lambda microseconds: Fraction(microseconds, 10**6))


@given(entered, st.sampled_from([672, 696, 720, 744]), lengths, worked)
def test_what_is_attributed_and_what_is_idle_are_all_of_the_cost(
    cost: Entered, hours_in_month: int, seconds: Fraction, gpu_ms: dict[str, int]
) -> None:
    shared = attribute(hourly_cost(cost, hours_in_month), seconds=seconds, gpus=cost.gpus, gpu_ms=gpu_ms)

    # By another way: what stands is paid for all hours, power for what was drawn.
    hours = seconds / 3600
    busy_share = min(Fraction(1), Fraction(sum(gpu_ms.values())) / (seconds * 1000 * cost.gpus))
    standing = Fraction(cost.hardware_price, cost.life_months) + cost.other_per_month
    watts = cost.busy_watts * busy_share + cost.idle_watts * (1 - busy_share)
    total = standing * hours / hours_in_month + watts * hours * cost.kwh_price / 1000
    assert sum(shared.by_model.values()) + shared.idle == total
    assert shared.total == total
    assert sum(shared.loaded.values()) == (total if sum(gpu_ms.values()) else 0)
    assert shared.idle >= 0
    assert all(own >= 0 for own in shared.by_model.values())


@given(st.lists(st.fractions(min_value=0, max_value=10**9), max_size=12))
def test_whole_amounts_add_up_and_each_is_off_by_less_than_one(exact: list[Fraction]) -> None:
    whole = whole_amounts(exact)

    assert sum(whole) == rounded(sum(exact, Fraction()))
    assert all(abs(given - got) < 1 for given, got in zip(exact, whole, strict=True))


def timed(**changes: int) -> Use:
    """Calls of which each tells its times: 1,000 tokens a second in, 20 out."""
    figures = {
        "calls": 100,
        "input_tokens": 500_000,
        "cached_tokens": 100_000,
        "output_tokens": 16_000,
        "gpu_ms": 1_200_000,
        "timed_calls": 100,
        "timed_input_tokens": 400_000,
        "timed_output_tokens": 16_000,
        "prompt_ns": 400 * 10**9,
        "output_ns": 800 * 10**9,
    }
    return Use(**(figures | changes))


def test_the_cost_is_split_by_the_time_that_input_and_output_took() -> None:
    token = token_cost(Fraction(12 * USD), timed())

    assert token.input * 400_000 == 4 * USD
    assert token.output * 16_000 == 8 * USD


def test_calls_that_told_no_times_are_weighed_like_those_that_did() -> None:
    """Half as much input again and twice the output, from a door that tells no times."""
    token = token_cost(Fraction(20 * USD), timed(calls=200, input_tokens=700_000, output_tokens=32_000))

    assert token.output / token.input == 50
    assert token.input * 600_000 + token.output * 32_000 == 20 * USD


def test_vectors_have_no_output_to_pay_for() -> None:
    token = token_cost(Fraction(USD), timed(output_tokens=0, timed_output_tokens=0, output_ns=0))

    assert token.input * 400_000 == USD
    assert token.output == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(
            {"timed_calls": LEAST_TIMED_CALLS - 1},
            "Calls that tell how long prompt and answer took: 29 of 100; 30 are needed.",
            id="too few calls",
        ),
        pytest.param({"timed_output_tokens": 0}, "No call tells how long its output took.", id="no output"),
        pytest.param({"timed_input_tokens": 0}, "No call tells how long its input took.", id="no input"),
        pytest.param(
            {"prompt_ns": 0, "output_ns": 0}, "Its tokens took no time that could be measured.", id="no time"
        ),
    ],
)
def test_too_little_is_said_to_be_too_little(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(NothingToPropose) as caught:
        token_cost(Fraction(USD), timed(**changes))

    assert str(caught.value) == reason


tokens = st.integers(1, 10**12)


@given(
    cost=st.fractions(min_value=0, max_value=10**12),
    timed_input=tokens,
    timed_output=tokens,
    more_input=st.integers(0, 10**12),
    more_output=st.integers(0, 10**12),
    cached=st.integers(0, 10**12),
    prompt_ns=st.integers(1, 10**16),
    output_ns=st.integers(0, 10**16),
)
def test_tokens_at_their_cost_bring_in_what_the_model_cost(
    cost: Fraction,
    timed_input: int,
    timed_output: int,
    more_input: int,
    more_output: int,
    cached: int,
    prompt_ns: int,
    output_ns: int,
) -> None:
    use = timed(
        input_tokens=timed_input + more_input + cached,
        cached_tokens=cached,
        output_tokens=timed_output + more_output,
        timed_input_tokens=timed_input,
        timed_output_tokens=timed_output,
        prompt_ns=prompt_ns,
        output_ns=output_ns,
    )

    token = token_cost(cost, use)

    assert token.input * use.fresh_tokens + token.output * use.output_tokens == cost


def test_use_is_added_figure_by_figure() -> None:
    assert timed() + timed(calls=1, prompt_ns=0) == Use(
        101, 1_000_000, 200_000, 32_000, 2_400_000, 200, 800_000, 32_000, 400 * 10**9, 1600 * 10**9
    )


@pytest.mark.parametrize(
    ("amount", "nearest", "up"),
    [
        (Fraction(0), 0, 0),
        (Fraction(1, 3), 0, 1),
        (Fraction(1, 2), 1, 1),
        (Fraction(7, 2), 4, 4),
        (Fraction(5), 5, 5),
    ],
)
def test_rounding(amount: Fraction, nearest: int, up: int) -> None:
    assert (rounded(amount), rounded_up(amount)) == (nearest, up)


def test_of_nothing_everything_is_no_thousandth() -> None:
    assert per_mille(Fraction(), Fraction()) == 0
    assert per_mille(Fraction(2), Fraction(3)) == 667


def test_money_is_told_in_dollars() -> None:
    assert [usd(0), usd(37_500), usd(4 * USD)] == ["$0", "$0.0375", "$4"]
    assert [usd_total(251_100_000), usd_total(1_234_567_890)] == ["$251.10", "$1,234.567890"]
    assert [usd_exactly(Fraction(375, 2)), usd_exactly(Fraction(2, 3))] == ["$0.0001875", "$0.000000667"]
