"""What tests of the management API have in common: keys of all kinds, and asking with one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from budgets.api.exports import ExportViewSet
from budgets.api.usage import UsageViewSet
from keys.models import ManagementKey
from keys.scopes import SCOPES
from keys.services import issue_management_key
from tenants.api.managed import Managed
from tenants.models import Tenant

MANAGE = "manage/v1/"
# Where people get what their place at a tenant gives them, instead of a permission.
BY_PLACE = {UsageViewSet, ExportViewSet}


@dataclass(frozen=True)
class Manager:
    """A management key and how a program asks with it."""

    key: ManagementKey
    secret: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer to a request of a path behind ``/manage/v1/``."""
        return Client().generic(
            method,
            f"/{MANAGE}{path}",
            b"" if body is None else json.dumps(body),
            content_type="application/json",
            headers={"Authorization": f"Bearer {self.secret}", **headers},
        )

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, **body: Any) -> Any:
        return self.ask("POST", path, body)


def manager(*scopes: str, tenant: Tenant | None = None, label: str = "", **options: Any) -> Manager:
    """A management key with these scopes, or with all."""
    label = label or f"key {ManagementKey.objects.count()}"
    return Manager(
        *issue_management_key(label=label, scopes=scopes or SCOPES, tenant=tenant, actor="test", **options)
    )


@dataclass(frozen=True)
class Endpoint:
    """One action of a view: its method, its path as the URL table has it, and its view."""

    method: str
    route: str
    action: str
    view: type[Managed]

    def __str__(self) -> str:
        return f"{self.method} {self.route}"

    def path(self, **ids: Any) -> str:
        """The path with these ids in it, by the names in the route."""
        path = self.route
        for converter in ("uuid", "int", "str", "slug"):
            for name, value in ids.items():
                path = path.replace(f"<{converter}:{name}>", str(value))
        assert "<" not in path, path
        return path


def endpoints() -> list[Endpoint]:
    """All of the URL table under ``/manage/v1/``, the document about it left out."""
    found = []
    for pattern in get_resolver("config.urls").url_patterns:
        if str(pattern.pattern) != MANAGE:
            continue
        assert isinstance(pattern, URLResolver)
        for entry in pattern.url_patterns:
            assert isinstance(entry, URLPattern)
            view: Any = entry.callback
            found += [
                Endpoint(method.upper(), str(entry.pattern), action, view.cls)
                for method, action in view.actions.items()
                if method != "head"
            ]
    return sorted(found, key=str)
