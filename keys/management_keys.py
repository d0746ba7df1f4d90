"""Whose management key a secret is."""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now
from django.views.decorators.debug import sensitive_variables

from keys import secrets
from keys.models import ManagementKey
from tenants.secret_marks import MANAGING

NOTED_EVERY = timedelta(minutes=1)


def works(moment: datetime) -> Q:
    """The condition that a management key opens anything."""
    return Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=moment))


@sensitive_variables("secret")
def management_key_of(secret: str) -> ManagementKey | None:
    """The key that ``secret`` opens; None for every reason why it opens nothing.

    Asked of PostgreSQL each time, so a revoked key is refused at once. That it
    was used is noted once a minute at most.
    """
    public_id = secrets.public_id_of(secret, MANAGING)
    if public_id is None:
        return None
    moment = now()
    live = ManagementKey.objects.filter(works(moment))
    key = live.select_related("tenant").filter(public_id=public_id).first()
    if key is None or not hmac.compare_digest(key.digest, secrets.digest(secret)):
        return None
    if key.last_used_at is None or key.last_used_at <= moment - NOTED_EVERY:
        _note_use(key, moment)
    return key


@transaction.atomic
def _note_use(key: ManagementKey, moment: datetime) -> None:
    # Whoever notes it at the same time is not waited for: a request may last as long as its transaction.
    free = ManagementKey.objects.select_for_update(skip_locked=True).filter(pk=key.pk)
    ManagementKey.objects.filter(pk__in=free).update(last_used_at=moment)
