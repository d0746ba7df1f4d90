"""The form for a key that is there: the fields of a new one, and of what they say only what is different."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils.timezone import now
from django.utils.translation import gettext as _

from budgets.limited_keys import LimitChange, bound_by_others, counts_of, only_lower, own_limits_of
from keys.endpoints import DOORS
from keys.lifetimes import latest_end
from keys.models import ApiKey
from proxy.portal_keys.forms import (
    DAYS,
    LIMITS,
    LONGEST,
    NEVER,
    OF_TENANT,
    ON_A_DAY,
    THESE,
    KeyForm,
    Slot,
    in_days,
)
from tenants.access import Access

KEEP, EVERY = "keep", "every"
# The fields that say what a column is.
SAID_BY = {
    "label": {"label"},
    "scopes": {"scopes"},
    "allow_all_models": {"which_models", "models"},
    "models": {"which_models", "models"},
    "address_blocks": {"address_blocks"},
    "expires_at": {"expires", "expires_on"},
}


class EditKeyForm(KeyForm):
    """What a key is to be; ``models`` are those that its tenant lets keys call, its own may be chosen too.

    Only fields that somebody has touched say anything, so that what the form
    has no words for stays as it is.
    """

    def __init__(self, access: Access, key: ApiKey, models: Sequence[str], *args: Any, **kwargs: Any) -> None:
        self.key = key
        self.latest = _latest_end(key)
        self.lifts = access.lifts_limits_of(key.member)
        self.actor = str(access.user)
        offered = sorted({*models, *(key.models or [])})
        super().__init__(access, offered, _slots(key), _ends(key, self.latest), *args, **kwargs)
        which, listed = _models_of(key)
        fields: dict[str, Any] = self.fields
        if which == EVERY:
            fields["which_models"].choices = [
                (EVERY, _("Every installed model")),
                *fields["which_models"].choices,
            ]
        fields["label"].initial = key.label
        fields["scopes"].initial = list(DOORS) if key.scopes is None else key.scopes
        fields["which_models"].initial, fields["models"].initial = which, listed
        fields["address_blocks"].initial = "\n".join(key.address_blocks or [])
        fields["expires"].initial = KEEP

    def holder(self) -> dict[str, Any]:
        return {"member": self.key.member, "service_account": self.key.service_account}

    def note_on(self, slot: Slot) -> str:
        bound = None if self.lifts or slot.row is None else bound_by_others(slot.row, self.actor)
        return "" if slot.row is None or bound is None else only_lower(slot.row, bound)

    def changes(self) -> dict[str, Any]:
        """The columns of the key that are to be different, as ``change_key`` takes them."""
        if not self.is_bound:
            return {}
        said, touched = self.settings(), set(self.changed_data) - set(self.errors)
        if "expires" not in touched or (said["expires_at"] is None and self.cleaned_data["expires"] != NEVER):
            touched -= {"expires", "expires_on"}
        return {
            name: value
            for name, value in said.items()
            if SAID_BY[name] & touched and value != getattr(self.key, name)
        }

    def settings(self) -> dict[str, Any]:
        said = super().settings()
        if self._cleaned.get("which_models") == EVERY:
            said |= {"allow_all_models": True, "models": self.key.models}
        return said

    def limit_changes(self) -> dict[str, LimitChange]:
        """The limits that are to be different, by the names of their fields."""
        if not self.is_bound:
            return {}
        touched = set(self.changed_data) - set(self.errors)
        changes = {}
        for slot in self._slots:
            amount, period = f"limit_{slot.name}", f"period_{slot.name}"
            wanted = self.limit_in(slot)
            # Without an amount a period says nothing.
            if amount in touched or (period in touched and wanted is not None):
                changes[slot.name] = LimitChange(slot.row, wanted)
        return changes

    def as_key(self) -> ApiKey:
        """The key as it would be, not saved."""
        key = copy.copy(self.key)
        for name, value in self.changes().items():
            setattr(key, name, value)
        return key

    def touched(self) -> list[tuple[str, str]]:
        """What is filled in and not so: the names of fields and their values, for people."""
        told = []
        for name in self.changed_data:
            value = self[name].value()
            if isinstance(value, list):
                value = ", ".join(value)
            choices = dict(getattr(self.fields[name], "choices", ()))
            told.append((str(self[name].label), str(choices.get(value, value) or _("nothing"))))
        return told

    def _longest(self) -> datetime | None:
        return self.latest


def _slots(key: ApiKey) -> list[Slot]:
    """A place for each limit that the key has, and an empty one for whatever it has none of."""
    slots: list[Slot] = []
    names: set[str] = set()
    for row in own_limits_of(key):
        counts = counts_of(row)
        name = counts if counts not in names else f"{counts}_{row.pk.hex}"
        names.add(name)
        slots.append(Slot(name, counts, row))
    slots += [Slot(counts, counts) for counts in LIMITS if counts not in names]
    order = list(LIMITS)
    return sorted(slots, key=lambda slot: order.index(slot.counts) if slot.counts in order else len(order))


def _models_of(key: ApiKey) -> tuple[str, list[str]]:
    """Which models a key may call, as the form asks for it, and the list if there is one."""
    if key.allow_all_models:
        return EVERY, []
    chosen = key.allow_all_models if key.tenant.allow_all_models else key.models
    if chosen is None:
        return OF_TENANT, []
    return THESE, (key.models if key.models is not None else key.tenant.models) or []


def _latest_end(key: ApiKey) -> datetime | None:
    """The latest end that the tenant allows: counted from the newest secret."""
    newest = key.secrets.order_by("-created_at").first()
    return latest_end(key.tenant, newest.created_at if newest else key.created_at)


def _ends(key: ApiKey, latest: datetime | None) -> list[tuple[str, str]]:
    """What may be chosen for the end of a key that ends at ``latest`` at the latest."""
    moment = now()
    ends = [(KEEP, _("as it is"))]
    ends += [in_days(days) for days in DAYS if latest is None or moment + timedelta(days=days) < latest]
    if latest is None and key.expires_at is not None:
        ends.append((NEVER, _("never")))
    if latest is not None and latest > moment:
        ends.append((LONGEST, _("as late as the tenant allows")))
    return [*ends, (ON_A_DAY, _("on a day"))]
