"""Amounts of budgets in templates."""

from __future__ import annotations

from django import template
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from budgets.models import Budget, RateLimit, Scope, Unit
from budgets.money import usd_total
from tenants.figures import grouped

register = template.Library()

UNITS: dict[str, Promise] = {
    "requests": gettext_lazy("requests"),
    "tokens": gettext_lazy("tokens"),
    "output_tokens": gettext_lazy("output tokens"),
    "micro_usd": gettext_lazy("US dollars"),
    "gpu_ms": gettext_lazy("ms of GPU time"),
}
WINDOWS: dict[str, Promise] = {
    "now": gettext_lazy("at one time"),
    "minute": gettext_lazy("a minute"),
    "hour": gettext_lazy("an hour"),
    "day": gettext_lazy("a day"),
    "week": gettext_lazy("a week"),
    "month": gettext_lazy("a month"),
    "year": gettext_lazy("a year"),
    "lifetime": gettext_lazy("for good"),
}


@register.filter
def amount(number: int, unit: str) -> str:
    """An amount of a unit to its last digit: ``$12.34``, ``1,500``."""
    return usd_total(number) if unit == Unit.MICRO_USD else grouped(number)


@register.filter
def unit_name(unit: str) -> str:
    """What a unit counts: ``tokens``."""
    return str(UNITS.get(unit, unit))


@register.filter
def window_name(window: str) -> str:
    """How often a limit is whole again: ``a day``, ``every 90m``."""
    known = WINDOWS.get(window)
    return _("every %(length)s") % {"length": window} if known is None else str(known)


@register.filter
def holder(row: Budget | RateLimit) -> str:
    """Whose calls a limit counts: ``key nightly-report``."""
    named = {
        Scope.PLATFORM: lambda: _("everybody together"),
        Scope.TENANT: lambda: _("the whole tenant"),
        Scope.TEAM: lambda: _("team %(name)s") % {"name": row.team},
        Scope.MEMBER: lambda: _("member %(name)s") % {"name": row.member and row.member.user},
        Scope.KEY: lambda: _("key %(name)s") % {"name": row.key},
        Scope.MODEL: lambda: _("model %(name)s") % {"name": row.model},
        Scope.UPSTREAM: lambda: _("server %(name)s") % {"name": row.upstream},
        Scope.RUN: lambda: _("each run"),
    }
    return named[Scope(row.scope)]()


@register.filter
def scope_name(scope: str) -> str:
    """The same of a limit whose row may be gone."""
    named = {
        "platform": _("everybody together"),
        "tenant": _("the whole tenant"),
        "team": _("a team"),
        "member": _("a member"),
        "key": _("a key"),
        "model": _("a model"),
        "upstream": _("a server"),
        "run": _("a run"),
    }
    return named.get(scope, _("a visitor"))
