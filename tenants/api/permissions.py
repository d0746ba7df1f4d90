"""Who may do what: a key by its scopes, a person by the permissions that hold in the admin too."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from tenants.api.programs import Program


class MayManage(BasePermission):
    """Keys with the scope that a view asks for, and people of the staff who may do it in the admin.

    Of a view, ``scope`` is the first part of its scopes (``budgets`` asks for
    ``budgets:read`` and ``budgets:write``), ``needs`` names the permission, or
    several, of each of its actions, and those in ``platform_actions`` are nothing for keys
    of one tenant. What a view does not say is refused.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        user = request.user
        # A method that there is not is told as such, not as forbidden.
        if view.action is None:
            return bool(user.is_authenticated)
        if isinstance(user, Program):
            return self._has_scope(user, request, view)
        needed = getattr(view, "needs", {}).get(view.action)
        if needed is None:
            return False
        return bool(user.is_staff and user.has_perms((needed,) if isinstance(needed, str) else needed))

    def _has_scope(self, program: Program, request: Request, view: Any) -> bool:
        first = getattr(view, "scope", None)
        if first is None:
            self.message = "This is not for management keys."
            return False
        if program.tenant is not None and view.action in view.platform_actions:
            self.message = "This is not for a key of one tenant."
            return False
        scope = f"{first}:{'read' if request.method in SAFE_METHODS else 'write'}"
        self.message = f"The key needs the scope {scope}."
        return scope in program.scopes


class ByPlace(MayManage):
    """Keys as everywhere, and whoever is signed in: what people get is told by their place at a tenant."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if isinstance(request.user, Program):
            return super().has_permission(request, view)
        return bool(request.user.is_authenticated)


class SignedIn(BasePermission):
    """Keys of any scope, and people of the staff."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.user, Program) or bool(request.user.is_staff)
