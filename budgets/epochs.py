"""The mark that the counters must carry: which one this process expects.

``budgets.rebuild`` makes a new one whenever counters have been set from the
ledger. Counters with another mark, or none, are not to be believed.
"""

from __future__ import annotations

import asyncio
import logging
import time

from asgiref.sync import sync_to_async
from django.db import Error as DatabaseError
from django.db import connection

from budgets.models import CounterEpoch
from budgets.single_flight import SingleFlight

logger = logging.getLogger(__name__)

LOAD_SECONDS = 3.0
# However many calls find one and the same mark wrong, PostgreSQL is asked this often.
ASK_SECONDS = 0.5


class Expected:
    """The epoch this process knows from PostgreSQL; empty until it has asked."""

    def __init__(self) -> None:
        self.epoch = ""
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
            async with asyncio.timeout(LOAD_SECONDS):
                self.epoch = await sync_to_async(_read, thread_sensitive=False)()
        except (DatabaseError, TimeoutError) as exc:
            # What was known stays: the counters may still be those, and no others are believed.
            logger.warning("the epoch of the counters could not be read: %s", exc)


expected = Expected()


def _read() -> str:
    try:
        return CounterEpoch.objects.values_list("epoch", flat=True).first() or ""
    finally:
        connection.close()
