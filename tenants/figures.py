"""Numbers for people, in the language of whoever reads them."""

from __future__ import annotations

from decimal import Decimal

from django.utils.formats import number_format


def grouped(number: int | str) -> str:
    """A number with all its digits, in groups of three: ``1,234.500000``, in German ``1.234,500000``.

    A string has a point before its places, if it has any.
    """
    return number_format(Decimal(number), force_grouping=True)
