"""What keys are asked about and only the layers above know: running calls, and what would be admitted.

Imports go down only, so these lend their functions when they load
(``budgets.apps``, ``proxy.apps``). Pages, the admin and the management API of
this app ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from keys.callers import Caller


@dataclass(frozen=True, slots=True)
class LimitAhead:
    """A limit that refuses, as it stands for a key: ``name`` is what refusals call it.

    ``left`` is the limit without what is used and held, None for rate limits,
    which come back by themselves all the time. ``resets_at``: when all of it is
    back; ``empty_at``: when it is used up if it goes on like this. None is
    never, or nobody knows. ``window`` is ``minute``, ``now`` (at one time) or
    the kind of a budget's period. ``model`` and ``upstream`` are empty where all
    calls are counted.
    """

    name: str
    scope: str
    unit: str
    window: str
    model: str
    upstream: str
    limit: int
    used: int | None
    held: int | None
    left: int | None
    resets_at: datetime | None
    empty_at: datetime | None

    @property
    def share_left(self) -> float:
        """How much of it is left, from 0 to 1."""
        return 1.0 if self.left is None else max(0, self.left) / self.limit if self.limit else 0.0


@dataclass(frozen=True, slots=True)
class Preview:
    """What a key may call now, and what will refuse it.

    ``refused``: codes of refusals (``docs/errors.md``) that every call would
    get now. ``limits`` that apply to all of its calls or to some models, those
    that refuse first in front. ``counted`` is False when Redis could not be
    asked, so what is used is not known.
    """

    models: tuple[str, ...]
    scopes: tuple[str, ...]
    endpoints: tuple[str, ...]
    address_blocks: tuple[str, ...] | None
    expires_at: datetime | None
    refused: tuple[str, ...]
    limits: tuple[LimitAhead, ...]
    counted: bool

    @property
    def next_refusal(self) -> LimitAhead | None:
        """The limit that will be the first to refuse, as far as anybody can tell."""
        return self.limits[0] if self.limits else None


class Above:
    """The functions that are lent."""

    # How many calls of these keys run now; raises ``RedisError``.
    running_calls: Callable[[Collection[UUID]], int]
    # What a caller may call and what will refuse it; see ``proxy.previews``.
    preview: Callable[[Caller], Preview]


above = Above()
