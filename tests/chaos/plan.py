"""What happens in a round: the same seed, the same plan. When each thing happens is up to the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

# See ``faults`` for what each of them does.
FAULTS = (
    "kill",
    "terminate",
    "sleep",
    "freeze",
    "freeze_past_the_lease",
    "cut",
    "lose_reserve",
    "lose_settle",
    "drain_dies",
    "flush",
    "flush_unseen",
    "fill",
    "postgres_restarts",
    "minute_ends",
    "revoke",
    "delete_key",
    "suspend",
    "kill_switch",
    "lower_limit",
)


TENANTS = 2
KEYS_AT_FIRST = 4
KEYS_PER_FAULT = 2


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use: of tokens and of requests, in all, in a minute, and at one time."""

    tokens: int
    requests: int
    tokens_per_minute: int
    requests_per_minute: int
    concurrent: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One round; ``faults`` come one after the other, and with each some of the ``keys``."""

    seed: int
    gateways: int
    clients: int
    faults: tuple[str, ...]
    platform_tokens: int
    tenant_tokens: tuple[int, ...]
    tenant_requests: tuple[int, ...]
    keys: tuple[KeyLimits, ...]
    piece_seconds: float


def draw(seed: int, *, gateways: int, clients: int, faults: Sequence[str] = ()) -> Plan:
    """The plan of a seed; ``faults`` replaces those it would draw.

    A call is held at some 400 tokens and uses some 50. Limits are of any
    magnitude, so that some are in the way at once, some later, some never.
    """
    random = Random(seed)
    drawn = random.sample(FAULTS, random.randint(4, 7))
    faults = tuple(faults or drawn)

    def about(least: int, most: int) -> int:
        return round(math.exp(random.uniform(math.log(least), math.log(most))))

    return Plan(
        seed=seed,
        gateways=gateways,
        clients=clients,
        faults=faults,
        platform_tokens=about(8000, 50_000),
        tenant_tokens=tuple(about(4000, 30_000) for _ in range(TENANTS)),
        tenant_requests=tuple(about(60, 600) for _ in range(TENANTS)),
        keys=tuple(
            KeyLimits(
                tokens=about(500, 5000),
                requests=about(5, 100),
                tokens_per_minute=about(500, 10_000),
                requests_per_minute=about(5, 100),
                concurrent=random.randint(1, 5),
            )
            for _ in range(KEYS_AT_FIRST + KEYS_PER_FAULT * len(faults))
        ),
        piece_seconds=random.choice([0.005, 0.01, 0.03]),
    )
