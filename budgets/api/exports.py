"""Exports, under ``/manage/v1/exports/``, for whoever may take the usage of a tenant with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django import forms
from django.db.models import QuerySet
from django.http import HttpResponseBase
from django.urls import reverse
from rest_framework import mixins, serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from budgets import usage
from budgets.exports import serving
from budgets.exports.forms import ExportForm
from budgets.exports.jobs import file_of, fitting, linked, order_export
from budgets.exports.orders import Order
from budgets.models import Export
from tenants.access import SEE_USAGE, access_to, is_operator
from tenants.models import Tenant, User


class ExportSerializer(serializers.ModelSerializer):
    """An export. ``file_url`` is there while its file can be fetched; nobody else can follow it."""

    file_url = serializers.SerializerMethodField()

    class Meta:
        model = Export
        fields = [
            "id", "user", "tenant_id", "tenant", "order", "state", "rows_expected", "rows", "bytes", "sha256",
            "sidecar", "downloads", "error", "error_id", "created_at", "started_at", "finished_at",
            "expires_at", "file_url",
        ]  # fmt: skip

    def get_file_url(self, export: Export) -> str | None:
        if file_of(export) is None:
            return None
        return reverse("export-file", kwargs={"link": export.link})


class ExportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """One's own exports, the newest first. POST orders one of a ``tenant`` (slug), operators of all."""

    # For people alone, who read by their place at a tenant; no part of what is described for programs.
    schema = None
    authentication_classes = [SessionAuthentication]
    permission_classes = [IsAuthenticated]
    serializer_class = ExportSerializer
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Export]:
        return Export.objects.filter(user_id=self.request.user.pk)

    def create(self, request: Request) -> Response:
        export = order_export(order=_order(request.user, request.data), user=request.user)
        return Response(ExportSerializer(export).data, status=201)

    @action(detail=False)
    def estimate(self, request: Request) -> Response:
        order = _order(request.user, request.query_params)
        size = fitting(order)
        return Response(
            {
                **asdict(size),
                "small": serving.is_small(order, size),
                "totals": usage.breakdown(order.selection, ()).total,
            }
        )

    @action(detail=False, url_path="files/<slug:link>", url_name="file")
    def file(self, request: Request, link: str) -> HttpResponseBase:
        export = linked(user_id=request.user.pk, link=link)
        if export is None or not _may_export(request.user, export):
            raise NotFound
        return serving.from_file(export)


class ProgramsForm(ExportForm):
    """An order with whose usage it is; nobody's: that of all."""

    tenant = forms.SlugField(required=False)


def _order(user: User, given: Any) -> Order:
    if not isinstance(given, dict):
        raise ValidationError("An order is an object.")
    # What a browser's form sends is text, and that is what the form reads.
    as_text = {name: value if isinstance(value, bool) else str(value) for name, value in given.items()}
    form = ProgramsForm(as_text)
    if not form.is_valid():
        # As the framework calls what is wrong with no field alone.
        raise ValidationError(
            {"non_field_errors" if name == "__all__" else name: found for name, found in form.errors.items()}
        )
    return form.order(_tenant(user, form.cleaned_data["tenant"]))


def _tenant(user: User, slug: str) -> Tenant | None:
    """Whose usage ``user`` wants; None: everybody's. Raises for what they may not have."""
    if not slug:
        if not (is_operator(user) and is_operator(user, SEE_USAGE)):
            raise PermissionDenied("Name the tenant. Only operators export the usage of all.")
        return None
    access = access_to(user, slug)
    if access is None:
        raise NotFound("There is no such tenant.")
    if not access.exports:
        raise PermissionDenied
    return access.tenant


def _may_export(user: User, export: Export) -> bool:
    """Whether who ordered an export may still have it."""
    if export.tenant_id is None:
        return is_operator(user) and is_operator(user, SEE_USAGE)
    access = access_to(user, export.tenant)
    return access is not None and access.exports and access.tenant.pk == export.tenant_id
