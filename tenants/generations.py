"""How a change of settings takes force in every process at once.

Each tenant has a generation, and so has the platform: a number in PostgreSQL
that triggers raise with every change of a tenant, a key, a budget and so on, in
the transaction of the change, also when the change is plain SQL. ``project``
copies the numbers into the sorted set ``{p0}:generations`` in Redis. Whoever
keeps settings in memory keeps the numbers they were read with, and the script
that admits a call compares those with Redis: settings that are not the newest
admit nothing. So a change is in force, everywhere, from the moment its number
is in Redis.

Services project as soon as their transaction is committed. If Redis is away
just then, or somebody typed SQL, ``listen`` catches up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import psycopg
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.db.models import F

from tenants.database import read_aside
from tenants.models import Generation
from tenants.redis import PARTITION, RedisError, redis_async, redis_now

logger = logging.getLogger(__name__)

PLATFORM = "platform"
NUMBERS = f"{PARTITION}:generations"
CHANNEL = "tollgate_generation"

POLL_SECONDS = 5.0
LONGEST_WAIT_SECONDS = POLL_SECONDS
BATCH = 1000


def subject_of(tenant_id: UUID) -> str:
    """The name under which a tenant's generation is kept."""
    return tenant_id.hex


def numbers_of(*subjects: str) -> dict[str, int]:
    """The generations of ``subjects`` as the running transaction sees them; 0 for one that never changed."""
    rows = Generation.objects.filter(subject__in=subjects).values_list("subject", "number")
    return dict.fromkeys(subjects, 0) | dict(rows)


def project() -> int:
    """Put the numbers that Redis has not confirmed yet into Redis; return how many there were.

    May run anywhere, at any time, several times over: a number in Redis only
    ever grows. Raises ``RedisError`` if Redis cannot be reached.
    """
    return _put(Generation.objects.filter(number__gt=F("projected")).order_by("subject"))


def project_again() -> int:
    """Put all numbers into Redis, confirmed before or not; return how many there are.

    For a Redis that lost them and for a PostgreSQL that went back to a backup.
    Raises ``RedisError`` if Redis cannot be reached.
    """
    return _put(Generation.objects.order_by("subject"))


async def assure(numbers: dict[str, int]) -> bool:
    """Make sure that Redis has the numbers somebody has just read; False if it has newer ones.

    Then what was read with them is old already and has to be read again. Raises
    ``RedisError`` if Redis cannot be reached, and as ``read_aside`` does.
    """
    scores = await _raise_on_the_path(numbers)
    ahead = {subject: score for subject, score in scores.items() if score > numbers[subject]}
    if ahead:
        await _raise_on_the_path(await read_aside(lambda: _overtake(ahead)))
    return not ahead


async def newest(*subjects: str) -> list[int]:
    """The numbers that Redis has of ``subjects``; 0 for one it has not. Raises ``RedisError``."""
    found = await redis_async().call("ZMSCORE", NUMBERS, *subjects)
    return [int(number or 0) for number in found]


async def _raise_on_the_path(numbers: dict[str, int]) -> dict[str, int]:
    """``_raise_in_redis``, for the path of a request."""
    if not numbers:
        return {}
    pairs = [part for subject, number in numbers.items() for part in (number, subject)]
    # Called in one turn, so they travel together; were they parted, an older score does no harm.
    _, scores = await asyncio.gather(redis_async().call("ZADD", NUMBERS, "GT", *pairs), newest(*numbers))
    return dict(zip(numbers, scores, strict=True))


def project_quietly() -> None:
    """``project`` for after a commit: trouble is logged, because ``listen`` will try again."""
    try:
        project()
    except (RedisError, DatabaseError) as exc:
        logger.warning("a change is saved but not in force yet: %s", exc)


def pending() -> list[str]:
    """The subjects whose newest change Redis has not confirmed.

    While much changes at once one may be named that is in force already, until the next projection.
    """
    return list(
        Generation.objects.filter(number__gt=F("projected"))
        .order_by("subject")
        .values_list("subject", flat=True)
    )


def in_force(tenant_id: UUID | None) -> bool:
    """Whether Redis holds the number of all that is committed about a tenant, or about the platform (None).

    False if it cannot be asked.
    """
    subject = PLATFORM if tenant_id is None else subject_of(tenant_id)
    try:
        score = redis_now().zscore(NUMBERS, subject)
    except RedisError:
        return False
    return score is not None and score >= numbers_of(subject)[subject]


