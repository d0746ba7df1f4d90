"""What ``reserve.lua`` is asked of a call, and the figures in its answer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

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
from budgets.limits import Counting
from budgets.reservations.calls import LEAST_GPU_MS
from keys.verification import Caller
from tenants.clock import TOLERANCE_MS, clock
from tenants.quick_settings import settings


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


def figures_in(packed_figures: bytes) -> Sequence[int]:
    """Used, held and wait of each counter, one after the other, as ``reserve.lua`` packs them."""
    return struct.unpack(f"<{len(packed_figures) // 8}q", packed_figures)
