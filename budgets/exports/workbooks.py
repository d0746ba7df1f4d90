"""XLSX, row by row into a file and never a whole sheet in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import connection
from django.utils.translation import gettext_lazy as _

from budgets.exports.columns import Column
from budgets.exports.lines import CHUNK_BYTES
from budgets.exports.orders import Order
from budgets.exports.queries import Query

if TYPE_CHECKING:
    from xlsxwriter import Workbook
    from xlsxwriter.format import Format
    from xlsxwriter.worksheet import Worksheet

# A sheet has 2**20, and one is the head.
MOST_ROWS = 2**20 - 1
# What a cell keeps of a number; with more digits it would be another one.
MOST_DIGITS = 15
MOST_CHARACTERS = 32_767
ROWS_AT_ONCE = 2_000
# Any moment, but always the same: equal content gives equal bytes.
CREATED = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)

TOO_LONG = ValidationError(
    _(
        "A sheet has no more than %(most)s rows, and this export has more. "
        "Take CSV, fewer days, or a row for each day, key or model."
    ),
    params={"most": f"{MOST_ROWS:,}"},
)


class Sheet:
    """The rows of an export as the one sheet of a workbook; iterate once. ``rows`` counts them.

    Raises ``ValidationError`` when they do not fit. What is iterated over is
    empty while rows are written: so whoever waits can stop waiting.
    """

    def __init__(self, order: Order, query: Query) -> None:
        self._order, self._query = order, query
        self.rows = 0

    def __iter__(self) -> Generator[bytes]:
        with tempfile.TemporaryDirectory(prefix="tollgate-export-") as directory:
            path = Path(directory) / "sheet.xlsx"
            yield from self._written(path, directory)
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    def _written(self, path: Path, directory: str) -> Iterator[bytes]:
        # Few processes ever write one, and it takes a while to load.
        from xlsxwriter import Workbook

        columns = self._order.profile.columns
        sql, parameters = self._query
        cells = ", ".join(f'{column.in_workbook()} AS "{column.name}"' for column in columns)
        workbook = Workbook(str(path), {"constant_memory": True, "tmpdir": directory})
        workbook.set_properties({"created": CREATED})
        head = workbook.add_format({"bold": True})
        formats = [_format_of(column, workbook) for column in columns]
        largest = [10 ** (MOST_DIGITS - column.places) for column in columns]
        sheet = workbook.add_worksheet(self._order.profile_name)
        sheet.freeze_panes(1, 0)
        for number, column in enumerate(columns):
            sheet.write_string(0, number, column.name, head)
        with connection.chunked_cursor() as cursor:
            cursor.execute(f"SELECT {cells} FROM ({sql}) AS r", parameters)  # noqa: S608
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                for row in rows:
                    self.rows += 1
                    if self.rows > MOST_ROWS:
                        raise TOO_LONG
                    for number, value in enumerate(row):
                        _write(sheet, self.rows, number, value, formats[number], largest[number])
                yield b""
        workbook.close()


def _format_of(column: Column, workbook: Workbook) -> Format | None:
    if column.kind == "fixed":
        return workbook.add_format({"num_format": f"0.{'0' * column.places}"})
    return workbook.add_format({"num_format": "yyyy-mm-dd"}) if column.kind == "day" else None


def _write(sheet: Worksheet, row: int, column: int, value: Any, form: Format | None, largest: int) -> None:
    """One cell by the type of its value; nothing for what is not known."""
    if isinstance(value, str):
        sheet.write_string(row, column, value[:MOST_CHARACTERS])
    elif isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, int | Decimal):
        if -largest < value < largest:
            sheet.write_number(row, column, value, form)  # type: ignore[arg-type]  # takes decimals too
        else:
            sheet.write_string(row, column, str(value))
    elif isinstance(value, date):
        sheet.write_datetime(row, column, datetime.combine(value, time()), form)
