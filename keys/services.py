"""What is done to keys: each function is one transaction with its audit event inside."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from audit.recording import record
from keys import secrets
from keys.lifetimes import Grace, check_changeable, check_end
from keys.models import AnonymousAccess, ApiKey, KeySecret, ManagementKey, PolicyRule
from keys.prompts import check_lifetime
from tenants import generations
from tenants.models import Member, ServiceAccount, Tenant
from tenants.secret_marks import MANAGING


@sensitive_variables("secret")
@transaction.atomic
def issue_key(
    *,
    tenant: Tenant,
    label: str,
    actor: str,
    member: Member | None = None,
    service_account: ServiceAccount | None = None,
    expires_at: datetime | None = None,
    allow_all_models: bool | None = None,
    models: list[str] | None = None,
    scopes: list[str] | None = None,
    address_blocks: list[str] | None = None,
    prompt_log_days: int | None = None,
) -> tuple[ApiKey, str]:
    """Create a key of ``tenant``, or of one of its members or service accounts; return it with its secret.

    The secret is not stored, so this is the caller's only chance to show it.

    Raises ``ValidationError`` for values a key cannot have, such as a label
    that another live key of the same holder has, or a later end than the
    tenant allows.
    """
    if service_account is not None:
        # Locked, so that it is not closed meanwhile.
        service_account = ServiceAccount.objects.select_for_update().get(pk=service_account.pk)
    key = ApiKey(
        tenant=tenant,
        member=member,
        service_account=service_account,
        label=label,
        expires_at=expires_at,
        allow_all_models=allow_all_models,
        models=models,
        scopes=scopes,
        address_blocks=address_blocks,
        prompt_log_days=prompt_log_days,
    )
    check_lifetime(prompt_log_days)
    key.full_clean()
    check_end(tenant, expires_at, key.created_at)
    key.save(force_insert=True)
    public_id, secret = _add_secret(key)
    record(
        action="key.issued",
        actor=actor,
        subject=str(key.pk),
        tenant_id=tenant.pk,
        label=label,
        public_id=public_id,
        member=member and member.pk,
        service_account=service_account and service_account.pk,
        expires_at=expires_at,
        allow_all_models=allow_all_models,
        models=models,
        scopes=key.scopes,
        address_blocks=key.address_blocks,
        prompt_log_days=prompt_log_days,
    )
    transaction.on_commit(generations.project_quietly)
    return key, secret


@sensitive_variables("secret")
def _add_secret(key: ApiKey) -> tuple[str, str]:
    """Give a key one more secret; returns its public id and the secret."""
    public_id, secret = secrets.mint()
    KeySecret.objects.create(public_id=public_id, key=key, digest=secrets.digest(secret))
    return public_id, secret


@transaction.atomic
def change_key(*, key: ApiKey, actor: str, **changes: Any) -> ApiKey:
    """Give a key other settings; returns it as it is then.

    ``changes`` are ``label``, ``expires_at``, ``allow_all_models``, ``models``,
    ``scopes``, ``address_blocks`` and ``prompt_log_days``. Raises
    ``ValidationError`` for values a key cannot have, such as a later end than
    its tenant allows, counted from its newest secret, and for a revoked key.
    """
    key = ApiKey.objects.select_for_update(of=["self"]).select_related("tenant").get(pk=key.pk)
    check_changeable(key)
    before = {name: getattr(key, name) for name in changes}
    for name, value in changes.items():
        setattr(key, name, value)
    if changes.get("prompt_log_days") != before.get("prompt_log_days"):
        check_lifetime(key.prompt_log_days)
    key.full_clean()
    if changes.get("expires_at") != before.get("expires_at"):
        newest = key.secrets.order_by("-created_at").first()
        check_end(key.tenant, key.expires_at, newest.created_at if newest else key.created_at)
    key.save(update_fields=list(changes))
    record(
        action="key.changed",
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        label=key.label,
        before=before,
        after={name: getattr(key, name) for name in changes},
    )
    transaction.on_commit(generations.project_quietly)
    return key


@sensitive_variables("secret")
@transaction.atomic
def rotate_key(*, key: ApiKey, actor: str, grace: Grace) -> tuple[ApiKey, str]:
    """Give a key a new secret, beside which the one before works for a ``grace``; return key and secret.

    The key stays the same, with its limits and its history. No more than two
    secrets work at one time: during a grace the older one ends now, or, if the
    newer one was never used, that one does, for its answer may have got lost.
    The secret is not stored, so this is the caller's only chance to show it.
    Raises ``ValidationError`` for a key that nobody can call with any more.
    """
    key = ApiKey.objects.select_for_update().get(pk=key.pk)
    moment = now()
    if key.kind != ApiKey.Kind.SECRET:
        raise ValidationError(_("Visitors have no secret."), code="no_secret")
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= moment):
        raise ValidationError(_("The key is revoked or has expired. Issue a new one."), code="key_ended")
    older = list(_older(key, moment))
    newest = list(key.secrets.filter(retires_at=None, retires_on_use=False).select_related("use"))
    unseen = bool(older) and not any(hasattr(secret, "use") for secret in newest)
    stay, go = (older, newest) if unseen else (newest, older)
    _retire(key, go, moment)
    key.secrets.filter(pk__in=[secret.pk for secret in stay]).update(
        retires_at=grace.ends_at(moment), retires_on_use=grace is Grace.FIRST_USE
    )
    public_id, secret = _add_secret(key)
    record(
        action="key.rotated",
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        label=key.label,
        grace=str(grace),
        public_id=public_id,
        before=[one.public_id for one in stay],
        retires_at=grace.ends_at(moment),
        ended=[one.public_id for one in go],
    )
    transaction.on_commit(generations.project_quietly)
    return key, secret


@transaction.atomic
def end_grace(*, key: ApiKey, actor: str, reason: str = "grace ended") -> bool:
    """Let only the newest secret of a key work, from now on; return False if that was so already."""
    key = ApiKey.objects.select_for_update().get(pk=key.pk)
    moment = now()
    older = list(_older(key, moment))
    _retire(key, older, moment)
    if older:
        _secrets_retired(key, actor, [secret.pk for secret in older], reason)
    return bool(older)


@transaction.atomic
def retire_succeeded(*, public_id: str) -> bool:
    """Retire the secrets that were to work until this one was used; return False if there are none.

    Calls that they began run to their end.
    """
    key = ApiKey.objects.select_for_update().filter(secrets=public_id).first()
    if key is None:
        return False
    waiting = key.secrets.filter(retires_at=None, retires_on_use=True).exclude(pk=public_id)
    retired = list(waiting.values_list("pk", flat=True))
    if retired:
        waiting.update(retires_at=now())
        _secrets_retired(key, "gateway", retired, "the new secret was used")
    return bool(retired)


def _older(key: ApiKey, moment: datetime) -> QuerySet[KeySecret]:
    """The secrets of a key that work at ``moment`` beside its newest."""
    return key.secrets.filter(Q(retires_at__gt=moment) | Q(retires_at=None, retires_on_use=True))


def _retire(key: ApiKey, those: list[KeySecret], moment: datetime) -> None:
    """Let secrets of a locked key end at ``moment``, and calls that they began with them."""
    key.secrets.filter(pk__in=[secret.pk for secret in those]).update(retires_at=moment, retires_on_use=False)


def _secrets_retired(key: ApiKey, actor: str, public_ids: list[str], why: str) -> None:
    record(
        action="key.secrets_retired",
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        reason=why,
        label=key.label,
        public_ids=public_ids,
    )
    transaction.on_commit(generations.project_quietly)


@transaction.atomic
def disable_key(*, key: ApiKey, actor: str, reason: str) -> bool:
    """Refuse ``key`` until it is enabled again; return False if it was disabled or revoked already.

    In force as told at ``revoke_key``; running calls end, too.
    """
    off = ApiKey.objects.filter(pk=key.pk, disabled_at=None, revoked_at=None)
    disabled = off.update(disabled_at=now(), disabled_reason=reason)
    if disabled:
        _note("key.disabled", key, actor, reason)
    transaction.on_commit(generations.project_quietly)
    return bool(disabled)


@transaction.atomic
def enable_key(*, key: ApiKey, actor: str, reason: str) -> bool:
    """Accept a disabled ``key`` again; return False if it was not disabled, or is revoked."""
    off = ApiKey.objects.filter(pk=key.pk, disabled_at__isnull=False, revoked_at=None)
    enabled = off.update(disabled_at=None, disabled_reason="")
    if enabled:
        _note("key.enabled", key, actor, reason)
    transaction.on_commit(generations.project_quietly)
    return bool(enabled)


@transaction.atomic
def revoke_key(*, key: ApiKey, actor: str, reason: str) -> bool:
    """Revoke ``key`` for good; return False if it was revoked already.

    Once the transaction is committed and ``generations.in_force`` says so for
    the key's tenant, no process admits a call with it. How long that took, and
    how many calls it cut, is told by ``keys.effects.measured``.
    """
    revoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(
        revoked_at=now(), revoked_reason=reason
    )
    if revoked:
        _note("key.revoked", key, actor, reason)
    transaction.on_commit(generations.project_quietly)
    return bool(revoked)


def _note(action: str, key: ApiKey, actor: str, reason: str) -> None:
    record(
        action=action,
        actor=actor,
        subject=str(key.pk),
        tenant_id=key.tenant_id,
        reason=reason,
        label=key.label,
    )


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
