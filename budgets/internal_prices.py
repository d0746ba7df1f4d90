"""What an upstream's hour, a second of GPU time and a token cost: arithmetic alone, in exact fractions.

All amounts are micro-USD. Nothing is rounded before ``whole_amounts`` and
``rounded_up``, so what is attributed to models and what is idle add up to what
the hours cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Protocol

PER_MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
# With fewer calls one odd prompt decides how the cost is split between input and output.
LEAST_TIMED_CALLS = 30


class CostFigures(Protocol):
    """What is entered of an upstream; ``UpstreamCost`` has it."""

    hardware_price: int
    life_months: int
    busy_watts: int
    idle_watts: int
    kwh_price: int
    other_per_month: int
    gpus: int


@dataclass(frozen=True, slots=True)
class HourlyCost:
    """What an hour of an upstream costs while all its GPUs work, and while none does."""

    busy: Fraction
    idle: Fraction


@dataclass(frozen=True, slots=True)
class Use:
    """What was measured of one model on one upstream.

    Cached tokens are part of the input. ``timed_…`` is what those exact calls
    had that told how long prompt and answer took, cached input left out: it
    takes no time.
    """

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    gpu_ms: int = 0
    timed_calls: int = 0
    timed_input_tokens: int = 0
    timed_output_tokens: int = 0
    prompt_ns: int = 0
    output_ns: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Use)))

    @property
    def fresh_tokens(self) -> int:
        """Input that had to be read, as it was not cached."""
        return self.input_tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class Attribution:
    """What some hours of an upstream cost, by what they were used for.

    ``by_model`` is the cost of the time in which each model worked, ``idle`` of
    that in which none did; both together are all of it. ``loaded`` has the idle
    time in it too, in proportion to the work: nothing, where nothing worked.
    """

    by_model: Mapping[str, Fraction]
    idle: Fraction
    loaded: Mapping[str, Fraction]
    capacity_ms: Fraction
    busy_ms: Fraction

    @property
    def busy(self) -> Fraction:
        return sum(self.by_model.values(), Fraction())

    @property
    def total(self) -> Fraction:
        return self.busy + self.idle


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What a token of input that is not cached and one of output cost."""

    input: Fraction
    output: Fraction


class NothingToPropose(Exception):
    """No price follows from what was measured; the message says why."""


def hourly_cost(cost: CostFigures, hours_in_month: int) -> HourlyCost:
    """What an hour costs in a month of so many hours.

    Hardware and other cost are the same in each month, however long it is; so
    they add up to what was paid, and an hour of February costs more.
    """
    standing = (Fraction(cost.hardware_price, cost.life_months) + cost.other_per_month) / hours_in_month
    return HourlyCost(
        busy=standing + Fraction(cost.busy_watts * cost.kwh_price, 1000),
        idle=standing + Fraction(cost.idle_watts * cost.kwh_price, 1000),
    )


def attribute(hour: HourlyCost, *, seconds: Fraction, gpus: int, gpu_ms: Mapping[str, int]) -> Attribution:
    """Share out what ``seconds`` of an upstream cost, by the GPU time of each model.

    GPU time above what the GPUs have (an upstream may work on several calls at
    once, and each counts its own) leaves nothing idle and shares all of the cost
    in proportion.
    """
    hours, capacity_ms = seconds / SECONDS_PER_HOUR, seconds * 1000 * gpus
    worked_ms = sum(gpu_ms.values())
    busy_ms = min(Fraction(worked_ms), capacity_ms)
    busy_share = busy_ms / capacity_ms
    busy, idle = hours * busy_share * hour.busy, hours * (1 - busy_share) * hour.idle
    shares = {model: Fraction(own_ms, worked_ms) for model, own_ms in gpu_ms.items() if own_ms}
    return Attribution(
        by_model={model: busy * share for model, share in shares.items()},
        idle=idle,
        loaded={model: (busy + idle) * share for model, share in shares.items()},
        capacity_ms=capacity_ms,
        busy_ms=busy_ms,
    )


def token_cost(cost: Fraction, use: Use) -> TokenCost:
    """Share ``cost`` out between the input and the output that were measured.

    A token weighs as much as the time that one of its sort took in the timed
    calls, so that all tokens together, at the cost of one, cost ``cost``
    exactly. Raises ``NothingToPropose``.
    """
    if use.timed_calls < LEAST_TIMED_CALLS:
        raise NothingToPropose(
            f"Calls that tell how long prompt and answer took: {use.timed_calls} of {use.calls}; "
            f"{LEAST_TIMED_CALLS} are needed."
        )
    ns_per_input = _ns_per_token("input", use.fresh_tokens, use.timed_input_tokens, use.prompt_ns)
    ns_per_output = _ns_per_token("output", use.output_tokens, use.timed_output_tokens, use.output_ns)
    weight = use.fresh_tokens * ns_per_input + use.output_tokens * ns_per_output
    if not weight:
        raise NothingToPropose("Its tokens took no time that could be measured.")
    return TokenCost(input=cost * ns_per_input / weight, output=cost * ns_per_output / weight)


def _ns_per_token(sort: str, tokens: int, timed_tokens: int, nanoseconds: int) -> Fraction:
    if timed_tokens:
        return Fraction(nanoseconds, timed_tokens)
    if tokens:
        raise NothingToPropose(f"No call tells how long its {sort} took.")
    return Fraction()


def rounded_up(amount: Fraction) -> int:
    """A price that is not below what something costs."""
    return -(-amount.numerator // amount.denominator)


def rounded(amount: Fraction) -> int:
    """The nearest whole number, half of one upwards."""
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


def whole_amounts(amounts: Sequence[Fraction]) -> list[int]:
    """``amounts``, none below nothing, in whole numbers that add up to their sum, rounded.

    Each is the whole number below it or the one above; what is over goes to
    those that lost most.
    """
    whole = [amount.numerator // amount.denominator for amount in amounts]
    missing = rounded(sum(amounts, Fraction())) - sum(whole)
    most_lost = sorted(range(len(amounts)), key=lambda place: whole[place] - amounts[place])
    for place in most_lost[:missing]:
        whole[place] += 1
    return whole


def per_mille(part: Fraction, whole: Fraction) -> int:
    """So many thousandths ``part`` is of ``whole``, rounded; 0 of nothing."""
    return rounded(part * 1000 / whole) if whole else 0
