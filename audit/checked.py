"""Rows whose constraints are all looked at in one query.

Django looks at each in a query of its own, most of them inside a savepoint, and
builds each anew for each row: for one row of a service that would be three
statements for each of its constraints. Here they are built once for a model, with
places for what a row has in its fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.core.exceptions import FieldError, ValidationError
from django.db import DatabaseError, connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BaseConstraint, CheckConstraint, Exists, F, Field, Q, UniqueConstraint, Value
from django.db.models.expressions import Expression
from django.db.models.fields import BooleanField, DateField
from django.db.models.functions import Coalesce
from django.db.models.lookups import Exact, IsNull
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler

__all__ = ["Checked"]

_BOOLEAN = BooleanField()
_TRUE = Value(True, _BOOLEAN)


class Checked(models.Model):
    """A model that asks once whether all its constraints hold.

    Only where that is not so, Django asks one by one which of them does not:
    what is refused, and with what words, is Django's in any case.
    """

    # While constraints are validated: whether those that can be asked about at once are known to hold.
    _known_to_hold = False

    class Meta:
        abstract = True

    def validate_constraints(self, exclude: Collection[str] | None = None) -> None:
        self._known_to_hold = self._hold(frozenset(exclude or ()))
        try:
            super().validate_constraints(exclude)
        finally:
            self._known_to_hold = False

    def get_constraints(self) -> list[tuple[type[models.Model], Sequence[BaseConstraint]]]:
        """The constraints of the row's tables; while they are validated, those that are left to ask about."""
        constraints = super().get_constraints()
        if not self._known_to_hold:
            return constraints
        return [
            (table, [one for one in its if table is not type(self) or type(one) not in _TOLD])
            for table, its in constraints
        ]

    def _hold(self, exclude: frozenset[str]) -> bool:
        """Whether all hold that can be asked about at once, as Django understands them.

        False also where nobody can tell; asked one by one Django will say of which.
        """
        using = router.db_for_write(type(self), instance=self)
        connection = connections[using]
        # Raises where nobody may ask for rows of the table.
        type(self)._default_manager.all()  # noqa: SLF001
        stands = not self._state.adding and self.pk is not None
        # Django leaves out what is about a field that is not to be looked at.
        asked = [one for one in _questions(type(self), using, stands) if exclude.isdisjoint(one.fields)]
        if not asked:
            return True
        fields = {name: field for one in asked for name, field in one.fields.items()}
        values = {name: getattr(self, field.attname) for name, field in fields.items()}
        if any(hasattr(value, "resolve_expression") for value in values.values()):
            return False
        whole = transaction.atomic(using=using) if connection.in_atomic_block else contextlib.nullcontext()
        try:
            for name, field in fields.items():
                values[name] = field.get_db_prep_value(values[name], connection=connection)
            with whole, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT " + " AND ".join(one.sql for one in asked),
                    [
                        values[param.name] if isinstance(param, _Place) else param
                        for one in asked
                        for param in one.params
                    ],
                )
                return bool(cursor.fetchone()[0])
        except (DatabaseError, ValidationError):
            return False


class _Place(Expression):
    """Where what a row has in a field is to stand; a parameter of the statement until a row is there."""

    def __init__(self, name: str, field: Field[Any, Any]) -> None:
        super().__init__(output_field=field)
        self.name = name

    # A parameter is said to be a string or a number, which this becomes later.
    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper
    ) -> tuple[str, list[Any]]:
        field = self.output_field
        if hasattr(field, "get_placeholder"):
            return field.get_placeholder(None, compiler, connection), [self]
        # PostgreSQL takes the day of nothing only when it knows that it is not the day of something else.
        return (f"%s::{field.db_type(connection)}" if isinstance(field, DateField) else "%s"), [self]


class _Question(NamedTuple):
    """Whether one constraint holds: an expression, its parameters, and the fields of the row it is about."""

    sql: str
    params: Sequence[Any]
    fields: dict[str, Field[Any, Any]]


@cache
def _questions(model: type[models.Model], using: str, stands: bool) -> list[_Question]:
    """What is to be asked about a row of ``model`` that ``stands`` in its table, or is to be added to it."""
    options = model._meta  # noqa: SLF001
    places = {field.name: _Place(field.name, field) for field in options.local_concrete_fields}
    places["pk"] = _Place("pk", options.pk)
    query = Query(None)
    for name, place in places.items():
        query.add_annotation(place, name, select=False)
    compiler = query.get_compiler(using=using)
    # All rows, whoever asks: what is free among them is free among those that somebody may see.
    others = model._base_manager.using(using)  # noqa: SLF001
    if stands:
        others = others.exclude(pk=places["pk"])
    questions = []
    for constraint in options.constraints:
        if type(constraint) in _TOLD:
            # Django passes over what is about something that is no field of the row.
            with contextlib.suppress(FieldError):
                condition = _TOLD[type(constraint)](constraint, places, others)
                sql, params = compiler.compile(query.build_where(condition))
                fields = {param.name: param.output_field for param in params if isinstance(param, _Place)}
                questions.append(_Question(sql, params, fields))
    return questions


def _holds(check: CheckConstraint, places: dict[str, _Place], others: models.QuerySet[Any]) -> Q:
    # What is unknown holds.
    return Q(_true_or_unknown(Q(check.condition)))


def _is_free(unique: UniqueConstraint, places: dict[str, _Place], others: models.QuerySet[Any]) -> Q:
    of_the_row: dict[Any, _Place] = {F(name): place for name, place in places.items()}
    for theirs in unique.expressions or map(F, unique.fields):
        # Fields know how to as well as what is made of them.
        ours = theirs.replace_expressions(of_the_row)  # type: ignore[union-attr]
        alike = Q(Exact(theirs, ours))
        if unique.nulls_distinct is False:
            alike |= Q(IsNull(theirs, True), IsNull(ours, True))
        others = others.filter(alike)
    if not unique.condition:
        return ~Q(Exists(others))
    return ~Q(_true_or_unknown(unique.condition & Q(Exists(others.filter(unique.condition)))))


def _true_or_unknown(condition: Q) -> Coalesce:
    return Coalesce(condition, _TRUE, output_field=_BOOLEAN)


# What has to be true where a constraint holds; not of one whose class was taught to look in another way.
_TOLD: dict[type[BaseConstraint], Callable[[Any, dict[str, _Place], models.QuerySet[Any]], Q]] = {
    CheckConstraint: _holds,
    UniqueConstraint: _is_free,
}
