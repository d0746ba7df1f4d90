"""Rows whose check constraints are all looked at in one query.

Django looks at each in a query of its own, inside a savepoint: what a service
does for one row would be three statements for each of its constraints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import TypeGuard

from django.core.exceptions import FieldError
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models import BaseConstraint, CheckConstraint, Q, Value
from django.db.models.fields import BooleanField
from django.db.models.functions import Coalesce
from django.db.models.sql import Query
from django.db.models.sql.constants import SINGLE

__all__ = ["Checked"]

# Made once: whoever leaves it to an expression to find out what it is has a field made each time.
_BOOLEAN = BooleanField()
_TRUE = Value(True, _BOOLEAN)


class Checked(models.Model):
    """A model that asks once whether all its check constraints hold.

    Only where that is not so, Django asks one by one which of them does not:
    what is refused, and with what words, is Django's in any case.
    """

    # While constraints are validated: whether those that are checks are known to hold.
    _checks_hold = False

    class Meta:
        abstract = True

    def validate_constraints(self, exclude: Collection[str] | None = None) -> None:
        self._checks_hold = self._hold(exclude)
        try:
            super().validate_constraints(exclude)
        finally:
            self._checks_hold = False

    def get_constraints(self) -> list[tuple[type[models.Model], Sequence[BaseConstraint]]]:
        """The constraints of the row's tables; while they are validated, those that are left to ask about."""
        constraints = super().get_constraints()
        if not self._checks_hold:
            return constraints
        return [(table, [one for one in its if not _is_check(one)]) for table, its in constraints]

    def _hold(self, exclude: Collection[str] | None) -> bool:
        """Whether all checks hold, as Django understands it: what is unknown holds.

        False also where the database cannot tell; asked one by one it will say of which.
        """
        using = router.db_for_write(type(self), instance=self)
        query = Query(None)
        values = self._get_field_expression_map(meta=self._meta, exclude=exclude)  # type: ignore[attr-defined]
        for name, value in values.items():
            query.add_annotation(value, name, select=False)
        query.add_annotation(Value(1), "_check")
        for check in filter(_is_check, self._meta.constraints):
            # It is about a field that is not to be looked at, and left out for that.
            with contextlib.suppress(FieldError):
                query.add_q(Q(Coalesce(Q(check.condition), _TRUE, output_field=_BOOLEAN)))
        whole = (
            transaction.atomic(using=using)
            if connections[using].in_atomic_block
            else contextlib.nullcontext()
        )
        try:
            with whole:
                return query.get_compiler(using=using).execute_sql(SINGLE) is not None
        except DatabaseError:
            return False


def _is_check(constraint: BaseConstraint) -> TypeGuard[CheckConstraint]:
    # Not one that somebody has taught to look in another way.
    return type(constraint) is CheckConstraint
