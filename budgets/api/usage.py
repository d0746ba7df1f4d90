"""Usage for programs: sums told apart by anything, and the entries that each is made of.

People of a tenant ask for what they may read of it, operators for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from rest_framework import serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.viewsets import ViewSet

from budgets.addresses import MOST_ROWS, UsageForm, as_query
from budgets.explaining import explain, explain_entry
from budgets.models import LedgerEntry
from budgets.paging import MOST, USUAL, page_of
from budgets.pricing import exactly_as_usd, usd_in_full
from budgets.reading import readable
from budgets.usage import FIGURES, PARTS, Figures, Selection, estimated_share
from tenants.access import SEE_USAGE, Access, Reach, access_to, is_operator, tenants_of

RATES = ("input_price", "cached_price", "output_price", "gpu_price")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as far as whoever asks may read it; ``whose`` goes into each link."""

    form: UsageForm
    selection: Selection
    whose: dict[str, str]


def asked_in(request: Request, *more: str) -> Asked:
    """Read the address of a request; raises what is told for one that is wrong, or not theirs.

    ``tenant`` is a slug, or the id of a tenant that may be gone already. Who
    belongs to one tenant alone need not name it; without it operators ask for all.
    """
    form = UsageForm(request.query_params, known=["tenant", *more])
    if not form.is_valid():
        raise ValidationError(form.errors.as_data())
    named = request.query_params.get("tenant", "")
    if is_operator(request.user, SEE_USAGE):
        tenant_id = _tenant_id(request, named) if named else None
        return Asked(form, form.selection(tenant_id), {"tenant": str(tenant_id)} if tenant_id else {})
    access = _access(request, named)
    if access.usage == Reach.NOTHING:
        raise PermissionDenied
    selection = readable(form.selection(access.tenant.pk), access)
    if selection is None:
        raise NotFound
    return Asked(form, selection, {"tenant": access.tenant.slug})


def _tenant_id(request: Request, named: str) -> UUID:
    try:
        return UUID(named)
    except ValueError:
        tenant = tenants_of(request.user).filter(slug=named).first()
    if tenant is None:
        raise NotFound
    return tenant.pk


def _access(request: Request, named: str) -> Access:
    slugs = [named] if named else list(tenants_of(request.user).values_list("slug", flat=True)[:2])
    if len(slugs) > 1:
        raise ValidationError({"tenant": "You belong to several tenants. Name one."})
    access = access_to(request.user, slugs[0]) if slugs else None
    if access is None:
        raise NotFound
    return access


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


class UsageViewSet(ViewSet):
    """Sums of usage by any parts; each row's ``rows`` leads to its entries."""

    # For people alone, who read by their place at a tenant; no part of what is described for programs.
    schema = None
    authentication_classes = [SessionAuthentication]
    permission_classes = [IsAuthenticated]

    def list(self, request: Request) -> Response:
        asked = asked_in(request)
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


class EntryViewSet(ViewSet):
    """Entries of the ledger, the newest first; ``next`` leads to the page after."""

    # For people alone, who read by their place at a tenant; no part of what is described for programs.
    schema = None
    authentication_classes = [SessionAuthentication]
    permission_classes = [IsAuthenticated]

    def list(self, request: Request) -> Response:
        asked = asked_in(request, "after", "page_size")
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


def _page_size(request: Request) -> int:
    try:
        size: int = forms.IntegerField(min_value=1, max_value=MOST).clean(
            request.query_params.get("page_size", USUAL)
        )
    except ValidationError as exc:
        raise ValidationError({"page_size": exc.messages}) from exc
    return size
