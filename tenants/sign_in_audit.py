"""What people change about how they sign in, as events of the audit.

allauth's pages run in one transaction each (``config.urls``), so a change and
its event are written together or not at all. Of second factors allauth tells
only after the commit, so their rows are watched instead.
"""

from __future__ import annotations

from typing import Any

from allauth.account.models import EmailAddress
from allauth.account.signals import email_changed, password_changed, password_reset, password_set
from allauth.core import context
from allauth.mfa.models import Authenticator
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

from audit.recording import record
from tenants.models import User

ACTIONS = {
    password_changed: "user.password_changed",
    password_set: "user.password_set",
    password_reset: "user.password_reset",
    email_changed: "user.email_changed",
}


def connect() -> None:
    """Hear of all of it from now on."""
    for signal in ACTIONS:
        signal.connect(_changed, dispatch_uid="audit")
    post_save.connect(_added, sender=Authenticator, dispatch_uid="audit")
    post_delete.connect(_removed, sender=Authenticator, dispatch_uid="audit")


def _changed(
    sender: object,
    *,
    signal: Signal,
    user: User,
    from_email_address: EmailAddress | None = None,
    to_email_address: EmailAddress | None = None,
    **_told: Any,
) -> None:
    details = {}
    if to_email_address is not None:
        before = from_email_address and from_email_address.email
        details = {"before": before, "after": to_email_address.email}
    _note(ACTIONS[signal], user, **details)


def _added(sender: object, *, instance: Authenticator, created: bool, **_told: Any) -> None:
    if created:
        _of_second_factor("user.second_factor_added", instance)


def _removed(sender: object, *, instance: Authenticator, **_told: Any) -> None:
    _of_second_factor("user.second_factor_removed", instance)


def _of_second_factor(action: str, authenticator: Authenticator) -> None:
    # Without a request it is a command, which says itself who does it and why.
    if context.request is not None:
        _note(action, authenticator.user, kind=authenticator.type)


def _note(action: str, user: User, **details: Any) -> None:
    record(action=action, actor=str(user), subject=str(user.pk), username=user.username, **details)
