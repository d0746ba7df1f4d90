"""How a call lies in Redis while it runs, and what stands there of one that has ended.

The form is described at the head of ``lua/holds.lua``, by which the scripts read and
write it. A release before that one wrote a hash, with a field for each; it is read as
long as a call that it admitted may be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError

from budgets.counters import hold_key, redis_in_bytes

_HELD = re.compile(rb"held ([\d ]*)\n(\d+) \d+ (\d+) (\d+) (\d+) ([a-z]+)\n(.*)", re.DOTALL)
_FIELDS = ("state", "amounts", "cap", "gpu", "admitted", "output", "phase", "call")


@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside for a call that runs.

    ``amounts``: on each of its counters. ``gpu_ms`` is the GPU time it was granted, 0 if
    that is not bounded. ``phase`` is ``silent`` until its process has told one, then
    ``reserved``, or ``started`` once the upstream was called; ``call`` what is known of it, JSON.
    """

    amounts: tuple[int, ...]
    output_cap: int
    gpu_ms: int
    admitted_ms: int
    output_tokens: int
    phase: str
    call: bytes


def granted_text(amounts: Iterable[int], output_cap: int, gpu_ms: int) -> str:
    """What a hold says is granted, where no counter capped it."""
    return f"{' '.join(map(str, amounts))}\n{output_cap} 0 {gpu_ms}"


def first_line(amounts: Iterable[int]) -> str:
    """The line with which the hold of a call begins for which so much is held on each counter."""
    return f"held {' '.join(map(str, amounts))}\n"


def holds_of(request_ids: Sequence[UUID | str]) -> list[Hold | None]:
    """The holds of these calls; None for one that has none, or has ended. Raises ``RedisError``."""
    redis = redis_in_bytes()
    keys = [hold_key(request_id) for request_id in request_ids]
    # Of a hash this says that there is nothing.
    texts = redis.mget(keys) if keys else []
    pipeline = redis.pipeline(transaction=False)
    for key, text in zip(keys, texts, strict=True):
        if text is None:
            pipeline.hmget(key, *_FIELDS)
    earlier = iter(pipeline.execute(raise_on_error=False))
    return [_of_hash(next(earlier)) if text is None else _of_text(text) for text in texts]


def _of_text(text: bytes) -> Hold | None:
    found = _HELD.fullmatch(text)
    return None if found is None else _hold(*found.groups())


def _of_hash(fields: list[Any] | ResponseError) -> Hold | None:
    # An error if there was nothing, and the mark of an end is there by now.
    if isinstance(fields, ResponseError) or fields[0] != b"held":
        return None
    return _hold(*fields[1:])


def _hold(
    amounts: bytes, cap: bytes, gpu: bytes, admitted: bytes, output: bytes, phase: bytes, call: bytes
) -> Hold:
    return Hold(
        amounts=tuple(map(int, amounts.split())),
        output_cap=int(cap),
        gpu_ms=int(gpu),
        admitted_ms=int(admitted),
        output_tokens=int(output),
        # The hash said so with nothing.
        phase=phase.decode() or "silent",
        call=call,
    )
