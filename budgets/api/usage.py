"""Usage for programs: sums told apart by anything, and the entries that each is made of.

People of a tenant ask for what they may read of it, operators and keys of the platform for all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from audit.walls import across, closed, within
from budgets.addresses import DAYS, IDS, INSTANTS, MOST_ROWS, TEXTS, WITHOUT, UsageForm, as_query
from budgets.explaining import explain, explain_entry
from budgets.models import LedgerEntry
from budgets.paging import MOST, USUAL, page_of
from budgets.pricing import exactly_as_usd, usd_in_full
from budgets.reading import readable
from budgets.usage import FIGURES, PARTS, Figures, Selection, estimated_share
from tenants.access import SEE_USAGE, Access, Reach, access_to, is_operator, tenants_of
from tenants.api.managed import Managed
from tenants.api.permissions import ByPlace
from tenants.api.programs import Program, tenant_of
from tenants.models import Tenant, User

RATES = ("input_price", "cached_price", "output_price", "gpu_price")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as far as whoever asks may read it; ``whose`` goes into each link."""

    form: UsageForm
    selection: Selection
    whose: dict[str, str]


def figures_as_json(figures: Any) -> dict[str, Any]:
    """Sums as programs see them: whole numbers, the cost in dollars besides as a decimal string."""
    sums: Figures = {figure: figures[figure] for figure in FIGURES}
    return sums | {
        "cost_usd": usd_in_full(sums["cost_micro_usd"]),
        "estimated_share_per_mille": estimated_share(sums),
    }


class EntrySerializer(serializers.ModelSerializer):
    """An entry of the ledger and how its cost came about.

    Rates are micro-USD for a million tokens or a second of GPU time; the
    ``usd`` of the lines add up to ``cost_usd``.
    """

    cost_usd = serializers.SerializerMethodField()
    rates = serializers.SerializerMethodField()
    lines = serializers.SerializerMethodField()
    cost_follows_from_rates = serializers.SerializerMethodField()

    class Meta:
        model = LedgerEntry
        fields = [
            "request_id", "kind", "tenant_id", "tenant", "team_id", "team", "member_id", "member", "key_id",
            "key", "model", "upstream", "route", "operation", "dialect", "stream", "run", "day",
            "closed_month", "admitted_at", "ended_at", "recorded_at", "requests", "input_tokens",
            "cached_tokens", "output_tokens", "thinking_tokens", "gpu_ms", "exact", "estimator", "price_id",
            "rates", "lines", "cost_follows_from_rates", "cost_micro_usd", "cost_usd", "late", "on_credit",
            "outcome", "status", "corrects", "actor", "reason",
        ]  # fmt: skip

    def get_cost_usd(self, entry: LedgerEntry) -> str:
        return usd_in_full(entry.cost_micro_usd)

    def get_rates(self, entry: LedgerEntry) -> dict[str, int | None]:
        return {name: getattr(entry, name) for name in RATES}

    def get_lines(self, entry: LedgerEntry) -> list[dict[str, Any]]:
        return [
            {
                "what": line.what,
                "quantity": line.quantity,
                "unit": line.unit,
                "rate_micro_usd": line.rate,
                "usd": exactly_as_usd(line.millionths),
            }
            for line in explain_entry(entry).lines
        ]

    def get_cost_follows_from_rates(self, entry: LedgerEntry) -> bool:
        return explain_entry(entry).by_rates


class FiguresSerializer(serializers.Serializer):
    """Sums: whole numbers, and the cost besides in dollars."""

    requests = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    thinking_tokens = serializers.IntegerField()
    estimated_tokens = serializers.IntegerField(help_text="Of input and output, those that were estimated.")
    gpu_ms = serializers.IntegerField()
    cost_micro_usd = serializers.IntegerField()
    cost_usd = serializers.CharField()
    estimated_share_per_mille = serializers.IntegerField(help_text="Rounded up: 0 means none.")


class TotalSerializer(FiguresSerializer):
    rows = serializers.CharField(help_text="The address of the entries that it is the sum of.")


class SumSerializer(TotalSerializer):
    """The sums of one combination of what was asked for; of its parts those are there that were."""

    deleted = serializers.ListField(child=serializers.CharField(), help_text="Parts that are gone.")

    def get_fields(self) -> dict[str, serializers.Field]:
        columns = dict.fromkeys(column for columns in PARTS.values() for column in columns)
        parts = {column: serializers.CharField(required=False, allow_blank=True) for column in columns}
        fields: dict[str, serializers.Field] = parts | super().get_fields()
        return fields


class UsageSerializer(serializers.Serializer):
    """A whole and its parts; ``rest`` is what is in none of the ``results``, but in ``left_out`` others."""

    by = serializers.ListField(child=serializers.ChoiceField(list(PARTS)))
    total = TotalSerializer()
    results = SumSerializer(many=True)
    left_out = serializers.IntegerField()
    rest = FiguresSerializer()


class EntriesSerializer(serializers.Serializer):
    """A page of entries, and the address of the next one."""

    next = serializers.CharField(allow_null=True)
    results = EntrySerializer(many=True)


OF_SELECTION = [
    OpenApiParameter("tenant", description="Slug, or id of one that may be gone. Without it: of all."),
    *(OpenApiParameter(name, OpenApiTypes.DATE, description="Accounting day.") for name in DAYS),
    *(OpenApiParameter(name, OpenApiTypes.DATETIME, description="When calls ended.") for name in INSTANTS),
    *(OpenApiParameter(name, OpenApiTypes.UUID) for name in IDS),
    *(OpenApiParameter(name) for name in TEXTS),
    OpenApiParameter(
        "without",
        description="Calls that have no team, member or run, or whose route is not known.",
        enum=WITHOUT,
        many=True,
    ),
]


