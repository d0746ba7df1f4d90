from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.forms import ModelForm
from django.http import HttpRequest

from audit.admin import ServiceAdmin
from proxy import services
from proxy.models import ModelAlias, Upstream
from proxy.nodes import Node, nodes, version_of
from tenants.forms import ModelNamesForm
from tenants.redis import RedisError

UNKNOWN = "unknown: Redis cannot be asked"


def _asked() -> list[Node]:
    try:
        return nodes()
    except RedisError:
        return []


def _nodes(request: HttpRequest) -> dict[Any, Node]:
    """How the upstreams are, by id, as one page tells it."""
    if not hasattr(request, "told_nodes"):
        request.told_nodes = {one.upstream.pk: one for one in _asked()}  # type: ignore[attr-defined]
    told: dict[Any, Node] = request.told_nodes  # type: ignore[attr-defined]
    return told


def _columns(told: dict[Any, Node]) -> list[Callable[[Upstream], Any]]:
    @admin.display(description="health", empty_value=UNKNOWN)
    def health(obj: Upstream) -> str | None:
        return str(told[obj.pk].health) if obj.pk in told else None

    @admin.display(description="models")
    def models(obj: Upstream) -> int | None:
        return len(told[obj.pk].models) if obj.pk in told else None

    @admin.display(description="running calls")
    def running(obj: Upstream) -> int | None:
        return told[obj.pk].running if obj.pk in told else None

    @admin.display(description="listed its models")
    def listed(obj: Upstream) -> str | None:
        age = told[obj.pk].age if obj.pk in told else None
        return None if age is None else f"{age:.0f} s ago"

    return [health, models, running, listed]


@admin.register(Upstream)
class UpstreamAdmin(ServiceAdmin):
    """Ollama servers; a change is in force with the next poll, at the latest."""

    list_filter = ["enabled"]
    search_fields = ["name", "base_url"]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Columns that know how all upstreams are: they are asked for once, and not row by row."""
        told = _nodes(request)
        return ["name", "base_url", "enabled", *_columns(told)]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        chosen = ["name", "base_url", "enabled"]
        return [*chosen, "health", "installed", "version", "created_at"] if obj else chosen

    @admin.display(description="health")
    def health(self, obj: Upstream) -> str:
        node = next((one for one in _asked() if one.upstream.pk == obj.pk), None)
        if node is None:
            return UNKNOWN
        listed = "too long ago to count" if node.age is None else f"{node.age:.0f} s ago"
        return f"{node.health}; listed its models {listed}; {node.running} calls run there"

    @admin.display(description="models it listed")
    def installed(self, obj: Upstream) -> str:
        node = next((one for one in _asked() if one.upstream.pk == obj.pk), None)
        return ", ".join(node.models) if node and node.models else "none that are known now"

    @admin.display(description="version of Ollama, asked now")
    def version(self, obj: Upstream) -> str:
        return version_of(obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Upstream | None = None) -> list[str]:
        return ["name", "health", "installed", "version", "created_at"] if obj else []

    def save_model(self, request: HttpRequest, obj: Upstream, form: ModelForm, change: bool) -> None:
        services.save_upstream(upstream=obj, actor=str(request.user))

    def delete_model(self, request: HttpRequest, obj: Upstream) -> None:
        services.remove_upstream(upstream=obj, actor=str(request.user))


@admin.register(ModelAlias)
class ModelAliasAdmin(ServiceAdmin):
    """Other names for installed models."""

    form = ModelNamesForm
    list_display = ["alias", "model", "tenant"]
    list_select_related = ["tenant"]
    search_fields = ["alias", "model"]
    autocomplete_fields = ["tenant"]

    def save_model(self, request: HttpRequest, obj: ModelAlias, form: ModelForm, change: bool) -> None:
        services.save_alias(alias=obj, actor=str(request.user))

    def delete_model(self, request: HttpRequest, obj: ModelAlias) -> None:
        services.remove_alias(alias=obj, actor=str(request.user))
