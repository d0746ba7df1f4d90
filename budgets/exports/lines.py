"""CSV as the database writes it, and compression."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator

from django.db import connection

from audit.walled_role import become
from budgets.exports.orders import SEPARATORS, Order
from budgets.exports.queries import Query

CHUNK_BYTES = 64 * 1024
BYTE_ORDER_MARK = "\ufeff"


class Lines:
    """The lines of an export by ``COPY``, in pieces of some ten thousand bytes; iterate once.

    They end as RFC 4180 has it. ``rows`` counts them, without the head, as
    they go by.
    """

    def __init__(self, order: Order, query: Query) -> None:
        self._order, self._query = order, query
        self.rows = 0

    def __iter__(self) -> Generator[bytes]:
        sql, parameters = self._query
        pending = bytearray(self._head())
        connection.ensure_connection()
        # ``copy`` is psycopg's own: nobody else sees it, and it does not tell its errors as Django's.
        become(connection.connection)
        with (
            connection.wrap_database_errors,
            connection.cursor() as cursor,
            cursor.copy(self._copy(sql), parameters) as lines,
        ):
            # Always one row at a time, says the protocol of PostgreSQL.
            for line in lines:
                pending += line
                pending[-1:] = b"\r\n"
                self.rows += 1
                if len(pending) >= CHUNK_BYTES:
                    yield bytes(pending)
                    pending.clear()
        yield bytes(pending)

    def _copy(self, sql: str) -> str:
        order = self._order
        cells = ", ".join(
            f'{column.in_csv(decimal_comma=order.decimal_comma)} AS "{column.name}"'
            for column in order.profile.columns
        )
        separator = "E'\\t'" if order.separator == "tab" else f"'{SEPARATORS[order.separator]}'"
        # Names of columns and separators are ours; what is selected comes as parameters.
        return f"COPY (SELECT {cells} FROM ({sql}) AS r) TO STDOUT (FORMAT csv, DELIMITER {separator})"  # noqa: S608

    def _head(self) -> bytes:
        mark = BYTE_ORDER_MARK if self._order.layout == "spreadsheet" else ""
        names = [column.name for column in self._order.profile.columns]
        return (mark + SEPARATORS[self._order.separator].join(names) + "\r\n").encode()


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same as gzip has it, without a time or a name: equal content gives equal bytes."""
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for chunk in chunks:
        # Also when it is empty: whoever waits learns that work goes on.
        yield compressor.compress(chunk)
    yield compressor.flush()
