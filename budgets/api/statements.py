"""Statements of closed months, under ``/manage/v1/statements/``."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponse
from rest_framework import mixins, serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from budgets.api.operators import OperatorsOnly, Page
from budgets.models import Statement
from budgets.open_months import month_written
from budgets.papers import paper
from budgets.usage import FIGURES

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


class StatementViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Statements, the newest first; ``?tenant=`` (slug) and ``?month=2026-10`` select."""

    authentication_classes = [SessionAuthentication]
    permission_classes = [OperatorsOnly]
    pagination_class = Page
    lookup_field = "number"
    needs = dict.fromkeys(("list", "retrieve", "pdf", "csv"), "budgets.view_statement")

    def get_serializer_class(self) -> type[StatementSerializer]:
        return WholeStatementSerializer if self.action == "retrieve" else StatementSerializer

    def get_queryset(self) -> QuerySet[Statement]:
        others = [f"{of}__{name}" for of in ("replaces", "replaced_by") for name in HEAVY]
        found = Statement.objects.select_related("closing", "replaces", "replaced_by").defer(*others)
        if self.action != "list":
            return found
        wanted = self.request.query_params
        if "tenant" in wanted:
            found = found.filter(tenant=wanted["tenant"])
        if "month" in wanted:
            found = found.filter(month=_month(wanted["month"]))
        return found.defer(*HEAVY)

    @action(detail=True)
    def pdf(self, request: Request, number: str) -> HttpResponse:
        return paper(self.get_object(), "pdf")

    @action(detail=True)
    def csv(self, request: Request, number: str) -> HttpResponse:
        return paper(self.get_object(), "csv")


def _month(text: str) -> Any:
    try:
        return month_written(text)
    except ValueError as exc:
        raise serializers.ValidationError({"month": [str(exc)]}) from exc
