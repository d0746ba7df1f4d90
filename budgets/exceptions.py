"""The refusals of the counting core, and what is no refusal but asks for another try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenants.exceptions import Refusal

if TYPE_CHECKING:
    from budgets.reservations import Standing


class StaleCaller(Exception):
    """The snapshot of the caller is not the newest, or Redis lost the generations."""


class NotDelivered(Exception):
    """A notice could not be delivered; says why, without secrets.

    ``reason`` is marked for translation (``gettext_noop``), ``values`` are what
    its placeholders stand for, in words of the system.
    """

    def __init__(self, reason: str, /, **values: str) -> None:
        super().__init__(reason % values if values else reason)
        self.reason, self.values = reason, values


class LimitReached(Refusal):
    """A limit would be passed.

    ``standing`` is how each limit of the call stands, those that refused it
    first. ``retry_after`` is seconds until a repeat may succeed; None: never,
    as the call is larger than a limit or the budget is never whole again.
    ``refused_by`` is what the note of the refusal says of the limits that did,
    ``looked_at`` what it says of all that were asked (``budgets.reservations.denial``).
    """

    def __init__(
        self,
        standing: list[Standing],
        retry_after: float | None,
        refused_by: list[list[Any]] | None = None,
        looked_at: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(", ".join(one.name for one in standing[:1]))
        self.standing = standing
        self.retry_after = retry_after
        self.refused_by = refused_by or []
        self.looked_at = looked_at or []


class BudgetExhausted(LimitReached):
    """A budget has not enough left for the call."""


class RateLimited(LimitReached):
    """More was asked for within a minute than a rate limit allows."""


class ConcurrencyLimited(LimitReached):
    """As many calls are running already as may run at one time."""


class HumanCheckRequired(LimitReached):
    """As many requests came from an address as may before a human has to show themselves."""


class KeyNoLongerValid(Refusal):
    """The key has expired by the clock that decides, Redis' own."""


class CallStopped(Refusal):
    """A running call is ended from outside, or a kill switch keeps one from running.

    ``message`` is what an operator chose to tell the caller, often nothing.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class KeyEnded(CallStopped):
    """The key was revoked or deleted, or expired, while its call ran."""


class TenantSuspended(CallStopped):
    """The tenant was suspended while its call ran."""


class BudgetCut(CallStopped):
    """A budget was lowered below what is used and held of it while its call ran."""


class HoldLost(CallStopped):
    """The process was not heard of for so long that the call was taken for dead and booked."""


class StoppedByOperator(CallStopped):
    """An operator ended the running call."""


class Killed(CallStopped):
    """A kill switch is on."""


class PlatformKilled(Killed):
    """For everybody's calls."""


class TenantKilled(Killed):
    """For the calls of a tenant."""


class KeyKilled(Killed):
    """For the calls of a key."""


class UpstreamKilled(Killed):
    """For the calls to an upstream."""


class ModelKilled(Killed):
    """For the calls to a model, everybody's or a tenant's."""


class PriceMissing(Refusal):
    """A budget counts money and the model has no price."""


class TooLarge(Refusal):
    """The call may need more tokens than can be counted exactly."""


class CountersUnavailable(Refusal):
    """Redis is gone, too slow, or its counters are not to be believed yet: nothing is admitted."""


class BacklogFull(Refusal):
    """Too much usage waits for the ledger: nothing is admitted until it is written."""


class ClockDoubtful(Refusal):
    """Redis' clock was set, or ours is wrong: nobody can say which period it is, so nothing is admitted."""
