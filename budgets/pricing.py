"""What tokens cost, in whole micro-USD."""

from __future__ import annotations

from dataclasses import dataclass

PER_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class PinnedPrice:
    """A price as it was when a call was admitted: micro-USD for a million tokens of each sort."""

    id: str
    input: int
    cached: int
    output: int

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Micro-USD for a call, rounded up once. ``cached_tokens`` are part of ``input_tokens``."""
        millionths = (
            (input_tokens - cached_tokens) * self.input
            + cached_tokens * self.cached
            + output_tokens * self.output
        )
        return -(-millionths // PER_MILLION)
