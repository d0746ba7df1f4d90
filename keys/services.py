"""What is done to keys: each function is one transaction with its audit event inside."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.timezone import now
from django.views.decorators.debug import sensitive_variables

from audit.recording import record
from keys import secrets
from keys.models import AnonymousAccess, ApiKey, KeySecret, ManagementKey, PolicyRule
from keys.prompts import check_lifetime
from tenants import generations
from tenants.models import Member, Tenant
from tenants.secret_marks import MANAGING


@sensitive_variables("secret")
@transaction.atomic
def issue_key(
    *,
    tenant: Tenant,
    label: str,
    actor: str,
    member: Member | None = None,
    expires_at: datetime | None = None,
    allow_all_models: bool | None = None,
    models: list[str] | None = None,
    prompt_log_days: int | None = None,
) -> tuple[ApiKey, str]:
    """Create a key of ``tenant``, or of one of its members, and return it with its secret.

    The secret is not stored, so this is the caller's only chance to show it.

    Raises ``ValidationError`` for values a key cannot have, such as a label
    that another live key of the same holder has.
    """
    key = ApiKey(
        tenant=tenant,
        member=member,
        label=label,
        expires_at=expires_at,
        allow_all_models=allow_all_models,
        models=models,
        prompt_log_days=prompt_log_days,
    )
    check_lifetime(prompt_log_days)
    key.full_clean()
    key.save(force_insert=True)
    public_id, secret = secrets.mint()
    KeySecret.objects.create(public_id=public_id, key=key, digest=secrets.digest(secret))
    record(
        action="key.issued",
        actor=actor,
        subject=str(key.pk),
        tenant_id=tenant.pk,
        label=label,
        public_id=public_id,
        member=member and member.pk,
        expires_at=expires_at,
        allow_all_models=allow_all_models,
        models=models,
        prompt_log_days=prompt_log_days,
    )
    transaction.on_commit(generations.project_quietly)
    return key, secret


@transaction.atomic
def change_key(*, key: ApiKey, actor: str, **changes: Any) -> ApiKey:
    """Give a key another ``label``, ``expires_at``, ``allow_all_models``, ``models`` or ``prompt_log_days``.

    Returns the key as it is then. Raises ``ValidationError`` for values a key cannot have.
    """
    key = ApiKey.objects.select_for_update().get(pk=key.pk)
    before = {name: getattr(key, name) for name in changes}
    for name, value in changes.items():
        setattr(key, name, value)
    if changes.get("prompt_log_days") != before.get("prompt_log_days"):
        check_lifetime(key.prompt_log_days)
    key.full_clean()
    key.save(update_fields=list(changes))
    record(
        action="key.changed",
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        label=key.label,
        before=before,
        after=changes,
    )
    transaction.on_commit(generations.project_quietly)
    return key


@transaction.atomic
def revoke_key(*, key: ApiKey, actor: str, reason: str) -> bool:
    """Revoke ``key`` for good; return False if it was revoked already.

    Once the transaction is committed and ``generations.in_force`` says so for
    the key's tenant, no process admits a call with it.
    """
    revoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(
        revoked_at=now(), revoked_reason=reason
    )
    if revoked:
        record(
            action="key.revoked",
            actor=actor,
            subject=str(key.pk),
            tenant_id=key.tenant_id,
            reason=reason,
            label=key.label,
        )
    transaction.on_commit(generations.project_quietly)
    return bool(revoked)


@transaction.atomic
def set_policy(
    *,
    option: str,
    actor: str,
    tenant: Tenant | None = None,
    key: ApiKey | None = None,
    **says: bool | int | None,
) -> PolicyRule | None:
    """Change what the platform, ``tenant`` or ``key`` says about ``option``; returns the rule as it is then.

    ``says`` are ``allowed``, ``minimum``, ``maximum`` and ``default_value``; those
    left out stay, None takes back what was said. None is returned when nothing
    is said any more. Raises ``ValidationError`` for what the option cannot have.
    """
    whose = {"tenant": tenant if key is None else key.tenant, "key": key}
    rule = PolicyRule.objects.select_for_update().filter(**whose, option=option).first()
    rule = rule or PolicyRule(**whose, option=option)
    before = _said(rule)
    for name, value in says.items():
        setattr(rule, name, value)
    if not rule._state.adding and not any(value is not None for value in _said(rule).values()):  # noqa: SLF001
        remove_policy(rule=rule, actor=actor)
        return None
    rule.full_clean()
    rule.save()
    record(
        action="policy.set",
        actor=actor,
        subject=str(rule.pk),
        tenant_id=rule.tenant_id,
        what=str(rule),
        before=before,
        after=_said(rule),
    )
    transaction.on_commit(generations.project_quietly)
    return rule


@transaction.atomic
def remove_policy(*, rule: PolicyRule, actor: str) -> None:
    """Take back all that a rule says."""
    record(
        action="policy.removed",
        actor=actor,
        subject=str(rule.pk),
        tenant_id=rule.tenant_id,
        what=str(rule),
        before=_said(rule),
    )
    rule.delete()
    transaction.on_commit(generations.project_quietly)


def _said(rule: PolicyRule) -> dict[str, bool | int | None]:
    return {name: getattr(rule, name) for name in ("allowed", "minimum", "maximum", "default_value")}


@transaction.atomic
def set_anonymous_access(*, tenant: Tenant, actor: str, **changes: Any) -> AnonymousAccess:
    """Say whether and how much people without a key may use of ``tenant``; returns it as it is then.

    ``changes`` are fields of ``AnonymousAccess``; what is not named stays as it
    is, or as it is by default. The key on which their calls are booked is made
    the first time, and again if it was revoked. Raises ``ValidationError`` for
    values that it cannot have.
    """
    # Two who do this at once for the first time would both make a key.
    Tenant.objects.select_for_update().get(pk=tenant.pk)
    access = AnonymousAccess.objects.select_related("key").filter(tenant=tenant).first()
    access = access or AnonymousAccess(tenant=tenant)
    before = {name: getattr(access, name) for name in changes}
    for name, value in changes.items():
        setattr(access, name, value)
    access.clean_fields(exclude=["tenant", "key"])
    access.validate_constraints()
    if access.key_id is None or (access.enabled and access.key.revoked_at is not None):
        access.key = _key_for_visitors(tenant, actor)
    access.save()
    record(
        action="anonymous_access.set",
        actor=actor,
        subject=str(tenant.pk),
        tenant_id=tenant.pk,
        key=access.key_id,
        before=before,
        after=changes,
    )
    transaction.on_commit(generations.project_quietly)
    return access


def _key_for_visitors(tenant: Tenant, actor: str) -> ApiKey:
    """A key without a secret, which nobody can call with."""
    key = ApiKey(
        tenant=tenant,
        label="anonymous visitors",
        kind=ApiKey.Kind.ANONYMOUS,
        allow_all_models=False,
        models=[],
    )
    key.full_clean()
    key.save(force_insert=True)
    record(
        action="key.issued",
        actor=actor,
        subject=str(key.pk),
        tenant_id=tenant.pk,
        label=key.label,
        kind=key.kind,
    )
    return key


@sensitive_variables("secret")
@transaction.atomic
def issue_management_key(
    *,
    label: str,
    scopes: Iterable[str],
    actor: str,
    tenant: Tenant | None = None,
    expires_at: datetime | None = None,
) -> tuple[ManagementKey, str]:
    """Create a key to manage with, for everything or for one tenant, and return it with its secret.

    The secret is not stored, so this is the caller's only chance to show it.
    Raises ``ValidationError`` for values a key cannot have: no scope, one that
    there is not, a label that another live one has.
    """
    public_id, secret = secrets.mint(MANAGING)
    key = ManagementKey(
        label=label,
        scopes=sorted(set(scopes)),
        tenant=tenant,
        public_id=public_id,
        digest=secrets.digest(secret),
        created_by=actor,
        expires_at=expires_at,
    )
    key.full_clean()
    key.save(force_insert=True)
    record(
        action="management_key.issued",
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        label=label,
        public_id=public_id,
        scopes=key.scopes,
        expires_at=expires_at,
    )
    return key, secret


@transaction.atomic
def revoke_management_key(*, key: ManagementKey, actor: str, reason: str) -> bool:
    """Refuse ``key`` from the next request on, for good; return False if it was revoked already."""
    revoked = ManagementKey.objects.filter(pk=key.pk, revoked_at=None).update(
        revoked_at=now(), revoked_reason=reason
    )
    if revoked:
        record(
            action="management_key.revoked",
            actor=actor,
            subject=str(key.pk),
            tenant_id=key.tenant_id,
            reason=reason,
            label=key.label,
        )
    return bool(revoked)
