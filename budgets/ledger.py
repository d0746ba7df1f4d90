"""Moving usage records from Redis into the ledger, each once.

The stream ``{p0}:usage`` is read by one consumer, whoever runs it: what a
drain that died had read is read again by the next. Everything that follows
from a record is written in the transaction that inserts its ledger entry, and
only if that entry is new; the stream is told after the commit. So a repeat of
anything changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from django.db import DataError, IntegrityError, connection, transaction
from redis.exceptions import ResponseError

from audit import months
from audit.models import RequestEvent
from budgets import learning
from budgets.counters import (
    ACKNOWLEDGE,
    DRAINED,
    DRAINED_AT,
    REFUSALS,
    SETTLED,
    USAGE,
    Counter,
    redis_in_bytes,
    run_now,
)
from budgets.estimators import DEFAULT
from budgets.models import ArchivedMonth, LedgerEntry, ParkedRecord
from budgets.open_months import first_of, open_days, share
from budgets.periods import Days
from budgets.pricing import PinnedPrice
from budgets.schedules import days_of
from budgets.usage import FIGURES, SUMS

logger = logging.getLogger(__name__)

GROUP = "ledger"
CONSUMER = "drain"
BATCH = 500
MOST_BATCHES = 40
# Any number; only drains take this advisory lock.
LOCK = 0x544F4C4C01

# PostgreSQL may come back from a backup that lacks the last records: they are still in the stream.
KEEP_MS = 24 * 3600 * 1000
KEEP_ENTRIES = 100_000

# Name of a limit, and its counter unless the call was larger than the whole limit.
RefusedBy = tuple[str, Counter | None]
Fields = dict[bytes, bytes]
# What reading an entry raises that is no record.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
Entry = tuple[bytes, Fields | None]

DURATIONS = ("load_ns", "prompt_ns", "output_ns")
# The tables with a partition for each month.
BY_MONTH = ("budgets_ledgerentry", "audit_requestevent")
COLUMNS = [field.attname for field in LedgerEntry._meta.concrete_fields if field.attname != "id"]  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Record:
    """One usage record, as the row it becomes and the counters it was booked on.

    ``refusal`` is the code its client was told if there was trouble;
    ``refused_by``: name and counter of each shadow limit that would have refused the call.
    """

    row: LedgerEntry
    counters: tuple[Counter, ...]
    refused_by: tuple[RefusedBy, ...]
    refusal: str = ""

    @property
    def name(self) -> tuple[UUID, str]:
        return self.row.request_id, self.row.kind


def drain() -> int:
    """Move what waits into the ledger; return how many records were taken.

    Returns 0 at once while another drain runs. Raises ``RedisError`` and
    Django's ``db.Error``; a repeat goes on where it was.
    """
    taken = 0
    for _ in range(MOST_BATCHES):
        batch = _drain_batch()
        taken += batch
        if not batch:
            break
    _drain_refusals()
    redis = redis_in_bytes()
    redis.set(DRAINED_AT, redis.time()[0])
    return taken


def backlog() -> int:
    """How many records wait for the ledger."""
    settled, drained = redis_in_bytes().mget(SETTLED, DRAINED)
    return int(settled or 0) - int(drained or 0)


def trim() -> int:
    """Forget records that the ledger has had for a day, or the oldest of very many; return how many."""
    redis = redis_in_bytes()
    _make_group()
    pending = redis.xpending(USAGE, GROUP)
    taken_to = pending["min"] or redis.xinfo_groups(USAGE)[0]["last-delivered-id"]
    oldest_kept = f"{int(redis.time()[0]) * 1000 - KEEP_MS}-0".encode()
    by_age: int = redis.xtrim(USAGE, minid=min(taken_to, oldest_kept, key=_position), approximate=False)
    by_number: int = redis.xtrim(USAGE, maxlen=KEEP_ENTRIES + backlog(), approximate=True)
    return by_age + by_number


def last_taken() -> str | None:
    """The id of the newest record if the ledger has it and all before it, else None."""
    redis = redis_in_bytes()
    _make_group()
    group = redis.xinfo_groups(USAGE)[0]
    newest: bytes = redis.xinfo_stream(USAGE)["last-generated-id"]
    if group["pending"] or group["last-delivered-id"] != newest:
        return None
    return newest.decode()


def newest() -> bytes:
    """The id of the newest record."""
    _make_group()
    newest: bytes = redis_in_bytes().xinfo_stream(USAGE)["last-generated-id"]
    return newest


def has(stream_id: bytes) -> bool:
    """Whether the ledger has all records up to this one."""
    redis = redis_in_bytes()
    pending = redis.xpending(USAGE, GROUP)["min"]
    if pending is not None:
        return _position(pending) > _position(stream_id)
    taken: bytes = redis.xinfo_groups(USAGE)[0]["last-delivered-id"]
    return _position(taken) >= _position(stream_id)


def _position(stream_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = stream_id.decode().partition("-")
    return int(milliseconds), int(number)


def _make_group() -> None:
    try:
        redis_in_bytes().xgroup_create(USAGE, GROUP, id="0", mkstream=True)
    except ResponseError as exc:
        if "BUSYGROUP" not in str(exc):
            raise


def _read(after: str) -> list[Entry]:
    reply = redis_in_bytes().xreadgroup(GROUP, CONSUMER, {USAGE: after}, count=BATCH)
    return list(reply[0][1]) if reply else []


def _drain_batch() -> int:
    with transaction.atomic():
        if not _locked():
            return 0
        _make_group()
        # What was read before and not acknowledged goes first; a drain died there.
        entries = _read("0") or _read(">")
        if not entries:
            return 0
        surplus = _take(entries)
    _acknowledge([stream_id.decode() for stream_id, _ in entries], surplus)
    return len(entries)


def keep_drains_out() -> None:
    """Let no drain run until the transaction ends; waits for one that runs."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def book(row: LedgerEntry) -> None:
    """Write an entry of which no record tells, and add it to the rollups."""
    ensure_months([row.request_id])
    record = Record(row, (), ())
    if not _insert([record]):
        raise IntegrityError(f"the ledger has {row} already")
    _add_to_rollups([record])


