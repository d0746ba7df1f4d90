"""What can be declared: how each kind is read from the database, and made so through its service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import NoneType
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Q, Value
from django.db.models.functions import Concat

from budgets import services as limits
from budgets.models import (
    Budget,
    OutageCredit,
    Price,
    RateLimit,
    ScopedRow,
    UpstreamCost,
    default_thresholds,
)
from budgets.periods import kind_and_seconds
from config.declared.document import Document, Row, Shape
from keys import services as keys
from keys.models import ApiKey, PolicyRule, PromptRules
from keys.networks import network_in
from keys.prompts import set_prompt_rules
from proxy import services as routes
from proxy.models import ModelAlias, Upstream
from tenants import services as tenants
from tenants.model_names import canonical_setting
from tenants.models import Member, ServiceAccount, Team, Tenant

Found = TypeVar("Found")
# A secret that was made on the way, under the name of its key.
Secrets = dict[str, str]

TEXT = (str,)
NUMBER = (int,)
YES_OR_NO = (bool,)
MAYBE_TEXT = (str, NoneType)
MAYBE_NUMBER = (int, NoneType)
MAYBE_YES = (bool, NoneType)
MAYBE_LIST = (list, NoneType)
MAYBE_MOMENT = (datetime, NoneType)

WHOSE = ("scope", "tenant", "team", "member", "key", "model", "upstream")
WHOSE_FIELDS = {name: (MAYBE_TEXT, None) for name in WHOSE if name != "scope"}


@dataclass(frozen=True, slots=True)
class Kind:
    """One section: its shape, its rows as they are now, and how a row is made so or taken away.

    ``make`` adds what is not there and changes what is; ``changed`` are the
    settings that differ, None for a new row.
    """

    shape: Shape
    present: Callable[[], Iterator[Row]]
    make: Callable[[Row, list[str] | None, str, Secrets], object]
    remove: Callable[[Row, str], object]


def present() -> Document:
    """How the gateway is set now."""
    return {
        section: {kind.shape.identity_of(row): row for row in kind.present()}
        for section, kind in KINDS.items()
    }


# Finding what rows name


def _tenant(slug: str | None) -> Tenant | None:
    if slug is None:
        return None
    return _of_tenant(slug)


def _of_tenant(slug: str) -> Tenant:
    return _found(Tenant.objects.filter(slug=slug).first(), f"tenant {slug}")


def _found(row: Found | None, what: str) -> Found:
    if row is None:
        raise ValidationError(f"There is no {what}.")
    return row


def _member(tenant: Tenant, email: str) -> Member:
    found = Member.objects.filter(tenant=tenant, user__email__iexact=email).first()
    return _found(found, f"member {email} of {tenant.slug}")


def _account(tenant: Tenant, name: str) -> ServiceAccount:
    found = ServiceAccount.objects.filter(tenant=tenant, name=name, closed_at=None).first()
    return _found(found, f"service account {name} of {tenant.slug}")


def _key(tenant: Tenant, name: str) -> ApiKey:
    """A live key by its name: its label, behind ``E-MAIL/`` or ``ACCOUNT/`` if it is somebody's."""
    live = ApiKey.objects.filter(tenant=tenant, revoked_at=None, kind=ApiKey.Kind.SECRET)
    email, _, label = name.partition("/")
    found = live.filter(member=None, service_account=None, label=name).first()
    found = found or live.filter(member__user__email__iexact=email, label=label).first()
    of_account = live.annotate(named=Concat("service_account__name", Value("/"), "label"))
    found = found or of_account.filter(service_account__isnull=False, named=name).first()
    return _found(found, f"key {name} of {tenant.slug}")


def _name_of(key: ApiKey) -> str:
    if key.member is not None:
        return f"{key.member.user.email}/{key.label}"
    return key.label if key.service_account is None else f"{key.service_account.name}/{key.label}"


def _whose(row: Row) -> dict[str, Any]:
    """The arguments of services that say whose calls are counted."""
    tenant = _tenant(row["tenant"])
    if tenant is None and (row["team"] or row["member"] or row["key"]):
        raise ValidationError("A team, member or key needs its tenant.")
    return {
        "scope": row["scope"],
        "tenant": tenant,
        "team": row["team"]
        and _found(Team.objects.filter(tenant=tenant, name=row["team"]).first(), f"team {row['team']}"),
        "member": row["member"] and tenant and _member(tenant, row["member"]),
        "key": row["key"] and tenant and _key(tenant, row["key"]),
        "model": row["model"] or "",
        "upstream": row["upstream"] or "",
    }


