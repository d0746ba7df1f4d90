"""Looking at PostgreSQL and Redis as of one position in the stream, also while calls come and go.

A drain writes to PostgreSQL, commits, and only then tells the stream. Here the
drain is kept out for a moment: with its lock held, PostgreSQL is looked at in
a snapshot, and Redis in one step. What Redis counts is then what the snapshot
has and what waits in the stream, to the last unit. Once Redis has answered the
drain goes on, and the snapshot stays for as long as the comparing takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import DatabaseError, connection, transaction

from budgets import booking, ledger, records
from budgets.counters import EPOCH, HOLDS, SURVEY, USAGE, run_now

# A drain that takes longer is stuck, and so would be whoever waits for it.
PATIENCE = "10s"
# Redis answers nobody else while it hands them out.
MOST_WAITING = 10_000


class TooManyWaitError(Exception):
    """More records wait for the ledger than can be looked at in one step."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis said at one moment.

    ``position`` is the id of the newest record then, and ``waiting`` the ids and
    records up to it that the ledger has not acknowledged; ``unreadable`` are the ids
    of those that will be parked. ``used`` has what each counter said by its key,
    None for one that is not there. Of the open ``holds``, ``overdue`` belong to
    processes that are gone.
    """

    at: datetime
    epoch: str
    position: str
    waiting: tuple[tuple[str, records.Record], ...]
    unreadable: tuple[str, ...]
    used: dict[str, int | None]
    holds: int
    overdue: int


@contextlib.contextmanager
def between_two_drains() -> Iterator[Callable[[], None]]:
    """PostgreSQL in a read-only snapshot, and no drain until what this yields is called, or the block ends.

    Cannot be used inside a transaction. Raises Django's ``db.Error``, also when
    a drain goes on for longer than ``PATIENCE``.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'")
        # Of the session, so that it can be given back before the snapshot.
        cursor.execute("SELECT pg_advisory_lock(%s)", [booking.LOCK])
    kept_out = True

    def let_drains_go_on() -> None:
        nonlocal kept_out
        if kept_out:
            kept_out = False
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [booking.LOCK])

    try:
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                # The first query takes the snapshot.
                cursor.execute("SELECT pg_current_snapshot()")
            yield let_drains_go_on
    finally:
        # A connection that broke has lost the lock by that.
        with contextlib.suppress(DatabaseError):
            let_drains_go_on()


def survey(keys: Sequence[str]) -> Survey:
    """Ask Redis for these counters and all that waits, in one step.

    Raises ``TooManyWaitError``, and ``RedisError``.
    """
    now_ms, epoch, position, more, holds, overdue, entries, figures = run_now(
        SURVEY, [USAGE, EPOCH, HOLDS, *keys], ledger.GROUP, MOST_WAITING
    )
    if more:
        raise TooManyWaitError
    waiting: list[tuple[str, records.Record]] = []
    unreadable: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for stream_id, flat in entries:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            record = records.record_in(fields)
        except records.UNREADABLE:
            unreadable.append(stream_id.decode())
            continue
        # Redis counted an end once, however often somebody wrote it into the stream.
        if (record.name, record.row.ended_at) not in seen:
            seen.add((record.name, record.row.ended_at))
            waiting.append((stream_id.decode(), record))
    used = {key: int(figure) if figure else None for key, figure in zip(keys, figures, strict=True)}
    return Survey(
        at=datetime.fromtimestamp(now_ms / 1000, UTC),
        epoch=epoch.decode(),
        position=position.decode(),
        waiting=tuple(waiting),
        unreadable=tuple(unreadable),
        used=used,
        holds=holds,
        overdue=overdue,
    )
