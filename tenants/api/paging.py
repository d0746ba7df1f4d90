"""How long a list is, and how the next page is asked for."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request

USUAL = 100
MOST = 1000


class Page(CursorPagination):
    """A page of rows, the newest first; ``next`` and ``previous`` are the addresses beside it.

    Rows are in the order in which their ids were given, so what is added
    meanwhile moves nothing from one page to another.
    """

    page_size = USUAL
    page_size_query_param = "page_size"
    max_page_size = MOST
    ordering = ("-pk",)

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: Any) -> tuple[str, ...]:
        return self.ordering

    def paginate_queryset(self, queryset: QuerySet[Any], request: Request, view: Any = None) -> Any:
        try:
            return super().paginate_queryset(queryset, request, view)
        except ValueError as exc:
            raise NotFound(self.invalid_cursor_message) from exc
