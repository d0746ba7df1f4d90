"""Statements of closed months, under ``/manage/v1/statements/``."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from budgets.models import Statement
from budgets.open_months import month_written
from budgets.papers import paper
from budgets.usage import FIGURES
from tenants.api.managed import Managed

OF_LIST = (
    "number", "revision", "replaces", "replaced_by", "issuer", "tenant_id", "tenant", "tenant_name", "month",
    "before", "time_zone", "drawn_at", *FIGURES, "csv_sha256", "pdf_sha256", "entries", "export_sha256",
)  # fmt: skip

# What a list does not tell.
HEAVY = ("csv", "pdf", "lines", "prices")


class StatementSerializer(serializers.ModelSerializer):
    """A statement: days are ``[month, before)``, the digests those of its papers and of its entries."""

    replaces = serializers.CharField(source="replaces.number", default=None)
    replaced_by = serializers.CharField(source="replaced_by.number", default=None)
    before = serializers.DateField()
    entries = serializers.IntegerField(source="closing.entries")
    export_sha256 = serializers.CharField(source="closing.export_sha256")

    class Meta:
        model = Statement
        fields = OF_LIST


class WholeStatementSerializer(StatementSerializer):
    """The same with its lines and the prices."""

    lines = serializers.JSONField()
    prices = serializers.JSONField()

    class Meta:
        model = Statement
        fields = [*OF_LIST, "lines", "prices"]


def statement_as_json(statement: Statement) -> dict[str, Any]:
    """A statement as programs see it, lines included."""
    return dict(WholeStatementSerializer(statement).data)


class StatementViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Statements, the newest first; ``?tenant=`` (slug) and ``?month=2026-10`` select."""

    queryset = Statement.objects.select_related("closing", "replaces", "replaced_by")
    scope = "statements"
    of_tenant = "tenant_id"
    filters = {"tenant": "tenant"}
    lookup_field = "number"
    lookup_value_converter = "str"
    needs = dict.fromkeys(("list", "retrieve", "pdf", "csv"), "budgets.view_statement")

    @extend_schema(parameters=[OpenApiParameter("month", description="Such as 2026-10.")])
    def list(self, request: Request) -> Response:
        return super().list(request)

    def get_serializer_class(self) -> type[StatementSerializer]:
        return WholeStatementSerializer if self.action == "retrieve" else StatementSerializer

    def get_queryset(self) -> QuerySet[Statement]:
        others = [f"{of}__{name}" for of in ("replaces", "replaced_by") for name in HEAVY]
        found = super().get_queryset().defer(*others)
        if self.action != "list":
            return found
        wanted = self.request.query_params
        if "month" in wanted:
            found = found.filter(month=_month(wanted["month"]))
        return found.defer(*HEAVY)

    @extend_schema(responses={(200, "application/pdf"): OpenApiTypes.BINARY})
    @action(detail=True)
    def pdf(self, request: Request, number: str) -> HttpResponse:
        return paper(self.get_object(), "pdf")

    @extend_schema(responses={(200, "text/csv"): OpenApiTypes.STR})
    @action(detail=True)
    def csv(self, request: Request, number: str) -> HttpResponse:
        return paper(self.get_object(), "csv")


def _month(text: str) -> Any:
    try:
        return month_written(text)
    except ValueError as exc:
        raise serializers.ValidationError({"month": [str(exc)]}) from exc
