"""Money as programs read it: whole micro-USD, and dollars as decimal strings besides."""

from __future__ import annotations

from decimal import Decimal

from budgets.money import MICRO


def as_usd(micro_usd: int) -> str:
    """Dollars with all six digits, such as ``0.150000``."""
    return f"{Decimal(micro_usd) / MICRO:.6f}"
