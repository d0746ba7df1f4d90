"""Where settlements wait that Redis could not take: a table, or files if that fails too.

``replay`` sends them through the same script as ever. Booked already or not, a
settlement is booked once, so it may be repeated, by several at once too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from budgets.models import ParkedRecord, SpooledSettlement
from budgets.settlements import Settlement
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

BATCH = 500
REPLAY_SECONDS = 5.0
SUFFIX = ".json"
# Files that cannot be read are set aside under this name for a person to look at.
SPOILT = ".spoilt"


def keep_in_database(end: Settlement) -> None:
    """Keep a settlement in PostgreSQL; for a thread of its own. Raises Django's ``db.Error``."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                # The client is leaving and the disk is waiting to be asked instead.
                cursor.execute("SET LOCAL statement_timeout = '1s'")
            SpooledSettlement.objects.bulk_create(
                [SpooledSettlement(request_id=end.request_id, settlement=end.as_json())],
                ignore_conflicts=True,
            )
    finally:
        connection.close()


def keep_on_disk(end: Settlement) -> None:
    """Keep a settlement as a file that survives the machine. Never raises."""
    text = json.dumps(end.as_json())
    try:
        settings.SPOOL_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = settings.SPOOL_DIR / f"{end.request_id}{SUFFIX}"
        unfinished = path.with_suffix(f".{os.getpid()}.new")
        with unfinished.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        directory = os.open(settings.SPOOL_DIR, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError:
        # The log is the last place left; it holds ids, names and counts, nothing of the prompt.
        logger.critical("settlement lost unless booked by hand: %s", text, exc_info=True)


def files_waiting() -> int:
    """How many settlements wait on this machine's disk."""
    return sum(1 for _ in settings.SPOOL_DIR.glob(f"*{SUFFIX}"))


def replay() -> int:
    """Book what waits in PostgreSQL and on this machine's disk; return how many.

    Raises ``RedisError`` when Redis still cannot take them.
    """
    return _replay_files() + _replay_rows()


def waiting() -> int:
    """How many settlements wait in PostgreSQL and on this machine's disk."""
    return SpooledSettlement.objects.count() + sum(1 for _ in settings.SPOOL_DIR.glob(f"*{SUFFIX}"))


async def keep_replaying() -> None:
    """Book what lies on this machine's disk, for ever; a worker may be on another machine."""
    while True:
        try:
            await asyncio.to_thread(_replay_files)
        except RedisError:
            logger.info("the spool waits for Redis")
        await asyncio.sleep(REPLAY_SECONDS)


def _replay_rows() -> int:
    booked = 0
    while rows := list(SpooledSettlement.objects.order_by("created_at")[:BATCH]):
        for row in rows:
            if _book(row.settlement, f"row {row.request_id}"):
                booked += 1
            else:
                _park(row)
        SpooledSettlement.objects.filter(request_id__in=[row.request_id for row in rows]).delete()
    return booked


def _park(row: SpooledSettlement) -> None:
    ParkedRecord.objects.bulk_create(
        [
            ParkedRecord(
                stream_id=f"spool:{row.request_id}",
                record=json.dumps(row.settlement),
                reason="cannot be read",
            )
        ],
        ignore_conflicts=True,
    )


def _replay_files() -> int:
    booked = 0
    if not settings.SPOOL_DIR.is_dir():
        return 0
    for path in sorted(settings.SPOOL_DIR.glob(f"*{SUFFIX}")):
        try:
            stored = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # another process was faster
        except ValueError:
            stored = None
        if _book(stored, f"file {path.name}"):
            path.unlink(missing_ok=True)
            booked += 1
        else:
            path.replace(path.with_suffix(SPOILT))
    return booked


def _book(stored: Any, name: str) -> bool:
    try:
        end = Settlement.from_json(stored)
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.exception("the spooled settlement in %s cannot be read", name)
        return False
    end.book_now()
    return True
