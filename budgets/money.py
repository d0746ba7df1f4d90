"""Money as people read it: dollars, from the micro-USD in which everything is counted."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Protocol

from django.utils.formats import number_format
from django.utils.translation import gettext

from budgets.internal_prices import rounded

MICRO = 1_000_000
NANO = 1_000_000_000
CENT = 10_000


class PriceColumns(Protocol):
    """What a price and the proposal of one both have, in micro-USD."""

    input_price: int
    cached_price: int
    output_price: int
    gpu_price: int


def usd(micro_usd: int) -> str:
    """A price in dollars, without zeros at its end."""
    return f"${Decimal(micro_usd) / MICRO:f}"


def usd_total(micro_usd: int) -> str:
    """An amount in dollars and cents, or to the last millionth where it is not whole cents."""
    digits = 6 if micro_usd % CENT else 2
    amount = number_format(Decimal(micro_usd) / MICRO, digits, force_grouping=True)
    return gettext("$%(amount)s") % {"amount": amount}


def usd_exactly(micro_usd: Fraction) -> str:
    """A cost that is no price yet, in dollars, to thousandths of a micro-USD."""
    return f"${Decimal(rounded(micro_usd * 1000)) / NANO:f}"


def price_told(price: PriceColumns) -> str:
    """A price in words."""
    return (
        f"{usd(price.input_price)} in, {usd(price.cached_price)} cached and {usd(price.output_price)} out "
        f"for a million tokens, {usd(price.gpu_price)} for a second of GPU time"
    )
