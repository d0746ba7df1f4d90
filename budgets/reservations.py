"""Setting room aside for a call, and booking what it used.

``reserve`` costs one round trip to Redis, ``settle`` another; neither touches
PostgreSQL while the limits of the caller are in memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import orjson
from asgiref.sync import sync_to_async
from redis.exceptions import ResponseError

from budgets import spool
from budgets.charges import FREE, LARGEST_TOKENS, Charge, Usage, charge
from budgets.counters import (
    CLOCK,
    DRAINED,
    EPOCH,
    GENERATIONS,
    HOLDS,
    NONE,
    RESERVE,
    SETTLED,
    CallOfScript,
    Counter,
    Script,
    hold_key,
    packed,
)
from budgets.credit import CREDIT, Loan, credit
from budgets.epochs import expected
from budgets.exceptions import (
    BacklogFull,
    BudgetExhausted,
    CallStopped,
    ClockDoubtful,
    ConcurrencyLimited,
    CountersUnavailable,
    HumanCheckRequired,
    KeyNoLongerValid,
    LimitReached,
    PriceMissing,
    RateLimited,
    StaleCaller,
    TooLarge,
)
from budgets.kill_switches import CLOCKS_DIFFER_MS, Switch, stopping
from budgets.limits import Counting, Limit, Limits, limits_for
from budgets.pricing import PinnedPrice
from budgets.settlements import Moments, Settlement, settlement
from budgets.tallies import tallies
from budgets.visitors import UNTIL_CHECK, Visitor, with_visitor
from keys.verification import Caller
from tenants.clock import TOLERANCE_MS, clock
from tenants.ids import new_id
from tenants.quick_settings import settings
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

# A period may end, and the counters may be rebuilt, between two attempts.
ATTEMPTS = 4
SETTLE_ATTEMPTS = 2
SPOOL_SECONDS = 1.2
# Nobody can tell when a running call ends; this is when asking again is worth it.
CONCURRENCY_RETRY_SECONDS = 1.0
# With less GPU time than this, a call would be stopped before its answer began.
LEAST_GPU_MS = 1000
# When to try again to take back a reserve whose answer never came; together, a lease.
VOID_PAUSES = (0.1, 0.5, 1, 2, 4, 8, 15)
MOST_VOIDS = 1000
# What is sent again when Redis has lost its data before the ledger had it.
RECENT_SECONDS = 60
MOST_RECENT = 5000
BATCH = 64


@dataclass(frozen=True, slots=True)
class Demand:
    """The most that a call may need.

    ``input_tokens`` is an upper bound; ``output_tokens`` what the client wishes
    and the model can at most, 0 for embeddings; ``least_output`` the output
    with which an answer is still of use, 0 for embeddings. ``model`` is the
    canonical name, ``run`` what the client calls the run that the call is part of.
    ``visitor`` is who calls without a key.
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


