"""Asking somebody by e-mail to join a tenant: each function is one transaction with its audit event inside.

A link carries a token of which only a digest is stored, so whoever reads the
database, a backup of it or the audit cannot accept anything. What is wrong
with a link that does not work is told to nobody: unknown, expired, used and
withdrawn are the same.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from audit.recording import record
from tenants.models import Invitation, Member, Team, Tenant, User
from tenants.services import add_member, create_user

GOOD_FOR = timedelta(days=7)
TOKEN_BYTES = 32


class InvitationGone(Exception):
    """It was accepted or withdrawn, or its time ran out, while somebody looked at it."""


def digest(token: str) -> str:
    """What is stored of a token: with 256 random bits in it nobody finds it from this."""
    return hashlib.sha256(token.encode()).hexdigest()


def usable() -> QuerySet[Invitation]:
    """The invitations that can be accepted now."""
    return Invitation.objects.filter(accepted_at=None, withdrawn_at=None, expires_at__gt=now())


@sensitive_variables("token")
@transaction.atomic
def invite(
    *, tenant: Tenant, email: str, role: str, invited_by: User, team: Team | None = None
) -> tuple[Invitation, str]:
    """Ask whoever reads the mail of ``email`` to join ``tenant``; returns the invitation and its token.

    The token is good for ``GOOD_FOR`` and not stored. Raises ``ValidationError``
    for an address that is invited already or belongs to a member.
    """
    email = User.objects.normalize_email(email)
    if Member.objects.filter(tenant=tenant, user__email__iexact=email).exists():
        raise ValidationError({"email": _("A member has this address already.")}, code="is_member")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    invitation = Invitation(
        tenant=tenant,
        email=email,
        role=role,
        team=team,
        invited_by=invited_by,
        token_digest=digest(token),
        expires_at=now() + GOOD_FOR,
    )
    invitation.full_clean()
    invitation.save(force_insert=True)
    _note("invitation.sent", invitation, str(invited_by))
    return invitation, token


@sensitive_variables("token")
@transaction.atomic
def renew_invitation(*, invitation: Invitation, actor: str) -> tuple[Invitation, str]:
    """Give an open invitation another token and all of its time again; the link before works no more.

    Raises ``InvitationGone`` if it was accepted or withdrawn.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    renewed = Invitation.objects.filter(pk=invitation.pk, accepted_at=None, withdrawn_at=None).update(
        token_digest=digest(token), expires_at=now() + GOOD_FOR
    )
    if not renewed:
        raise InvitationGone
    invitation.refresh_from_db()
    _note("invitation.renewed", invitation, actor)
    return invitation, token


@transaction.atomic
def withdraw_invitation(*, invitation: Invitation, actor: str) -> bool:
    """Let the link work no more; return False if it was withdrawn or accepted already."""
    withdrawn = Invitation.objects.filter(pk=invitation.pk, accepted_at=None, withdrawn_at=None).update(
        withdrawn_at=now()
    )
    if withdrawn:
        _note("invitation.withdrawn", invitation, actor)
    return bool(withdrawn)


@transaction.atomic
def accept_invitation(*, invitation: Invitation, user: User) -> Member:
    """Make ``user`` a member as the invitation says; it is used up then.

    Raises ``InvitationGone`` if it cannot be accepted any more, and
    ``ValidationError`` for somebody who is a member already.
    """
    # Who comes second waits here for the first, and finds it used.
    used = usable().filter(pk=invitation.pk).update(accepted_at=now(), accepted_by=user)
    if not used:
        raise InvitationGone
    invitation = Invitation.objects.select_related("tenant", "team").get(pk=invitation.pk)
    _note("invitation.accepted", invitation, str(user), user=user.username)
    return add_member(
        tenant=invitation.tenant, user=user, role=invitation.role, team=invitation.team, actor=str(user)
    )


@sensitive_variables("password")
@transaction.atomic
def accept_with_new_account(*, invitation: Invitation, username: str, password: str) -> User:
    """Create the person whom an invitation was sent to, and let them accept it.

    Raises as ``accept_invitation`` and ``create_user`` do; then there is no such person.
    """
    user = create_user(username=username, email=invitation.email, password=password, actor=username)
    accept_invitation(invitation=invitation, user=user)
    return user


def withdraw_those_of(sender: object, *, member: Member, actor: str, **_kwargs: object) -> int:
    """Withdraw what somebody who leaves sent and nobody accepted yet, so that they do not come back by it.

    Returns 0: no key is revoked by this.
    """
    sent = Invitation.objects.filter(tenant=member.tenant_id, invited_by=member.user_id)
    for invitation in sent.filter(accepted_at=None, withdrawn_at=None):
        withdraw_invitation(invitation=invitation, actor=actor)
    return 0


def _note(action: str, invitation: Invitation, actor: str, **more: str) -> None:
    record(
        action=action,
        actor=actor,
        subject=str(invitation.pk),
        tenant_id=invitation.tenant_id,
        email=invitation.email,
        role=invitation.role,
        team=invitation.team_id,
        expires_at=invitation.expires_at,
        **more,
    )
