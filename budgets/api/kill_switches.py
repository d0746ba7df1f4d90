"""Kill switches, under ``/manage/v1/kill-switches/``."""

from __future__ import annotations

from typing import Any, cast

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from budgets import services
from budgets.models import KillSwitch
from budgets.models.switches import KillSwitches
from keys.models import ApiKey
from tenants.api.fields import MomentField, OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed


class KillSwitchSerializer(WithForce, serializers.ModelSerializer):
    """A switch: what it stops, who armed it, until when, and who lifted it."""

    state = serializers.ChoiceField(["on", "lapsed", "lifted"], read_only=True)
    lifted_at = serializers.DateTimeField(
        source="lift.lifted_at", default=None, read_only=True, allow_null=True
    )
    lifted_by = serializers.CharField(source="lift.lifted_by", default=None, read_only=True, allow_null=True)
    lift_reason = serializers.CharField(source="lift.reason", default=None, read_only=True, allow_null=True)

    class Meta:
        model = KillSwitch
        fields = [
            "id", "scope", "tenant_id", "tenant", "key_id", "key", "model", "upstream", "state", "in_force",
            "reason", "message", "armed_by", "armed_at", "until", "lifted_by", "lifted_at", "lift_reason",
        ]  # fmt: skip


class LiftedSwitchSerializer(KillSwitchSerializer):
    lifted_now = serializers.BooleanField(help_text="False if it was lifted before.")

    class Meta(KillSwitchSerializer.Meta):
        fields = [*KillSwitchSerializer.Meta.fields, "lifted_now"]


def switch_as_json(switch: KillSwitch) -> dict[str, Any]:
    """A kill switch as programs see it."""
    return dict(KillSwitchSerializer(switch).data)


class ArmSerializer(serializers.Serializer):
    """What is to be stopped: a tenant by its slug, a key by its id."""

    scope = serializers.ChoiceField(["platform", "tenant", "key", "upstream", "model"])
    tenant = TenantField(required=False, allow_null=True, help_text="Slug.")
    key = OwnField(ApiKey, required=False, allow_null=True)
    model = serializers.CharField(required=False, allow_blank=True, max_length=350)
    upstream = serializers.CharField(required=False, allow_blank=True, max_length=80)
    reason = serializers.CharField(help_text="For operators and the audit.")
    message = serializers.CharField(
        required=False, allow_blank=True, max_length=200, help_text="What callers are told besides."
    )
    until = MomentField(required=False, help_text="When it lifts itself. Left out: in 7 days.")


class KillSwitchViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Kill switches. POST arms one, ``lift`` ends one; none is ever changed or deleted."""

    queryset = KillSwitch.objects.select_related("lift")
    serializer_class = KillSwitchSerializer
    scope = "switches"
    of_tenant = "tenant_id"
    lookup_value_converter = "int"
    needs = {
        "list": "budgets.view_killswitch",
        "retrieve": "budgets.view_killswitch",
        "create": "budgets.add_killswitch",
        "lift": "budgets.add_killswitchlift",
    }
    filters = {"tenant": "tenant", "scope": "scope"}

    def get_queryset(self) -> QuerySet[KillSwitch]:
        switches = cast("KillSwitches", super().get_queryset())
        return switches.on() if self.request.query_params.get("state") == "on" else switches

    @extend_schema(parameters=[OpenApiParameter("state", enum=["on"], description="Only those that are on.")])
    def list(self, request: Request) -> Response:
        return super().list(request)

    @extend_schema(request=ArmSerializer, responses={201: KillSwitchSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.arm_kill_switch(**self.read(ArmSerializer), actor=self.actor), 201)

    @extend_schema(request=ReasonSerializer, responses=LiftedSwitchSerializer)
    @action(detail=True, methods=["post"])
    def lift(self, request: Request, pk: Any) -> Response:
        """End a switch before its time."""
        switch, said = self.get_object(), self.read(ReasonSerializer)
        lifted_now = services.lift_kill_switch(switch=switch, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), lifted_now=lifted_now)
