"""When each secret was last used, without a write for each call.

A process remembers the newest use of every secret that it lets through, and
hands what it has over to PostgreSQL every few seconds: of each secret at most
once a minute, however many processes let it through. A secret that another one
works until the first use of is not waited with: that use retires the other at
once. What a process that is killed had not handed over is lost, and so is what
PostgreSQL does not take for a while; the next use makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from django.db import Error as DatabaseError
from django.db import connection

from keys.callers import Caller
from keys.networks import Address, block_of
from keys.services import retire_succeeded
from tenants.clock import clock

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

SECRETS = 20_000
HAND_OVER_SECONDS = 2.0
BETWEEN_WRITES_SECONDS = 60
# Another process wrote within the last minute; perhaps an older use than ours.
TRY_AGAIN_SECONDS = 10.0
STALE_SECONDS = 3 * BETWEEN_WRITES_SECONDS
# No use is told to the second, so not every call is looked at.
NOTE_SECONDS = 1.0
BATCH = 500
PATIENCE_SECONDS = 5.0

# Uses of secrets that are gone meanwhile are left out.
_WRITE = """
INSERT INTO keys_secretuse AS known (secret_id, used_at, model, address_block, noted_at)
SELECT told.secret_id, told.used_at, told.model, told.address_block, now()
FROM unnest(%s::text[], %s::timestamptz[], %s::text[], %s::cidr[])
     AS told (secret_id, used_at, model, address_block)
JOIN keys_keysecret ON keys_keysecret.public_id = told.secret_id
ORDER BY told.secret_id
ON CONFLICT (secret_id) DO UPDATE
SET used_at = excluded.used_at, model = excluded.model,
    address_block = excluded.address_block, noted_at = excluded.noted_at
WHERE known.used_at < excluded.used_at AND known.noted_at <= excluded.noted_at - make_interval(secs => %s)
RETURNING secret_id
"""


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a secret; ``model`` is empty where none was asked for."""

    public_id: str
    at_ms: int
    model: str
    address_block: str


@dataclass(slots=True)
class _Seen:
    """A secret: its newest use that is not handed over, and on the steady clock when to look and to try."""

    noted_at: float
    try_at: float = -math.inf
    use: Use | None = None


class Uses:
    """The uses that this process has seen and PostgreSQL does not know of yet."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._successors: set[str] = set()
        self._hurry: asyncio.Event | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="last use")

    def wanted(self, caller: Caller) -> bool:
        """Whether a use by ``caller`` is worth noting now; visitors have no secret that could be used."""
        if caller.allowance is not None:
            return False
        seen = self._seen.get(caller.public_id)
        return caller.succeeds or seen is None or time.monotonic() - seen.noted_at >= NOTE_SECONDS

    def note(self, caller: Caller, model: str, address: Address) -> None:
        """Remember that ``caller`` was let through; never blocks, never raises."""
        instant = time.monotonic()
        seen = self._seen.setdefault(caller.public_id, _Seen(instant))
        seen.noted_at = instant
        seen.use = Use(caller.public_id, round(clock.now_ms()), model, block_of(address))
        self._seen.move_to_end(caller.public_id)
        if len(self._seen) > SECRETS:
            self._seen.popitem(last=False)
        if caller.succeeds and caller.public_id not in self._successors:
            self._successors.add(caller.public_id)
            if self._hurry is not None:
                self._hurry.set()

    async def keep_handing_over(self) -> None:
        """Hand over every few seconds, and the first use of a new secret at once, for ever."""
        self._hurry = asyncio.Event()
        while True:
            try:
                await self.hand_over()
            except DatabaseError as exc:
                logger.warning("when secrets were last used waits for PostgreSQL: %s", exc)
            try:
                async with asyncio.timeout(HAND_OVER_SECONDS):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()

    async def hand_over(self, *, everything: bool = False) -> None:
        """Write what is due, or all that waits. Raises ``DatabaseError``, and then it waits on."""
        instant = time.monotonic()
        for public_id in tuple(self._successors):
            await self._aside(_retire_before, public_id)
            self._successors.discard(public_id)
        due = [
            seen
            for seen in self._seen.values()
            if seen.use is not None and (everything or seen.try_at <= instant)
        ]
        for start in range(0, len(due), BATCH):
            await self._write(due[start : start + BATCH])

    async def leave(self) -> None:
        """Hand all over before the process ends, as far as PostgreSQL takes it soon."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.hand_over(everything=True)
        except (TimeoutError, DatabaseError) as exc:
            logger.warning("when secrets were last used is not written: %r", exc)

    async def _write(self, batch: list[_Seen]) -> None:
        uses = [seen.use for seen in batch if seen.use is not None]
        written = await self._aside(_write, uses)
        instant, now_ms = time.monotonic(), clock.now_ms()
        for seen, use in zip(batch, uses, strict=True):
            done = use.public_id in written
            seen.try_at = instant + (BETWEEN_WRITES_SECONDS if done else TRY_AGAIN_SECONDS)
            # While it was written there may have come a newer one.
            if seen.use is use and (done or now_ms - use.at_ms > STALE_SECONDS * 1000):
                seen.use = None

    async def _aside(self, work: Callable[[Asked], Answer], asked: Asked) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, asked)


def _write(uses: Sequence[Use]) -> set[str]:
    """Write uses of different secrets; the public ids of those that were taken."""
    columns = (
        [use.public_id for use in uses],
        [datetime.fromtimestamp(use.at_ms / 1000, UTC) for use in uses],
        [use.model for use in uses],
        [use.address_block for use in uses],
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(_WRITE, [*columns, BETWEEN_WRITES_SECONDS])
            return {public_id for (public_id,) in cursor.fetchall()}
    finally:
        # The thread is lent; what it leaves open nobody would close.
        connection.close()


def _retire_before(public_id: str) -> bool:
    try:
        return retire_succeeded(public_id=public_id)
    finally:
        connection.close()


uses = Uses()
