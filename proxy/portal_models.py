"""Pages about models: which may be called, and one place to try one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from budgets.explaining import entries_of
from budgets.models import Price
from budgets.money import usd_total
from budgets.reading import readable
from budgets.usage import Selection
from keys.models import ApiKey
from proxy import offered
from proxy.catalog import Installed
from tenants.access import Access, Reach
from tenants.portal import tenant_page
from tenants.redis import RedisError

# A person with more keys has no use for all their names in each row.
MOST_KEYS = 100


@dataclass(frozen=True, slots=True)
class Offer:
    """A model and the keys that may call it; ``price`` None: nobody has set one."""

    model: Installed
    keys: list[ApiKey]
    price: Price | None
    stopped: bool
    simulated: bool

    @property
    def details(self) -> dict[str, Any]:
        """``parameter_size``, ``quantization_level`` and others, as upstream tells them."""
        details = self.model.entry.get("details")
        return details if isinstance(details, dict) else {}

    @property
    def chats(self) -> bool:
        """Whether it answers in words; one that only embeds does not."""
        capabilities = self.model.shown.get("capabilities") or ["completion"]
        return "completion" in capabilities


@require_safe
@tenant_page
def models(request: HttpRequest, access: Access) -> HttpResponse:
    """The models that the keys of a person may call, with sizes, prices, and whether they work now."""
    _demand(access)
    keys = list(live_keys(access)[:MOST_KEYS])
    offers, blind = _offers(access, keys)
    context = {"offers": offers, "keys": keys, "blind": blind, "none_installed": offers is None}
    return render(request, "portal/models/models.html", context)


@require_safe
@tenant_page
def playground(request: HttpRequest, access: Access) -> HttpResponse:
    """One chat through the gateway's own door, with a secret that the person pastes and the browser keeps."""
    _demand(access)
    keys = list(live_keys(access)[:MOST_KEYS])
    offers, blind = _offers(access, keys)
    context = {
        "offers": [one for one in offers or [] if one.chats],
        "blind": blind,
        "door": request.build_absolute_uri("/v1/chat/completions"),
    }
    return render(request, "portal/models/playground.html", context)


@require_safe
@tenant_page
def booked(request: HttpRequest, access: Access, request_id: UUID) -> JsonResponse:
    """What a call used and has cost, once it is booked: ``{"cost": "$0.000123", "input_tokens": 7, …}``.

    The cost is written as the page writes money. ``{}`` until then, and for a
    call that is not the person's to read about.
    """
    _demand(access)
    selection = readable(Selection(request_id=request_id), access)
    entries = [one.entry for one in entries_of(selection)] if selection else []
    if not entries:
        return JsonResponse({})
    return JsonResponse(
        {
            "cost": usd_total(sum(entry.cost_micro_usd for entry in entries)),
            "input_tokens": sum(entry.input_tokens for entry in entries),
            "output_tokens": sum(entry.output_tokens for entry in entries),
            "exact": all(entry.exact for entry in entries),
        }
    )


def live_keys(access: Access) -> QuerySet[ApiKey]:
    """The keys that a person may look at: their own or, with the whole tenant in view, all of it."""
    keys = ApiKey.objects.filter(tenant=access.tenant, revoked_at=None, kind=ApiKey.Kind.SECRET)
    if access.usage == Reach.OWN_KEYS:
        keys = keys.filter(member=access.member)
    return keys.select_related("tenant", "member__user").order_by("label")


def _demand(access: Access) -> None:
    if access.usage == Reach.NOTHING:
        raise PermissionDenied


def _offers(access: Access, keys: list[ApiKey]) -> tuple[list[Offer] | None, bool]:
    """What the keys may call, or None if nothing is known to be installed; and whether Redis is away."""
    try:
        found = offered.installed()
    except RedisError:
        return None, True
    if not found:
        return None, False
    by_key = {key.pk: offered.callable_by(key, found) for key in keys}
    wanted = set().union(*by_key.values())
    prices, switches = offered.prices_of(access.tenant, wanted), offered.switches_on(access.tenant)
    return [
        Offer(
            model=found[name],
            keys=[key for key in keys if name in by_key[key.pk]],
            price=prices.get(name),
            stopped=offered.stopped(found[name], switches),
            simulated=offered.is_simulated(found[name]),
        )
        for name in sorted(wanted)
    ], False


urlpatterns = [
    path("models/", models, name="portal-models"),
    path("playground/", playground, name="portal-playground"),
    path("playground/<uuid:request_id>/", booked, name="portal-playground-booked"),
]