class Standing(NamedTuple):
    """How one limit stands, for headers and refusals.

    ``unit`` is one of ``budgets.models.Unit``.
    ``remaining`` is what is neither used nor held, negative when the limit was
    lowered below that. ``reset_seconds``: until some of it comes back, None for
    never or for nobody knows. ``window`` is ``minute``, ``now`` (how many at one
    time) or the kind of a budget's period; ``window_seconds`` its length, None
    if it has none. ``held`` is what running calls may use of it yet.
    """

    name: str
    scope: str
    unit: str
    limit: int
    remaining: int
    reset_seconds: float | None
    window: str
    window_seconds: int | None
    held: int = 0


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
    limits: tuple[Limit, ...]
    counters: tuple[Counter, ...]
    charges: tuple[Charge, ...]
    figures: Sequence[int] = field(repr=False)
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

    def _found(self) -> list[int]:
        """What was used and held on each counter before it came."""
        return [
            self.figures[3 * number]
            + self.figures[3 * number + 1]
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

    def held(self) -> list[int]:
        """What is held for the call on each counter."""
        return [cost.amount(self.output_cap, self.gpu_cap_ms or 0) for cost in self.charges]

    def elapsed_ms(self) -> int:
        """Milliseconds since it was admitted: the upstream has worked on it for no longer than that."""
        return math.ceil((time.monotonic() - self._admitted) * 1000)

    @property
    def standing(self) -> list[Standing]:
        """How the caller's limits stood when the call was admitted, its own hold included."""
        return _standing(self.limits, self.counters, self.figures, self.admitted_at_ms)

    def would_have_refused(self) -> list[list[Any]]:
        """The shadow limits that had not the least room the call needed, as ``_named``."""
        found = []
        for number, limit in enumerate(self.limits):
            if limit.hard or limit.limit is None:
                continue
            cost = self.charges[number]
            unpriced = limit.unit == "micro_usd" and self.price is None
            if (
                unpriced
                or self._found()[number] + cost.amount(self.demand.least_output, LEAST_GPU_MS) > limit.limit
            ):
                found.append(_named(limit, self.counters[number]))
        return found

    def stop(self, reason: CallStopped) -> None:
        """Ask whoever relays the call to end it; the first reason stays."""
        self.stopped_by = self.stopped_by or reason


class Unanswered(Exception):
    """Redis did not answer ``reserve``. ``void`` takes back what it may have written."""

    def __init__(self, void: Settlement) -> None:
        super().__init__(void.request_id)
        self.void = void


async def reserve(caller: Caller, demand: Demand) -> Reservation:
    """Admit a call: set aside the most it may use on every counter, or refuse it and change none.

    The output cap is the wish of ``demand`` or, if less, what the tightest
    limit still has room for. Raises ``StaleCaller`` when the caller has to be
    loaded again, and the refusals of ``budgets.exceptions``.
    """
    limits = await limits_for(caller)
    if limits.switches:
        await _refuse_killed(caller, limits, demand.model, demand.upstream)
    if demand.input_tokens > LARGEST_TOKENS or demand.output_tokens > LARGEST_TOKENS:
        raise TooLarge
    for _ in range(ATTEMPTS):
        now_ms = clock.now_ms()
        counting = limits.counting(demand.model, demand.upstream, now_ms, demand.run)
        counting = with_visitor(counting, caller, demand.visitor, now_ms, demand.run)
        applying, counters = counting.limits, counting.counters
        price = limits.price_of(demand.model, now_ms)
        if price is None and any(limit.hard and limit.unit == "micro_usd" for limit in applying):
            raise PriceMissing
        rates = [charge(unit, demand.input_tokens, price) for unit in counting.units]
        charges = tuple([rates[number] for number in counting.unit_of])
        call = _facts(caller, demand, counting, price)
        try:
            reply = await _run_reserve(caller, demand, counting, rates, price, call)
        except Unanswered as exc:
            lent = await _on_credit(caller, demand, limits, counting, charges, price, exc.void)
            if lent is None:
                raise CountersUnavailable from exc
            return lent
        status, _, redis_ms, cap, capped, refused, packed_figures, gpu_ms = reply
        figures = _figures(packed_figures)
        if status == b"held":
            reservation = Reservation(
                request_id=demand.request_id,
                caller=caller,
                demand=demand,
                output_cap=cap,
                capped_by=applying[capped - 1].name if capped else None,
                gpu_cap_ms=gpu_ms or None,
                admitted_at_ms=redis_ms,
                limits=applying,
                counters=counters,
                charges=charges,
                figures=figures,
                price=price,
                call=call,
            )
            expected.admitted_ms = redis_ms
            if limits.credit_tokens:
                counting.last = reservation
            return reservation
        near = clock.learn(redis_ms)
        if status == b"refused":
            raise _limit_reached(demand, applying, counters, charges, refused, figures, redis_ms)
        if not await _is_worth_a_repeat(status, refused, near=near):
            raise _refusal(status)
    raise CountersUnavailable


async def refuse_killed(caller: Caller, model: str = "", upstream: str = "") -> tuple[Switch, ...]:
    """Raise ``Killed`` if a kill switch stops a call to ``model`` at ``upstream``; without these, every call.

    Returns the switches that may stop some calls of the caller. A no is told
    only when Redis says that what this process remembers is the newest, and by
    Redis' clock; raises as ``look`` does.
    """
    limits = await limits_for(caller)
    if limits.switches:
        await _refuse_killed(caller, limits, model, upstream)
    return limits.switches


async def _refuse_killed(caller: Caller, limits: Limits, model: str, upstream: str) -> None:
    if not stopping(limits.switches, clock.now_ms() - CLOCKS_DIFFER_MS, model, upstream):
        return
    now_ms, _ = await _look(caller, limits, None)
    if switch := stopping(limits.switches, now_ms, model, upstream):
        raise switch.refusal()


async def look(caller: Caller, visitor: Visitor | None = None) -> list[Standing]:
    """How the limits of all calls of a caller, and of one visitor, stand; sets nothing aside.

    For what needs a good key and no room. Raises as ``reserve`` does, but for
    the limits themselves.
    """
    _, standing = await _look(caller, await limits_for(caller), visitor)
    return standing


async def _look(caller: Caller, limits: Limits, visitor: Visitor | None) -> tuple[int, list[Standing]]:
    """The time in Redis, in ms since 1970, and how the limits stand then."""
    for _ in range(ATTEMPTS):
        now_ms = clock.now_ms()
        counting = with_visitor(limits.counting("", "", now_ms), caller, visitor, now_ms)
        request_id = str(new_id())
        asked = _asked(caller, counting, request_id, b"", [FREE] * len(counting.units))
        try:
            reply = await asked.run()
        except RedisError as exc:
            raise CountersUnavailable from exc
        status, _, redis_ms, _, _, seen, packed_figures, _ = reply
        near = clock.learn(redis_ms)
        if status == b"seen":
            return redis_ms, _standing(counting.limits, counting.counters, _figures(packed_figures), redis_ms)
        if not await _is_worth_a_repeat(status, seen, near=near):
            raise _refusal(status)
    raise CountersUnavailable


async def _is_worth_a_repeat(status: bytes, found: list[Any], *, near: bool) -> bool:
    """Whether the next attempt may go better: now we know the time, or the epoch that was ``found``.

    ``near``: by our clock Redis' is right, so we only took long to ask.
    """
    if status == b"epoch":
        return await expected.confirms(found[0].decode())
    return status == b"moved" or (status == b"skew" and near)


def _refusal(status: bytes) -> Exception:
    if status == b"stale":
        return StaleCaller()
    if status == b"expired":
        return KeyNoLongerValid()
    if status == b"backlog":
        return BacklogFull()
    if status in (b"skew", b"clock"):
        return ClockDoubtful()
    # The counters are not marked or have forgotten something, or the request id was used before.
    logger.warning("nothing is admitted: reserve says %s", status.decode())
    return CountersUnavailable()


async def _run_reserve(
    caller: Caller,
    demand: Demand,
    counting: Counting,
    charges: Sequence[Charge],
    price: PinnedPrice | None,
    call: bytes,
) -> Any:
    request_id = str(demand.request_id)
    lease_ms = settings.LEASE_SECONDS * 1000
    asked = _asked(
        caller, counting, request_id, call, charges, lease_ms, demand.output_tokens, demand.least_output
    )
    try:
        reply = await asked.run()
    except ResponseError as exc:
        # Redis said no, as when its memory is full: nothing was written.
        logger.warning("reserve failed: %s", exc)
        raise CountersUnavailable from exc
    except (RedisError, asyncio.CancelledError) as exc:
        # The hold may have been written all the same.
        void = settlement(
            request_id=request_id, mode="void", call=call, counters=counting.counters, price=price,
            input_bound=0, output_cap=0, gpu_cap_ms=None, admitted_ms=int(clock.now_ms()), usage=None,
            outcome="void", status=503, moments=Moments(),
        )  # fmt: skip
        if isinstance(exc, asyncio.CancelledError):
            _take_back(void)
            raise
        raise Unanswered(void) from exc
    if reply[1].decode() != request_id:
        logger.critical("Redis answered request %s with the reply of another", request_id)
        raise CountersUnavailable
    return reply


async def _on_credit(
    caller: Caller,
    demand: Demand,
    limits: Limits,
    counting: Counting,
    charges: tuple[Charge, ...],
    price: PinnedPrice | None,
    void: Settlement,
) -> Reservation | None:
    """Admit a call out of its tenant's credit, as Redis did not answer; None if that is not possible.

    A hold that Redis may have written all the same then belongs to the call.
    """
    loan = None
    try:
        loan = await credit.lend(caller, demand, limits.credit_tokens, counting, charges)
    finally:
        if loan is None:
            _take_back(void)
    if loan is None:
        return None
    figures: list[int] = []
    for counter, total in zip(counting.counters, loan.standing, strict=True):
        figures += (total + loan.amounts[counter.key], 0, NONE)
    return Reservation(
        request_id=demand.request_id,
        caller=caller,
        demand=demand,
        output_cap=loan.output_cap,
        capped_by=CREDIT if loan.output_cap < demand.output_tokens else None,
        gpu_cap_ms=None,
        admitted_at_ms=int(clock.now_ms()),
        limits=counting.limits,
        counters=counting.counters,
        charges=charges,
        figures=figures,
        price=price,
        call=_facts(caller, demand, counting, price, on_credit=True),
        loan=loan,
    )


@dataclass(frozen=True, slots=True)
class Asked(CallOfScript):
    """What ``reserve.lua`` is asked of one call; ``numbers`` are packed as it says."""

    script: ClassVar[Script] = RESERVE

    request_id: str
    facts: bytes
    epoch: str
    tenant: str
    generations: tuple[int, int]
    counting: Counting
    numbers: bytes

    @property
    def kin(self) -> int:
        """Calls of one caller that are counted on the same counters are kin."""
        return id(self.counting)

    @classmethod
    def keys_and_arguments(cls, calls: Sequence[Asked]) -> tuple[list[str], list[Any]]:
        keys = [HOLDS, EPOCH, GENERATIONS, SETTLED, DRAINED, CLOCK]
        arguments: list[Any] = []
        for (_, epoch, tenant, generations), kindred in groupby(
            calls, key=lambda call: (call.kin, call.epoch, call.tenant, call.generations)
        ):
            group = list(kindred)
            counting = group[0].counting
            keys += counting.keys
            arguments += (epoch, tenant, packed((len(group), *generations)) + counting.terms)
            for call in group:
                keys.append(hold_key(call.request_id))
                arguments += (call.request_id, call.facts, call.numbers)
        return keys, arguments


def _asked(
    caller: Caller,
    counting: Counting,
    request_id: str,
    facts: bytes,
    charges: Sequence[Charge],
    lease_ms: int = NONE,
    output: int = 0,
    least: int = 0,
) -> Asked:
    """What ``reserve.lua`` is asked of a call with a charge for each unit; without a lease, to look."""
    gpu_ms = lease_ms if _bounds_gpu_time(counting, charges) else 0
    numbers: list[float] = [
        clock.now_ms(),
        TOLERANCE_MS,
        expected.admitted_ms,
        caller.expires_at_ms or NONE,
        settings.MAX_BACKLOG,
        lease_ms,
        output,
        least,
        gpu_ms,
        min(gpu_ms, LEAST_GPU_MS),
    ]
    for cost in charges:
        numbers += cost
    generations = caller.tenant_generation, caller.platform_generation
    return Asked(
        request_id, facts, expected.epoch, caller.tenant_id.hex, generations, counting, packed(numbers)
    )


def _bounds_gpu_time(counting: Counting, charges: Sequence[Charge]) -> bool:
    """Whether a limit that refuses counts GPU time."""
    return any(
        charges[number].gpu_rate and limit.hard and limit.limit is not None
        for limit, number in zip(counting.limits, counting.unit_of, strict=True)
    )


def _figures(packed_figures: bytes) -> Sequence[int]:
    """Used, held and wait of each counter, one after the other, as ``reserve.lua`` packs them."""
    return struct.unpack(f"<{len(packed_figures) // 8}q", packed_figures)


def _facts(
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
            "input_bound": demand.input_tokens,
            "price": None if price is None else price.as_list(),
            "counters": counting.as_json,
            **({"on_credit": True} if on_credit else {}),
        }
    )


