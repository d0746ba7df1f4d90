"""How many tokens a text probably is, where Ollama has not counted them.

What is known of a model is its estimator. Each entry that is not exact names the
one that it was estimated with: ``default``, the third version that was learned
of its model (``learned:3``), or ``bound`` where what was held was booked. The
numbers of a version stay in ``budgets_estimate``, so an entry can be worked out
again. How they are learned is told in ``budgets.learning``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from django.db.models import QuerySet

from budgets.models import Estimate, Side
from tenants.database import DatabaseError, read_aside

logger = logging.getLogger(__name__)

# How often a process looks for what was published, in seconds.
REFRESH_SECONDS = 5.0
# Texts smaller than this are all of one size.
SMALLEST_BITS = 6


class Ratio(NamedTuple):
    """So many tokens for so many bytes."""

    bytes: int
    tokens: int


# Of English text, in most vocabularies.
DEFAULT_RATIO = Ratio(4, 1)


def size_of(text_bytes: int) -> int:
    """The size by which texts are told apart: the most bytes that one of it has, a power of four.

    A model puts about as much around every prompt, which is most of a short
    one and nothing of a long one. So what is learned of one size is not used
    for another.
    """
    return 1 << max(SMALLEST_BITS, (text_bytes - 1).bit_length() + 1 & ~1)


class Estimator(NamedTuple):
    """What is known of one model: ratios by size, for prompts and answers; the default for other sizes."""

    name: str
    prompts: Mapping[int, Ratio]
    answers: Mapping[int, Ratio]

    def prompt_tokens(self, text_bytes: int) -> int:
        """Rounded up, so of any text at least one."""
        return _tokens(text_bytes, self.prompts)

    def answer_tokens(self, text_bytes: int) -> int:
        """Rounded up, so of any text at least one."""
        return _tokens(text_bytes, self.answers)


def _tokens(text_bytes: int, ratios: Mapping[int, Ratio]) -> int:
    ratio = ratios.get(size_of(text_bytes), DEFAULT_RATIO)
    return -(-text_bytes * ratio.tokens // ratio.bytes)


DEFAULT = Estimator("default", {}, {})


class Estimators:
    """One process' copy of what is published."""

    def __init__(self) -> None:
        self._known: dict[str, Estimator] = {}

    def of(self, model: str) -> Estimator:
        """The estimator of ``model`` (canonical name)."""
        return self._known.get(model, DEFAULT)

    async def keep_fresh(self) -> None:
        """Read what is published, for ever; while PostgreSQL is away, what is known stays."""
        while True:
            try:
                self._known = await read_aside(published)
            except (DatabaseError, TimeoutError) as exc:
                logger.warning("estimators could not be read: %r", exc)
            await asyncio.sleep(REFRESH_SECONDS)


estimators = Estimators()


def newest() -> QuerySet[Estimate]:
    """The rows that hold now: of each model, side and size the one with the newest version."""
    part = ("model", "side", "up_to_bytes")
    return Estimate.objects.order_by(*part, "-version").distinct(*part)


def published() -> dict[str, Estimator]:
    """The newest estimators by model, from PostgreSQL."""
    rows: defaultdict[str, list[Estimate]] = defaultdict(list)
    for row in newest():
        rows[row.model].append(row)
    return {model: _estimator_of(of_model) for model, of_model in rows.items()}


def _estimator_of(rows: list[Estimate]) -> Estimator:
    ratios: dict[str, dict[int, Ratio]] = {Side.INPUT: {}, Side.OUTPUT: {}}
    for row in rows:
        ratios[row.side][row.up_to_bytes] = Ratio(row.bytes, row.tokens)
    newest_row = max(rows, key=lambda row: row.version)
    return Estimator(newest_row.name, ratios[Side.INPUT], ratios[Side.OUTPUT])
