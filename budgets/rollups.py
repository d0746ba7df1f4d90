"""The rollups as the ledger says they must be: what differs, and making them anew.

All of it is done by PostgreSQL; no row of the ledger comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from audit.recording import record
from budgets import booking
from budgets.booking import ROLLUP_KEY, ROLLUP_NAMES
from budgets.models import ArchivedMonth
from budgets.usage import FIGURES, SUMS

PATIENCE = "10s"
# What ended on an accounting day ended before so much later in UTC, whatever the zone.
FROM_DAY_TO_UTC = timedelta(days=3)
KEY = ", ".join(ROLLUP_KEY)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the books: whose accounting days, ``[from_day, before_day)``; None selects nothing out."""

    tenant_id: UUID | None = None
    from_day: date | None = None
    before_day: date | None = None

    def where(self, table: str) -> tuple[str, list[Any]]:
        """The condition of its rows in a table with tenants and days, in SQL, and the values of its marks."""
        bounds = {"tenant_id =": self.tenant_id, "day >=": self.from_day, "day <": self.before_day}
        given = {f"{table}.{name} %s": value for name, value in bounds.items() if value is not None}
        return " AND ".join(["TRUE", *given]), list(given.values())


@dataclass(frozen=True, slots=True)
class RollupsDiffer:
    """What the rollups of one tenant and accounting day have that the ledger has not, or lack.

    ``rows`` of them differ. ``ledger`` and ``rollups`` are the sums of ``FIGURES`` over these; they
    may be the same, where one row has what another lacks.
    """

    tenant_id: UUID
    day: date
    rows: int
    ledger: dict[str, int]
    rollups: dict[str, int]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of making rollups anew: how many there must be, what differed, what was written."""

    rows: int
    differences: tuple[RollupsDiffer, ...]
    different: int
    written: int


def unarchived(part: Part) -> Part:
    """The days of a part of which no entries were taken out of the database; of others only sums are left."""
    days = [day for days in ArchivedMonth.objects.values_list("days", flat=True) for day in days]
    if not days:
        return part
    first = max(days) + FROM_DAY_TO_UTC
    return replace(part, from_day=first if part.from_day is None else max(first, part.from_day))


def differences(part: Part, most: int) -> tuple[list[RollupsDiffer], int]:
    """What differs of this part, ``most`` at most, oldest first, and how many of these there are."""
    anew, values = _anew(part)
    found, days, _ = _differences(f"({anew})", values, part, most)
    return found, days


@transaction.atomic(durable=True)
def rebuild(*, part: Part, actor: str, write: bool = False, most: int = 100) -> Rebuilt:
    """Make the rollups of a part anew and compare; with ``write`` put right what differs.

    Nothing is drained meanwhile, so that what is compared stands still. A
    repeat finds them equal. Rollups of archived days stay as they are, and the
    database refuses to change those of closed months. Raises Django's ``db.Error``.
    """
    part = unarchived(part)
    anew, values = _anew(part)
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [booking.LOCK])
        cursor.execute(f"CREATE TEMP TABLE rollups_anew ON COMMIT DROP AS {anew}", values)
        cursor.execute("SELECT count(*) FROM rollups_anew")
        [rows] = cursor.fetchone()
    found, _, different = _differences("rollups_anew", [], part, most)
    written = _write(part) if write and different else 0
    if written:
        record(
            action="rollups.rebuilt",
            actor=actor,
            subject="all tenants" if part.tenant_id is None else str(part.tenant_id),
            tenant_id=part.tenant_id,
            from_day=part.from_day,
            before_day=part.before_day,
            rows=written,
        )
    return Rebuilt(rows, tuple(found), different, written)


def _anew(part: Part) -> tuple[str, list[Any]]:
    """A query for the rollups that the ledger makes: their key, sums, and the id of their latest entry."""
    where, values = part.where("entry")
    sums = ", ".join(f"sum({figure})::bigint AS {figure}" for figure in FIGURES)
    query = (
        f"SELECT {KEY}, {sums}, max(id) AS latest FROM ("  # noqa: S608, the columns are the models' own
        "SELECT tenant_id, day, date_trunc('hour', ended_at, 'UTC') AS hour_start, "
        f"team_id, member_id, key_id, model, upstream, operation, route, {', '.join(SUMS)}, id, "
        "CASE WHEN exact THEN 0 ELSE input_tokens + output_tokens END AS estimated_tokens "
        f"FROM budgets_ledgerentry AS entry WHERE {where}) AS entries GROUP BY {KEY}"
    )
    return query, values


def _unlike(anew: str, values: Sequence[Any], part: Part) -> tuple[str, list[Any]]:
    """A query for the keys that differ, with the sums on both sides (``ledger_…``, ``rollup_…``)."""
    where, of_part = part.where("rollup")
    figures = ", ".join(FIGURES)
    both = ", ".join(
        f"coalesce(sum({figure}) FILTER (WHERE booked), 0)::bigint AS ledger_{figure}, "
        f"coalesce(sum({figure}) FILTER (WHERE NOT booked), 0)::bigint AS rollup_{figure}"
        for figure in FIGURES
    )
    differ = " OR ".join(f"sum(CASE WHEN booked THEN {figure} ELSE -{figure} END) <> 0" for figure in FIGURES)
    # A join would not find its partners: parts of a key may be null.
    query = (
        f"SELECT {KEY}, max(latest) AS latest, {both} FROM ("  # noqa: S608, the columns are the models' own
        f"SELECT {KEY}, {figures}, latest, TRUE AS booked FROM {anew} AS anew "
        f"UNION ALL SELECT {KEY}, {figures}, NULL, FALSE FROM budgets_usagerollup AS rollup WHERE {where}"
        f") AS both_sides GROUP BY {KEY} HAVING count(*) <> 2 OR {differ}"
    )
    return query, [*values, *of_part]


def _differences(
    anew: str, values: Sequence[Any], part: Part, most: int
) -> tuple[list[RollupsDiffer], int, int]:
    """What differs by tenant and day, ``most`` at most; how many such there are, and how many rows."""
    unlike, values = _unlike(anew, values, part)
    sums = ", ".join(f"sum({side}_{figure})" for side in ("ledger", "rollup") for figure in FIGURES)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) OVER (), sum(count(*)) OVER (), tenant_id, day, count(*), {sums} "  # noqa: S608
            f"FROM ({unlike}) AS unlike GROUP BY tenant_id, day ORDER BY day, tenant_id LIMIT %s",
            [*values, most],
        )
        found = cursor.fetchall()
    rows = [
        RollupsDiffer(
            tenant_id,
            day,
            rows,
            dict(zip(FIGURES, map(int, figures[: len(FIGURES)]), strict=True)),
            dict(zip(FIGURES, map(int, figures[len(FIGURES) :]), strict=True)),
        )
        for _, _, tenant_id, day, rows, *figures in found
    ]
    days, in_all = found[0][:2] if found else (0, 0)
    return rows, int(days), int(in_all)


def _write(part: Part) -> int:
    """Put the rollups that differ in the place of those there are; return how many were taken or put in."""
    unlike, values = _unlike("rollups_anew", [], part)
    same = " AND ".join(f"rollup.{column} IS NOT DISTINCT FROM unlike.{column}" for column in ROLLUP_KEY)
    columns = ", ".join((*ROLLUP_KEY, *ROLLUP_NAMES, *FIGURES))
    of_key = ", ".join(f"unlike.{column}" for column in ROLLUP_KEY)
    names = ", ".join(f"entry.{name}" for name in ROLLUP_NAMES)
    figures = ", ".join(f"unlike.ledger_{figure}" for figure in FIGURES)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE rollups_unlike ON COMMIT DROP AS {unlike}", values)
        cursor.execute(
            f"DELETE FROM budgets_usagerollup AS rollup USING rollups_unlike AS unlike WHERE {same}"  # noqa: S608
        )
        taken = int(cursor.rowcount)
        cursor.execute(
            f"INSERT INTO budgets_usagerollup ({columns}) SELECT {of_key}, {names}, {figures} "  # noqa: S608
            "FROM rollups_unlike AS unlike JOIN budgets_ledgerentry AS entry ON entry.id = unlike.latest"
        )
        return max(taken, int(cursor.rowcount))
