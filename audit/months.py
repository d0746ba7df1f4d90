"""Tables that grow, in one partition for each month.

A table is partitioned by the id of the request its rows are about: that is a
UUID of version 7, which begins with the milliseconds since 1970. So all rows
of a request lie in one partition, and the database can keep them unique.

Partitions are made ahead (``ensure_ahead``, by the worker again and again) and
for whatever month the ledger is about to write (``ensure``). A row whose id is
of no month lies in the partition ``<table>_rest``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime
from uuid import UUID

from django.db import connection, transaction

logger = logging.getLogger(__name__)

MONTHS_AHEAD = 3
# Ids of months that are further away say nothing: somebody's clock was wrong, or it is no such id.
FIRST = date(2020, 1, 1)
# Any number; only those who make partitions take this advisory lock. (…04 is that of the audit's trigger.)
LOCK = 0x544F4C4C05

_known: set[tuple[str, date]] = set()


def month_of(request_id: UUID) -> date | None:
    """The first day of the month (UTC) in which an id was made; None if it tells none that can be."""
    milliseconds = request_id.int >> 80
    if request_id.version != 7 or milliseconds >= 253_402_300_800_000:
        return None
    month = datetime.fromtimestamp(milliseconds / 1000, UTC).date().replace(day=1)
    latest = months_from(datetime.now(UTC).date(), MONTHS_AHEAD + 1)[-1]
    return month if FIRST <= month <= latest else None


def months_from(day: date, ahead: int) -> list[date]:
    """The month of ``day`` and the ``ahead`` ones that follow, as their first days."""
    numbers = range(day.year * 12 + day.month - 1, day.year * 12 + day.month + ahead)
    return [date(number // 12, number % 12 + 1, 1) for number in numbers]


def first_id(month: date) -> UUID:
    """What the ids of a month are not below, and those of the month before are."""
    start = datetime(month.year, month.month, 1, tzinfo=UTC)
    return UUID(int=int(start.timestamp()) * 1000 << 80)


def partition_of(table: str, month: date) -> str:
    return f"{table}_y{month:%Y}m{month:%m}"


def partitions(table: str) -> dict[date, str]:
    """The partitions of months that a table has, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1",
            [table],
        )
        names = [name for (name,) in cursor.fetchall()]
    prefix = f"{table}_y"
    return {
        date(int(name[len(prefix) : len(prefix) + 4]), int(name[-2:]), 1): name
        for name in names
        if name.startswith(prefix)
    }


def ensure_ahead(tables: Iterable[str]) -> int:
    """Make the partitions of this month and the next ones; return how many were missing."""
    months = months_from(datetime.now(UTC).date(), MONTHS_AHEAD)
    return sum(ensure(table, months) for table in tables)


def ensure(table: str, months: Collection[date]) -> int:
    """Make the partitions of ``months`` that a table lacks; return how many. A repeat makes none.

    A month of which the rest has rows stays there: they were written while its
    partition was missing, and nothing may move them.
    """
    wanted = sorted({month for month in months if (table, month) not in _known})
    if not wanted:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        there = partitions(table)
        missing = [month for month in wanted if month not in there]
        made = sum(_make(table, month) for month in missing)
        transaction.on_commit(lambda: _known.update((table, month) for month in wanted))
    return made


def forget_what_is_known() -> None:
    """Look at the database again: somebody else has taken partitions away."""
    _known.clear()


def _make(table: str, month: date) -> bool:
    name = partition_of(table, month)
    begins, ends = first_id(month), first_id(months_from(month, 1)[1])
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT EXISTS (SELECT FROM {table}_rest WHERE request_id >= %s AND request_id < %s)",  # noqa: S608
            [begins, ends],
        )
        if cursor.fetchone()[0]:
            logger.error("%s has no partition for %s, and rows of it in the rest", table, month)
            return False
        # Attached and not created in place: that would keep readers of all months waiting.
        cursor.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
        cursor.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{begins}') TO ('{ends}')"
        )
    return True


def part(table: str, parted: str, filled: str) -> None:
    """For migrations: ``parted`` makes of a table one with partitions, ``filled`` moves the rows into it."""
    with connection.cursor() as cursor:
        cursor.execute(parted)
        cursor.execute(f"SELECT DISTINCT request_id FROM {table}_whole")  # noqa: S608
        old = {month for (request_id,) in cursor.fetchall() if (month := month_of(request_id))}
    ensure(table, [*old, *months_from(datetime.now(UTC).date(), MONTHS_AHEAD)])
    with connection.cursor() as cursor:
        cursor.execute(filled)
