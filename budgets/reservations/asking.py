"""What ``reserve.lua`` is asked of a call, and the figures in its answer."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from budgets.charges import Charge
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
    Script,
    hold_key,
    packed,
)
from budgets.epochs import expected
from budgets.holds import granted_text
from budgets.limits import Counting
from budgets.reservations.calls import LEAST_GPU_MS
from budgets.reservations.standing import Figures
from keys.verification import Caller
from tenants.clock import TOLERANCE_MS, clock
from tenants.quick_settings import settings


class Answer(NamedTuple):
    """What ``reserve.lua`` says of one call.

    ``refused`` are the numbers of the counters, from 1 on, that refused it. ``capped``
    is the number of the counter that made ``cap`` smaller than was wished, or 0.
    ``epoch`` is the one in Redis if it is not the one that was expected.
    """

    status: bytes
    request_id: str
    figures: Figures
    cap: int = 0
    capped: int = 0
    refused: Sequence[int] = ()
    gpu_ms: int = 0
    epoch: str = ""


# Made for every call: a frozen one takes three times as long.
@dataclass(slots=True, eq=False)
class Asked(CallOfScript):
    """What ``reserve.lua`` is asked of one call.

    ``amounts`` are what all that it wishes costs, in each unit of ``counting``.
    """

    script: ClassVar[Script] = RESERVE

    caller: Caller
    counting: Counting
    request_id: str
    facts: bytes
    charges: Sequence[Charge]
    amounts: Sequence[int]
    lease_ms: int
    output: int
    least: int
    gpu_ms: int

    @property
    def kin(self) -> int:
        """Calls of one caller that are counted on the same counters are kin."""
        return id(self.counting)

    @classmethod
    def keys_and_arguments(cls, calls: Sequence[Asked]) -> tuple[list[str], list[Any]]:
        keys = [HOLDS, GENERATIONS, EPOCH, SETTLED, DRAINED, CLOCK]
        keys += [hold_key(call.request_id) for call in calls]
        groups = _groups(calls)
        traits: dict[str, tuple[int, int]] = {}
        for group in groups:
            traits |= group[0].counting.traits
        places = {key: place for place, key in enumerate(traits, start=1)}
        keys += traits
        about: list[float] = [
            clock.now_ms(), TOLERANCE_MS, expected.admitted_ms, settings.MAX_BACKLOG, len(calls), len(traits),
        ]  # fmt: skip
        for kind_and_expiry in traits.values():
            about += kind_and_expiry
        arguments: list[Any] = [expected.epoch, packed(about)]
        for group in groups:
            first = group[0]
            caller, counting = first.caller, first.counting
            totals = [sum(amounts) for amounts in zip(*[call.amounts for call in group], strict=True)]
            terms = (
                len(group), caller.tenant_generation, caller.platform_generation,
                caller.expires_at_ms or NONE, first.lease_ms, *counting.stay, len(totals), *totals,
                *[places[key] for key in counting.traits],
            )  # fmt: skip
            arguments += (caller.tenant_id.hex, packed(terms) + counting.terms)
            for call in group:
                granted = granted_text(counting.of_each(call.amounts), call.output, call.gpu_ms)
                arguments += (call.request_id, call.facts, granted, call.numbers())
        return keys, arguments

    def numbers(self) -> bytes:
        """Output and GPU time that it wishes and needs, and its charges, as ``reserve.lua`` reads them."""
        numbers = [self.output, self.least, self.gpu_ms, min(self.gpu_ms, LEAST_GPU_MS)]
        for cost in self.charges:
            numbers += cost
        return packed(numbers)

    @classmethod
    def replies(cls, parts: Sequence[Asked], reply: Any) -> list[Answer]:
        found: list[Answer] = []
        for group, told in zip(_groups(parts), reply, strict=True):
            if isinstance(told[0], bytes):
                found += _of_all(group, *told)
            else:
                found += [_of_one(group[0].counting, *one) for one in told]
        return found


def _groups(calls: Sequence[Asked]) -> list[list[Asked]]:
    """Those side by side that can be decided as one: calls of one caller, on the same counters."""
    groups = [[calls[0]]]
    for before, call in pairwise(calls):
        alike = call.counting is before.counting and call.caller is before.caller
        if alike and call.lease_ms == before.lease_ms:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _of_all(
    group: Sequence[Asked], status: bytes, first: bytes, now_ms: int, figures: bytes, epoch: bytes
) -> Iterator[Answer]:
    """What was said of all calls of a group at once, of each of them."""
    named, known, there = first.decode(), _read(group[0].counting, figures, now_ms), epoch.decode()
    ours = named == group[0].request_id
    for call in group:
        request_id = call.request_id if ours else named
        yield Answer(status, request_id, known, call.output, gpu_ms=call.gpu_ms, epoch=there)


def _of_one(
    counting: Counting,
    status: bytes,
    request_id: bytes,
    now_ms: int,
    cap: int,
    capped: int,
    refused: list[Any],
    figures: bytes,
    gpu_ms: int,
) -> Answer:
    known = _read(counting, figures, now_ms)
    if status == b"epoch":
        return Answer(status, request_id.decode(), known, epoch=refused[0].decode())
    return Answer(status, request_id.decode(), known, cap, capped, refused, gpu_ms)


def asked_of(
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
    # Only where a limit that refuses counts GPU time.
    gpu_ms = lease_ms if any(charges[number].gpu_rate for number in counting.refusing) else 0
    amounts = [cost.amount(output, gpu_ms) for cost in charges]
    return Asked(caller, counting, request_id, facts, charges, amounts, lease_ms, output, least, gpu_ms)


def _read(counting: Counting, figures: bytes, now_ms: int) -> Figures:
    return Figures(counting, struct.unpack(f"<{len(figures) // 8}q", figures), now_ms)
