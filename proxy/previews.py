"""What a key may call and what will refuse it, as the path of a request would decide it now."""

from __future__ import annotations

from datetime import UTC, datetime

from budgets.exceptions import BudgetExhausted
from budgets.kill_switches import Switch, stopping
from budgets.limits import Limits, load
from budgets.standing import ahead
from keys.above import Preview
from keys.callers import Caller
from keys.endpoints import ENDPOINTS, doors_of
from keys.exceptions import InvalidKey
from proxy.catalog import Catalog, published
from proxy.errors import code_of
from proxy.exceptions import NoModels
from tenants.clock import clock
from tenants.exceptions import Refusal
from tenants.redis import RedisError


def preview(caller: Caller, known: Catalog | None = None, limits: Limits | None = None) -> Preview:
    """What ``caller`` may call; ``keys.callers.caller_of`` makes one of a key, saved or not.

    ``known``: what ``published`` has told this page already. ``limits``: those that
    would hold, if these are not the saved ones.

    Settings come from PostgreSQL, what is used and what is installed from Redis.
    Nothing is set aside and nothing counted.
    """
    now_ms = clock.now_ms()
    limits = limits or load(caller)
    refusals: list[Refusal] = []
    if not _works(caller, now_ms):
        refusals.append(InvalidKey("does not work"))
    if switch := stopping(limits.switches, now_ms):
        refusals.append(switch.refusal())
    models = _offered(caller, known, limits.switches, now_ms, refusals)
    counted = True
    try:
        told = ahead(limits, now_ms)
    except RedisError:
        told, counted = ahead(limits, now_ms, counted=False), False
    if any(one.left is not None and one.left <= 0 and not one.model and not one.upstream for one in told):
        refusals.append(BudgetExhausted([], None, []))
    ends = caller.expires_at_ms
    return Preview(
        models=() if refusals else tuple(models),
        scopes=tuple(scope for scope in ENDPOINTS if caller.scopes is None or scope in caller.scopes),
        endpoints=tuple(doors_of(caller.scopes)),
        address_blocks=caller.address_blocks,
        expires_at=None if ends is None else datetime.fromtimestamp(ends / 1000, UTC),
        refused=tuple(code_of(refusal) for refusal in refusals),
        limits=tuple(told),
        counted=counted,
    )


def _works(caller: Caller, now_ms: float) -> bool:
    over = caller.expires_at_ms is not None and caller.expires_at_ms <= now_ms
    return caller.tenant_active and not (caller.revoked or caller.disabled or over)


def _offered(
    caller: Caller,
    known: Catalog | None,
    switches: tuple[Switch, ...],
    now_ms: float,
    refusals: list[Refusal],
) -> list[str]:
    """The models that a call would find; adds to ``refusals`` if nobody knows of any."""
    try:
        models = (known or published()).effective(caller)
    except (NoModels, RedisError):
        refusals.append(NoModels())
        return []
    return sorted(
        model.name
        for model in models
        if any(stopping(switches, now_ms, model.name, name) is None for name in model.upstreams)
    )
