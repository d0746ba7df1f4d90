"""Moving usage records from Redis into the ledger, each once.

The stream ``{p0}:usage`` is read by one consumer, whoever runs it: what a
drain that died had read is read again by the next. Everything that follows
from a record is written in the transaction that inserts its ledger entry, and
only if that entry is new; the stream is told after the commit. So a repeat of
anything changes nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

import orjson
from django.db import DataError, IntegrityError, transaction
from redis.exceptions import ResponseError

from audit import months
from budgets import refused_calls
from budgets.booking import (
    BY_MONTH,
    amount_of,
    ensure_months,
    keep_out_of_closed_months,
    nobody_else_drains,
    set_days,
    write,
)
from budgets.counters import ACKNOWLEDGE, DRAINED, DRAINED_AT, SETTLED, USAGE, redis_in_bytes, run_now
from budgets.models import ArchivedMonth, LedgerEntry, ParkedRecord
from budgets.records import UNREADABLE, Fields, Record, position, record_in

logger = logging.getLogger(__name__)

GROUP = "ledger"
CONSUMER = "drain"
BATCH = 500
MOST_BATCHES = 40
# PostgreSQL may come back from a backup that lacks the last records: they are still in the stream.
KEEP_MS = 24 * 3600 * 1000
KEEP_ENTRIES = 100_000

Entry = tuple[bytes, Fields | None]


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
    refused_calls.drain()
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
    by_age: int = redis.xtrim(USAGE, minid=min(taken_to, oldest_kept, key=position), approximate=False)
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
        return position(pending) > position(stream_id)
    taken: bytes = redis.xinfo_groups(USAGE)[0]["last-delivered-id"]
    return position(taken) >= position(stream_id)


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
        if not nobody_else_drains():
            return 0
        _make_group()
        # What was read before and not acknowledged goes first; a drain died there.
        entries = _read("0") or _read(">")
        if not entries:
            return 0
        surplus = _take(entries)
    _acknowledge([stream_id.decode() for stream_id, _ in entries], surplus)
    return len(entries)


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
    set_days(records.values())
    keep_out_of_closed_months(records.values())
    ensure_months(record.row.request_id for record in records.values())
    known: list[Record] = []
    try:
        with transaction.atomic():
            known = write(list(records.values()))
    except (DataError, IntegrityError):
        for name, record in records.items():
            try:
                with transaction.atomic():
                    known += write([record])
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


def not_in_ledger(records: list[tuple[str, Record]]) -> Surplus:
    """What the counters have counted of these records beyond what stands in the ledger because of them.

    Of a record the ledger does not have that is all of it. A settlement that was
    sent again after Redis had lost the mark of its end was booked there a second
    time, at another moment. A record that is merely read again was not. The sweep
    and the owner of a call may end it in the same millisecond, as different ends.
    """
    made_of: dict[tuple[UUID, datetime, str], list[LedgerEntry]] = defaultdict(list)
    for row in LedgerEntry.objects.filter(request_id__in=[one.row.request_id for _, one in records]):
        made_of[row.request_id, row.ended_at, row.outcome].append(row)
    surplus: Surplus = {}
    for stream_id, record in records:
        rows = made_of[record.row.request_id, record.row.ended_at, record.row.outcome]
        for counter in record.counters:
            amount = 0
            if counter.kind == "budget":
                amount = amount_of(counter.unit, record.row) - sum(
                    amount_of(counter.unit, row) for row in rows
                )
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
