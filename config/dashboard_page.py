"""The dashboard as a page and as a live view: the parts that a person may see, as HTML."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from config.dashboard import PARTS, Figures, Part, figures
from tenants.charts import Chart
from tenants.live import OperatorView, Parts, live
from tenants.models import User


def visible(user: Any) -> list[Part]:
    """The parts that a person may see, in the order of the page."""
    if not (isinstance(user, User) and user.is_active and user.is_staff):
        return []
    return [part for part in PARTS if not part.permission or user.has_perm(part.permission)]


def drawn(parts: list[Part]) -> list[tuple[Part, SafeString]]:
    """Each part with how it looks now."""
    told = figures([part.name for part in parts])
    return [(part, _draw(part, told[part.name])) for part in parts]


def charts_of(parts: list[Part]) -> list[Chart]:
    """The charts of these parts that can be drawn now."""
    told = figures([part.name for part in parts])
    return [chart for one in told.values() if one for chart in one.get("charts", [])]


def _draw(part: Part, figures: Figures | None) -> SafeString:
    context = {"figures": figures, "template": f"admin/dashboard/{part.name}.html"}
    return mark_safe(render_to_string("admin/dashboard/_part.html", context))  # noqa: S308, a template's


class DashboardLive(OperatorView):
    """The same over a socket; whoever sees other parts than before is told so."""

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        seen = visible(request.user)
        if not seen:
            raise PermissionDenied
        return tuple(part.name for part in seen)

    def parts(self, subject: Any) -> Parts:
        return {part.name: html for part, html in drawn([part for part in PARTS if part.name in subject])}


urlpatterns = [live("admin/dashboard/", DashboardLive())]
