"""What a change of a key cuts, in words, for who is about to make it.

Only an end, a lowered budget and what switches a key off reach running calls
(``budgets.heartbeats``); everything else is asked when a call begins.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError
from django.utils.translation import gettext as _

from budgets.key_limits import KeyLimit, limits_of_keys
from budgets.limited_keys import LimitChange, amount_of
from budgets.limits import limit_now
from budgets.models import Budget
from keys.endpoints import doors_of
from keys.models import ApiKey
from proxy.catalog import Catalog, published
from proxy.exceptions import NoModels
from proxy.offered import allowed_of
from tenants.redis import RedisError


@dataclass(frozen=True, slots=True)
class Consequence:
    """A sentence about something that will not go on, and from when on; None: from the next call on."""

    told: str
    at: datetime | None = None


def consequences(
    key: ApiKey, wanted: ApiKey, limits: Mapping[str, LimitChange], known: Catalog | None
) -> list[Consequence]:
    """What a key may do and ``wanted``, the key as it would be, may not; and what its new limits cut."""
    return [*_taken_away(key, wanted, known), *_of_limits(key, limits.values())]


def known_models() -> Catalog | None:
    """What is installed; None if nobody can be asked."""
    try:
        return published()
    except (RedisError, DatabaseError):
        return None


def models_of(key: ApiKey, known: Catalog | None) -> list[str]:
    """The models that a key may call, saved or not; empty if nobody knows any."""
    try:
        return [] if known is None else sorted(model.name for model in known.effective(allowed_of(key)))
    except NoModels:
        return []


def _taken_away(key: ApiKey, wanted: ApiKey, known: Catalog | None) -> list[Consequence]:
    found, left = [], models_of(wanted, known)
    if lost := [name for name in models_of(key, known) if name not in left]:
        told = _("No longer to be called: %(models)s. The next call of one of them is refused.")
        found.append(Consequence(told % {"models": ", ".join(lost)}))
    doors = doors_of(None if wanted.scopes is None else frozenset(wanted.scopes))
    before = doors_of(None if key.scopes is None else frozenset(key.scopes))
    if closed := [door for door in before if door not in doors]:
        told = _("No longer open to it: %(doors)s. The next call there is refused.")
        found.append(Consequence(told % {"doors": ", ".join(closed)}))
    before_from = None if key.address_blocks is None else set(key.address_blocks)
    if wanted.address_blocks is not None and (
        before_from is None or before_from - set(wanted.address_blocks)
    ):
        told = _("Calls from anywhere but %(networks)s are refused.")
        found.append(Consequence(told % {"networks": ", ".join(wanted.address_blocks)}))
    if wanted.expires_at is not None and (key.expires_at is None or wanted.expires_at < key.expires_at):
        told = _("It ends earlier. Its calls are refused then, and those that are running are cut:")
        found.append(Consequence(told, wanted.expires_at))
    return found


def _of_limits(key: ApiKey, changes: Iterable[LimitChange]) -> list[Consequence]:
    changes = list(changes)
    standing = {one.budget.pk: one for one in limits_of_keys([key.pk])[key.pk]} if changes else {}
    return [found for change in changes for found in _of_limit(change, standing)]


def _of_limit(change: LimitChange, standing: Mapping[UUID, KeyLimit]) -> list[Consequence]:
    row, wanted = change.row, change.wanted
    if not isinstance(row, Budget) or wanted is None or row.pk not in standing:
        return []
    found, now = [], standing[row.pk]
    lowered = copy.copy(row)
    lowered.limit = wanted.limit
    most = limit_now(lowered)
    if most is not None and now.taken >= most and wanted.limit != row.limit:
        told = _("%(used)s are used or held of %(limit)s: calls are refused until it is whole again.")
        names = {"used": now.measure.exactly(now.taken), "limit": amount_of(row, most)}
        found.append(Consequence(told % names, now.ends_at))
        if now.held and now.taken > most:
            told = _("Of the running calls the newest are cut within %(seconds)g s, until the others fit.")
            found.append(Consequence(told % {"seconds": settings.HEARTBEAT_SECONDS}))
    if wanted.period != row.length and now.ends_at is not None:
        told = _("Its next period is another one. The present one goes on to its end:")
        found.append(Consequence(told, now.ends_at))
    return found
