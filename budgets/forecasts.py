"""When a budget will be empty if it goes on as it has; and when that cannot be said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from budgets.standing import empty_at

# Of a period so much has to have gone by before its pace says anything: a fiftieth, and ten minutes.
LEAST_SHARE = 50
LEAST_SECONDS = 600
# Of what never ends, a day.
LEAST_OF_LIFETIME_SECONDS = 86_400


class Outlook(StrEnum):
    """What can be said: ``RUNS_OUT`` has a moment; ``TOO_EARLY`` and ``UNUSED`` are no forecast at all."""

    EMPTY = "empty"
    RUNS_OUT = "runs out"
    LASTS = "lasts"
    TOO_EARLY = "too early"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What becomes of a budget at its present pace; ``at`` is set when it ``RUNS_OUT``."""

    outlook: Outlook
    at: datetime | None = None


def forecast(limit: int, used: int, since: int, moment: int, end: int | None) -> Forecast:
    """What becomes of a budget of which ``used`` was used from ``since`` to ``moment``.

    Seconds since 1970; ``since`` is when its period began or, if later, when it
    was made; ``end`` None: it never ends. What is only held does not count:
    most of it comes back. At the moment that is told, and not a second before,
    the same pace has used the limit up.
    """
    if used >= limit:
        return Forecast(Outlook.EMPTY)
    if used <= 0:
        return Forecast(Outlook.UNUSED)
    if moment - since < _least_seconds(since, end):
        return Forecast(Outlook.TOO_EARLY)
    at = empty_at(limit, used, since, moment, end)
    return Forecast(Outlook.LASTS) if at is None else Forecast(Outlook.RUNS_OUT, at)


def _least_seconds(since: int, end: int | None) -> int:
    if end is None:
        return LEAST_OF_LIFETIME_SECONDS
    return max(LEAST_SECONDS, (end - since) // LEAST_SHARE)
