from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse

from audit.admin_pages import AdminPage
from audit.growing import GrowingList, NewestPaginator, having, narrowing, uuid_in, when
from audit.models import AuditEvent
from audit.recording import record


class ReadOnlyAdmin(AdminPage):
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


class ServiceAdmin(AdminPage):
    """For models that services write, each change with its audit event; lists never count the whole table."""

    show_full_result_count = False

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for row in queryset:
            self.delete_model(request, row)


class AuditedAdmin(AdminPage):
    """For models without services: what Django logs of a change is recorded in the audit too."""

    # Django deletes a selection outside of a transaction, where no audit event can be written.
    actions: Any = None

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            saved = type(obj)._default_manager.get(pk=obj.pk)  # noqa: SLF001 - Django's own name for it
            request.said_before = self.details_of(saved)  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, obj, "added", changes=message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        before, after = getattr(request, "said_before", {}), self.details_of(obj)
        different = {name: value for name, value in before.items() if value != after[name]}
        self._record(request, obj, "changed", changes=message, before=different)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for obj in queryset:
            self._record(request, obj, "deleted")
        return super().log_deletions(request, queryset)

    def details_of(self, obj: Any) -> dict[str, Any]:
        """What the audit event says of ``obj`` besides, as it is after a change; and what differed."""
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
class AuditEventAdmin(GrowingList, ReadOnlyAdmin):
    """Who changed what, and why."""

    newest_by = "at"
    list_display = ["at", "action", "actor", "origin", "subject", "tenant_id", "reason"]
    list_filter = [narrowing("tenant_id", "tenant"), when("at")]
    search_help_text = "Id of a tenant or a subject, or an action (key.revoked), an actor, or their beginning"
    compared = ("action__startswith", "actor__startswith", "subject__startswith")

    def found(self, rows: QuerySet[Any], term: str) -> QuerySet[Any] | None:
        tenant_id = uuid_in(term)
        of_tenant = having(rows, ("tenant_id",), tenant_id) if tenant_id else None
        return of_tenant if of_tenant is not None else having(rows, ("action", "subject", "actor"), term)
