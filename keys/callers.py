"""Reading a caller: one key and what stands above it, in one look at the database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Q

from keys.models import AnonymousAccess, ApiKey, KeySecret, PolicyRule, PromptRules
from keys.policies import Policy, together
from tenants import generations
from tenants.models import Tenant

# How the public id of a tenant's visitors begins: ``@`` and the slug. No secret has such a one.
VISITORS = "@"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant allows its visitors, as in ``AnonymousAccess``; None is no limit."""

    visitor_tokens: int | None
    address_tokens: int | None
    address_streams: int | None
    check_after: int | None
    warning_percent: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A key and what stands above it, as they were at two generations.

    ``key`` is the label and ``tenant`` the slug; ``team`` and ``member`` are
    the names, empty where there is none. ``models`` is None where neither key
    nor tenant says anything. ``expires_at_ms`` is the earlier end of key and
    secret, in milliseconds since 1970. ``revoked`` is also true when the
    member's user is disabled. ``policy`` has the options that anybody said
    something about.

    ``scopes`` and ``address_blocks`` are the key's, None for everything and
    anywhere. ``succeeds``: another secret works until this one is used.
    ``succeeded``: this one worked until another was used, and that has happened.

    ``prompt_log_days`` is for how long the prompt log keeps what its calls say,
    None for not at all; ``redactions`` are the templates of what it leaves out.

    The visitors of a tenant, who have no secret, are one caller together, with
    an ``allowance``; None for everybody else.
    """

    public_id: str
    digest: str
    key_id: UUID
    key: str
    tenant_id: UUID
    tenant: str
    tenant_active: bool
    team_id: UUID | None
    team: str
    member_id: UUID | None
    member: str
    time_zone: str
    week_start: int
    allow_all_models: bool
    models: frozenset[str] | None
    expires_at_ms: int | None
    revoked: bool
    policy: Policy
    tenant_generation: int
    platform_generation: int
    allowance: Allowance | None = None
    prompt_log_days: int | None = None
    redactions: tuple[str, ...] = ()
    service_account: str = ""
    disabled: bool = False
    scopes: frozenset[str] | None = None
    address_blocks: tuple[str, ...] | None = None
    succeeds: bool = False
    succeeded: bool = False

    @property
    def generations(self) -> dict[str, int]:
        """The numbers it was read at, by subject."""
        return {
            generations.subject_of(self.tenant_id): self.tenant_generation,
            generations.PLATFORM: self.platform_generation,
        }


def load(public_id: str) -> Caller | None:
    """The caller with this public id; None if there is no such secret, or nobody is let in without one.

    Raises Django's ``db.Error`` if the database cannot be asked.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            # The rows and the numbers must be of one moment, so both come from one snapshot.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # Each row is found by the one before it; to weigh other orders takes longer than to read them.
            cursor.execute("SET LOCAL statement_timeout = '3s'; SET LOCAL join_collapse_limit = 1")
        if public_id.startswith(VISITORS):
            return _visitors(public_id)
        rows = KeySecret.objects.select_related(
            "key__tenant", "key__member__user", "key__member__team", "key__service_account__team"
        )
        secret = rows.filter(pk=public_id).first()
        if secret is None:
            return None
        return _caller(secret.key, secret)


def caller_of(key: ApiKey) -> Caller:
    """A key, saved or not, as its newest secret would be known now."""
    secret = None if key._state.adding else key.secrets.order_by("-created_at").first()  # noqa: SLF001
    return _caller(key, secret)


def policy_of(tenant_id: UUID, key_id: UUID | None) -> Policy:
    """What platform, tenant and key say about the options of a call, from PostgreSQL."""
    of_tenant = Q(tenant=tenant_id, key=None)
    of_key = Q(tenant=tenant_id, key=key_id)
    rules = PolicyRule.objects.filter(Q(tenant=None) | of_tenant | of_key)
    return together(rules.order_by(F("tenant").asc(nulls_first=True), F("key").asc(nulls_first=True)))


def _visitors(public_id: str) -> Caller | None:
    """The visitors of a tenant; None for every reason not to let them in, so that all look alike."""
    rows = AnonymousAccess.objects.select_related("key__tenant")
    access = rows.filter(tenant__slug=public_id.removeprefix(VISITORS), enabled=True).first()
    if access is None or access.key.tenant.state != Tenant.State.ACTIVE:
        return None
    if access.key.revoked_at is not None or access.key.disabled_at is not None:
        return None
    return replace(
        _caller(access.key, None),
        public_id=public_id,
        # Only what is listed for visitors: neither key nor tenant has a say here.
        allow_all_models=False,
        models=frozenset(access.models),
        allowance=Allowance(
            visitor_tokens=access.visitor_tokens,
            address_tokens=access.address_tokens,
            address_streams=access.address_streams,
            check_after=access.check_after,
            warning_percent=access.warning_percent,
        ),
    )


def _caller(key: ApiKey, secret: KeySecret | None) -> Caller:
    subject = generations.subject_of(key.tenant_id)
    numbers = generations.numbers_of(subject, generations.PLATFORM)
    tenant, member, account = key.tenant, key.member, key.service_account
    holder = member or account
    team = holder.team if holder else None
    models = tenant.models if key.models is None else key.models
    succeeded = secret is not None and secret.retires_on_use and secret.retires_at is not None
    expiries = (key.expires_at, secret.retires_at if secret and not succeeded else None)
    ends = [int(end.timestamp() * 1000) for end in expiries if end is not None]
    return Caller(
        public_id=secret.public_id if secret else "",
        digest=secret.digest if secret else "",
        key_id=key.pk,
        key=key.label,
        tenant_id=tenant.pk,
        tenant=tenant.slug,
        tenant_active=tenant.state == Tenant.State.ACTIVE,
        team_id=team.pk if team else None,
        team=team.name if team else "",
        member_id=member.pk if member else None,
        member=member.user.username if member else "",
        service_account=account.name if account else "",
        time_zone=tenant.time_zone,
        week_start=tenant.week_start,
        allow_all_models=tenant.allow_all_models if key.allow_all_models is None else key.allow_all_models,
        models=None if models is None else frozenset(models),
        scopes=None if key.scopes is None else frozenset(key.scopes),
        address_blocks=None if key.address_blocks is None else tuple(key.address_blocks),
        expires_at_ms=min(ends, default=None),
        revoked=_is_over(key),
        disabled=key.disabled_at is not None,
        succeeds=secret is not None and _is_awaited(secret),
        succeeded=succeeded,
        policy=policy_of(key.tenant_id, key.pk),
        tenant_generation=numbers[subject],
        platform_generation=numbers[generations.PLATFORM],
        prompt_log_days=key.prompt_log_days,
        redactions=() if key.prompt_log_days is None else _redactions_of(tenant),
    )


def _is_over(key: ApiKey) -> bool:
    """Whether a key is revoked, or whom it belongs to is gone."""
    member, account = key.member, key.service_account
    gone = (member is not None and not member.user.is_active) or (
        account is not None and account.closed_at is not None
    )
    return gone or key.revoked_at is not None


def _is_awaited(secret: KeySecret) -> bool:
    """Whether another secret of the key works until this one is used."""
    if secret.retires_at is not None or secret.retires_on_use:
        return False
    return KeySecret.objects.filter(key=secret.key, retires_at=None, retires_on_use=True).exists()


def _redactions_of(tenant: Tenant) -> tuple[str, ...]:
    rules = PromptRules.objects.filter(tenant=tenant).first()
    return tuple(rules.redactions) if rules else ()