def _limit_reached(
    demand: Demand,
    limits: tuple[Limit, ...],
    counters: tuple[Counter, ...],
    charges: tuple[Charge, ...],
    refused: list[int],
    figures: Sequence[int],
    now_ms: int,
) -> LimitReached:
    """The refusal of the limit that has to be waited for longest; sooner, another one would refuse."""
    waits: dict[int, float | None] = {}
    for number in refused:
        limit, counter = limits[number - 1], counters[number - 1]
        wait_ms = figures[3 * number - 1]
        if not _fits(limits, charges, number, demand):
            waits[number] = None
        elif limit.kind == "leases":
            waits[number] = CONCURRENCY_RETRY_SECONDS
        elif limit.kind == "rate":
            waits[number] = None if wait_ms < 0 else wait_ms / 1000
        else:
            waits[number] = None if counter.end is None else counter.end - now_ms / 1000
    # A human check lifts one limit; where another one refuses too, it would be asked for in vain.
    others = {number: wait for number, wait in waits.items() if limits[number - 1].name != UNTIL_CHECK}
    longest = max(
        others or waits, key=lambda number: float("inf") if (wait := waits[number]) is None else wait
    )
    kinds: dict[str, type[LimitReached]] = {
        "budget": BudgetExhausted,
        "rate": RateLimited,
        "leases": ConcurrencyLimited,
    }
    first = [longest, *(number for number in refused if number != longest)]
    standing = _standing(limits, counters, figures, now_ms, first)
    refused_by = [
        _named(limits[number - 1], counters[number - 1], fits=_fits(limits, charges, number, demand))
        for number in first
    ]
    if limits[longest - 1].name == UNTIL_CHECK:
        return HumanCheckRequired(standing, None, refused_by)
    return kinds[limits[longest - 1].kind](standing, waits[longest], refused_by)


