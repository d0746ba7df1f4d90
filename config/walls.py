"""Where the walls of ``audit.walls`` stand: which tables have none and why, and the doors that are closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.apps import apps
from django.contrib.admin import site
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.urls import get_resolver

from audit import walled_role, walls

READ = "SELECT"
WRITE = "SELECT, INSERT, UPDATE, DELETE"

# Tables without a wall that doors use: what for. By app, or by model.
SHARED = {
    "account": (WRITE, "a person's addresses; they are of no tenant"),
    "mfa": (WRITE, "a person's second factors"),
    "usersessions": (WRITE, "a person's sessions"),
    "socialaccount": (WRITE, "how a person is called elsewhere"),
    "sessions": (WRITE, "found by a secret alone"),
    "contenttypes": (READ, "kinds of rows"),
    "auth": (READ, "what operators may do"),
    "tenants.User": (WRITE, "people are of no tenant; their place in one, Member, is"),
    "tenants.User_groups": (READ, "what operators may do"),
    "tenants.User_user_permissions": (READ, "what operators may do"),
    "tenants.Generation": (WRITE, "how often settings changed, raised by whoever changes them"),
    "proxy.Upstream": (READ, "where calls go is the platform's"),
    "budgets.Estimate": (READ, "bytes per token of a model, from the calls of all"),
    "budgets.ArchivedMonth": (READ, "which months are archived is the same for all"),
}
# Tables that no door reaches from within a tenant: only operators' doors do, and code that says across().
OF_THE_SYSTEM = {
    "admin.LogEntry": "what operators did in the admin",
    "audit.AuditLink": "chains of all; written by a trigger",
    "audit.AuditCheckpoint": "ends of all chains",
    "audit.AuditCheck": "what the worker found in the audit of all",
    "budgets.SpooledSettlement": "what waits for Redis, of all",
    "budgets.ParkedRecord": "records that nobody could book",
    "budgets.CounterEpoch": "whether the counters may be believed",
    "budgets.EstimateSample": "what was learned from each call",
    "budgets.UpstreamCost": "what the platform pays",
    "budgets.PriceProposal": "what operators decide about prices",
    "budgets.Verification": "whether the books of all agree",
    "budgets.RunningCall": "lies in Redis",
    "tenants.KeptAnswer": "answers to programs of all, found by who asked",
}


def walled_models() -> list[type[models.Model]]:
    """The tables of tenants: those whose manager says so."""
    return [model for model in _all_models() if isinstance(model._default_manager, walls.Walled)]  # noqa: SLF001


def shared_tables() -> dict[str, str]:
    """Tables without a wall that doors use, and what the doors' role may do with them."""
    rights = {}
    for model in _all_models():
        found = SHARED.get(model._meta.label) or SHARED.get(model._meta.app_label)  # noqa: SLF001
        if found is not None and not isinstance(model._default_manager, walls.Walled):  # noqa: SLF001
            rights[model._meta.db_table] = found[0]  # noqa: SLF001
    return rights


def unclassified() -> list[str]:
    """Models of which nobody has said whose their rows are."""
    known = {model._meta.label for model in walled_models()} | set(OF_THE_SYSTEM)  # noqa: SLF001
    return [
        model._meta.label  # noqa: SLF001
        for model in _all_models()
        if model._meta.label not in known  # noqa: SLF001
        and model._meta.label not in SHARED  # noqa: SLF001
        and model._meta.app_label not in SHARED  # noqa: SLF001
    ]


def _all_models() -> list[type[models.Model]]:
    return apps.get_models(include_auto_created=True)


def build(**_: Any) -> None:
    """For ``post_migrate``: the second wall, as the models are now."""
    walled_role.build(walled_models(), shared_tables())


class Doors:
    """Closes every page and every address of the management API; they open as far as who asks may see.

    ``tenants.portal.tenant_page`` and ``tenants.api.managed.Managed`` open them
    for one tenant. The admin is open to people of the staff, for all.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        # Pages are loaded before a door is closed: forms and views name tables while they are.
        get_resolver().url_patterns  # noqa: B018

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._answer(request)
        with _place_of(request):
            response = self.get_response(request)
        return _behind_the_door(response)

    def process_view(self, request: HttpRequest, *_: Any) -> None:
        """Keep from people of the staff what there is of that which they may not see.

        Django looks for a row before it asks whether its history may be read.
        """
        match = request.resolver_match
        if match is None or match.app_name != "admin" or not str(match.url_name).endswith("_history"):
            return
        for model, its_admin in site._registry.items():  # noqa: SLF001 - the only list that there is
            if match.url_name == f"{model._meta.app_label}_{model._meta.model_name}_history":  # noqa: SLF001
                if request.user.is_staff and not its_admin.has_view_or_change_permission(request):
                    raise PermissionDenied
                return

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        with await sync_to_async(_place_of)(request):
            response: HttpResponseBase = await self.get_response(request)
        return _behind_the_door(response)


def _place_of(request: HttpRequest) -> AbstractContextManager[None]:
    if request.path_info.startswith("/admin/") and request.user.is_active and request.user.is_staff:
        return walls.across()
    return walls.closed()


def _behind_the_door(response: HttpResponseBase) -> HttpResponseBase:
    """The answer, of which a body that is made while it is sent is made where nothing is open."""
    if isinstance(response, StreamingHttpResponse):
        content: Any = response.streaming_content
        response.streaming_content = _closed_async(content) if response.is_async else _closed(content)
    return response


def _closed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    while True:
        with walls.closed():
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


async def _closed_async(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        with walls.closed():
            piece = await anext(pieces, None)
        if piece is None:
            return
        yield piece
