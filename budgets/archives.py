"""Taking months out of the database that are old and closed, and keeping them as files.

``LEDGER_KEEP_MONTHS`` says which. A partition of the ledger goes when every
month in which its entries are booked is closed; that of the request events
follows. Rollups, statements and closings stay, so all sums are kept.

The file is complete and on the disk before the transaction is committed that
drops the partition. So whatever dies when: either the partition is there, or
the file and the row that tells its digest.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from django.conf import settings
from django.db import OperationalError, connection, transaction

from audit import months
from audit.recording import record
from budgets import booking
from budgets.models import ArchivedMonth
from budgets.open_months import share
from budgets.usage import SUMS

logger = logging.getLogger(__name__)

ACTOR = "tollgate"
# Any number; only those who archive take this advisory lock.
LOCK = 0x544F4C4D02
ENTRIES, EVENTS = booking.BY_MONTH
FIGURES = {ENTRIES: SUMS, EVENTS: ("input_tokens", "output_tokens")}
ORDER = {ENTRIES: "request_id, kind", EVENTS: "request_id"}
# Who reads the whole table may keep it for long; then a later run takes the partition out.
LOCK_TIMEOUT = "5s"
READ_BYTES = 2**20


def archive_months() -> int:
    """Archive the partitions that are old enough and closed; return how many. A repeat goes on.

    Raises ``OSError`` if the directory cannot be written.
    """
    if settings.LEDGER_KEEP_MONTHS is None:
        return 0
    oldest_kept = _months_ago(datetime.now(UTC).date(), settings.LEDGER_KEEP_MONTHS)
    archived = 0
    for table in (ENTRIES, EVENTS):
        for month in sorted(month for month in months.partitions(table) if month < oldest_kept):
            # Of a month whose entries stay the events stay too.
            if table == EVENTS and month in months.partitions(ENTRIES):
                continue
            try:
                archived += _archive(table, month)
            except OperationalError as exc:
                logger.warning("%s of %s is left for later: %s", table, month, exc)
    return archived


def archived_between(from_day: date, before_day: date) -> list[ArchivedMonth]:
    """The files that have ledger entries of these accounting days; none: all detail is in the database."""
    return list(
        ArchivedMonth.objects.filter(table=ENTRIES, days__0__lt=before_day, days__1__gte=from_day).order_by(
            "month"
        )
    )


def archived_with(request_id: UUID) -> ArchivedMonth | None:
    """The file in which the entries of a request are if there are any."""
    month = months.month_of(request_id)
    return None if month is None else ArchivedMonth.objects.filter(table=ENTRIES, month=month).first()


@transaction.atomic
def _archive(table: str, month: date) -> bool:
    """Write a partition into a file and drop it; False if it is still open, or somebody else is at it."""
    partition = months.partition_of(table, month)
    with connection.cursor() as cursor:
        # Two would write the same file.
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        if not cursor.fetchone()[0] or month not in months.partitions(table):
            return False
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        # Nothing is added to it any more; other months go on.
        cursor.execute(f"LOCK TABLE {partition} IN SHARE MODE")
    if table == ENTRIES and not _closed(partition):
        return False
    path = settings.ARCHIVE_DIR / f"{partition}.csv.gz"
    rows = _write(table, partition, path)
    archived = ArchivedMonth(table=table, month=month, file=path.name, sha256=sha256_of(path), rows=rows)
    archived.totals, archived.days = _sums(table, partition)
    archived.save(force_insert=True)
    record(
        action="month.archived",
        actor=ACTOR,
        subject=str(archived),
        file=archived.file,
        sha256=archived.sha256,
        rows=rows,
    )
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DETACH PARTITION {partition}")
        cursor.execute(f"DROP TABLE {partition}")
    transaction.on_commit(months.forget_what_is_known)
    return True


def _closed(partition: str) -> bool:
    """Whether all months in which a partition has entries are closed, and stay so for this transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT DISTINCT tenant_id, date_trunc('month', day::timestamp)::date FROM {partition}"  # noqa: S608
        )
        booked = set(cursor.fetchall())
    return share(booked) == booked


def _write(table: str, partition: str, path: Path) -> int:
    """Write all rows of a partition into a file that survives the machine; return how many."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = path.with_suffix(".part")
    query = f"COPY (SELECT * FROM {partition} ORDER BY {ORDER[table]}) TO STDOUT (FORMAT csv, HEADER true)"  # noqa: S608
    with unfinished.open("wb") as file, connection.cursor() as cursor:
        copying = cast("Any", cursor).cursor
        # Neither name nor moment, so that the same rows make the same file.
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
            copying.copy(query) as copied,
        ):
            for piece in copied:
                zipped.write(piece)
        file.flush()
        os.fsync(file.fileno())
        rows = int(copying.rowcount)
    unfinished.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return rows


def sha256_of(path: Path) -> str:
    """The digest of a file, read back from the disk, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _sums(table: str, partition: str) -> tuple[dict[str, int], Sequence[date]]:
    """The sums of a partition, and the first and last accounting day of its entries."""
    sums = ", ".join(f"coalesce(sum({figure}), 0)::bigint" for figure in FIGURES[table])
    days = "min(day), max(day)" if table == ENTRIES else "NULL, NULL"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {days}, {sums} FROM {partition}")  # noqa: S608
        first, last, *found = cursor.fetchone()
    return dict(zip(FIGURES[table], found, strict=True)), [] if first is None else [first, last]


def _months_ago(day: date, number: int) -> date:
    """The first day of the month so many months before that of ``day``."""
    count = day.year * 12 + day.month - 1 - number
    return date(count // 12, count % 12 + 1, 1)
