"""How large an export will be, before it is made."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from django.db import connection

from budgets.exports.orders import Order
from budgets.exports.queries import entries_of

# Up to here entries are counted; beyond, the planner's guess is good enough to choose by.
MOST_COUNTED = 100_000
# What compression leaves of CSV, in hundredths, as measured.
GZIP_PERCENT, WORKBOOK_PERCENT = 16, 40
HEAD_BYTES = 600


@dataclass(frozen=True, slots=True)
class Size:
    """``rows`` that the file will have and ``entries`` of the ledger that are read for it.

    ``exact``: the rows were counted, and are right as long as nothing is
    booked. ``bytes`` is always about.
    """

    entries: int
    rows: int
    bytes: int
    exact: bool


def estimate(order: Order) -> Size:
    """How large the file of ``order`` will be, without reading all that goes into it."""
    entries, exact = _entries(order)
    rows = entries
    if order.profile.groups:
        rows, exact = min(_groups(order), entries) * order.profile.rows_of_a_group, False
    size = HEAD_BYTES + rows * order.profile.usual_bytes
    if order.gzip:
        size = size * GZIP_PERCENT // 100
    if order.layout == "xlsx":
        size = size * WORKBOOK_PERCENT // 100
    return Size(entries, rows, size, exact)


def _entries(order: Order) -> tuple[int, bool]:
    sql, parameters = entries_of(order.selection)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM ({sql} LIMIT {MOST_COUNTED + 1}) AS e", parameters)  # noqa: S608
        counted: int = cursor.fetchone()[0]
        if counted <= MOST_COUNTED:
            return counted, True
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters)
        plan = cursor.fetchone()[0]
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return max(counted, int(plan[0]["Plan"]["Plan Rows"])), False


def _groups(order: Order) -> int:
    """How many groups the rollups know, which have the ledger by the hour and are much smaller."""
    # What they do not know only makes fewer of them.
    selection = replace(order.selection, run=None, request_id=None, since=None, until=None)
    rollups = selection.rollups()
    return 0 if rollups is None else rollups.values(*order.profile.groups).distinct().count()
