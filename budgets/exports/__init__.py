"""Usage as files that finance can import: what may be ordered, writing it, and what it must add up to."""

from budgets.exports.checks import sha256_of, totals_of
from budgets.exports.orders import LAYOUTS, SEPARATORS, Order
from budgets.exports.profiles import PROFILES
from budgets.exports.sizes import Size, estimate
from budgets.exports.writing import Writing, as_text, file_name

__all__ = [
    "LAYOUTS",
    "PROFILES",
    "SEPARATORS",
    "Order",
    "Size",
    "Writing",
    "as_text",
    "estimate",
    "file_name",
    "sha256_of",
    "totals_of",
]
