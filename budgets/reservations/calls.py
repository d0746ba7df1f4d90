"""What a call may need, and what was set aside for it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from budgets.charges import Charge
from budgets.counters import Counter
from budgets.credit import Loan
from budgets.exceptions import CallStopped
from budgets.limits import Counting, Limit
from budgets.pricing import PinnedPrice
from budgets.reservations.standing import Figures, Standing, named
from budgets.visitors import Visitor
from keys.verification import Caller

# With less GPU time than this, a call would be stopped before its answer began.
LEAST_GPU_MS = 1000


@dataclass(frozen=True, slots=True)
class Demand:
    """The most that a call may need.

    ``input_tokens`` is an upper bound; ``output_tokens`` what the client wishes
    and the model can at most, 0 for embeddings; ``least_output`` the output
    with which an answer is still of use, 0 for embeddings. ``model`` is the
    canonical name, ``run`` what the client calls the run that the call is part of.
    ``visitor`` is who calls without a key; of others ``client`` is the address.
    """

    request_id: UUID
    route: str
    dialect: str
    operation: str
    stream: bool
    model: str
    upstream: str
    input_tokens: int
    output_tokens: int
    least_output: int
    run: str = ""
    visitor: Visitor | None = None
    client: str = ""


@dataclass(slots=True)
class Reservation:
    """A call with a live hold.

    ``output_cap`` is the most output the upstream may be asked for;
    ``capped_by`` names the limit that made it smaller than was wished, if one
    did. ``gpu_cap_ms`` is the time after which it has to end, counted from its
    admission and prolonged while it runs; None where no limit that refuses
    counts GPU time. ``stopped_by`` is set when the call has to end. ``loan`` is
    the credit that a call runs on instead of a hold.
    """

    request_id: UUID
    caller: Caller
    demand: Demand
    output_cap: int
    capped_by: str | None
    gpu_cap_ms: int | None
    admitted_at_ms: int
    # What it may cost, in each unit of its counting.
    rates: Sequence[Charge]
    figures: Figures = field(repr=False)
    price: PinnedPrice | None
    call: bytes = field(repr=False)
    stopped_by: CallStopped | None = None
    ended: bool = False
    loan: Loan | None = None
    _admitted: float = field(default_factory=time.monotonic, repr=False)
    # The GPU time it was granted at first, which heartbeats may prolong.
    _granted_ms: int = field(init=False, repr=False)
    # What was booked on each counter, once the call has ended.
    booked: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._granted_ms = self.gpu_cap_ms or 0

    @property
    def counting(self) -> Counting:
        return self.figures.counting

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.counting.limits

    @property
    def counters(self) -> tuple[Counter, ...]:
        return self.counting.counters

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What it may cost each counter."""
        return self.counting.of_each(self.rates)

    def _found(self) -> list[int]:
        """What is used and held on each counter without it; calls that came at the same moment are in it."""
        return [
            self.figures.values[3 * number]
            + self.figures.values[3 * number + 1]
            - cost.amount(self.output_cap, self._granted_ms)
            for number, cost in enumerate(self.charges)
        ]

    def totals(self) -> list[int]:
        """What is used and held on each counter as far as this call knows: as it found it, and itself."""
        own = self.held() if self.booked is None else self.booked
        return [
            found + (0 if counter.kind == "leases" and self.booked is not None else amount)
            for found, counter, amount in zip(self._found(), self.counters, own, strict=True)
        ]

    def held(self) -> tuple[int, ...]:
        """What is held for the call on each counter."""
        gpu_ms = self.gpu_cap_ms or 0
        return self.counting.of_each([cost.amount(self.output_cap, gpu_ms) for cost in self.rates])

    def elapsed_ms(self) -> int:
        """Milliseconds since it was admitted: the upstream has worked on it for no longer than that."""
        return math.ceil((time.monotonic() - self._admitted) * 1000)

    @property
    def standing(self) -> list[Standing]:
        """How the caller's limits stood when the call was admitted, its own hold included."""
        return self.figures.standing

    def would_have_refused(self) -> list[list[Any]]:
        """The shadow limits that had not the least room the call needed, as ``named``."""
        found = []
        for number, limit in enumerate(self.limits):
            if limit.hard or limit.limit is None:
                continue
            cost = self.rates[self.counting.unit_of[number]]
            unpriced = limit.unit == "micro_usd" and self.price is None
            if (
                unpriced
                or self._found()[number] + cost.amount(self.demand.least_output, LEAST_GPU_MS) > limit.limit
            ):
                found.append(named(limit, self.counters[number]))
        return found

    def stop(self, reason: CallStopped) -> None:
        """Ask whoever relays the call to end it; the first reason stays."""
        self.stopped_by = self.stopped_by or reason


def facts_of(
    caller: Caller,
    demand: Demand,
    counting: Counting,
    price: PinnedPrice | None,
    *,
    on_credit: bool = False,
) -> bytes:
    """What the ledger has to know of a call, as JSON."""
    return orjson.dumps(
        {
            "request_id": demand.request_id,
            "tenant_id": caller.tenant_id,
            "tenant": caller.tenant,
            "team_id": caller.team_id,
            "team": caller.team,
            "member_id": caller.member_id,
            "member": caller.member,
            "key_id": caller.key_id,
            "key": caller.key,
            "time_zone": caller.time_zone,
            "model": demand.model,
            "upstream": demand.upstream,
            "route": demand.route,
            "operation": demand.operation,
            "dialect": demand.dialect,
            "stream": demand.stream,
            "run": demand.run,
            "client": demand.client,
            "input_bound": demand.input_tokens,
            "price": None if price is None else price.as_list(),
            "counters": counting.as_json,
            **({"on_credit": True} if on_credit else {}),
        }
    )