def _whose_told(row: ScopedRow) -> Row:
    return {
        "scope": str(row.scope),
        "tenant": row.tenant and row.tenant.slug,
        "team": row.team and row.team.name,
        "member": row.member and row.member.user.email,
        "key": row.key and _name_of(row.key),
        "model": row.model or None,
        "upstream": row.upstream or None,
    }


WITH_WHOSE = ("tenant", "team", "member__user", "key__member__user", "key__service_account")
# Of keys that nobody can call with any more, or that have no secret, nothing is declared.
NOT_DECLARED = Q(key__isnull=False) & (Q(key__revoked_at__isnull=False) | ~Q(key__kind=ApiKey.Kind.SECRET))


# Upstreams and names of models


def _upstreams() -> Iterator[Row]:
    for one in Upstream.objects.all():
        yield {"name": one.name, "base_url": one.base_url, "enabled": one.enabled}


def _make_upstream(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    upstream = Upstream.objects.filter(name=row["name"]).first() or Upstream(name=row["name"])
    upstream.base_url, upstream.enabled = row["base_url"], row["enabled"]
    return routes.save_upstream(upstream=upstream, actor=actor)


def _remove_upstream(row: Row, actor: str) -> object:
    return routes.remove_upstream(upstream=Upstream.objects.get(name=row["name"]), actor=actor)


def _aliases() -> Iterator[Row]:
    for one in ModelAlias.objects.select_related("tenant"):
        yield {"tenant": one.tenant and one.tenant.slug, "alias": one.alias, "model": one.model}


def _make_alias(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    of = {"tenant": _tenant(row["tenant"]), "alias": row["alias"]}
    alias = ModelAlias.objects.filter(**of).first() or ModelAlias(**of)
    alias.model = row["model"]
    return routes.save_alias(alias=alias, actor=actor)


def _remove_alias(row: Row, actor: str) -> object:
    alias = ModelAlias.objects.get(tenant=_tenant(row["tenant"]), alias=row["alias"])
    return routes.remove_alias(alias=alias, actor=actor)


# Tenants, teams and keys

TENANT_FIELDS = (
    "name", "time_zone", "language", "week_start", "allow_all_models", "models", "needs_second_factor",
    "max_key_days",
)  # fmt: skip


def _tenants() -> Iterator[Row]:
    for one in Tenant.objects.all():
        told = {name: getattr(one, name) for name in TENANT_FIELDS}
        yield {"slug": one.slug, **told, "suspended": one.state == Tenant.State.SUSPENDED}


def _make_tenant(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    settings = {name: row[name] for name in TENANT_FIELDS}
    if changed is None:
        tenant = tenants.create_tenant(slug=row["slug"], actor=actor, **settings)
        changed = ["suspended"] if row["suspended"] else []
    else:
        tenant = _of_tenant(row["slug"])
        if others := {name: settings[name] for name in changed if name in settings}:
            tenant = tenants.change_tenant(tenant=tenant, actor=actor, **others)
    if "suspended" in changed:
        turn = tenants.suspend_tenant if row["suspended"] else tenants.resume_tenant
        turn(tenant=tenant, actor=actor, reason="declared")
    return tenant


def _remove_tenant(row: Row, actor: str) -> object:
    """A tenant is never deleted: its history needs it."""
    return tenants.suspend_tenant(tenant=_of_tenant(row["slug"]), actor=actor, reason="no longer declared")


def _teams() -> Iterator[Row]:
    for one in Team.objects.select_related("tenant"):
        yield {"tenant": one.tenant.slug, "name": one.name}


def _make_team(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    return tenants.create_team(tenant=_of_tenant(row["tenant"]), name=row["name"], actor=actor)


def _remove_team(row: Row, actor: str) -> object:
    team = Team.objects.get(tenant=_of_tenant(row["tenant"]), name=row["name"])
    return tenants.delete_team(team=team, actor=actor)


def _accounts() -> Iterator[Row]:
    for one in ServiceAccount.objects.filter(closed_at=None).select_related("tenant", "team"):
        yield {"tenant": one.tenant.slug, "name": one.name, "team": one.team and one.team.name}


def _make_account(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    tenant = _of_tenant(row["tenant"])
    name = row["team"]
    team = name and _found(Team.objects.filter(tenant=tenant, name=name).first(), f"team {name}")
    if changed is None:
        return tenants.create_service_account(tenant=tenant, name=row["name"], team=team, actor=actor)
    account = _account(tenant, row["name"])
    return tenants.change_service_account(account=account, actor=actor, name=row["name"], team=team)


def _remove_account(row: Row, actor: str) -> object:
    account = _account(_of_tenant(row["tenant"]), row["name"])
    return tenants.close_service_account(account=account, actor=actor, reason="no longer declared")


KEY_FIELDS = ("expires_at", "allow_all_models", "models", "scopes", "address_blocks", "prompt_log_days")


def _keys() -> Iterator[Row]:
    live = ApiKey.objects.filter(revoked_at=None, kind=ApiKey.Kind.SECRET)
    named = live.select_related("tenant", "member__user", "service_account")
    for one in named.order_by("tenant__slug", "label", "id"):
        yield {
            "tenant": one.tenant.slug,
            "member": one.member and one.member.user.email,
            "service_account": one.service_account and one.service_account.name,
            "label": one.label,
            **{name: getattr(one, name) for name in KEY_FIELDS},
            "expires_at": one.expires_at and one.expires_at.astimezone(UTC),
            "disabled": one.disabled_at is not None,
        }


def _make_key(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    tenant = _of_tenant(row["tenant"])
    holder: dict[str, Any] = {
        "member": row["member"] and _member(tenant, row["member"]),
        "service_account": row["service_account"] and _account(tenant, row["service_account"]),
    }
    settings = {name: row[name] for name in KEY_FIELDS}
    if changed is None:
        key, secret = keys.issue_key(tenant=tenant, label=row["label"], actor=actor, **holder, **settings)
        secrets[f"{tenant.slug}: {_name_of(key)}"] = secret
        changed = ["disabled"] if row["disabled"] else []
    else:
        key = ApiKey.objects.get(tenant=tenant, label=row["label"], revoked_at=None, **holder)
        if others := {name: settings[name] for name in changed if name in settings}:
            key = keys.change_key(key=key, actor=actor, **others)
    if "disabled" in changed:
        turn = keys.disable_key if row["disabled"] else keys.enable_key
        turn(key=key, actor=actor, reason="declared")
    return key


def _remove_key(row: Row, actor: str) -> object:
    holder = row["member"] or row["service_account"]
    name = row["label"] if holder is None else f"{holder}/{row['label']}"
    return keys.revoke_key(
        key=_key(_of_tenant(row["tenant"]), name), actor=actor, reason="no longer declared"
    )


def _prompt_rules() -> Iterator[Row]:
    for one in PromptRules.objects.select_related("tenant").exclude(readers=[], redactions=[]):
        yield {"tenant": one.tenant.slug, "readers": one.readers, "redactions": one.redactions}


def _make_prompt_rules(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    rules = {name: row[name] for name in ("readers", "redactions")}
    return set_prompt_rules(tenant=_of_tenant(row["tenant"]), actor=actor, **rules)


def _remove_prompt_rules(row: Row, actor: str) -> object:
    return set_prompt_rules(tenant=_of_tenant(row["tenant"]), actor=actor, readers=[], redactions=[])


# Limits, prices and policies


def _budgets() -> Iterator[Row]:
    for one in Budget.objects.select_related(*WITH_WHOSE).exclude(NOT_DECLARED):
        yield _whose_told(one) | {
            "unit": str(one.unit),
            "period": one.length,
            "shadow": one.shadow,
            "limit": one.limit,
            "thresholds": one.thresholds,
        }


def _make_budget(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    settings = {name: row[name] for name in ("unit", "period", "shadow", "limit", "thresholds")}
    return limits.set_budget(**_whose(row), **settings, actor=actor)


def _remove_budget(row: Row, actor: str) -> object:
    kind, seconds = kind_and_seconds(row["period"])
    found = Budget.objects.get(
        **_whose(row), unit=row["unit"], period=kind, seconds=seconds, shadow=row["shadow"]
    )
    return limits.remove_budget(budget=found, actor=actor)


def _rate_limits() -> Iterator[Row]:
    for one in RateLimit.objects.select_related(*WITH_WHOSE).exclude(NOT_DECLARED):
        yield _whose_told(one) | {"measure": str(one.measure), "shadow": one.shadow, "limit": one.limit}


def _make_rate_limit(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    settings = {name: row[name] for name in ("measure", "shadow", "limit")}
    return limits.set_rate_limit(**_whose(row), **settings, actor=actor)


def _remove_rate_limit(row: Row, actor: str) -> object:
    found = RateLimit.objects.get(**_whose(row), measure=row["measure"], shadow=row["shadow"])
    return limits.remove_rate_limit(rate_limit=found, actor=actor)


PRICES = ("input_price", "cached_price", "output_price", "gpu_price", "free")


def _prices() -> Iterator[Row]:
    for one in Price.objects.select_related("tenant"):
        yield {
            "tenant": one.tenant and one.tenant.slug,
            "model": one.model,
            "starts_at": one.starts_at.astimezone(UTC),
            **{name: getattr(one, name) for name in PRICES},
        }


def _make_price(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    settings = {name: row[name] for name in (*PRICES, "model", "starts_at")}
    return limits.set_price(tenant=_tenant(row["tenant"]), **settings, actor=actor)


def _remove_price(row: Row, actor: str) -> object:
    found = Price.objects.get(tenant=_tenant(row["tenant"]), model=row["model"], starts_at=row["starts_at"])
    return limits.remove_price(price=found, actor=actor)


COSTS = (
    "hardware_price", "life_months", "busy_watts", "idle_watts", "kwh_price", "other_per_month", "gpus",
)  # fmt: skip


def _costs() -> Iterator[Row]:
    for one in UpstreamCost.objects.all():
        yield {
            "upstream": one.upstream,
            "starts_at": one.starts_at.astimezone(UTC),
            **{name: getattr(one, name) for name in COSTS},
        }


def _make_cost(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    return limits.set_upstream_cost(actor=actor, **row)


def _remove_cost(row: Row, actor: str) -> object:
    found = UpstreamCost.objects.get(upstream=row["upstream"], starts_at=row["starts_at"])
    return limits.remove_upstream_cost(cost=found, actor=actor)


SAYS = ("allowed", "minimum", "maximum", "default_value")


def _policies() -> Iterator[Row]:
    for one in PolicyRule.objects.select_related(
        "tenant", "key__member__user", "key__service_account"
    ).exclude(NOT_DECLARED):
        yield {
            "tenant": one.tenant and one.tenant.slug,
            "key": one.key and _name_of(one.key),
            "option": one.option,
            **{name: getattr(one, name) for name in SAYS},
        }


def _policy_of(row: Row) -> dict[str, Any]:
    tenant = _tenant(row["tenant"])
    return {"tenant": tenant, "key": row["key"] and _key(_of_tenant(row["tenant"]), row["key"])}


def _make_policy(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    says = {name: row[name] for name in SAYS}
    return keys.set_policy(option=row["option"], actor=actor, **_policy_of(row), **says)


def _remove_policy(row: Row, actor: str) -> object:
    rule = PolicyRule.objects.get(option=row["option"], **_policy_of(row))
    return keys.remove_policy(rule=rule, actor=actor)


def _credits() -> Iterator[Row]:
    for one in OutageCredit.objects.select_related("tenant").exclude(tokens=0):
        yield {"tenant": one.tenant.slug, "tokens": one.tokens}


def _make_credit(row: Row, changed: list[str] | None, actor: str, secrets: Secrets) -> object:
    return limits.set_outage_credit(tenant=_of_tenant(row["tenant"]), tokens=row["tokens"], actor=actor)


def _remove_credit(row: Row, actor: str) -> object:
    return limits.set_outage_credit(tenant=_of_tenant(row["tenant"]), tokens=0, actor=actor)


# In the order in which one may name what stands before it.
KINDS = {
    kind.shape.section: kind
    for kind in (
        Kind(
            Shape("upstreams", ("name",), {"base_url": (TEXT, ""), "enabled": (YES_OR_NO, True)}),
            _upstreams, _make_upstream, _remove_upstream,
        ),
        Kind(
            Shape(
                "tenants",
                ("slug",),
                {
                    "name": (TEXT, ""),
                    "time_zone": (TEXT, "UTC"),
                    "language": (TEXT, ""),
                    "week_start": (NUMBER, 1),
                    "allow_all_models": (YES_OR_NO, False),
                    "models": (MAYBE_LIST, None),
                    "needs_second_factor": (YES_OR_NO, False),
                    "max_key_days": (MAYBE_NUMBER, None),
                    "suspended": (YES_OR_NO, False),
                },
            ),
            _tenants, _make_tenant, _remove_tenant,
        ),
        Kind(Shape("teams", ("tenant", "name"), {}), _teams, _make_team, _remove_team),
        Kind(
            Shape("service_accounts", ("tenant", "name"), {"team": (MAYBE_TEXT, None)}),
            _accounts, _make_account, _remove_account,
        ),
        Kind(
            Shape(
                "keys",
                ("tenant", "member", "service_account", "label"),
                {
                    "member": (MAYBE_TEXT, None),
                    "service_account": (MAYBE_TEXT, None),
                    "expires_at": (MAYBE_MOMENT, None),
                    "allow_all_models": (MAYBE_YES, None),
                    "models": (MAYBE_LIST, None),
                    "scopes": (MAYBE_LIST, None),
                    "address_blocks": (MAYBE_LIST, None),
                    "prompt_log_days": (MAYBE_NUMBER, None),
                    "disabled": (YES_OR_NO, False),
                },
                {"address_blocks": lambda blocks: [network_in(str(block)) for block in blocks]},
            ),
            _keys, _make_key, _remove_key,
        ),
        Kind(
            Shape("prompt_rules", ("tenant",), {"readers": ((list,), []), "redactions": ((list,), [])}),
            _prompt_rules, _make_prompt_rules, _remove_prompt_rules,
        ),
        Kind(
            Shape(
                "aliases",
                ("tenant", "alias"),
                {"tenant": (MAYBE_TEXT, None), "model": (TEXT, "")},
                {"alias": canonical_setting, "model": canonical_setting},
            ),
            _aliases, _make_alias, _remove_alias,
        ),
        Kind(
            Shape(
                "prices",
                ("tenant", "model", "starts_at"),
                {
                    "tenant": (MAYBE_TEXT, None),
                    "starts_at": ((datetime,), None),
                    "input_price": (NUMBER, 0),
                    "cached_price": (NUMBER, 0),
                    "output_price": (NUMBER, 0),
                    "gpu_price": (NUMBER, 0),
                    "free": (YES_OR_NO, False),
                },
                {"model": canonical_setting},
            ),
            _prices, _make_price, _remove_price,
        ),
        Kind(
            Shape(
                "upstream_costs",
                ("upstream", "starts_at"),
                {
                    "starts_at": ((datetime,), None),
                    **dict.fromkeys(COSTS, (NUMBER, 0)),
                    "life_months": (NUMBER, 48),
                    "gpus": (NUMBER, 1),
                },
            ),
            _costs, _make_cost, _remove_cost,
        ),
        Kind(
            Shape(
                "budgets",
                (*WHOSE, "unit", "period", "shadow"),
                {
                    **WHOSE_FIELDS,
                    "shadow": (YES_OR_NO, False),
                    "limit": (MAYBE_NUMBER, None),
                    "thresholds": ((list,), default_thresholds()),
                },
                {"model": canonical_setting},
            ),
            _budgets, _make_budget, _remove_budget,
        ),
        Kind(
            Shape(
                "rate_limits",
                (*WHOSE, "measure", "shadow"),
                {**WHOSE_FIELDS, "shadow": (YES_OR_NO, False), "limit": (MAYBE_NUMBER, None)},
                {"model": canonical_setting},
            ),
            _rate_limits, _make_rate_limit, _remove_rate_limit,
        ),
        Kind(
            Shape(
                "policies",
                ("tenant", "key", "option"),
                {
                    "tenant": (MAYBE_TEXT, None),
                    "key": (MAYBE_TEXT, None),
                    "allowed": (MAYBE_YES, None),
                    "minimum": (MAYBE_NUMBER, None),
                    "maximum": (MAYBE_NUMBER, None),
                    "default_value": (MAYBE_NUMBER, None),
                },
            ),
            _policies, _make_policy, _remove_policy,
        ),
        Kind(
            Shape("outage_credits", ("tenant",), {"tokens": (NUMBER, 0)}),
            _credits, _make_credit, _remove_credit,
        ),
    )
}  # fmt: skip
SHAPES = {section: kind.shape for section, kind in KINDS.items()}
