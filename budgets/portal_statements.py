"""A tenant's statements, for those of its people who may take them with them."""

from __future__ import annotations

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import path

from budgets.models import Statement
from budgets.papers import KINDS, paper
from budgets.usage import FIGURES, estimated_share, in_percent
from tenants.access import Access
from tenants.figures import grouped
from tenants.portal import tenant_page


@tenant_page
def statements(request: HttpRequest, access: Access) -> HttpResponse:
    """The statements of a tenant, the newest month first."""
    if not access.reads_statements:
        raise PermissionDenied
    found = (
        Statement.objects.filter(tenant_id=access.tenant.pk)
        .select_related("replaced_by")
        .defer("csv", "pdf", "lines", "prices", "replaced_by__csv", "replaced_by__pdf")
        .order_by("-month", "-revision")
    )
    rows = [
        (
            statement,
            in_percent(estimated_share({name: getattr(statement, name) for name in FIGURES})),
            grouped(statement.cost),
        )
        for statement in found
    ]
    return render(request, "portal/statements.html", {"statements": rows})


@tenant_page
def statement_paper(request: HttpRequest, access: Access, number: str, kind: str) -> HttpResponse:
    """One paper of a statement, as it was drawn."""
    if not access.reads_statements:
        raise PermissionDenied
    return paper(get_object_or_404(Statement, tenant_id=access.tenant.pk, number=number), kind)


urlpatterns = [
    path("<slug:slug>/statements/", statements, name="portal-statements"),
    *(
        path(
            f"<slug:slug>/statements/<slug:number>.{kind}",
            statement_paper,
            {"kind": kind},
            name=f"portal-statement-{kind}",
        )
        for kind in KINDS
    ),
]
