"""Kill switches, under ``/manage/v1/kill-switches/``."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from rest_framework import mixins, serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from budgets import services
from budgets.api.operators import OperatorsOnly, Page
from budgets.models import KillSwitch
from keys.models import ApiKey
from tenants import generations
from tenants.models import Tenant


class KillSwitchSerializer(serializers.ModelSerializer):
    """A switch. ``in_force`` false: it is saved, and not every process obeys it yet."""

    state = serializers.CharField(read_only=True)
    in_force = serializers.SerializerMethodField()
    lifted_at = serializers.DateTimeField(source="lift.lifted_at", default=None, read_only=True)
    lifted_by = serializers.CharField(source="lift.lifted_by", default=None, read_only=True)
    lift_reason = serializers.CharField(source="lift.reason", default=None, read_only=True)

    class Meta:
        model = KillSwitch
        fields = [
            "id", "scope", "tenant_id", "tenant", "key_id", "key", "model", "upstream", "state", "in_force",
            "reason", "message", "armed_by", "armed_at", "until", "lifted_by", "lifted_at", "lift_reason",
        ]  # fmt: skip

    def get_in_force(self, switch: KillSwitch) -> bool:
        return generations.in_force(switch.tenant_id)


def switch_as_json(switch: KillSwitch) -> dict[str, Any]:
    """A kill switch as programs see it."""
    return dict(KillSwitchSerializer(switch).data)


class ArmSerializer(serializers.Serializer):
    """What is to be stopped: a tenant by its slug, a key by its id."""

    scope = serializers.ChoiceField(["platform", "tenant", "key", "upstream", "model"])
    tenant = serializers.SlugRelatedField(
        slug_field="slug", queryset=Tenant.objects.all(), required=False, allow_null=True
    )
    key = serializers.PrimaryKeyRelatedField(
        queryset=ApiKey.objects.select_related("tenant"), required=False, allow_null=True
    )
    model = serializers.CharField(required=False, allow_blank=True)
    upstream = serializers.CharField(required=False, allow_blank=True)
    reason = serializers.CharField()
    message = serializers.CharField(required=False, allow_blank=True)
    until = serializers.DateTimeField(required=False, allow_null=True)


class WhySerializer(serializers.Serializer):
    reason = serializers.CharField()


class KillSwitchViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet):
    """Kill switches, the newest first; ``?state=on`` for those that are on. POST arms, ``lift`` ends one."""

    authentication_classes = [SessionAuthentication]
    permission_classes = [OperatorsOnly]
    pagination_class = Page
    serializer_class = KillSwitchSerializer
    needs = {
        "list": "budgets.view_killswitch",
        "retrieve": "budgets.view_killswitch",
        "create": "budgets.add_killswitch",
        "lift": "budgets.add_killswitchlift",
    }

    def get_queryset(self) -> QuerySet[KillSwitch]:
        switches = KillSwitch.objects.select_related("lift").all()
        return switches.on() if self.request.query_params.get("state") == "on" else switches

    def create(self, request: Request) -> Response:
        asked = ArmSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        switch = services.arm_kill_switch(**asked.validated_data, actor=str(request.user))
        return Response(switch_as_json(switch), status=201)

    @action(detail=True, methods=["post"])
    def lift(self, request: Request, pk: str) -> Response:
        asked = WhySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        switch = self.get_object()
        lifted_now = services.lift_kill_switch(
            switch=switch, actor=str(request.user), reason=asked.validated_data["reason"]
        )
        return Response({**switch_as_json(self.get_object()), "lifted_now": lifted_now})
