"""Live views of what runs, what is stopped and what is used now."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from django.http import HttpRequest
from django.template.loader import render_to_string

from budgets.running_calls import found_calls
from tenants.live import OperatorView, Parts, live

SHOWN_CALLS = 500


class RunningCallsLive(OperatorView):
    """The running calls that a search finds."""

    permission = "budgets.view_runningcall"

    def subject(self, request: HttpRequest, **parts: Any) -> Hashable:
        super().subject(request)
        return request.GET.get("q", "").strip(), request.user.has_perm("budgets.stop_runningcall")

    def parts(self, subject: tuple[str, bool]) -> Parts:
        query, may_stop = subject
        calls = found_calls(query)
        context = {
            "calls": calls[:SHOWN_CALLS],
            "more": max(0, len(calls) - SHOWN_CALLS),
            "may_stop": may_stop,
        }
        return {"calls": render_to_string("admin/budgets/runningcall/_calls.html", context)}


urlpatterns = [
    live("admin/running-calls/", RunningCallsLive()),
]