def _fits(limits: tuple[Limit, ...], charges: tuple[Charge, ...], number: int, demand: Demand) -> bool:
    """Whether the call would fit a limit of which nothing is used."""
    limit = limits[number - 1].limit
    return limit is not None and charges[number - 1].amount(demand.least_output, LEAST_GPU_MS) <= limit


def _named(limit: Limit, counter: Counter, *, fits: bool = True) -> list[Any]:
    """A limit that refused a call, as the drain reads it: its name, and its counter.

    Without the counter if the call is larger than the whole limit: that says
    nothing about how much of it is left.
    """
    return [limit.name, *counter.as_list()] if fits else [limit.name]


def _standing(
    limits: tuple[Limit, ...],
    counters: tuple[Counter, ...],
    figures: Sequence[int],
    now_ms: int,
    first: Sequence[int] = (),
) -> list[Standing]:
    """How the limits that may refuse stand, those numbered in ``first`` (from 1 on) before the others."""
    every: Sequence[int] = range(1, len(limits) + 1)
    standing = []
    # Said with every answer for every limit, so they are made without Python's part of a named tuple.
    make = tuple.__new__
    for number in [*first, *(number for number in every if number not in first)] if first else every:
        limit, counter = limits[number - 1], counters[number - 1]
        if limit.limit is None or not limit.hard or not limit.told:
            continue
        reset: float | None = None
        length: int | None = None
        if limit.kind == "budget":
            if counter.end is not None and counter.start is not None:
                reset, length = max(0.0, counter.end - now_ms / 1000), counter.end - counter.start
        elif limit.kind == "rate":
            wait_ms = figures[3 * number - 1]
            reset, length = (None if wait_ms < 0 else wait_ms / 1000), 60
        remaining = limit.limit - figures[3 * number - 3] - figures[3 * number - 2]
        standing.append(
            make(
                Standing,
                (
                    limit.name, limit.scope, limit.unit, limit.limit, remaining, reset, limit.window, length,
                    figures[3 * number - 2],
                ),
            )
        )  # fmt: skip
    return standing


