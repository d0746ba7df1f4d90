"""How long keys and their secrets work: the graces of a rotation, and a tenant's longest lifetime."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext, gettext_lazy

from keys.models import ApiKey
from tenants.models import Tenant


class Grace(models.TextChoices):
    """For how long the secret before works beside a new one."""

    NOW = "now", gettext_lazy("Not at all")
    HOUR = "1h", gettext_lazy("For an hour")
    DAY = "24h", gettext_lazy("For 24 hours")
    WEEK = "7d", gettext_lazy("For 7 days")
    FIRST_USE = "first-use", gettext_lazy("Until the new secret is first used")

    def ends_at(self, moment: datetime) -> datetime | None:
        """When a grace that begins at ``moment`` is over; None: nobody knows yet."""
        span = _SPANS[self]
        return None if span is None else moment + span


_SPANS: dict[str, timedelta | None] = {
    Grace.NOW: timedelta(0),
    Grace.HOUR: timedelta(hours=1),
    Grace.DAY: timedelta(hours=24),
    Grace.WEEK: timedelta(days=7),
    Grace.FIRST_USE: None,
}


def latest_end(tenant: Tenant, since: datetime) -> datetime | None:
    """The latest end that a key of ``tenant`` may have whose newest secret is of ``since``; None: any."""
    return None if tenant.max_key_days is None else since + timedelta(days=tenant.max_key_days)


def check_changeable(key: ApiKey) -> None:
    """Raise ``ValidationError`` for a key that is revoked: it stays as it was, for its history."""
    if key.revoked_at is not None:
        raise ValidationError(
            gettext("The key is revoked. Nothing of it changes any more."), code="key_ended"
        )


def check_end(tenant: Tenant, expires_at: datetime | None, since: datetime) -> None:
    """Raise ``ValidationError`` if such a key would work for longer than its tenant allows."""
    latest = latest_end(tenant, since)
    if latest is not None and (expires_at is None or expires_at > latest):
        told = {
            "tenant": tenant, "days": tenant.max_key_days, "end": f"{latest:%Y-%m-%d %H:%M} UTC",
        }  # fmt: skip
        sentence = gettext("A secret of %(tenant)s works for %(days)s days at most, until %(end)s.")
        raise ValidationError({"expires_at": sentence % told})
