"""The mark that the counters must carry: which one this process expects.

``budgets.rebuild`` makes a new one whenever counters have been set from the
ledger. Counters with another mark, or none, are not to be believed.

A process that starts while PostgreSQL is away believes those that run: each
vouches in Redis, for a minute at a time, for the mark it knows. What Redis has
from an old backup nobody has vouched for lately.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from budgets.counters import EPOCH
from budgets.models import CounterEpoch
from budgets.single_flight import SingleFlight
from tenants import snapshots
from tenants.database import DatabaseError
from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)

VOUCHED_SECONDS = 60
VOUCH_EVERY_SECONDS = 5.0
# However many calls find one and the same mark wrong, PostgreSQL is asked this often.
ASK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Vouched:
    """The epoch that a running process knows."""

    epoch: str


class Expected:
    """The epoch this process knows from PostgreSQL; empty until it has asked.

    ``admitted_ms`` is when Redis last admitted a call of this process under it.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.admitted_ms = 0
        self._wrong = ("", float("-inf"))
        self._asking: SingleFlight[None] = SingleFlight()

    async def confirms(self, found: str) -> bool:
        """Whether counters marked ``found`` may be believed, by what PostgreSQL says now."""
        wrong, since = self._wrong
        if not found or (found == wrong and time.monotonic() - since < ASK_SECONDS):
            return False
        if found != self.epoch:
            await self._asking.do("epoch", self._ask)
        if found != self.epoch:
            self._wrong = (found, time.monotonic())
        return found == self.epoch

    async def _ask(self) -> None:
        try:
            vouched = await snapshots.kept("epoch", "counters", Vouched)
            epoch = (await snapshots.read_or_kept(_read, vouched)).epoch
        except (DatabaseError, RedisError, TimeoutError) as exc:
            # What was known stays: the counters may still be those, and no others are believed.
            logger.warning("the epoch of the counters could not be read: %s", exc)
            return
        if epoch != self.epoch:
            self.epoch, self.admitted_ms = epoch, 0

    async def keep_vouching(self) -> None:
        """Tell those that start while PostgreSQL is away which epoch is right, for ever."""
        while True:
            with contextlib.suppress(RedisError):
                found = (await redis_async().call("GET", EPOCH) or b"").decode()
                if found and (found == self.epoch or await self.confirms(found)):
                    await snapshots.keep("epoch", "counters", Vouched(self.epoch), VOUCHED_SECONDS)
            await asyncio.sleep(VOUCH_EVERY_SECONDS)


expected = Expected()


def _read() -> Vouched:
    return Vouched(CounterEpoch.objects.values_list("epoch", flat=True).first() or "")
