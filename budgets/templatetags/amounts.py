"""Amounts of budgets in templates."""

from __future__ import annotations

from django import template
from django.utils.translation import gettext as _

from budgets.models import Budget, RateLimit, Scope
from budgets.words import amount, unit_name, window_name

register = template.Library()
register.filter(amount)
register.filter(unit_name)
register.filter(window_name)


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
