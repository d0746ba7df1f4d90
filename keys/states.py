"""What can be said of a key at a moment: that it works, or why it is refused."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from keys.models import ApiKey

# From how long before its end on a key is one that needs care.
EXPIRING = timedelta(days=14)


class State(models.TextChoices):
    """What a key is; of several reasons to refuse it, the one that lasts."""

    LIVE = "live", _("Works")
    DISABLED = "disabled", _("Disabled")
    EXPIRED = "expired", _("Expired")
    REVOKED = "revoked", _("Revoked")


def state_of(key: ApiKey, moment: datetime) -> State:
    """The state of ``key`` itself; its tenant and its holder may be off all the same."""
    if key.revoked_at is not None:
        return State.REVOKED
    if key.expires_at is not None and key.expires_at <= moment:
        return State.EXPIRED
    return State.LIVE if key.disabled_at is None else State.DISABLED


def in_state(state: State, moment: datetime) -> Q:
    """The condition that a key is in ``state``, as ``state_of`` has it."""
    if state == State.REVOKED:
        return Q(revoked_at__isnull=False)
    expired = Q(revoked_at=None, expires_at__lte=moment)
    if state == State.EXPIRED:
        return expired
    live = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=moment))
    return live & Q(disabled_at__isnull=state == State.LIVE)


def expires_soon(key: ApiKey, moment: datetime) -> bool:
    """Whether a key that works or is disabled will expire before long."""
    return (
        state_of(key, moment) in (State.LIVE, State.DISABLED)
        and key.expires_at is not None
        and key.expires_at <= moment + EXPIRING
    )
