"""Writing entries into the ledger, and all that follows from one that is new, in the same transaction."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from django.db import IntegrityError, connection

from audit import months
from audit.models import RequestEvent
from budgets import learning
from budgets.counters import Counter
from budgets.models import LedgerEntry
from budgets.open_months import first_of, open_days, share
from budgets.records import Record, RefusedBy
from budgets.schedules import days_of
from budgets.usage import FIGURES, SUMS

# The tables with a partition for each month.
BY_MONTH = ("budgets_ledgerentry", "audit_requestevent")
COLUMNS = [field.attname for field in LedgerEntry._meta.concrete_fields if field.attname != "id"]  # noqa: SLF001

# Any number; only those who book take this advisory lock.
LOCK = 0x544F4C4C01

ROLLUP_KEY = (
    "tenant_id", "day", "hour_start", "team_id", "member_id", "key_id", "model", "upstream", "operation",
    "route",
)  # fmt: skip
ROLLUP_NAMES = ("tenant", "team", "member", "key")


def nobody_else_drains() -> bool:
    """Whether no other drain runs, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        return bool(cursor.fetchone()[0])


def keep_drains_out() -> None:
    """Let no drain run until the transaction ends; waits for one that runs."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def ensure_months(request_ids: Iterable[UUID]) -> None:
    """Make sure that what is about to be written of these requests has its partitions."""
    needed = {month for request_id in request_ids if (month := months.month_of(request_id))}
    for table in BY_MONTH:
        months.ensure(table, needed)


def book(row: LedgerEntry) -> None:
    """Write an entry of which no record tells, and add it to the rollups."""
    ensure_months([row.request_id])
    record = Record(row, (), ())
    if not _insert([record]):
        raise IntegrityError(f"the ledger has {row} already")
    _add_to_rollups([record])


def set_days(records: Collection[Record]) -> None:
    """Give the entries of tenants that had another zone before their accounting days."""
    days = days_of({record.row.tenant_id for record in records})
    for record in records:
        if record.row.tenant_id in days:
            record.row.day = days[record.row.tenant_id].date_of(record.row.ended_at.timestamp())


def keep_out_of_closed_months(records: Collection[Record]) -> None:
    """Book today what belongs to a closed month, and say to which it belongs.

    An adjustment belongs to the month in which the entry stands that it adjusts.
    What is open stays open until the transaction ends.
    """
    homes = {
        record.row.request_id: first_of(record.row.day)
        for record in records
        if record.row.kind == LedgerEntry.Kind.USAGE
    }
    adjusted = {record.row.request_id for record in records if record.row.kind == LedgerEntry.Kind.ADJUSTMENT}
    if adjusted:
        stand = LedgerEntry.objects.filter(request_id__in=adjusted, kind=LedgerEntry.Kind.USAGE)
        homes |= {request_id: first_of(day) for request_id, day in stand.values_list("request_id", "day")}
    closed = share(
        {
            (record.row.tenant_id, month)
            for record in records
            for month in (first_of(record.row.day), homes.get(record.row.request_id))
            if month is not None
        }
    )
    if not closed:
        return
    today = open_days({tenant_id for tenant_id, _ in closed})
    for record in records:
        row = record.row
        own = first_of(row.day)
        home = homes.get(row.request_id, own)
        if (row.tenant_id, own) in closed:
            row.day = today[row.tenant_id]
        # A clock that was set back may have it stand in a month that is yet to come.
        if (row.tenant_id, home) in closed and home < first_of(row.day):
            row.closed_month = home


def write(records: list[Record]) -> list[Record]:
    """Insert what the ledger does not have, and what follows from that; return the records it had."""
    inserted = _insert(records)
    repeated = [record for record in records if record.name not in inserted]
    finals = [record for record in repeated if record.row.outcome != "orphaned"]
    new = [record for record in records if record.name in inserted]
    if finals:
        adjustments = list(_adjustments_of_orphans(finals))
        keep_out_of_closed_months(adjustments)
        inserted = _insert(adjustments)
        new += [record for record in adjustments if record.name in inserted]
    if new:
        _add_to_rollups(new)
        _add_to_periods(new)
        samples = learning.samples_of(record.row for record in new)
        _add("budgets_estimatesample", samples, learning.KEY, learning.SUMS, ())
        calls = [record for record in new if record.row.kind == LedgerEntry.Kind.USAGE]
        count_refusals(refused for record in calls for refused in record.refused_by)
        RequestEvent.objects.bulk_create([_event_of(record) for record in calls], ignore_conflicts=True)
    return repeated


def _insert(records: Iterable[Record]) -> set[tuple[UUID, str]]:
    """Insert ledger entries; return the names of those that were not there."""
    rows = [{column: getattr(record.row, column) for column in COLUMNS} for record in records]
    if not rows:
        return set()
    names = ", ".join(f'"{column}"' for column in COLUMNS)
    with connection.cursor() as cursor:
        # Ordered, so that two who insert the same rows cannot wait for each other.
        cursor.execute(
            f"INSERT INTO budgets_ledgerentry ({names}) "  # noqa: S608, the columns are the model's own
            f"SELECT {names} FROM jsonb_populate_recordset(NULL::budgets_ledgerentry, %s::jsonb) "
            "ORDER BY request_id, kind "
            "ON CONFLICT (request_id, kind) DO NOTHING RETURNING request_id, kind",
            [orjson.dumps(rows).decode()],
        )
        return set(cursor.fetchall())


def _adjustments_of_orphans(finals: list[Record]) -> Iterator[Record]:
    """What differs where the sweep had booked a call and its mark was lost before its owner settled it."""
    orphans = {
        row.request_id: row
        for row in LedgerEntry.objects.filter(
            request_id__in=[record.row.request_id for record in finals], kind="usage", outcome="orphaned"
        )
    }
    for record in finals:
        orphan = orphans.get(record.row.request_id)
        if orphan is None or record.row.kind != LedgerEntry.Kind.USAGE:
            continue
        row = copy(record.row)
        row.kind = LedgerEntry.Kind.ADJUSTMENT
        for name in SUMS:
            setattr(row, name, getattr(row, name) - getattr(orphan, name))
        yield replace(record, row=row)


def _add_to_rollups(records: list[Record]) -> None:
    sums: dict[tuple[Any, ...], Tally[str]] = defaultdict(Tally)
    names: dict[tuple[Any, ...], dict[str, str]] = {}
    for record in records:
        row = record.row
        hour = row.ended_at.replace(minute=0, second=0, microsecond=0)
        key = tuple(hour if column == "hour_start" else getattr(row, column) for column in ROLLUP_KEY)
        names[key] = {name: getattr(row, name) for name in ROLLUP_NAMES}
        for figure in SUMS:
            sums[key][figure] += getattr(row, figure)
        if not row.exact:
            sums[key]["estimated_tokens"] += row.input_tokens + row.output_tokens
    rows = [
        dict(zip(ROLLUP_KEY, key, strict=True))
        | names[key]
        | {figure: sums[key][figure] for figure in FIGURES}
        for key in sums
    ]
    _add("budgets_usagerollup", rows, ROLLUP_KEY, FIGURES, ROLLUP_NAMES)


def _add_to_periods(records: list[Record]) -> None:
    sums: Tally[Counter] = Tally()
    for record in records:
        for counter in record.counters:
            if counter.kind == "budget":
                sums[counter] += amount_of(counter.unit, record.row)
    _add_to_budget_periods(sums, "used")


def count_refusals(refused: Iterable[RefusedBy]) -> None:
    counted = Tally(counter for _, counter in refused if counter is not None and counter.kind == "budget")
    _add_to_budget_periods(counted, "refused")


def _add_to_budget_periods(sums: Tally[Counter], column: str) -> None:
    rows = [
        {
            "budget_id": UUID(counter.id),
            "period_start": _second(counter.start),
            "period_end": _second(counter.end),
            "run": counter.run,
            "last_at": datetime.now(UTC),
            column: amount,
        }
        for counter, amount in sums.items()
    ]
    key = ("budget_id", "period_start", "run")
    _add("budgets_budgetperiod", rows, key, (column,), ("period_end", "last_at"))


def _second(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def amount_of(unit: str, row: LedgerEntry) -> int:
    """What an entry means to a budget of ``unit``."""
    if unit == "requests":
        return row.requests
    if unit == "tokens":
        return row.input_tokens + row.output_tokens
    if unit == "output_tokens":
        return row.output_tokens
    if unit == "micro_usd":
        return row.cost_micro_usd
    if unit == "gpu_ms":
        return row.gpu_ms
    raise ValueError(f"no such unit: {unit}")


def _add(
    table: str,
    rows: list[dict[str, Any]],
    key: tuple[str, ...],
    sums: tuple[str, ...],
    latest: tuple[str, ...],
) -> None:
    """Add ``rows`` to what a table has under the same key; ``latest`` columns take the new values."""
    if not rows:
        return
    columns = ", ".join(f'"{column}"' for column in (*key, *latest, *sums))
    order = ", ".join(f'"{column}"' for column in key)
    changes = [f'"{column}" = {table}."{column}" + EXCLUDED."{column}"' for column in sums]
    changes += [f'"{column}" = EXCLUDED."{column}"' for column in latest]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({columns}) "  # noqa: S608, table and columns are the models' own
            f"SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb) "
            f"ORDER BY {order} ON CONFLICT ({order}) DO UPDATE SET {', '.join(changes)}",
            [orjson.dumps(rows).decode()],
        )


def _event_of(record: Record) -> RequestEvent:
    row = record.row
    return RequestEvent(
        at=row.ended_at,
        refused_by=[name for name, _ in record.refused_by],
        refusal=record.refusal,
        **{
            name: getattr(row, name)
            for name in (
                "request_id", "tenant_id", "tenant", "key_id", "key", "route", "dialect", "model", "upstream",
                "stream", "run", "status", "outcome", "input_tokens", "output_tokens", "exact", "admitted_at",
                "first_byte_at", "ended_at",
            )
        },
    )  # fmt: skip
