"""The page of one key: what it is, how its limits stand, what it used, and what was done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.functional import Promise
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from audit.models import AuditEvent, RequestEvent
from budgets.key_charts import Span, charts_of, tightest
from budgets.key_limits import KeyLimit
from budgets.limited_keys import (
    Row,
    amount_of,
    counts_of,
    exactly,
    length_of,
    per,
    rows_of_keys,
)
from budgets.meters import Metered, budgets_of, metered_by
from budgets.models import RateLimit
from budgets.standing import Standing, standings
from budgets.words import window_name
from keys.models import ApiKey
from proxy.portal_keys.showing import key_of, shown
from tenants import charts
from tenants.access import Access
from tenants.portal import tenant_page
from tenants.redis import RedisError

RECENT = 20
CHANGES = 50

DONE: dict[str, Promise] = {
    "key.issued": _("Created"),
    "key.changed": _("Changed"),
    "key.rotated": _("Rotated"),
    "key.secrets_retired": _("Older secret ended"),
    "key.disabled": _("Disabled"),
    "key.enabled": _("Enabled"),
    "key.revoked": _("Revoked"),
    "budget.set": _("Limit set"),
    "budget.removed": _("Limit removed"),
    "budget.raised": _("Limit raised"),
    "budget.raise_taken_back": _("Raise taken back"),
    "budget.period_changed": _("Period of a limit changed"),
    "rate_limit.set": _("Limit set"),
    "rate_limit.removed": _("Limit removed"),
}


@dataclass(frozen=True, slots=True)
class Done:
    """Something that was done to a key; ``changes`` are what it was before and after."""

    at: datetime
    what: str | Promise
    actor: str
    reason: str
    changes: list[tuple[str, Any, Any]]


@require_safe
@tenant_page
def detail(request: HttpRequest, access: Access, key_id: UUID) -> HttpResponse:
    """A key; ``?span=`` says over what its charts are drawn."""
    key = key_of(access, key_id)
    metered = metered_by(access, key)
    standing = None if metered is None else _standings(metered)
    [row] = shown(access, [key], None if standing is None else {key.pk: _limits(key, standing)})
    asked = request.GET.get("span", Span.DAY)
    span = Span(asked) if asked in Span.values else Span.DAY
    drawn = charts_of(key, span, row.limits, now(), ZoneInfo(access.time_zone))
    if (file := charts.as_file(request, drawn)) is not None:
        return file
    events = RequestEvent.objects.filter(tenant_id=key.tenant_id, key_id=key.pk)
    budgets, rates = rows_of_keys([key.pk])
    rows: list[Row] = [*budgets, *rates]
    context = {
        "row": row,
        "standings": standing,
        "span": span,
        "spans": list(Span),
        "charts": drawn,
        "tightest": tightest(row.limits),
        "recent": events.order_by("-at")[:RECENT],
        "rates": [
            amount_of(one, one.limit)
            for one in rows
            if isinstance(one, RateLimit) and one.limit is not None and not one.shadow
        ],
        "history": _history(key, rows),
    }
    return render(request, "portal/keys/key.html", context)


def _standings(metered: Metered) -> list[Standing] | None:
    """How all budgets stand that hold for the key; None while Redis cannot be asked."""
    try:
        return standings(budgets_of(metered))
    except RedisError:
        return None


def _limits(key: ApiKey, found: Sequence[Standing]) -> list[KeyLimit]:
    return [KeyLimit.of(one) for one in found if one.budget.key_id == key.pk]


def _history(key: ApiKey, rows: Sequence[Row]) -> list[Done]:
    """What was done to the key and to its limits, the newest first; where from is for operators to know."""
    of_tenant = AuditEvent.objects.filter(tenant_id=key.tenant_id)
    limits = {str(row.pk): (counts_of(row), length_of(row)) for row in rows}
    # Those that are gone are known by what was told when they went.
    gone = of_tenant.filter(
        action__in=["budget.removed", "rate_limit.removed"], details__key=str(key.pk)
    ).order_by("-pk")[:CHANGES]
    for event in gone:
        told = event.details
        limits[event.subject] = told.get("measure") or told["unit"], told.get("period", "")
    events = of_tenant.filter(subject__in=[str(key.pk), *limits])
    return [
        Done(
            at=event.at,
            what=DONE.get(event.action, event.action),
            actor=event.actor,
            reason=event.reason,
            changes=_changes(event, limits.get(event.subject)),
        )
        for event in events.order_by("-pk")[:CHANGES]
    ]


def _changes(event: AuditEvent, limit: tuple[str, str] | None) -> list[tuple[str, Any, Any]]:
    details = event.details
    before, after = details.get("before"), details.get("after")
    if limit is None:
        if not isinstance(before, dict) or not isinstance(after, dict):
            return []
        return [(name, before.get(name), value) for name, value in after.items() if before.get(name) != value]
    if event.action == "budget.period_changed":
        return [(str(_("Period")), window_name(before), window_name(after))]
    if "limit" not in details:
        return []
    amounts = (details["limit"], None) if event.action.endswith(".removed") else (before, details["limit"])
    was, is_now = (None if amount is None else exactly(limit[0], amount) for amount in amounts)
    return [(per(*limit), was, is_now)]
