"""Budgets and rate limits."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import services
from budgets.api.money import as_usd
from budgets.models import LARGEST, Budget, LimitRaise, Measure, RateLimit, Scope, Unit
from budgets.standing import standings
from keys.models import ApiKey
from tenants.api.fields import MomentField, OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed
from tenants.models import Member, Team

WHOSE = ["id", "scope", "tenant_id", "tenant", "team_id", "member_id", "key_id", "model", "upstream"]


class WhoseSerializer(WithForce, serializers.ModelSerializer):
    """Whose calls are counted on a row; ids that do not belong to its scope are null, names empty."""

    tenant = serializers.CharField(source="tenant.slug", default=None, allow_null=True)
    tenant_id = serializers.UUIDField(allow_null=True)
    team_id = serializers.UUIDField(allow_null=True)
    member_id = serializers.UUIDField(allow_null=True)
    key_id = serializers.UUIDField(allow_null=True)
    limit = serializers.IntegerField(allow_null=True, help_text="Null: no limit, only counted.")


class NewLimitSerializer(serializers.Serializer):
    """What any limit says: whose calls, and how much. A team, member or key implies its tenant."""

    scope = serializers.ChoiceField(Scope.choices)
    tenant = TenantField(required=False, allow_null=True, help_text="Slug.")
    team = OwnField(Team, required=False, allow_null=True)
    member = OwnField(Member, required=False, allow_null=True)
    key = OwnField(ApiKey, required=False, allow_null=True)
    model = serializers.CharField(required=False, allow_blank=True, max_length=200)
    upstream = serializers.CharField(required=False, allow_blank=True, max_length=80)
    limit = serializers.IntegerField(
        min_value=0, max_value=LARGEST, allow_null=True, help_text="Null: no limit, only counted."
    )
    shadow = serializers.BooleanField(required=False, help_text="Counts and reports, never refuses.")


class BudgetSerializer(WhoseSerializer):
    """A budget. Where ``unit`` is ``micro_usd``, ``limit_usd`` has the limit in dollars besides."""

    period = serializers.CharField(source="length", help_text="Such as day, month or 90m.")
    limit_usd = serializers.SerializerMethodField()
    thresholds = serializers.ListField(child=serializers.IntegerField(min_value=1, max_value=100))

    class Meta:
        model = Budget
        fields = [
            *WHOSE, "unit", "period", "shadow", "limit", "limit_usd", "thresholds", "created_at", "in_force",
        ]  # fmt: skip

    def get_limit_usd(self, budget: Budget) -> str | None:
        return as_usd(budget.limit) if budget.unit == Unit.MICRO_USD and budget.limit is not None else None


class NewBudgetSerializer(NewLimitSerializer):
    unit = serializers.ChoiceField(Unit.choices)
    period = serializers.CharField(max_length=20, help_text="hour, day, week, month, year, lifetime, or 90m.")
    thresholds = serializers.ListField(
        child=serializers.IntegerField(min_value=1, max_value=100), required=False, max_length=100
    )


class PeriodSerializer(serializers.Serializer):
    """Another period, which begins when the present one ends. The limit is set by POST."""

    period = serializers.CharField(max_length=20, help_text="hour, day, week, month, year, lifetime, or 90m.")


class StandingSerializer(serializers.Serializer):
    """A budget in its present period. ``left`` is negative where the limit was lowered below what is used."""

    budget_id = serializers.UUIDField(source="budget.pk")
    starts_at = MomentField()
    ends_at = MomentField(allow_null=True, help_text="When it is whole again. Null: never.")
    limit = serializers.IntegerField(allow_null=True, help_text="Raises included.")
    used = serializers.IntegerField()
    held = serializers.IntegerField(help_text="What running calls may use of it yet.")
    left = serializers.IntegerField(allow_null=True)
    refused = serializers.IntegerField(help_text="Calls that it refused, or in shadow mode would have.")
    empty_at = MomentField(allow_null=True, help_text="When it is empty if it goes on so.")


class RaiseSerializer(serializers.ModelSerializer):
    """More of a budget or a rate limit until a moment: ``to`` so much, or ``by`` so much."""

    budget_id = serializers.UUIDField(allow_null=True, help_text="Null: it is one of a rate limit.")
    rate_limit_id = serializers.UUIDField(allow_null=True, help_text="Null: it is one of a budget.")

    class Meta:
        model = LimitRaise
        fields = [
            "id", "budget_id", "rate_limit_id", "to", "by", "starts_at", "ends_at", "reason", "granted_by",
            "granted_at", "taken_back_at",
        ]  # fmt: skip


class NewRaiseSerializer(serializers.Serializer):
    """One of ``to`` and ``by``."""

    to = serializers.IntegerField(min_value=0, max_value=LARGEST, required=False, allow_null=True)
    by = serializers.IntegerField(min_value=1, max_value=LARGEST, required=False, allow_null=True)
    starts_at = MomentField(required=False, allow_null=True, help_text="Left out: now.")
    ends_at = MomentField()
    reason = serializers.CharField()


RAISING = {"raise_limit": "budgets.add_limitraise", "take_back": "budgets.change_limitraise"}


class Raised(Managed):
    """Rows with a limit that can be raised until a moment."""

    @extend_schema(request=NewRaiseSerializer, responses={201: RaiseSerializer})
    @action(detail=True, methods=["post"], url_path="raises")
    def raise_limit(self, request: Request, pk: Any) -> Response:
        """Lift the limit until a moment."""
        row, said = self.get_object(), self.read(NewRaiseSerializer)
        raised = services.raise_limit(row=row, actor=self.actor, **said)
        return Response(RaiseSerializer(raised).data, status=201)

    @extend_schema(request=ReasonSerializer, responses=RaiseSerializer)
    @action(detail=True, methods=["post"], url_path="raises/<uuid:raise_id>/take-back")
    def take_back(self, request: Request, pk: Any, raise_id: Any) -> Response:
        """End a raise now."""
        row, said = self.get_object(), self.read(ReasonSerializer)
        raised = row.raises.filter(pk=raise_id).first()
        if raised is None:
            raise NotFound
        services.take_back_raise(raised=raised, actor=self.actor, reason=said["reason"])
        raised.refresh_from_db()
        return Response(RaiseSerializer(raised).data)


class BudgetViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Raised):
    """Budgets. POST sets one: a budget of the same scope, unit and period gets the new limit."""

    queryset = Budget.objects.select_related("tenant")
    serializer_class = BudgetSerializer
    scope = "budgets"
    needs = {
        "list": "budgets.view_budget",
        "retrieve": "budgets.view_budget",
        "standing": "budgets.view_budget",
        "create": ("budgets.add_budget", "budgets.change_budget"),
        "partial_update": "budgets.change_budget",
        "destroy": "budgets.delete_budget",
        **RAISING,
    }
    filters = {
        "tenant": "tenant__slug",
        "scope": "scope",
        "unit": "unit",
        "team": "team",
        "member": "member",
        "key": "key",
    }

    @extend_schema(request=NewBudgetSerializer, responses={201: BudgetSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.set_budget(**self.read(NewBudgetSerializer), actor=self.actor), 201)

    @extend_schema(request=PeriodSerializer, responses=BudgetSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        budget, said = self.get_object(), self.read(PeriodSerializer)
        return self.told(services.change_period(budget=budget, actor=self.actor, period=said["period"]))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_budget(budget=self.get_object(), actor=self.actor)
        return Response(status=204)

    @extend_schema(responses=StandingSerializer)
    @action(detail=True)
    def standing(self, request: Request, pk: Any) -> Response:
        """How a budget stands now. 503 while Redis cannot be asked."""
        [found] = standings([self.get_object()])
        return Response(StandingSerializer(found).data)


class RateLimitSerializer(WhoseSerializer):
    class Meta:
        model = RateLimit
        fields = [*WHOSE, "measure", "shadow", "limit", "created_at", "in_force"]


class NewRateLimitSerializer(NewLimitSerializer):
    measure = serializers.ChoiceField(Measure.choices)


class RateLimitViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Raised):
    """Rate limits. POST sets one: a rate limit of the same scope and measure gets the new number."""

    queryset = RateLimit.objects.select_related("tenant")
    serializer_class = RateLimitSerializer
    scope = "budgets"
    needs = {
        "list": "budgets.view_ratelimit",
        "retrieve": "budgets.view_ratelimit",
        "create": ("budgets.add_ratelimit", "budgets.change_ratelimit"),
        "destroy": "budgets.delete_ratelimit",
        **RAISING,
    }
    filters = {"tenant": "tenant__slug", "scope": "scope", "measure": "measure", "key": "key"}

    @extend_schema(request=NewRateLimitSerializer, responses={201: RateLimitSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.set_rate_limit(**self.read(NewRateLimitSerializer), actor=self.actor), 201)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_rate_limit(rate_limit=self.get_object(), actor=self.actor)
        return Response(status=204)
