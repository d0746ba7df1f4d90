"""Who may ask, and how long a list is."""

from __future__ import annotations

from typing import Any

from rest_framework.pagination import LimitOffsetPagination
from rest_framework.permissions import BasePermission
from rest_framework.request import Request


class OperatorsOnly(BasePermission):
    """People of the staff who may do in the admin what the view is about.

    The view's ``needs`` names the permission of each of its actions.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        user = request.user
        # An action that there is not is told as such, not as forbidden.
        needed = view.needs.get(view.action)
        return bool(user.is_staff and (needed is None or user.has_perm(needed)))


class Page(LimitOffsetPagination):
    default_limit = 100
    max_limit = 1000
