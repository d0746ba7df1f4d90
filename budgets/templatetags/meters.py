"""Live meters for pages of the portal: ``{% load meters %}{% key_meter key standings %}``.

``standings`` are those that the page knows already; None: nobody knows them just now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import template

from budgets.meters import Metered, metered_by, metered_person, meters_of
from budgets.models import Scope
from budgets.standing import Standing
from keys.models import ApiKey

register = template.Library()


@register.inclusion_tag("portal/_meter.html", takes_context=True)
def key_meter(context: dict[str, Any], key: ApiKey, standings: Sequence[Standing] | None) -> dict[str, Any]:
    """How the budgets of ``key``, and of all above it, stand, and go on standing."""
    access = context["request"].access
    address = f"/live/portal/{access.tenant.slug}/keys/{key.pk}/"
    return _shown(context, metered_by(access, key), address, standings)


@register.inclusion_tag("portal/_meter.html", takes_context=True)
def tenant_meter(context: dict[str, Any], standings: Sequence[Standing] | None) -> dict[str, Any]:
    """The same for the tenant of the page, and for the person's own place in it."""
    access = context["request"].access
    if standings is not None:
        standings = [one for one in standings if one.budget.scope != Scope.KEY]
    return _shown(context, metered_person(access), f"/live/portal/{access.tenant.slug}/", standings)


def _shown(
    context: dict[str, Any], metered: Metered | None, address: str, standings: Sequence[Standing] | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {"request": context["request"], "address": metered and address}
    if standings is None:
        return shown | {"unknown": True}
    return shown | {"meters": meters_of(standings)}
