"""Keys as the portal shows them, and whose are whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models import Max, Prefetch, QuerySet
from django.shortcuts import get_object_or_404
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.models import AuditEvent
from budgets.key_limits import KeyLimit, limits_of_keys
from budgets.limited_keys import amount_of, rows_of_keys
from keys.models import ApiKey, KeySecret, SecretUse
from keys.states import State, expires_soon, state_of
from tenants.access import Access, Reach
from tenants.secret_marks import CALLING


@dataclass(frozen=True, slots=True)
class ShownSecret:
    """What is known of a secret: ``works`` until ``ends_at`` (None: no end is set), and its last use."""

    mask: str
    created_at: datetime
    works: bool
    ends_at: datetime | None
    ends_on_use: bool
    use: SecretUse | None


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key with all that its row in the list tells; ``models`` and ``scopes`` None: no list of its own."""

    key: ApiKey
    owner: str
    owner_kind: str
    state: State
    reason: str
    expires_soon: bool
    secrets: list[ShownSecret]
    models: list[str] | None
    all_models: bool
    limits: list[KeyLimit]
    managed: bool
    # Where a page has no other place for them.
    rates: Sequence[str] = ()

    @property
    def mask(self) -> str:
        return self.secrets[0].mask if self.secrets else ""

    @property
    def last_use(self) -> SecretUse | None:
        uses = [secret.use for secret in self.secrets if secret.use is not None]
        return max(uses, key=lambda use: use.used_at, default=None)

    @property
    def older(self) -> ShownSecret | None:
        """The secret before, while it works beside the newest one."""
        return next((secret for secret in self.secrets[1:] if secret.works), None)

    @property
    def as_of(self) -> datetime | None:
        """Since when its figures are, where they are not those of now."""
        return min((one.as_of for one in self.limits if one.as_of is not None), default=None)


def masked(public_id: str) -> str:
    """A secret by its public id: what it begins with, and the last four of what may be known of it."""
    return f"{CALLING}{public_id[:4]}…{public_id[-4:]}"


def keys_of(access: Access) -> QuerySet[ApiKey]:
    """The keys that a person sees, the newest first; raises ``PermissionDenied`` for who sees none."""
    if access.keys == Reach.NOTHING:
        raise PermissionDenied
    found = ApiKey.objects.filter(tenant=access.tenant, kind=ApiKey.Kind.SECRET)
    if access.keys == Reach.OWN_KEYS:
        found = found.filter(member=access.member)
    secrets = KeySecret.objects.select_related("use").order_by("-created_at")
    return found.select_related("tenant", "member__user", "service_account").prefetch_related(
        # As a list: see ``budgets.limits.with_raises``.
        Prefetch("secrets", queryset=secrets, to_attr="read_secrets")
    )


def key_of(access: Access, key_id: UUID) -> ApiKey:
    """One of these; raises ``Http404`` for one that is not there or not theirs to see."""
    return get_object_or_404(keys_of(access), pk=key_id)


def managed_keys(access: Access, key_ids: Iterable[UUID]) -> list[ApiKey]:
    """Those of the keys that a person may change; raises ``PermissionDenied`` for who may change none."""
    if access.manages_keys == Reach.NOTHING:
        raise PermissionDenied
    found = keys_of(access).filter(pk__in=key_ids)
    return list(found if access.manages_keys == Reach.WHOLE_TENANT else found.filter(member=access.member))


def manages(access: Access, key: ApiKey) -> bool:
    """Whether a person may change this key, which they see."""
    if access.manages_keys == Reach.WHOLE_TENANT:
        return True
    own = access.member is not None and key.member_id == access.member.pk
    return access.manages_keys == Reach.OWN_KEYS and own


def shown(
    access: Access, keys: Iterable[ApiKey], limits: Mapping[UUID, list[KeyLimit]] | None = None
) -> list[ShownKey]:
    """Keys with what is told of them, in their order; ``limits`` by key, if they are known already."""
    keys = list(keys)
    moment = now()
    if limits is None:
        limits = limits_of_keys([key.pk for key in keys])
    return [_shown(access, key, limits[key.pk], moment) for key in keys]


def rates_of(keys: Iterable[ApiKey]) -> dict[UUID, list[str]]:
    """The rate limits of these keys themselves that can refuse, in words, by key."""
    found: dict[UUID, list[str]] = {key.pk: [] for key in keys}
    _budgets, rates = rows_of_keys(found)
    for rate in rates.filter(shadow=False, limit__isnull=False):
        if rate.key_id is not None:
            found[rate.key_id].append(amount_of(rate, rate.limit or 0))
    return found


def versions_of(keys: Iterable[ApiKey]) -> dict[UUID, str]:
    """A text for each key that is another one after each change of it or of its limits.

    By it one sees whether a form is old. No change happens without an event, so
    it is made of the newest events of what there is.
    """
    subjects = {key.pk: [str(key.pk)] for key in keys}
    for rows in rows_of_keys(subjects):
        for key_id, limit_id in rows.values_list("key", "pk"):
            subjects[key_id].append(str(limit_id))
    asked = [subject for of_key in subjects.values() for subject in of_key]
    events = AuditEvent.objects.filter(subject__in=asked).values("subject").order_by("subject")
    newest = {row["subject"]: row["newest"] for row in events.annotate(newest=Max("pk"))}
    return {
        key_id: "-".join(str(newest.get(subject, 0)) for subject in of_key)
        for key_id, of_key in subjects.items()
    }


def _shown(access: Access, key: ApiKey, limits: list[KeyLimit], moment: datetime) -> ShownKey:
    owner, owner_kind = owner_of(key)
    # Of a key that is no other's than ``keys_of``.
    read_secrets: list[KeySecret] = key.read_secrets  # type: ignore[attr-defined]
    allowed = key.tenant.allow_all_models if key.allow_all_models is None else key.allow_all_models
    return ShownKey(
        key=key,
        owner=owner,
        owner_kind=owner_kind,
        state=state_of(key, moment),
        reason=key.revoked_reason or key.disabled_reason,
        expires_soon=expires_soon(key, moment),
        secrets=[_shown_secret(secret, moment) for secret in read_secrets],
        models=None if allowed else (key.models if key.models is not None else key.tenant.models or []),
        all_models=allowed,
        limits=limits,
        managed=manages(access, key),
    )


def owner_of(key: ApiKey) -> tuple[str, str]:
    """Whose key it is, and what that is."""
    if key.member is not None:
        return str(key.member.user), _("person")
    if key.service_account is not None:
        return str(key.service_account), _("service account")
    return key.tenant.name, _("the tenant")


def _shown_secret(secret: KeySecret, moment: datetime) -> ShownSecret:
    return ShownSecret(
        mask=masked(secret.public_id),
        created_at=secret.created_at,
        works=secret.retires_at is None or secret.retires_at > moment,
        ends_at=secret.retires_at,
        ends_on_use=secret.retires_on_use and secret.retires_at is None,
        use=getattr(secret, "use", None),
    )
