"""Live meters for pages of the portal: ``{% load meters %}{% key_meter key %}``."""

from __future__ import annotations

from typing import Any

from django import template

from budgets.meters import Metered, metered_key, metered_person, meters
from keys.models import ApiKey
from tenants.redis import RedisError

register = template.Library()


@register.inclusion_tag("portal/_meter.html", takes_context=True)
def key_meter(context: dict[str, Any], key: ApiKey) -> dict[str, Any]:
    """How the budgets of ``key``, and of all above it, stand, and go on standing."""
    access = context["request"].access
    address = f"/live/portal/{access.tenant.slug}/keys/{key.pk}/"
    return _shown(context, metered_key(access, key.pk), address)


@register.inclusion_tag("portal/_meter.html", takes_context=True)
def tenant_meter(context: dict[str, Any]) -> dict[str, Any]:
    """The same for the tenant of the page, and for the person's own place in it."""
    access = context["request"].access
    return _shown(context, metered_person(access), f"/live/portal/{access.tenant.slug}/")


def _shown(context: dict[str, Any], metered: Metered | None, address: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"request": context["request"], "address": metered and address}
    if metered is not None:
        try:
            shown["meters"] = meters(metered)
        except RedisError:
            shown["unknown"] = True
    return shown
