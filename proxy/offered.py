"""What is installed and what of it keys may call, for pages: read from what web processes have published."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import orjson
from django.db.models import F, Q
from django.utils.timezone import now

from budgets.models import KillSwitch, Price
from keys.models import ApiKey
from proxy.catalog import Installed, may_use, merged, published_at
from proxy.models import Upstream
from tenants.models import Tenant
from tenants.redis import redis_now

# The family that every model of the simulated Ollama tells.
SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which models a key may call, installed or not; ``models`` None: neither key nor tenant names any."""

    allow_all_models: bool
    models: frozenset[str] | None


def installed() -> dict[str, Installed]:
    """The models that any enabled upstream has, by canonical name; raises ``RedisError``.

    Nothing when no upstream was discovered lately: then every call is refused.
    """
    names = list(Upstream.objects.filter(enabled=True).values_list("name", flat=True))
    if not names:
        return {}
    found = redis_now().mget([published_at(name) for name in names])
    known = zip(names, found, strict=True)
    return merged({name: orjson.loads(items) for name, items in known if items is not None})


def allowed_of(key: ApiKey) -> Allowed:
    """What a key's settings and its tenant's say together."""
    models = key.tenant.models if key.models is None else key.models
    allow_all = key.tenant.allow_all_models if key.allow_all_models is None else key.allow_all_models
    return Allowed(allow_all, None if models is None else frozenset(models))


def callable_by(key: ApiKey, models: dict[str, Installed]) -> set[str]:
    """The names of those of ``models`` that a key may call."""
    allowed = allowed_of(key)
    return {name for name in models if may_use(allowed, name)}


def is_simulated(model: Installed) -> bool:
    """Whether answers of a model are made up."""
    details = model.entry.get("details")
    return isinstance(details, dict) and details.get("family") == SIMULATED


def prices_of(tenant: Tenant, names: set[str]) -> dict[str, Price]:
    """What each of these models costs a tenant now: its own price, or else everybody's."""
    known = Price.objects.filter(Q(tenant=tenant) | Q(tenant=None), model__in=names, starts_at__lte=now())
    in_order = known.order_by("model", F("tenant").asc(nulls_last=True), "-starts_at").distinct("model")
    return {price.model: price for price in in_order}


def switches_on(tenant: Tenant, key_ids: list[UUID] | None = None) -> list[KillSwitch]:
    """The kill switches that stop calls of a tenant now; of those of single keys, those of ``key_ids``."""
    applies = Q(scope__in=["platform", "upstream"]) | Q(scope__in=["tenant", "model"], tenant_id=tenant.pk)
    applies |= Q(scope="model", tenant_id=None)
    of_keys = Q(scope="key", tenant_id=tenant.pk)
    applies |= of_keys if key_ids is None else of_keys & Q(key_id__in=key_ids)
    return list(KillSwitch.objects.on().filter(applies))


def stopped(model: Installed, switches: list[KillSwitch]) -> bool:
    """Whether a kill switch stops every call to a model; a switch of a single key stops none of them all."""
    for switch in switches:
        if switch.scope in ("platform", "tenant") or (switch.scope == "model" and switch.model == model.name):
            return True
    closed = {switch.upstream for switch in switches if switch.scope == "upstream"}
    return all(name in closed for name in model.upstreams)