async def settle(
    reservation: Reservation, usage: Usage, outcome: str, moments: Moments, status: int, refusal: str = ""
) -> None:
    """Book what an admitted call used, once; it may not be asked twice, and need not.

    ``outcome`` says how the call ended, ``status`` what the client was told,
    and ``refusal`` the code it was told if that was trouble.
    Never raises: what Redis cannot take now is kept in PostgreSQL or on disk,
    and booked as soon as Redis can. Takes two seconds at most.
    """
    await _end(reservation, usage, outcome, moments, status, refusal)


async def release(
    reservation: Reservation, outcome: str, status: int, moments: Moments | None = None, refusal: str = ""
) -> None:
    """Give the room of a call back on which no model worked: it counts nothing, and has its entry.

    Never raises, as ``settle``.
    """
    await _end(reservation, None, outcome, moments or Moments(), status, refusal)


async def _end(
    reservation: Reservation, usage: Usage | None, outcome: str, moments: Moments, status: int, refusal: str
) -> None:
    if reservation.ended:
        return
    reservation.ended = True
    end = settlement(
        request_id=str(reservation.request_id),
        mode="settle",
        call=reservation.call,
        counters=reservation.counters,
        price=reservation.price,
        input_bound=reservation.demand.input_tokens,
        output_cap=reservation.output_cap,
        gpu_cap_ms=reservation.gpu_cap_ms,
        admitted_ms=reservation.admitted_at_ms,
        usage=usage,
        outcome=outcome,
        status=status,
        moments=moments,
        refused_by=reservation.would_have_refused(),
        refusal=refusal,
    )
    reservation.booked = end.amounts
    if usage is not None:
        tallies.used(
            reservation.caller.tenant,
            min(usage.input_tokens, reservation.demand.input_tokens),
            min(usage.output_tokens, reservation.output_cap),
        )
    if reservation.loan is not None:
        credit.used(reservation.loan, end)
    _remember(end)
    try:
        await _book(end, reservation.loan)
    except asyncio.CancelledError:
        # Nobody knows how far it came; a repeat books it once.
        _in_background(_book(end, reservation.loan))
        raise