class UsageViewSet(Managed):
    """Usage, by any parts, and the entries of the ledger that each sum is made of.

    Whoever belongs to one tenant alone need not name it, nor need a key of one
    tenant; without it operators and keys of the platform ask for all.
    """

    scope = "usage"
    permission_classes = [ByPlace]
    needs = {}
    filters = {}

    def opened(self, request: Request) -> AbstractContextManager[None]:
        if isinstance(request.user, Program) or is_operator(request.user, SEE_USAGE):
            return super().opened(request)
        # Whose usage it is has still to be read from the address.
        return closed()

    @extend_schema(
        responses=UsageSerializer,
        parameters=[
            *OF_SELECTION,
            OpenApiParameter("by", description="By what it is told apart.", enum=list(PARTS), many=True),
            OpenApiParameter("order", description="A figure, with - before it from the largest down."),
            OpenApiParameter("limit", OpenApiTypes.INT, description=f"Rows at most, up to {MOST_ROWS}."),
        ],
    )
    def sums(self, request: Request) -> Response:
        """Sums of usage by any parts; each row's ``rows`` leads to its entries."""
        asked = self._asked()
        by, order, limit = (asked.form.cleaned_data[name] for name in ("by", "order", "limit"))
        explained = explain(asked.selection, by or ["key"], order=order, limit=limit or MOST_ROWS)
        whole, there = explained.whole, reverse("usage-entries", request=request)

        def entries(selection: Selection) -> str:
            # Told apart by tenant, each row leads to those of its own.
            whose = asked.whose or {"tenant": str(selection.tenant_id)} if selection.tenant_id else {}
            return f"{there}?{as_query(selection, **whose)}"

        return Response(
            {
                "by": whole.by,
                "total": figures_as_json(whole.total) | {"rows": entries(asked.selection)},
                "results": [
                    {name: part.row[name] for column in whole.by for name in PARTS[column]}
                    | {"deleted": part.row["deleted"]}
                    | figures_as_json(part.row)
                    | {"rows": entries(part.selection)}
                    for part in explained.parts
                ],
                "left_out": whole.left_out,
                "rest": figures_as_json(whole.rest),
            }
        )

    @extend_schema(
        responses=EntriesSerializer,
        parameters=[
            *OF_SELECTION,
            OpenApiParameter("after", description="Where the page before ended."),
            OpenApiParameter("page_size", OpenApiTypes.INT, description=f"Up to {MOST}."),
        ],
    )
    def entries(self, request: Request) -> Response:
        """Entries of the ledger, the newest first; ``next`` leads to the page after."""
        asked = self._asked("after", "page_size")
        size, after = _page_size(request), request.query_params.get("after", "")
        try:
            page = page_of(asked.selection, after, size)
        except ValueError as exc:
            raise ValidationError({"after": "No page ended so."}) from exc
        following = as_query(asked.selection, **asked.whose, page_size=str(size), after=page.next)
        here = reverse("usage-entries", request=request)
        return Response(
            {
                "next": f"{here}?{following}" if page.next else None,
                "results": EntrySerializer(page.entries, many=True).data,
            }
        )

    def _asked(self, *more: str) -> Asked:
        """Read the address of a request; raises what is told for one that is wrong, or not theirs."""
        user, asked = self.request.user, self.request.query_params
        form = UsageForm(asked, known=["tenant", *more])
        if not form.is_valid():
            raise ValidationError(form.errors.as_data())
        named, own = asked.get("tenant", ""), tenant_of(user)
        if own is not None:
            if named not in ("", own.slug, str(own.pk)):
                raise NotFound
            return Asked(form, form.selection(own.pk), {"tenant": own.slug})
        if isinstance(user, Program) or is_operator(user, SEE_USAGE):
            tenant_id = _tenant_id(user, named) if named else None
            return Asked(form, form.selection(tenant_id), {"tenant": str(tenant_id)} if tenant_id else {})
        access = _access(user, named)
        if access.usage == Reach.NOTHING:
            raise PermissionDenied
        self._walls.enter_context(within(access.tenant.pk))
        selection = readable(form.selection(access.tenant.pk), access)
        if selection is None:
            raise NotFound
        return Asked(form, selection, {"tenant": access.tenant.slug})


def _tenant_id(user: User | Program, named: str) -> UUID:
    try:
        return UUID(named)
    except ValueError:
        known = Tenant.objects.all() if isinstance(user, Program) else tenants_of(user)
        tenant = known.filter(slug=named).first()
    if tenant is None:
        raise NotFound
    return tenant.pk


def _access(user: User, named: str) -> Access:
    with across():
        slugs = [named] if named else list(tenants_of(user).values_list("slug", flat=True)[:2])
    if len(slugs) > 1:
        raise ValidationError({"tenant": "You belong to several tenants. Name one."})
    access = access_to(user, slugs[0]) if slugs else None
    if access is None:
        raise NotFound
    return access


def _page_size(request: Request) -> int:
    try:
        size: int = forms.IntegerField(min_value=1, max_value=MOST).clean(
            request.query_params.get("page_size", USUAL)
        )
    except ValidationError as exc:
        raise ValidationError({"page_size": exc.messages}) from exc
    return size
