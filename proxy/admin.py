from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from proxy import services
from proxy.models import ModelAlias, Upstream


@admin.register(Upstream)
class UpstreamAdmin(admin.ModelAdmin):
    """Ollama servers; a change is in force with the next poll, at the latest."""

    list_display = ["name", "base_url", "enabled", "created_at"]
    list_filter = ["enabled"]
    search_fields = ["name", "base_url"]
    show_full_result_count = False

    def get_readonly_fields(self, request: HttpRequest, obj: Upstream | None = None) -> list[str]:
        return ["name"] if obj else []

    def save_model(self, request: HttpRequest, obj: Upstream, form: ModelForm, change: bool) -> None:
        services.save_upstream(upstream=obj, actor=str(request.user))

    def delete_model(self, request: HttpRequest, obj: Upstream) -> None:
        services.remove_upstream(upstream=obj, actor=str(request.user))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Upstream]) -> None:
        for upstream in queryset:
            services.remove_upstream(upstream=upstream, actor=str(request.user))


@admin.register(ModelAlias)
class ModelAliasAdmin(admin.ModelAdmin):
    """Other names for installed models."""

    list_display = ["alias", "model", "tenant"]
    list_select_related = ["tenant"]
    search_fields = ["alias", "model"]
    autocomplete_fields = ["tenant"]
    show_full_result_count = False

    def save_model(self, request: HttpRequest, obj: ModelAlias, form: ModelForm, change: bool) -> None:
        services.save_alias(alias=obj, actor=str(request.user))

    def delete_model(self, request: HttpRequest, obj: ModelAlias) -> None:
        services.remove_alias(alias=obj, actor=str(request.user))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ModelAlias]) -> None:
        for alias in queryset:
            services.remove_alias(alias=alias, actor=str(request.user))
