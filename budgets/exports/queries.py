"""What the queries of all profiles have in common."""

from __future__ import annotations

from datetime import date
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from budgets.usage import Selection

# SQL and its parameters.
Query = tuple[str, list[Any]]

# Of an entry ``e``.
ESTIMATED_TOKENS = "CASE WHEN e.exact THEN 0 ELSE e.input_tokens + e.output_tokens END"


def entries_of(selection: Selection) -> Query:
    """The entries as a query that a larger one may select from."""
    sql, parameters = selection.entries().query.sql_with_params()
    return sql, list(parameters)


def bounds_of(selection: Selection) -> tuple[date, date]:
    """First day, and the first that is not in it; raises ``ValidationError`` when one of them is missing."""
    if selection.from_day is None or selection.before_day is None:
        raise ValidationError(_("An export begins on one day and ends before another; name both."))
    return selection.from_day, selection.before_day