def _locked() -> bool:
    """Whether no other drain runs, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        return bool(cursor.fetchone()[0])


# By id of a record: amounts by name of a counter.
Surplus = dict[str, dict[str, int]]


def _acknowledge(stream_ids: list[str], surplus: Surplus) -> None:
    """Tell the stream what is taken, and the counters what they have counted twice."""
    counters = sorted({key for amounts in surplus.values() for key in amounts})
    corrections = {
        stream_id: [(counters.index(key), str(-amount)) for key, amount in amounts.items()]
        for stream_id, amounts in surplus.items()
    }
    run_now(ACKNOWLEDGE, [USAGE, DRAINED, *counters], GROUP, orjson.dumps(corrections), *stream_ids)


def _take(entries: list[Entry]) -> Surplus:
    """Write a batch; what cannot be written is parked and keeps nothing else from it.

    Returns what the counters have counted that the ledger had already.
    """
    records: dict[tuple[UUID, str], Record] = {}
    entry_of: dict[tuple[UUID, str], Entry] = {}
    repeated: list[tuple[str, Record]] = []
    later: list[Entry] = []
    for entry in entries:
        try:
            record = record_in(entry[1])
        except UNREADABLE as exc:
            _park(entry, exc)
            continue
        first = records.setdefault(record.name, record)
        if first is record:
            entry_of[record.name] = entry
        elif first.row.ended_at == record.row.ended_at:
            repeated.append((entry[0].decode(), record))
        else:
            # Another end of the same call, which is taken for what it is once the first stands in the ledger.
            later.append(entry)
    for name in _archived(records.values()):
        _park(entry_of[name], ValueError("what is booked of its month is archived"))
        del records[name]
    _set_days(records.values())
    _keep_out_of_closed_months(records.values())
    ensure_months(record.row.request_id for record in records.values())
    known: list[Record] = []
    try:
        with transaction.atomic():
            known = _write(list(records.values()))
    except (DataError, IntegrityError):
        for name, record in records.items():
            try:
                with transaction.atomic():
                    known += _write([record])
            except (DataError, IntegrityError) as exc:
                _park(entry_of[name], exc)
    repeated += [(entry_of[record.name][0].decode(), record) for record in known]
    surplus = not_in_ledger(repeated) if repeated else {}
    return surplus | _take(later) if later else surplus


def _archived(records: Collection[Record]) -> list[tuple[UUID, str]]:
    """Those whose month was taken out of the database: nobody can tell whether they are booked."""
    of_month = {record.name: months.month_of(record.row.request_id) for record in records}
    this_month = datetime.now(UTC).date().replace(day=1)
    if not any(month and month < this_month for month in of_month.values()):
        return []
    gone = set(ArchivedMonth.objects.filter(table=BY_MONTH[0]).values_list("month", flat=True))
    return [name for name, month in of_month.items() if month in gone]


def ensure_months(request_ids: Iterable[UUID]) -> None:
    """Make sure that what is about to be written of these requests has its partitions."""
    needed = {month for request_id in request_ids if (month := months.month_of(request_id))}
    for table in BY_MONTH:
        months.ensure(table, needed)


def not_in_ledger(records: list[tuple[str, Record]]) -> Surplus:
    """What the counters have counted of these records beyond what stands in the ledger because of them.

    Of a record the ledger does not have that is all of it. A settlement that was
    sent again after Redis had lost the mark of its end was booked there a second
    time, at another moment. A record that is merely read again was not.
    """
    made_of: dict[tuple[UUID, datetime], list[LedgerEntry]] = defaultdict(list)
    for row in LedgerEntry.objects.filter(request_id__in=[one.row.request_id for _, one in records]):
        made_of[row.request_id, row.ended_at].append(row)
    surplus: Surplus = {}
    for stream_id, record in records:
        rows = made_of[record.row.request_id, record.row.ended_at]
        for counter in record.counters:
            amount = 0
            if counter.kind == "budget":
                amount = _amount(counter.unit, record.row) - sum(_amount(counter.unit, row) for row in rows)
            if amount:
                surplus.setdefault(stream_id, {})[counter.key] = amount
    return surplus


def _park(entry: Entry, reason: Exception) -> None:
    stream_id, fields = entry
    text = orjson.dumps({_ascii(name): _ascii(value) for name, value in (fields or {}).items()}).decode()
    logger.error("usage record %s cannot be booked and is parked: %r", stream_id.decode(), reason)
    ParkedRecord.objects.bulk_create(
        [ParkedRecord(stream_id=stream_id.decode(), record=text, reason=_ascii(repr(reason).encode()))],
        ignore_conflicts=True,
    )


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace").replace("\x00", "\\x00")


def record_in(fields: Fields | None) -> Record:
    """The record in a stream entry; raises one of ``UNREADABLE`` for one that is none."""
    if fields is None:
        raise ValueError("the stream has lost the entry")
    kind = fields[b"kind"].decode()
    call, end = orjson.loads(fields[b"call"]), orjson.loads(fields[b"end"])
    if kind == "adjustment":
        end = _difference(end, orjson.loads(fields[b"first"]))
    elif kind not in ("usage", "late"):
        raise ValueError(f"no such kind of record: {kind}")
    ended_at = _instant(int(fields[b"at"]))
    row = LedgerEntry(
        request_id=UUID(call["request_id"]),
        kind=LedgerEntry.Kind.ADJUSTMENT if kind == "adjustment" else LedgerEntry.Kind.USAGE,
        tenant_id=UUID(call["tenant_id"]),
        team_id=_uuid(call["team_id"]),
        member_id=_uuid(call["member_id"]),
        key_id=UUID(call["key_id"]),
        **{
            name: call[name]
            for name in (
                "tenant", "team", "member", "key",
                "model", "upstream", "route", "operation", "dialect", "stream",
            )
        },
        run=call.get("run", ""),
        day=_day(ended_at, call["time_zone"]),
        admitted_at=_instant(end["admitted_ms"]),
        started_at=_instant_or_none(end["started_ms"]),
        first_byte_at=_instant_or_none(end["first_byte_ms"]),
        ended_at=ended_at,
        **{name: end[name] for name in (*SUMS, *DURATIONS)},
        # A record of an earlier release tells neither bytes nor estimator, of which it had one.
        input_bytes=end.get("input_bytes"),
        output_bytes=end.get("output_bytes"),
        **_pinned(call["price"]),
        exact=end["exact"],
        estimator=end.get("estimator", "" if end["exact"] else DEFAULT.name),
        late=kind == "late",
        on_credit=call.get("on_credit", False),
        outcome=end["outcome"],
        status=end["status"],
    )  # fmt: skip
    # A record of an earlier release says nothing of shadow limits and codes.
    return Record(
        row,
        tuple(Counter(*counter) for counter in call["counters"]),
        _refused_by(end.get("refused_by", [])),
        end.get("refusal", ""),
    )


def _pinned(price: list[Any] | None) -> dict[str, Any]:
    """The price that was pinned at admission; nothing without one."""
    if price is None:
        return {}
    pinned = PinnedPrice(*price)
    return {
        "price_id": UUID(pinned.id),
        "input_price": pinned.input,
        "cached_price": pinned.cached,
        "output_price": pinned.output,
        "gpu_price": pinned.gpu_second,
    }


def _refused_by(noted: list[list[Any]]) -> tuple[RefusedBy, ...]:
    return tuple((str(name), Counter(*counter) if counter else None) for name, *counter in noted)


def _difference(end: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    durations = {
        name: None if end[name] is None else end[name] - (first[name] or 0) for name in DURATIONS
    }  # fmt: skip
    return end | durations | {name: end[name] - first[name] for name in SUMS}


def _instant_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _instant(milliseconds)


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC) + timedelta(milliseconds=milliseconds % 1000)


def _day(ended_at: datetime, time_zone: str) -> date:
    """The accounting day in a zone that the tenant always had; ``_set_days`` knows those it changed."""
    return Days(((0, ZoneInfo(time_zone)),)).date_of(ended_at.timestamp())


def _set_days(records: Collection[Record]) -> None:
    """Give the entries of tenants that had another zone before their accounting days."""
    days = days_of({record.row.tenant_id for record in records})
    for record in records:
        if record.row.tenant_id in days:
            record.row.day = days[record.row.tenant_id].date_of(record.row.ended_at.timestamp())


def _keep_out_of_closed_months(records: Collection[Record]) -> None:
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


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def _write(records: list[Record]) -> list[Record]:
    """Insert what the ledger does not have, and what follows from that; return the records it had."""
    inserted = _insert(records)
    repeated = [record for record in records if record.name not in inserted]
    finals = [record for record in repeated if record.row.outcome != "orphaned"]
    new = [record for record in records if record.name in inserted]
    if finals:
        adjustments = list(_adjustments_of_orphans(finals))
        _keep_out_of_closed_months(adjustments)
        inserted = _insert(adjustments)
        new += [record for record in adjustments if record.name in inserted]
    if new:
        _add_to_rollups(new)
        _add_to_periods(new)
        samples = learning.samples_of(record.row for record in new)
        _add("budgets_estimatesample", samples, learning.KEY, learning.SUMS, ())
        calls = [record for record in new if record.row.kind == LedgerEntry.Kind.USAGE]
        _count_refusals(refused for record in calls for refused in record.refused_by)
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


ROLLUP_KEY = (
    "tenant_id", "day", "hour_start", "team_id", "member_id", "key_id", "model", "upstream", "operation",
)  # fmt: skip
ROLLUP_NAMES = ("tenant", "team", "member", "key")


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
                sums[counter] += _amount(counter.unit, record.row)
    _add_to_budget_periods(sums, "used")


def _count_refusals(refused: Iterable[RefusedBy]) -> None:
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


def _amount(unit: str, row: LedgerEntry) -> int:
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


def _drain_refusals() -> None:
    """Write down the refused calls that were noted; those lost on the way are nobody's usage."""
    started = time.monotonic()
    while time.monotonic() - started < 5 and _drain_some_refusals():
        pass


