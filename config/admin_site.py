"""The operators' site: django-unfold's, with a search and a first page of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.functional import SimpleLazyObject
from unfold.sites import UnfoldAdminSite

from tenants.charts import as_file


class OperatorsSite(UnfoldAdminSite):
    """The admin at ``/admin/``."""

    index_title = "Dashboard"

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> Any:
        """The models by app, looked for where they are shown: all pages are given them, and few show them."""
        return SimpleLazyObject(partial(super().get_app_list, request, app_label))

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        """Views that only operators reach, and that get no text which PostgreSQL cannot keep."""
        inner = super().admin_view(view, cacheable)

        @wraps(inner)
        def asked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            for fields in (request.GET, request.POST):
                if any("\0" in text for name, texts in fields.lists() for text in (name, *texts)):
                    raise BadRequest("There is a NUL in what was sent.")
            return inner(request, *args, **kwargs)

        return asked

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The dashboard, or one of its charts as a file."""
        from config.dashboard_page import charts_of, drawn, visible  # models are not there yet

        parts = visible(request.user)
        chart = as_file(request, charts_of(parts)) if "chart" in request.GET else None
        context = {
            **self.each_context(request),
            "title": self.index_title,
            "parts": drawn(parts),
            **(extra_context or {}),
        }
        return chart or TemplateResponse(request, "admin/index.html", context)

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """What the one search finds. Unfold's own keeps what it found in the Redis that counts."""
        from config.admin_search import found  # nor here

        term = request.GET.get("s", "")
        results = found(request, term) if term.strip() else []
        pages = Paginator(results, max(1, len(results)))
        context = {"page_obj": pages, "results": pages.page(1), "page_counter": 0, "execution_time": 0}
        return TemplateResponse(
            request, "unfold/helpers/command_results.html", context, headers={"HX-Trigger": "search"}
        )