def _put(rows: Iterable[Generation]) -> int:
    generations = list(rows)
    for start in range(0, len(generations), BATCH):
        numbers = {row.subject: row.number for row in generations[start : start + BATCH]}
        scores = _raise_in_redis(numbers)
        ahead = {subject: score for subject, score in scores.items() if score > numbers[subject]}
        scores |= _raise_in_redis(_overtake(ahead))
        _confirm(scores)
    return len(generations)


def _raise_in_redis(numbers: dict[str, int]) -> dict[str, int]:
    """Raise the numbers in Redis to these; return what is there then."""
    if not numbers:
        return {}
    pipeline = redis_now().pipeline(transaction=False)
    pipeline.zadd(NUMBERS, numbers, gt=True)
    pipeline.zmscore(NUMBERS, list(numbers))
    _, scores = pipeline.execute()
    return {subject: int(score) for subject, score in zip(numbers, scores, strict=True)}


def _overtake(ahead: dict[str, int]) -> dict[str, int]:
    """Lead PostgreSQL past numbers that only Redis has; return the new numbers.

    Redis is ahead after PostgreSQL went back to a backup. Settings kept from
    before carry that higher number and must not match, so it is passed, not
    adopted. If another process was merely faster, nothing is done.
    """
    new = {}
    if ahead:
        Generation.objects.bulk_create(
            [Generation(subject=subject) for subject in sorted(ahead)], ignore_conflicts=True
        )
    for subject, score in ahead.items():
        if Generation.objects.filter(subject=subject, number__lt=score).update(number=score + 1):
            logger.warning("generation of %s was behind Redis and is %d now", subject, score + 1)
            new[subject] = score + 1
    return new


@transaction.atomic(durable=True)
def _confirm(scores: dict[str, int]) -> None:
    """Remember what Redis has, in a transaction that changes nothing else.

    The triggers rely on that: they take a row that their own transaction wrote
    for one they raised. A row that is locked has a change coming up, which will
    be projected anyway, so nobody waits for it here.
    """
    rows = list(
        Generation.objects.select_for_update(skip_locked=True).filter(
            subject__in=scores, number__gt=F("projected")
        )
    )
    with connection.cursor() as cursor:
        # Not by bulk_update: it builds an expression each time, mostly for one row.
        cursor.executemany(
            "UPDATE tenants_generation SET projected = %s WHERE subject = %s",
            [(max(row.projected, min(row.number, scores[row.subject])), row.subject) for row in rows],
        )


async def listen() -> None:
    """Project changes as PostgreSQL tells of them, until cancelled.

    Every web process runs this in the background. All numbers are put into
    Redis at each new connection, because nobody listened before, and what is
    pending every few seconds, because Redis may have been away.
    """
    failures = 0
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(**_address(), autocommit=True) as listener:
                await listener.execute(f"LISTEN {CHANNEL}")
                await asyncio.to_thread(_work_in_thread, project_again)
                failures = 0
                while True:
                    async for _ in listener.notifies(timeout=POLL_SECONDS, stop_after=1):
                        pass
                    await asyncio.to_thread(_work_in_thread, project)
        except (psycopg.Error, OSError) as exc:
            failures += 1
            longest = min(LONGEST_WAIT_SECONDS, 0.5 * 2 ** min(failures, 10))
            seconds = random.uniform(longest / 2, longest)  # noqa: S311
            logger.warning("listening for changes stopped, next try in %.1f s: %s", seconds, exc)
            # PostgreSQL may answer all the same, only not to somebody who listens.
            await asyncio.to_thread(_work_in_thread, project)
            await asyncio.sleep(seconds)


def _address() -> dict[str, Any]:
    """How Django connects, without the parts that only its blocking connections understand."""
    parameters = connection.get_connection_params()
    return {name: value for name, value in parameters.items() if name not in ("cursor_factory", "context")}


def _work_in_thread(work: Callable[[], int]) -> None:
    """Run ``work`` in a thread; trouble is logged, because the next poll repeats it."""
    try:
        work()
    except (RedisError, DatabaseError) as exc:
        logger.warning("changes wait to be in force: %s", exc)
    finally:
        connection.close()