def _drain_some_refusals() -> int:
    """Write down a batch of refused calls, each once; return how many were read."""
    redis = redis_in_bytes()
    with transaction.atomic():
        if not _locked():
            return 0
        entries = redis.xrange(REFUSALS, count=BATCH)
        events: dict[UUID, RequestEvent] = {}
        refused: dict[UUID, tuple[RefusedBy, ...]] = {}
        for stream_id, fields in entries:
            try:
                noted = orjson.loads(fields[b"event"])
                event = _event_of_refusal(stream_id, noted)
                refused_by = _refused_by(noted.get("refused_by", []))
            except (ValueError, KeyError, TypeError):
                logger.exception("refusal %s cannot be read", stream_id)
                continue
            event.refused_by = [name for name, _ in refused_by]
            events.setdefault(event.request_id, event)
            refused.setdefault(event.request_id, refused_by)
        ensure_months(events)
        # A drain that died may have written them and not said so to Redis.
        written = set(RequestEvent.objects.filter(pk__in=events).values_list("pk", flat=True))
        new = [request_id for request_id in events if request_id not in written]
        RequestEvent.objects.bulk_create([events[request_id] for request_id in new], ignore_conflicts=True)
        _count_refusals(one for request_id in new for one in refused[request_id])
    if entries:
        redis.xdel(REFUSALS, *(stream_id for stream_id, _ in entries))
    return len(entries)


def _event_of_refusal(stream_id: bytes, noted: dict[str, Any]) -> RequestEvent:
    def text(name: str) -> str:
        # A client's words: the model name of a refused call can be anything.
        return str(noted.get(name) or "").replace("\x00", "")[:200]

    return RequestEvent(
        request_id=UUID(noted["request_id"]),
        at=_instant(_position(stream_id)[0]),
        tenant_id=_uuid(noted.get("tenant_id")),
        key_id=_uuid(noted.get("key_id")),
        **{
            name: text(name)
            for name in ("tenant", "key", "route", "dialect", "model", "upstream", "run", "refusal")
        },
        outcome=text("outcome") or "refused",
        stream=bool(noted.get("stream")),
        status=int(noted["status"]),
    )
