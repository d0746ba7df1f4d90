"""What a call may cost a counter at most, and what it did cost."""

from __future__ import annotations

from typing import NamedTuple

from budgets.pricing import MILLIONTHS_PER_GPU_MS, PER_MILLION, PinnedPrice

# More than any context; with the largest price it keeps every product of a script below 2^53.
LARGEST_TOKENS = 2**22

# What estimated a call of which all that is known is what was held for it.
BOUND = "bound"


# Made for every call, several of them: a named tuple takes a third of the time of a frozen dataclass.
class Usage(NamedTuple):
    """What a call used.

    ``estimator`` is empty when Ollama counted all of it, else the name of what
    made up for that (``budgets.estimators``), or ``BOUND``. Cached tokens are
    part of the input, thinking tokens of the output. Durations are Ollama's own
    nanoseconds, None where it told none. ``wall_ms`` is how long the upstream had
    the call, which bounds the time it worked on it. Bytes are those of the text
    of prompt and answer, None where they are not known.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    thinking_tokens: int
    load_ns: int | None
    prompt_ns: int | None
    output_ns: int | None
    estimator: str
    wall_ms: int = 0
    input_bytes: int | None = None
    output_bytes: int | None = None

    @property
    def exact(self) -> bool:
        return not self.estimator

    @property
    def gpu_ms(self) -> int:
        """Milliseconds in which the model worked, rounded up; ``wall_ms`` where Ollama told nothing of it."""
        if self.prompt_ns is None and self.output_ns is None:
            return self.wall_ms
        return -(-((self.prompt_ns or 0) + (self.output_ns or 0)) // 1_000_000)


NOTHING = Usage(0, 0, 0, 0, None, None, None, "")


class Charge(NamedTuple):
    """What a call costs a counter, as a line over its output tokens and its GPU time.

    ``amount(output, gpu_ms) = whole + ceil((rest + output * rate + gpu_ms * gpu_rate) / per)``,
    so the script itself can work out how much output still fits, and how much
    time. ``rest`` is below ``per``.
    """

    whole: int
    rest: int
    rate: int
    per: int
    gpu_rate: int = 0

    def amount(self, output_tokens: int, gpu_ms: int = 0) -> int:
        return self.whole - (-(self.rest + output_tokens * self.rate + gpu_ms * self.gpu_rate) // self.per)

    def most_output(self, room: int) -> int:
        """The most output with which the charge is within ``room``; -1 if there is none."""
        dividend = (room - self.whole) * self.per - self.rest
        if dividend < 0:
            return -1
        return dividend // self.rate if self.rate else LARGEST_TOKENS

    def most_gpu_ms(self, output_tokens: int, room: int) -> int:
        """The most GPU time with which the charge of so much output is within ``room``; below 0 for none."""
        return ((room - self.whole) * self.per - self.rest - output_tokens * self.rate) // self.gpu_rate


FREE = Charge(0, 0, 0, 1)
ONE = Charge(1, 0, 0, 1)
EACH_OUTPUT_TOKEN = Charge(0, 0, 1, 1)
EACH_GPU_MS = Charge(0, 0, 0, 1, 1)


def charge(unit: str, input_tokens: int, price: PinnedPrice | None) -> Charge:
    """The most that a call with ``input_tokens`` costs in ``unit``."""
    if unit == "requests":
        return ONE
    if unit == "tokens":
        return Charge(input_tokens, 0, 1, 1)
    if unit == "output_tokens":
        return EACH_OUTPUT_TOKEN
    if unit == "micro_usd":
        if price is None:
            return FREE
        whole, rest = divmod(input_tokens * price.input, PER_MILLION)
        return Charge(whole, rest, price.output, PER_MILLION, price.gpu_second * MILLIONTHS_PER_GPU_MS)
    if unit == "gpu_ms":
        return EACH_GPU_MS
    raise ValueError(f"no such unit: {unit}")


def used(unit: str, usage: Usage, price: PinnedPrice | None, *, worked: bool) -> int:
    """What a call that ended with ``usage`` cost in ``unit``.

    ``worked`` tells whether a model worked on it: else not even the request counts.
    """
    if not worked:
        return 0
    if unit == "requests":
        return 1
    if unit == "tokens":
        return usage.input_tokens + usage.output_tokens
    if unit == "output_tokens":
        return usage.output_tokens
    if unit == "micro_usd":
        if price is None:
            return 0
        return price.cost(usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.gpu_ms)
    if unit == "gpu_ms":
        return usage.gpu_ms
    raise ValueError(f"no such unit: {unit}")


def within(usage: Usage, input_bound: int, output_cap: int, gpu_cap_ms: int | None) -> Usage:
    """``usage`` moved into what was held for the call; ``BOUND`` if it was exact and had to be moved.

    An upstream may report anything; what it reports never makes a call cost
    more than its hold. Durations that add up to more than the GPU time held are
    none, and all of that time counts instead; None: no time was held.
    """
    input_tokens = min(max(usage.input_tokens, 0), input_bound)
    output_tokens = min(max(usage.output_tokens, 0), output_cap)
    inside = Usage(
        input_tokens=input_tokens,
        cached_tokens=min(max(usage.cached_tokens, 0), input_tokens),
        output_tokens=output_tokens,
        thinking_tokens=min(max(usage.thinking_tokens, 0), output_tokens),
        load_ns=_nanoseconds(usage.load_ns),
        prompt_ns=_nanoseconds(usage.prompt_ns),
        output_ns=_nanoseconds(usage.output_ns),
        estimator=usage.estimator,
        wall_ms=usage.wall_ms,
        input_bytes=usage.input_bytes,
        output_bytes=usage.output_bytes,
    )
    if gpu_cap_ms is not None and inside.gpu_ms > gpu_cap_ms:
        inside = inside._replace(prompt_ns=None, output_ns=None, wall_ms=gpu_cap_ms)
    return usage if inside == usage else inside._replace(estimator=usage.estimator or BOUND)


def _nanoseconds(duration: int | None) -> int | None:
    """A duration, or None for one that cannot be: negative, or longer than ten days."""
    return duration if duration is not None and 0 <= duration < 10 * 86_400 * 10**9 else None
