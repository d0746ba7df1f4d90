"""Exports, under ``/manage/v1/exports/``, for programs and whoever may take usage with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django import forms
from django.db.models import QuerySet
from django.http import HttpResponseBase
from django.urls import reverse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import usage
from budgets.exports import serving
from budgets.exports.forms import LAYOUTS, SEPARATORS, ExportForm
from budgets.exports.jobs import file_of, fitting, linked, order_export
from budgets.exports.orders import Order
from budgets.exports.profiles import PROFILES
from budgets.models import Export
from tenants.access import SEE_USAGE, access_to, is_operator
from tenants.api.managed import Managed
from tenants.api.permissions import ByPlace
from tenants.api.programs import Program
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


class OrderSerializer(serializers.Serializer):
    """What is exported of whom, and as which kind of file."""

    tenant = serializers.SlugField(
        required=False, help_text="Slug. Left out: of one's only tenant, or by operators and keys of all."
    )
    from_day = serializers.DateField()
    before_day = serializers.DateField(help_text="The first day that is not in it.")
    profile = serializers.ChoiceField(list(PROFILES), help_text="Which rows.")
    layout = serializers.ChoiceField([name for name, _ in LAYOUTS], required=False)
    separator = serializers.ChoiceField([name for name, _ in SEPARATORS if name], required=False)
    decimal_comma = serializers.BooleanField(required=False)
    gzip = serializers.BooleanField(required=False)


class SizeSerializer(serializers.Serializer):
    """How long an export will be, and the totals it adds up to."""

    rows = serializers.IntegerField()
    entries = serializers.IntegerField(help_text="Of the ledger, that are read for it.")
    bytes = serializers.IntegerField(help_text="About.")
    exact = serializers.BooleanField(help_text="The rows were counted.")
    small = serializers.BooleanField(help_text="The portal would send it at once.")
    totals = serializers.DictField(child=serializers.IntegerField())


FILES = ["text/csv", "application/gzip", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"]


class ExportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Exports that whoever asks has ordered, the newest first, and their files.

    POST orders one of a ``tenant`` (slug); operators and keys of the platform may order one of all.
    """

    queryset = Export.objects.all()
    serializer_class = ExportSerializer
    scope = "exports"
    permission_classes = [ByPlace]
    needs = {}
    of_tenant = "tenant_id"
    filters = {}

    def get_queryset(self) -> QuerySet[Export]:
        return super().get_queryset().filter(user_id=self.request.user.pk)

    @extend_schema(request=OrderSerializer, responses={201: ExportSerializer})
    def create(self, request: Request) -> Response:
        export = order_export(order=_order(request.user, request.data), user=request.user)
        return Response(ExportSerializer(export).data, status=201)

    @extend_schema(responses=SizeSerializer, parameters=[OrderSerializer])
    @action(detail=False)
    def estimate(self, request: Request) -> Response:
        """How large an export would be and what it would add up to."""
        order = _order(request.user, request.query_params)
        size = fitting(order)
        return Response(
            {
                **asdict(size),
                "small": serving.is_small(order, size),
                "totals": usage.breakdown(order.selection, ()).total,
            }
        )

    @extend_schema(responses={(200, kind): OpenApiTypes.BINARY for kind in FILES})
    @action(detail=False, url_path="files/<slug:link>", url_name="file")
    def file(self, request: Request, link: str) -> HttpResponseBase:
        """The file of an export."""
        export = linked(user_id=request.user.pk, link=link)
        if export is None or not _may_export(request.user, export):
            raise NotFound
        return serving.from_file(export)


class ProgramsForm(ExportForm):
    """An order with whose usage it is; nobody's: that of all."""

    tenant = forms.SlugField(required=False)


def _order(user: User | Program, given: Any) -> Order:
    if not isinstance(given, dict):
        raise ValidationError("An order is an object.")
    # What a browser's form sends is text, and that is what the form reads.
    form = ProgramsForm({name: str(value) for name, value in given.items()})
    if not form.is_valid():
        # As the framework calls what is wrong with no field alone.
        raise ValidationError(
            {"non_field_errors" if name == "__all__" else name: found for name, found in form.errors.items()}
        )
    slug = form.cleaned_data["tenant"]
    return form.order(_tenant_of_program(user, slug) if isinstance(user, Program) else _tenant(user, slug))


def _tenant_of_program(program: Program, slug: str) -> Tenant | None:
    """Whose usage a key wants; None: everybody's. To a key of one tenant there is no other."""
    own = program.tenant
    if not slug:
        return own
    known = Tenant.objects.filter(slug=slug)
    tenant = (known if own is None else known.filter(pk=own.pk)).first()
    if tenant is None:
        raise ValidationError({"tenant": [f"There is no tenant {slug}."]})
    return tenant


def _tenant(user: User, slug: str) -> Tenant | None:
    """Whose usage a person wants; None: everybody's. Raises for what they may not have."""
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


def _may_export(user: User | Program, export: Export) -> bool:
    """Whether who ordered an export may still have it."""
    if isinstance(user, Program):
        return user.tenant is None or user.tenant.pk == export.tenant_id
    if export.tenant_id is None:
        return is_operator(user) and is_operator(user, SEE_USAGE)
    access = access_to(user, export.tenant)
    return access is not None and access.exports and access.tenant.pk == export.tenant_id