async def _book(end: Settlement, loan: Loan | None) -> None:
    """Book a settlement in Redis, else keep it. Never raises."""
    for _ in range(SETTLE_ATTEMPTS):
        try:
            await end.book()
        except RedisError as exc:
            trouble = exc
        else:
            if loan is not None:
                credit.repaid(loan)
            return
    if loan is not None:
        credit.repay_later()
    logger.warning("Redis cannot take the settlement of %s: %s", end.request_id, trouble)
    try:
        async with asyncio.timeout(SPOOL_SECONDS):
            await sync_to_async(spool.keep_in_database, thread_sensitive=False)(end)
    except Exception as exc:  # noqa: BLE001, whatever keeps PostgreSQL from it, the disk is left
        logger.warning("PostgreSQL cannot take it either: %s", exc)
        spool.keep_on_disk(end)


_recent: deque[tuple[float, Settlement]] = deque(maxlen=MOST_RECENT)


def _remember(end: Settlement) -> None:
    now = time.monotonic()
    _recent.append((now, end))
    while _recent[0][0] < now - RECENT_SECONDS:
        _recent.popleft()


async def book_recent_again() -> int:
    """Send what was settled in the last minute once more, because Redis has lost its data.

    Returns how many. What the ledger has already is not booked a second time.
    Raises ``RedisError``; a repeat sends all of them again.
    """
    since = time.monotonic() - RECENT_SECONDS
    recent = [end for at, end in _recent if at >= since]
    for start in range(0, len(recent), BATCH):
        await asyncio.gather(*(end.book() for end in recent[start : start + BATCH]))
    return len(recent)


_background: set[asyncio.Task[None]] = set()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def finish() -> None:
    """Wait for the bookings that go on in the background; a process calls this before it ends."""
    running = [task for task in _background if task.get_loop() is asyncio.get_running_loop()]
    if running:
        await asyncio.wait(running, timeout=SPOOL_SECONDS + 2 * settings.REDIS_TIMEOUT_SECONDS)


def _take_back(void: Settlement) -> None:
    """Take back, in the background, a reserve whose answer was lost.

    Past the last attempt, and past the most at one time, it is left to the sweep.
    """
    if len(_background) < MOST_VOIDS:
        _in_background(_void(void))


async def _void(void: Settlement) -> None:
    for pause in VOID_PAUSES:
        await asyncio.sleep(pause)
        try:
            await void.book()
        except RedisError:
            continue
        return
