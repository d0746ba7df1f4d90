"""The file: sections of rows, in YAML.

Each row has what says which thing it is (``Kind.identity``) and its settings
(``Kind.fields``). A setting that is left out has its default, so a file means
the same whatever the gateway is set to. Names that nobody knows are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import NoneType
from typing import Any

import yaml
from django.core.exceptions import ValidationError

VERSION = 1

Row = dict[str, Any]
Identity = tuple[Any, ...]
# By section, then by what says which thing it is.
Document = dict[str, dict[Identity, Row]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of a section look like: the types and defaults of their settings.

    ``identity`` names the columns that say which thing a row is; those that it
    may leave out are in ``fields`` too, with their defaults. ``canonical`` has,
    of columns in which the same can be written in several ways, what makes the
    one way of it that is compared.
    """

    section: str
    identity: tuple[str, ...]
    fields: Mapping[str, tuple[tuple[type, ...], Any]]
    canonical: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def row(self, told: object, place: str) -> Row:
        """A row with every column; raises ``ValidationError`` for one that cannot be read."""
        if not isinstance(told, dict):
            raise ValidationError(f"{place} is no row of names and values.")
        columns = list(dict.fromkeys([*self.identity, *self.fields]))
        if unknown := [str(name) for name in told if name not in columns]:
            raise ValidationError(f"{place} has {', '.join(unknown)}, but may have {', '.join(columns)}.")
        row: Row = {}
        for name in columns:
            types, default = self.fields.get(name, ((str,), None))
            value = told.get(name, default)
            if name not in self.fields and value is None:
                raise ValidationError(f"{place} needs {name}.")
            row[name] = _checked(value, types, f"{name} of {place}")
            if name in self.canonical and row[name] is not None:
                row[name] = self.canonical[name](row[name])
        return row

    def identity_of(self, row: Row) -> Identity:
        return tuple(row[name] for name in self.identity)


def _checked(value: Any, types: tuple[type, ...], place: str) -> Any:
    # To Python a bool is an int; nobody who writes "limit: yes" means 1.
    if type(value) not in types:
        words = " or ".join("nothing" if kind is NoneType else kind.__name__ for kind in types)
        raise ValidationError(f"{place} is {value!r}; it has to be {words}.")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValidationError(f"{place} needs an offset, such as 2027-01-31T00:00:00+00:00.")
        return value.astimezone(UTC)
    if isinstance(value, list) and not all(isinstance(item, (str, int)) for item in value):
        raise ValidationError(f"{place} has to be a list of words or numbers.")
    if any("\0" in str(item) for item in (value if isinstance(value, list) else [value])):
        raise ValidationError(f"{place} has a NUL in it, which cannot be kept.")
    return value


def read(text: str, shapes: Mapping[str, Shape]) -> Document:
    """The document in a file's text; raises ``ValidationError`` with a sentence for people."""
    try:
        told = yaml.load(text, _Strict)  # noqa: S506 - a safe loader that takes no name twice
    except yaml.YAMLError as exc:
        raise ValidationError(f"The file is no YAML: {exc}") from exc
    except RecursionError as exc:
        raise ValidationError("The file has lists in lists without end.") from exc
    if not isinstance(told, dict) or told.get("version") != VERSION:
        raise ValidationError(f"The file has to begin with version: {VERSION}.")
    if unknown := [str(name) for name in told if name not in shapes and name != "version"]:
        raise ValidationError(f"There is no section {', '.join(unknown)}; there are {', '.join(shapes)}.")
    return {section: _rows(told.get(section) or [], shape) for section, shape in shapes.items()}


def _rows(told: object, shape: Shape) -> dict[Identity, Row]:
    if not isinstance(told, list):
        raise ValidationError(f"{shape.section} has to be a list of rows.")
    rows: dict[Identity, Row] = {}
    for number, one in enumerate(told, 1):
        place = f"row {number} of {shape.section}"
        row = shape.row(one, place)
        if shape.identity_of(row) in rows:
            raise ValidationError(f"{place} is about the same as one before.")
        rows[shape.identity_of(row)] = row
    return rows


def written(document: Document, shapes: Mapping[str, Shape]) -> str:
    """The file of a document; ``read`` makes the same document of it. Defaults are left out."""
    told: dict[str, Any] = {"version": VERSION}
    for section, rows in document.items():
        fields = shapes[section].fields
        told[section] = [
            {name: value for name, value in row.items() if name not in fields or value != fields[name][1]}
            for row in rows.values()
        ]
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=110)


class _Strict(yaml.SafeLoader):
    """A name that stands twice in a row is a mistake, and not the last value of it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {str(name) for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(sorted(twice))} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)
