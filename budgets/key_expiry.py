"""Telling people that a key expires soon: 14, 7 and 1 days before, each once.

Told are the recipients who want to hear of it, and by mail whoever holds the
key: its member, else the owners and admins of its tenant. What was told is
written down first, so a repeat tells nothing twice; another ``expires_at`` is
another happening.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from budgets.models import Happening, Notice
from budgets.notices import deliver_to_people, tell
from keys.models import ApiKey
from tenants.models import Member, Tenant, User

# The farthest first.
DAYS_BEFORE = (14, 7, 1)
MANAGING = (Member.Role.OWNER, Member.Role.ADMIN)


def warn() -> int:
    """Tell of the keys that expire soon; return of how many happenings nobody had been told."""
    moment = now()
    soon = moment + timedelta(days=DAYS_BEFORE[0])
    keys = ApiKey.objects.filter(
        Q(member=None) | Q(member__user__is_active=True),
        expires_at__gt=moment,
        expires_at__lte=soon,
        revoked_at=None,
        tenant__state=Tenant.State.ACTIVE,
    ).select_related("tenant", "member__user")
    told = _told_of([str(key.pk) for key in keys])
    written = 0
    for key in keys:
        assert key.expires_at is not None  # noqa: S101, it was asked for
        before = {days for subject, ends, days in told if (subject, ends) == (str(key.pk), key.expires_at)}
        new = [days for days in reached(key.created_at, key.expires_at, moment) if days not in before]
        if new:
            written += _warn_of(key, key.expires_at, new)
    return written


def reached(created_at: datetime, expires_at: datetime, moment: datetime) -> list[int]:
    """How many days before its end people are to be told of a key by ``moment``, the farthest first.

    Nobody is told that a key which was made for three days has less than a week.
    """
    return [
        days for days in DAYS_BEFORE if created_at < expires_at - timedelta(days=days) <= moment < expires_at
    ]


def _told_of(subjects: Iterable[str]) -> set[tuple[str, datetime | None, int | None]]:
    notices = Notice.objects.filter(happening=Happening.KEY_EXPIRES, subject__in=subjects)
    return set(notices.values_list("subject", "period_start", "threshold"))


@transaction.atomic
def _warn_of(key: ApiKey, expires_at: datetime, days_before: list[int]) -> int:
    """Write all down; people are told of the nearest, which says the others too."""
    ends = expires_at.astimezone(ZoneInfo(key.tenant.time_zone))
    written = 0
    for days in days_before:
        nearest = days == days_before[-1]
        notice = tell(
            happening=Happening.KEY_EXPIRES,
            subject=str(key.pk),
            values={
                "label": key.label,
                "tenant": key.tenant.name,
                "expires_at": ends.isoformat(),
                "days_before": days,
                "holder": "" if key.member is None else key.member.user.username,
            },
            facts={
                "days_before": days,
                "key": {
                    "id": str(key.pk),
                    "label": key.label,
                    "member": None if key.member is None else key.member.user.username,
                    "expires_at": ends.isoformat(),
                },
            },
            tenant_id=key.tenant_id,
            tenant=key.tenant.slug,
            # What makes a later end another happening.
            period_start=expires_at,
            threshold=days,
            quietly=not nearest,
        )
        written += notice is not None
        if notice is not None and nearest:
            deliver_to_people(notice, _holders(key))
    return written


def _holders(key: ApiKey) -> list[User]:
    """Who has to do something about a key, as far as mail reaches them."""
    if key.member is not None:
        return [key.member.user] if key.member.user.email else []
    managing = Member.objects.filter(tenant=key.tenant_id, role__in=MANAGING).values("user")
    return list(User.objects.filter(pk__in=managing, is_active=True).exclude(email=""))
