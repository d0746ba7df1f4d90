"""Letting a little through while Redis cannot be asked, for tenants that have chosen to.

Without Redis nobody knows what other processes admit. So each process lends a
tenant a stated number of tokens and no more: what calls on credit may use, or
have used, and Redis has not booked yet. Only that is lent again which Redis has
booked, so N processes never let more than N times the credit through, however
often Redis comes and goes.

A call gets credit only when all of this holds.

- Redis gave no answer. A no, also one for want of memory, is a no.
- This process has admitted a call of the same key to the same model in the
  present periods, and as far as it knows since then, there is room in every
  limit that refuses.
- No limit that refuses counts GPU time: that is granted bit by bit while a call
  runs, by Redis.
- PostgreSQL says now that nothing of the tenant or the platform has changed
  since: a key that was revoked or a kill switch set meanwhile ends the credit.

What it used goes the way of every settlement that Redis cannot take, so it is
booked once, marked ``on_credit``. A process that is started without Redis has
admitted nothing and lends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

from budgets.charges import Charge
from budgets.limits import Counting
from budgets.settlements import Settlement
from keys.verification import Caller
from tenants import generations
from tenants.database import DatabaseError, read_aside
from tenants.redis import RedisError

if TYPE_CHECKING:
    from budgets.reservations import Demand

logger = logging.getLogger(__name__)

# With what Redis was waited for, less than half a second.
CHECK_SECONDS = 0.2
REPAY_SECONDS = 0.5
CREDIT = "outage-credit"


@dataclass(slots=True, eq=False)
class Loan:
    """What one call has of its tenant's credit: ``tokens``, and ``amounts`` of each limit's counter.

    First what it may use, then what it used. ``left`` is what it left of the credit.
    """

    tenant_id: UUID
    output_cap: int
    tokens: int
    amounts: dict[str, int]
    standing: Sequence[int]
    left: int
    end: Settlement | None = field(default=None, repr=False)


class Credit:
    """What this process has lent and Redis has not booked yet."""

    def __init__(self) -> None:
        self._loans: set[Loan] = set()
        self._repaying: asyncio.Task[None] | None = None

    async def lend(
        self, caller: Caller, demand: Demand, tokens: int, counting: Counting, charges: tuple[Charge, ...]
    ) -> Loan | None:
        """Room for a call out of its tenant's credit of so many ``tokens``; None if there is none for it."""
        if not tokens or counting.last is None or not await _is_unchanged(caller):
            return None
        left = tokens - sum(loan.tokens for loan in self._loans if loan.tenant_id == caller.tenant_id)
        output = min(demand.output_tokens, left - demand.input_tokens)
        standing = [
            total + sum(loan.amounts.get(counter.key, 0) for loan in self._loans)
            for counter, total in zip(counting.counters, counting.last.totals(), strict=True)
        ]
        for limit, cost, total in zip(counting.limits, charges, standing, strict=True):
            if limit.hard and limit.limit is not None:
                if cost.gpu_rate:
                    return None
                output = min(output, cost.most_output(limit.limit - total))
        if output < demand.least_output:
            return None
        amounts = {
            counter.key: cost.amount(output) for counter, cost in zip(counting.counters, charges, strict=True)
        }
        needed = demand.input_tokens + output
        loan = Loan(caller.tenant_id, output, needed, amounts, standing, left - needed)
        self._loans.add(loan)
        logger.warning("request %s runs on credit: %d tokens", demand.request_id, needed)
        return loan

    def used(self, loan: Loan, end: Settlement) -> None:
        """The call has ended: what it did not use can be lent again, and so can its place among calls."""
        spent = orjson.loads(end.end)
        loan.tokens = spent["input_tokens"] + spent["output_tokens"]
        loan.amounts = {
            counter.key: 0 if counter.kind == "leases" else amount
            for counter, amount in zip(end.counters, end.amounts, strict=True)
        }
        loan.end = end

    def repaid(self, loan: Loan) -> None:
        """Redis has booked what the call used."""
        self._loans.discard(loan)

    def repay_later(self) -> None:
        """Book what is not booked yet as soon as Redis can; whoever replays the spool may be faster."""
        loop = asyncio.get_running_loop()
        if self._repaying is None or self._repaying.done() or self._repaying.get_loop() is not loop:
            self._repaying = loop.create_task(self._repay(), name="credit")

    async def _repay(self) -> None:
        while ended := [(loan, loan.end) for loan in self._loans if loan.end is not None]:
            await asyncio.sleep(REPAY_SECONDS)
            try:
                for loan, end in ended:
                    await end.book()
                    self.repaid(loan)
            except RedisError as exc:
                logger.info("what was used on credit waits for Redis: %s", exc)


credit = Credit()


async def _is_unchanged(caller: Caller) -> bool:
    """Whether PostgreSQL says that the settings of the caller are the newest; no, if it cannot be asked."""
    try:
        newest = await read_aside(lambda: generations.numbers_of(*caller.generations), CHECK_SECONDS)
    except (DatabaseError, TimeoutError) as exc:
        logger.warning("no credit, as PostgreSQL cannot be asked either: %r", exc)
        return False
    return newest == caller.generations
