"""What tokens and GPU time cost, in whole micro-USD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PER_MILLION = 1_000_000
# Of a micro-USD, for a millisecond at a price of one micro-USD a second.
MILLIONTHS_PER_GPU_MS = 1_000


@dataclass(frozen=True, slots=True)
class PinnedPrice:
    """A price as it was when a call was admitted.

    Micro-USD for a million tokens of each sort, and for a second of GPU time.
    """

    id: str
    input: int
    cached: int
    output: int
    gpu_second: int = 0

    def as_list(self) -> list[Any]:
        """For the ledger; ``PinnedPrice(*…)`` reads it back."""
        return [self.id, self.input, self.cached, self.output, self.gpu_second]

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int, gpu_ms: int) -> int:
        """Micro-USD for a call, rounded up once. ``cached_tokens`` are part of ``input_tokens``."""
        millionths = (
            (input_tokens - cached_tokens) * self.input
            + cached_tokens * self.cached
            + output_tokens * self.output
            + gpu_ms * self.gpu_second * MILLIONTHS_PER_GPU_MS
        )
        return -(-millionths // PER_MILLION)


def usd_in_full(micro_usd: int) -> str:
    """An amount in USD with its six places, exactly."""
    sign = "-" if micro_usd < 0 else ""
    return f"{sign}{abs(micro_usd) // PER_MILLION}.{abs(micro_usd) % PER_MILLION:06d}"


def exactly_as_usd(millionths: int) -> str:
    """An amount in millionths of a micro-USD, in dollars with all its twelve places."""
    dollars, rest = divmod(abs(millionths), PER_MILLION**2)
    return f"{'-' * (millionths < 0)}{dollars}.{rest:012d}"
