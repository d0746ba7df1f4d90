"""The prompt log as people have to do with it: opting in, who reads, reading, erasing.

Each function that changes or shows something is one transaction with its audit
event inside.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from audit.models import LoggedPrompt
from audit.prompts import ERASED, erase, opened
from audit.recording import record
from audit.sealing import can_seal
from keys.models import ApiKey, PromptRules
from tenants import generations
from tenants.access import is_operator
from tenants.models import Member, Tenant, User

OPERATOR = "operator"
# What an operator needs, beside a place on the staff, to read where a tenant lets operators read.
READ_PROMPTS = "audit.view_loggedprompt"


@dataclass(frozen=True, slots=True)
class Reading:
    """What somebody was shown of one call."""

    row: LoggedPrompt
    prompt: str
    answer: str


def check_lifetime(days: int | None) -> None:
    """Raise ``ValidationError`` if prompts cannot be kept for so many days; None is not at all."""
    if days is None:
        return
    if not can_seal():
        raise ValidationError({"prompt_log_days": "Prompts cannot be kept: PROMPT_LOG_KEYS is not set."})
    if not 1 <= days <= settings.PROMPT_LOG_MAX_DAYS:
        raise ValidationError(
            {"prompt_log_days": f"Prompts are kept for 1 to {settings.PROMPT_LOG_MAX_DAYS} days."}
        )


@transaction.atomic
def set_prompt_rules(*, tenant: Tenant, actor: str, **changes: Any) -> PromptRules:
    """Say who may read what is kept of ``tenant`` (``readers``) and what is left out (``redactions``).

    What is not named stays. Returns the rules as they are then; raises
    ``ValidationError`` for roles and templates that are none.
    """
    Tenant.objects.select_for_update().get(pk=tenant.pk)
    rules = PromptRules.objects.filter(tenant=tenant).first() or PromptRules(tenant=tenant)
    before = {name: getattr(rules, name) for name in changes}
    for name, value in changes.items():
        setattr(rules, name, value)
    rules.clean_fields(exclude=["tenant"])
    rules.clean()
    rules.validate_constraints()
    rules.save()
    record(
        action="prompt_rules.set",
        actor=actor,
        subject=str(tenant.pk),
        tenant_id=tenant.pk,
        before=before,
        after=changes,
    )
    transaction.on_commit(generations.project_quietly)
    return rules


def roles_of(user: User, tenant_id: UUID) -> set[str]:
    """What a person is to a tenant, in the words of ``PromptRules.readers``."""
    if not user.is_active:
        return set()
    roles = set(Member.objects.filter(tenant_id=tenant_id, user=user).values_list("role", flat=True))
    return roles | ({OPERATOR} if is_operator(user, READ_PROMPTS) else set())


def find_prompt(*, request_id: UUID, roles: Collection[str] | User) -> LoggedPrompt:
    """What is kept of a call, if somebody in one of these roles at its tenant, or this person, may read it.

    Raises ``LoggedPrompt.DoesNotExist`` for whatever may not be read: nothing
    kept, expired, another tenant's, or not for this role.
    """
    row = LoggedPrompt.objects.get(pk=request_id, expires_at__gt=now())
    theirs = roles_of(roles, row.tenant_id) if isinstance(roles, User) else set(roles)
    rules = PromptRules.objects.filter(tenant_id=row.tenant_id).first()
    if rules is None or not theirs & set(rules.readers):
        raise LoggedPrompt.DoesNotExist
    return row


@transaction.atomic
def read_prompt(*, request_id: UUID, roles: Collection[str] | User, actor: str, reason: str) -> Reading:
    """Show what a call said and was answered; that somebody read it, and why, is in the audit.

    Raises as ``find_prompt``, ``ValidationError`` without a reason, and
    ``Unreadable`` if its key of ``PROMPT_LOG_KEYS`` is gone.
    """
    if not reason.strip():
        raise ValidationError("Say why.")
    row = find_prompt(request_id=request_id, roles=roles)
    prompt, answer = opened(row)
    record(
        action="prompt.read",
        actor=actor,
        subject=str(request_id),
        tenant_id=row.tenant_id,
        reason=reason.strip(),
        key=row.key_id,
    )
    return Reading(row, prompt, answer)


@transaction.atomic
def erase_prompts(*, member: Member, actor: str, reason: str = "") -> int:
    """Delete all that is kept of the calls with a member's keys; return of how many calls that was.

    Nor is kept what was asked before and is still on its way. Ledger and events
    have no content and stay. A repeat deletes what has come since.
    """
    keys = ApiKey.objects.filter(member=member).values("pk")
    theirs = Q(member_id=member.pk) | Q(key_id__in=keys)
    erased = erase(theirs & Q(tenant_id=member.tenant_id))
    record(
        action=ERASED,
        actor=actor,
        subject=str(member.pk),
        tenant_id=member.tenant_id,
        reason=reason,
        calls=erased,
    )
    return erased
