"""Columns of exports: how the database writes each kind of value.

The database writes whole lines, so a file of millions of rows costs Python
nothing but passing bytes on. The names of columns are ours, never a client's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenants.spreadsheets import DANGEROUS

Kind = Literal["text", "integer", "fixed", "day", "instant", "id", "boolean"]

_LIST = ", ".join(map(str, DANGEROUS))


@dataclass(frozen=True, slots=True)
class Column:
    """One column, with the name under which the query of its profile has it.

    ``fixed`` is an integer of 10**-``places``: micro-USD with six places are
    written as dollars. ``text`` was chosen by people and may be anything.
    """

    name: str
    kind: Kind = "text"
    places: int = 0

    def in_csv(self, *, decimal_comma: bool) -> str:
        """The expression for a cell of CSV: text of one form, whatever the server's settings are."""
        value = f'r."{self.name}"'
        if self.kind == "text":
            return guarded(value)
        if self.kind == "day":
            return f"to_char({value}, 'YYYY-MM-DD')"
        if self.kind == "instant":
            return _instant(value)
        if self.kind == "fixed":
            written = f"({self._scaled(value)})::text"
            return f"replace({written}, '.', ',')" if decimal_comma else written
        return f"{value}::text"

    def in_workbook(self) -> str:
        """The expression for a cell of a workbook: numbers, days and booleans stay what they are."""
        value = f'r."{self.name}"'
        if self.kind == "text":
            return guarded(value)
        if self.kind == "instant":
            return _instant(value)
        if self.kind == "fixed":
            return self._scaled(value)
        return f"{value}::text" if self.kind == "id" else value

    def _scaled(self, value: str) -> str:
        # A product is exact, with the places of its factors; a quotient would be rounded.
        return f"{value} * 0.{1:0{self.places}d}"


def guarded(value: str) -> str:
    """``harmless``, as the database does it."""
    return f"CASE WHEN ascii({value}) IN ({_LIST}) THEN '''' || {value} ELSE {value} END"


def _instant(value: str) -> str:
    return f"""to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def ids(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "id") for name in names)


def texts(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name) for name in names)


def integers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "integer") for name in names)


def usd(name: str) -> Column:
    """Dollars with six places; the query has micro-USD."""
    return Column(name, "fixed", 6)
