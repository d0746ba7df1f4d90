from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.functional import cached_property

from audit.models import AuditEvent, RequestEvent
from audit.recording import record


class NewestPaginator(Paginator):
    """Pages over the newest rows of a table that only grows, without counting all of it."""

    LIMIT = 10_000

    @cached_property
    def count(self) -> int:
        """How many rows there are, ``LIMIT`` at most; for what lies further back there are filters."""
        newest = cast("QuerySet[Any]", self.object_list)[: self.LIMIT]
        return newest.count()


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows to look at: nobody adds, changes or deletes one here, superusers included.

    ``id_fields`` are found by a whole UUID typed into the search.
    """

    id_fields: tuple[str, ...] = ()
    show_full_result_count = False
    paginator = NewestPaginator

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        try:
            wanted = UUID(search_term.strip())
        except ValueError:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(Q.create([(name, wanted) for name in self.id_fields], Q.OR)), False


class AuditedAdmin(admin.ModelAdmin):
    """For models without services: what Django logs of a change is recorded in the audit too."""

    # Django deletes a selection outside of a transaction, where no audit event can be written.
    actions = None

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, obj, "added", changes=message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, obj, "changed", changes=message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for obj in queryset:
            self._record(request, obj, "deleted")
        return super().log_deletions(request, queryset)

    def details_of(self, obj: Any) -> dict[str, Any]:
        """What else the audit event says about ``obj`` as it is after the change."""
        return {}

    def _record(self, request: HttpRequest, obj: Model, happened: str, **details: Any) -> None:
        record(
            action=f"{self.opts.model_name}.{happened}",
            actor=str(request.user),
            subject=str(obj.pk),
            name=str(obj),
            **self.details_of(obj),
            **details,
        )


def ask_reason(
    page: admin.ModelAdmin,
    request: HttpRequest,
    rows: QuerySet[Any],
    *,
    action: str,
    title: str,
    confirmation: str = "",
    effect: str = "",
) -> TemplateResponse:
    """The page that lists what an action is about to touch, says what that does, and asks why.

    Its form calls ``action`` again with ``reason``, and with ``confirmation``
    where that text is to be typed.
    """
    return TemplateResponse(
        request,
        "admin/ask_reason.html",
        {
            **page.admin_site.each_context(request),
            "title": title,
            "opts": page.opts,
            "rows": rows,
            "action": action,
            "confirmation": confirmation,
            "effect": effect,
            "reason": request.POST.get("reason", ""),
            "mistyped": bool(confirmation and request.POST.get("confirmation")),
            "checkbox": ACTION_CHECKBOX_NAME,
        },
    )


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """Who changed what, and why."""

    list_display = ["at", "action", "actor", "origin", "subject", "tenant_id", "reason"]
    list_filter = ["at"]
    search_fields = ["action__startswith", "actor__startswith", "subject__startswith"]
    search_help_text = "Id of a tenant, or the beginning of an action (key.revoked), an actor or a subject"
    id_fields = ("tenant_id",)


class StatusFilter(admin.SimpleListFilter):
    """Answers by the first digit of their status."""

    title = "status"
    parameter_name = "status_class"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [("2", "2xx answered"), ("4", "4xx refused or left"), ("5", "5xx failed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[RequestEvent]) -> QuerySet[RequestEvent]:
        if self.value() not in ("2", "4", "5"):
            return queryset
        first = int(str(self.value())) * 100
        return queryset.filter(status__range=(first, first + 99))


@admin.register(RequestEvent)
class RequestEventAdmin(ReadOnlyAdmin):
    """Calls at the gateway's doors, refused ones included."""

    list_display = [
        "at",
        "request_id",
        "tenant",
        "key",
        "route",
        "model",
        "run",
        "status",
        "outcome",
        "refusal",
        "refused_by",
        "input_tokens",
        "output_tokens",
        "exact",
    ]
    list_filter = ["at", StatusFilter, "stream", "exact"]
    search_fields = ["=tenant", "=key", "=model", "=run", "=refusal"]
    search_help_text = "Id of a request, key or tenant, or a whole tenant, key, model, run or refusal code"
    id_fields = ("request_id", "key_id", "tenant_id")
