"""The budgets of keys as people see them: what is used, held and left, and until when.

A key's own budgets only, those without a limit too, for lists of keys and
their charts. What holds for a person is told by ``limits_seen``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.utils.translation import gettext_lazy

from budgets.booked import booked
from budgets.limits import with_raises
from budgets.models import Budget, Scope, Unit
from budgets.standing import Standing, standings
from budgets.words import UNITS, window_name
from tenants.charts import REQUESTS, TOKENS, USD, Measure
from tenants.redis import RedisError

MEASURES: dict[str, Measure] = {
    Unit.REQUESTS: REQUESTS,
    Unit.TOKENS: TOKENS,
    Unit.OUTPUT_TOKENS: Measure(gettext_lazy("output tokens")),
    Unit.MICRO_USD: USD,
    Unit.GPU_MS: Measure(UNITS[Unit.GPU_MS]),
}
# From how many percent on a meter is told to be high.
HIGH = 80


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """One budget in its present period, in its unit.

    ``held`` None: nobody knows just now, and ``used`` is what was booked until
    ``as_of``. ``limit`` None: it is only counted. ``ends_at`` None: it is never
    whole again.
    """

    budget: Budget
    limit: int | None
    used: int
    held: int | None
    starts_at: datetime
    ends_at: datetime | None
    as_of: datetime | None = None

    @classmethod
    def of(cls, one: Standing) -> KeyLimit:
        """A budget that stands like this."""
        return cls(one.budget, one.limit, one.used, one.held, one.starts_at, one.ends_at)

    @property
    def taken(self) -> int:
        return self.used + (self.held or 0)

    @property
    def left(self) -> int | None:
        """What is neither used nor held; never below nothing."""
        return None if self.limit is None else max(0, self.limit - self.taken)

    @property
    def measure(self) -> Measure:
        return MEASURES[self.budget.unit]

    @property
    def period(self) -> str:
        return window_name(self.budget.length)

    @property
    def meter(self) -> dict[str, int]:
        """What a ``<meter>`` shows; of a limit of 0 nothing is left."""
        limit = self.limit or 1
        value = min(self.taken, limit) if self.limit else limit
        return {"max": limit, "value": value, "high": limit * HIGH // 100}

    @property
    def figures(self) -> dict[str, str]:
        """The amounts as people read them, to the last digit; those that nobody knows are left out."""
        amounts = {"used": self.used, "held": self.held, "left": self.left, "limit": self.limit}
        return {name: self.measure.exactly(value) for name, value in amounts.items() if value is not None}


def limits_of_keys(key_ids: Collection[UUID]) -> dict[UUID, list[KeyLimit]]:
    """The budgets of each of these keys, by key."""
    rows = Budget.objects.filter(scope=Scope.KEY, key__in=key_ids)
    rows = with_raises(rows.select_related("tenant", "key"))
    limits: dict[UUID, list[KeyLimit]] = {key_id: [] for key_id in key_ids}
    for one in look_at(list(rows)):
        if one.budget.key_id is not None:
            limits[one.budget.key_id].append(one)
    return limits


def look_at(budgets: list[Budget]) -> list[KeyLimit]:
    """How budgets stand, by the counters; by the ledger's sums while Redis cannot be asked."""
    try:
        return [KeyLimit.of(one) for one in standings(budgets)]
    except RedisError:
        return [
            KeyLimit(one.budget, one.limit, one.used, None, one.starts_at, one.ends_at, one.as_of)
            for one in booked(budgets)
        ]
