"""Setting room aside for a call, or refusing it.

One round trip to Redis, and PostgreSQL is not touched while the limits of the
caller are in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import ResponseError

from budgets.charges import FREE, LARGEST_TOKENS, Charge, charge
from budgets.counters import NONE
from budgets.credit import CREDIT, credit
from budgets.epochs import expected
from budgets.exceptions import (
    BacklogFull,
    ClockDoubtful,
    CountersUnavailable,
    KeyNoLongerValid,
    PriceMissing,
    StaleCaller,
    TooLarge,
)
from budgets.kill_switches import CLOCKS_DIFFER_MS, Switch, stopping
from budgets.limits import Counting, Limits, limits_for
from budgets.pricing import PinnedPrice
from budgets.reservations.asking import Answer, asked_of
from budgets.reservations.calls import Demand, Reservation, facts_of
from budgets.reservations.denial import limit_reached
from budgets.reservations.ending import take_back
from budgets.reservations.standing import Figures, Standing
from budgets.settlements import Moments, Settlement, settlement
from budgets.visitors import Visitor, with_visitor
from keys.verification import Caller
from tenants.clock import clock
from tenants.ids import new_id
from tenants.quick_settings import settings
from tenants.redis import RedisError

logger = logging.getLogger(__name__)

# A period may end, and the counters may be rebuilt, between two attempts.
ATTEMPTS = 4


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
        applying = counting.limits
        price = limits.price_of(demand.model, now_ms)
        if price is None and any(limit.hard and limit.unit == "micro_usd" for limit in applying):
            raise PriceMissing
        rates = [charge(unit, demand.input_tokens, price) for unit in counting.units]
        call = facts_of(caller, demand, counting, price)
        try:
            reply = await _run_reserve(caller, demand, counting, rates, price, call)
        except Unanswered as exc:
            lent = await _on_credit(caller, demand, limits, counting, rates, price, exc.void)
            if lent is None:
                raise CountersUnavailable from exc
            return lent
        if reply.status == b"held":
            reservation = Reservation(
                request_id=demand.request_id,
                caller=caller,
                demand=demand,
                output_cap=reply.cap,
                capped_by=applying[reply.capped - 1].name if reply.capped else None,
                gpu_cap_ms=reply.gpu_ms or None,
                admitted_at_ms=reply.figures.now_ms,
                rates=rates,
                figures=reply.figures,
                price=price,
                call=call,
            )
            expected.admitted_ms = reply.figures.now_ms
            if limits.credit_tokens:
                counting.last = reservation
            return reservation
        near = clock.learn(reply.figures.now_ms)
        if reply.status == b"refused":
            raise limit_reached(demand, rates, reply.refused, reply.figures)
        if not await _is_worth_a_repeat(reply, near=near):
            raise _refusal(reply.status)
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
        asked = asked_of(caller, counting, request_id, b"", [FREE] * len(counting.units))
        try:
            reply: Answer = await asked.run()
        except RedisError as exc:
            raise CountersUnavailable from exc
        near = clock.learn(reply.figures.now_ms)
        if reply.status == b"seen":
            return reply.figures.now_ms, reply.figures.standing
        if not await _is_worth_a_repeat(reply, near=near):
            raise _refusal(reply.status)
    raise CountersUnavailable


async def _is_worth_a_repeat(reply: Answer, *, near: bool) -> bool:
    """Whether the next attempt may go better: now we know the time, or the epoch that there is.

    ``near``: by our clock Redis' is right, so we only took long to ask.
    """
    if reply.status == b"epoch":
        return await expected.confirms(reply.epoch)
    return reply.status == b"moved" or (reply.status == b"skew" and near)


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
) -> Answer:
    request_id = str(demand.request_id)
    lease_ms = settings.LEASE_SECONDS * 1000
    asked = asked_of(
        caller, counting, request_id, call, charges, lease_ms, demand.output_tokens, demand.least_output
    )
    try:
        reply: Answer = await asked.run()
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
            take_back(void)
            raise
        raise Unanswered(void) from exc
    if reply.request_id != request_id:
        logger.critical("Redis answered request %s with the reply of another", request_id)
        raise CountersUnavailable
    return reply


async def _on_credit(
    caller: Caller,
    demand: Demand,
    limits: Limits,
    counting: Counting,
    rates: Sequence[Charge],
    price: PinnedPrice | None,
    void: Settlement,
) -> Reservation | None:
    """Admit a call out of its tenant's credit, as Redis did not answer; None if that is not possible.

    A hold that Redis may have written all the same then belongs to the call.
    """
    loan = None
    try:
        loan = await credit.lend(caller, demand, limits.credit_tokens, counting, counting.of_each(rates))
    finally:
        if loan is None:
            take_back(void)
    if loan is None:
        return None
    figures: list[int] = []
    for counter, total in zip(counting.counters, loan.standing, strict=True):
        figures += (total + loan.amounts[counter.key], 0, NONE)
    now_ms = int(clock.now_ms())
    return Reservation(
        request_id=demand.request_id,
        caller=caller,
        demand=demand,
        output_cap=loan.output_cap,
        capped_by=CREDIT if loan.output_cap < demand.output_tokens else None,
        gpu_cap_ms=None,
        admitted_at_ms=now_ms,
        rates=rates,
        figures=Figures(counting, figures, now_ms),
        price=price,
        call=facts_of(caller, demand, counting, price, on_credit=True),
        loan=loan,
    )
