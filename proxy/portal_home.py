"""The first page of a tenant: what is left, what was used, what needs care, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import OuterRef, Subquery
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils.timezone import localdate, now
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from audit.models import RequestEvent
from budgets.counters import EPOCH
from budgets.explaining import month_after
from budgets.key_limits import HIGH
from budgets.limits_seen import Seeing, Seen, look_at_limits, tightest
from budgets.models import Scope, UsageRollup
from budgets.raise_requests import open_requests
from budgets.reading import readable
from budgets.refused_calls import newest_refusals
from budgets.usage import Selection, breakdown
from keys.models import ApiKey
from keys.states import EXPIRING
from proxy import offered
from proxy.portal_models import live_keys
from tenants.access import Access, Reach
from tenants.charts import TOKENS, Chart, Series, as_file, hours, largest
from tenants.portal import tenant_page
from tenants.redis import RedisError, redis_now

HOURS = 24
REFUSALS = 5
# Without use for so long a key needs care.
UNUSED = timedelta(days=90)
MOST_KEYS = 20


@dataclass(slots=True)
class Care:
    """A key and why it needs somebody's attention."""

    key: ApiKey
    expires_at: datetime | None = None
    expired: bool = False
    unused: bool = False
    near: list[Seen] = field(default_factory=list)


@require_safe
@tenant_page
def home(request: HttpRequest, access: Access) -> HttpResponse:
    """What a person wants to know first; before their first request, how to make it."""
    if access.usage == Reach.NOTHING:
        return render(request, "portal/home/nothing.html")
    if request.headers.get("HX-Request"):
        # The page asks whether the first request has come; while it has not, nothing on it changes.
        if not _first_request_seen(access):
            return HttpResponse(status=204)
        return render(request, "portal/home/_arrival.html", {"has_keys": True, "seen": True})
    chart = _last_day(access)
    if file := as_file(request, [chart]):
        return file
    own_keys = None
    if access.usage == Reach.OWN_KEYS:
        own_keys = list(live_keys(access).values_list("pk", flat=True))
    seeing = look_at_limits(access, rates=False)
    has_keys = live_keys(access).exists() if own_keys is None else bool(own_keys)
    seen = _first_request_seen(access)
    begun = has_keys and seen
    context = {
        "seeing": seeing,
        "closed": seeing.blind or not _counters_believed(),
        "switches": offered.switches_on(access.tenant, own_keys),
        "simulated": _simulated(),
        "budgets": [_tightest_of(seeing, unit) for unit in ("micro_usd", "tokens")],
        "month": _month(access),
        "chart": chart,
        "care": _care(access, seeing),
        "refusals": newest_refusals(access.tenant.pk, _member_id(access), REFUSALS),
        "waiting": open_requests(access).count(),
        "begun": begun,
        "has_keys": has_keys,
        "seen": seen,
        "door": request.build_absolute_uri("/v1/chat/completions"),
    }
    return render(request, "portal/home/home.html", context)


def _member_id(access: Access) -> Any:
    return access.member.pk if access.usage == Reach.OWN_KEYS and access.member else None


def _tightest_of(seeing: Seeing, unit: str) -> tuple[str, Seen | None]:
    """Of the budgets of a unit the one that ends first."""
    return unit, tightest(one for one in seeing.own if one.unit == unit)


def _month(access: Access) -> dict[str, int]:
    """What was used in the present month of the tenant, of what the person may read."""
    first = localdate(timezone=ZoneInfo(access.tenant.time_zone)).replace(day=1)
    selection = readable(Selection(from_day=first, before_day=month_after(first)), access)
    return breakdown(selection, ()).total if selection else {}


def _last_day(access: Access) -> Chart:
    """Tokens of the last 24 hours, the present one included, by model."""
    until = now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    instants = [until - timedelta(hours=HOURS - number) for number in range(HOURS)]
    selection = readable(Selection(since=instants[0], until=until), access)
    rows = breakdown(selection, ("hour", "model")).rows if selection else []
    amounts = {
        (datetime.fromisoformat(row["hour"]), row["model"]): row["input_tokens"] + row["output_tokens"]
        for row in rows
    }
    models = sorted({model for _, model in amounts})
    series = [
        # An hour without an entry is no zero: nothing was booked that could be added up.
        Series(model, model, [amounts.get((at, model)) for at in instants])
        for model in models
    ]
    none = [Series("none", _("none"), [None] * HOURS)]
    points = hours(instants, ZoneInfo(access.time_zone))
    return Chart("models", _("Tokens by model in the last 24 hours"), points, largest(series) or none, TOKENS)


def _care(access: Access, seeing: Seeing) -> list[Care]:
    """The live keys that expire soon, that nobody uses, or that a limit is about to stop."""
    moment, keys = now(), live_keys(access)
    found: dict[Any, Care] = {}
    for key in keys.filter(expires_at__lte=moment + EXPIRING).order_by("expires_at")[:MOST_KEYS]:
        expired = key.expires_at is not None and key.expires_at <= moment
        found[key.pk] = Care(key, expires_at=key.expires_at, expired=expired)
    # The newest day of each key by its index: whether there is one is otherwise asked of all rollups at once.
    days = UsageRollup.objects.filter(key_id=OuterRef("pk"), day__gt=(moment - UNUSED).date())
    used_on = Subquery(days.order_by("-day").values("day")[:1])
    old = keys.filter(created_at__lt=moment - UNUSED)
    for key in old.annotate(used_on=used_on).filter(used_on=None)[:MOST_KEYS]:
        found.setdefault(key.pk, Care(key)).unused = True
    for one in (*seeing.own, *seeing.others):
        if one.scope != Scope.KEY or one.row.shadow or one.percent is None or one.percent < HIGH:
            continue
        limited = one.row.key
        if limited is not None and limited.revoked_at is None:
            found.setdefault(limited.pk, Care(limited)).near.append(one)
    return list(found.values())[:MOST_KEYS]


def _first_request_seen(access: Access) -> bool:
    """Whether a call of the person's keys was ever let through or refused."""
    events = RequestEvent.objects.filter(tenant_id=access.tenant.pk)
    if access.usage == Reach.OWN_KEYS:
        own = ApiKey.objects.filter(member=access.member).values_list("pk", flat=True)
        events = events.filter(key_id__in=list(own))
    return events.order_by("-at").exists()


def _simulated() -> bool:
    """Whether any model that can be called is simulated."""
    try:
        return any(offered.is_simulated(model) for model in offered.installed().values())
    except RedisError:
        return False


def _counters_believed() -> bool:
    """Whether Redis has counters that may be believed; without them no call is let through."""
    try:
        return bool(redis_now().exists(EPOCH))
    except RedisError:
        return False


urlpatterns = [
    path("", home, name="portal-tenant"),
]
