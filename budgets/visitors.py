"""What limits a visitor: somebody who calls a tenant without a key.

A visitor is counted twice, as one browser and as one network, and both counters
stand in the same reservation: room is set aside on both or on neither. Besides
these there are the network's running calls, and its requests since a human was
last seen there.

Nobody's address is kept. What stands in Redis and in the books is a counter's
id, which is made of a keyed digest, and another one each day: without
``KEY_PEPPER`` nobody can tell whose it is, nor that two of two days are of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from uuid import UUID
from zoneinfo import ZoneInfo

from django.utils.timezone import now

from budgets.counters import GRACE_SECONDS
from budgets.limits import Counting, Limit
from budgets.models import BudgetPeriod
from budgets.periods import Calendar, Schedule
from keys.callers import Allowance, Caller
from tenants.quick_settings import settings

UNTIL_CHECK = "address-requests-until-check"

# Ids of budgets begin with the time of their making, which will not get here for 8,000 years.
FIRST_ID = UUID("ff000000-0000-0000-0000-000000000000")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who calls without a key, as digests.

    ``session`` is the visitor of the cookie, ``network`` where they come from.
    ``proof`` is the proof of a human that holds for it on the ``day`` which
    began then (seconds since 1970), None if there is none.
    """

    session: bytes = field(repr=False)
    network: bytes = field(repr=False)
    day: int
    proof: bytes | None = field(default=None, repr=False)


def digest(purpose: str, *parts: bytes) -> bytes:
    """32 bytes that say nothing of ``parts`` to whoever has not ``KEY_PEPPER``."""
    keyed = blake2b(key=_key(settings.KEY_PEPPER), digest_size=32, person=purpose.encode())
    for part in parts:
        keyed.update(len(part).to_bytes(2) + part)
    return keyed.digest()


@cache
def _key(pepper: str) -> bytes:
    """Another key than the one of secrets, so that no digest of one is ever one of the other."""
    return blake2b(b"visitors", key=blake2b(pepper.encode()).digest()).digest()


def day_of(caller: Caller, now_ms: float) -> int:
    """When the present day of a caller's tenant began, in seconds since 1970."""
    return _schedule(caller).period(now_ms / 1000).start


def _schedule(caller: Caller) -> Schedule:
    return Schedule(((0, Calendar("day", None, ZoneInfo(caller.time_zone), 1)),))


def with_visitor(
    counting: Counting, caller: Caller, visitor: Visitor | None, now_ms: float, run: str = ""
) -> Counting:
    """``counting`` of a caller's calls of ``run``, and what one of its visitors is counted on besides."""
    if visitor is None or caller.allowance is None:
        return counting
    own = _limits_of(caller, caller.allowance, visitor, now_ms)
    return Counting.of((*counting.limits, *own), now_ms, run)


def _limits_of(caller: Caller, allowance: Allowance, visitor: Visitor, now_ms: float) -> list[Limit]:
    day = day_of(caller, now_ms)
    since, check_after = visitor.network, allowance.check_after
    if visitor.proof is not None and visitor.day == day and check_after is not None:
        # Counted from the proof on; it is good for one request where each has to bring one.
        since, check_after = visitor.proof, max(1, check_after)
    return [
        _on_a_day(caller, "visitor-tokens-day", "tokens", visitor.session, allowance.visitor_tokens, day),
        _on_a_day(caller, "address-tokens-day", "tokens", visitor.network, allowance.address_tokens, day),
        _on_a_day(caller, UNTIL_CHECK, "requests", since, check_after, day),
        Limit(
            kind="leases", id=_id(caller, "streams", visitor.network, 0), name="address-concurrent-requests",
            scope="address", unit="requests", limit=allowance.address_streams, hard=True, window="now",
            model="", upstream="",
        ),
    ]  # fmt: skip


def _on_a_day(caller: Caller, name: str, unit: str, who: bytes, limit: int | None, day: int) -> Limit:
    return Limit(
        kind="budget", id=_id(caller, name, who, day), name=name, scope=name.partition("-")[0], unit=unit,
        limit=limit, hard=True, window="day", model="", upstream="", schedule=_schedule(caller),
    )  # fmt: skip


def _id(caller: Caller, name: str, who: bytes, day: int) -> str:
    """The id of a counter, in hex: other tenants, other days and other names have others for the same."""
    told = digest("counter", caller.tenant_id.bytes, name.encode(), who, day.to_bytes(8))
    return FIRST_ID.hex[:2] + told.hex()[:30]


def forget() -> int:
    """Forget visitors' days whose counters are gone from Redis; return how many there were."""
    gone = now() - timedelta(seconds=GRACE_SECONDS)
    return BudgetPeriod.objects.filter(budget_id__gte=FIRST_ID, period_end__lt=gone).delete()[0]
