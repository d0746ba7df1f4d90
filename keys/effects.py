"""What it did to switch keys off: how many, how soon for everybody, and how many calls it cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keys.above import above
from keys.models import ApiKey
from tenants import generations
from tenants.redis import RedisError


@dataclass(frozen=True, slots=True)
class Effect:
    """``changed``: how many of the keys were not so already.

    ``seconds``: from the first change until no process admitted a call that it
    forbids; None: that is pending, because Redis cannot be reached. ``running``:
    calls that ran with the keys and end with the next heartbeat; None: nobody
    can say.
    """

    changed: int
    seconds: float | None
    running: int | None


def running_calls(keys: Sequence[ApiKey]) -> int | None:
    """How many calls run with ``keys`` now; None: Redis cannot be asked."""
    try:
        return above.running_calls([key.pk for key in keys])
    except RedisError:
        return None


def measured(keys: Sequence[ApiKey], change: Callable[[ApiKey], bool]) -> Effect:
    """Do ``change`` to each key, and tell what that did. Not to be asked within a transaction."""
    running = running_calls(keys)
    began = time.monotonic()
    changed = sum(change(key) for key in keys)
    in_force = all(map(generations.in_force, {key.tenant_id for key in keys}))
    return Effect(changed, time.monotonic() - began if in_force else None, running)
