"""What operators' programs may ask and do: kill switches and running calls, under ``/manage/v1/``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet
from rest_framework import mixins, serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.pagination import LimitOffsetPagination
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ViewSet

from budgets import services
from budgets.models import KillSwitch, RunningCall
from budgets.running_calls import running_call, running_calls
from keys.models import ApiKey
from tenants import generations
from tenants.models import Tenant


class OperatorsOnly(BasePermission):
    """People of the staff who may do in the admin what the view is about.

    The view's ``needs`` names the permission of each of its actions.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        user = request.user
        # An action that there is not is told as such, not as forbidden.
        needed = view.needs.get(view.action)
        return bool(user.is_staff and (needed is None or user.has_perm(needed)))


class Page(LimitOffsetPagination):
    default_limit = 100
    max_limit = 1000


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


class RunningCallSerializer(serializers.ModelSerializer):
    class Meta:
        model = RunningCall
        fields = [
            "request_id", "tenant_id", "tenant", "key_id", "key", "member", "model", "upstream", "route",
            "stream", "admitted_at", "output_tokens", "output_cap", "started", "stopping",
        ]  # fmt: skip


def call_as_json(call: RunningCall) -> dict[str, Any]:
    """A running call as programs see it."""
    return dict(RunningCallSerializer(call).data)


class WhoseSerializer(serializers.Serializer):
    """Whose calls: of a tenant (slug), of a key (id), or everybody's."""

    tenant = serializers.SlugRelatedField(slug_field="slug", queryset=Tenant.objects.all(), required=False)
    key = serializers.PrimaryKeyRelatedField(queryset=ApiKey.objects.all(), required=False)

    def calls(self) -> list[RunningCall]:
        tenant, key = self.validated_data.get("tenant"), self.validated_data.get("key")
        return list(running_calls(tenant_id=tenant and tenant.pk, key_id=key and key.pk))


class StopSerializer(WhoseSerializer):
    """Which calls end; ``all`` has to be said when it is everybody's."""

    all = serializers.BooleanField(default=False)
    reason = serializers.CharField()
    message = serializers.CharField(default="", allow_blank=True, max_length=200)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if sum(map(bool, (attrs["all"], attrs.get("tenant"), attrs.get("key")))) != 1:
            raise serializers.ValidationError("Say one of tenant, key, and all: true.")
        return attrs


class StopOneSerializer(serializers.Serializer):
    reason = serializers.CharField()
    message = serializers.CharField(default="", allow_blank=True, max_length=200)


class RunningCallViewSet(ViewSet):
    """Calls that run now, on all processes, the oldest first. ``stop`` ends one, or those of somebody."""

    authentication_classes = [SessionAuthentication]
    permission_classes = [OperatorsOnly]
    lookup_value_converter = "uuid"
    needs = {
        "list": "budgets.view_runningcall",
        "stop": "budgets.stop_runningcall",
        "stop_several": "budgets.stop_runningcall",
    }

    def list(self, request: Request) -> Response:
        whose = WhoseSerializer(data=request.query_params)
        whose.is_valid(raise_exception=True)
        calls = sorted(whose.calls(), key=lambda call: call.admitted_at)
        return Response(
            {"count": len(calls), "results": [call_as_json(call) for call in calls[: Page.max_limit]]}
        )

    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: Any) -> Response:
        asked = StopOneSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        call = running_call(pk)
        return self._stop(request, () if call is None else (call,), asked)

    @action(detail=False, methods=["post"], url_path="stop")
    def stop_several(self, request: Request) -> Response:
        asked = StopSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return self._stop(request, asked.calls(), asked)

    def _stop(
        self, request: Request, calls: Iterable[RunningCall], asked: serializers.Serializer
    ) -> Response:
        stopped = services.stop_calls(
            calls=calls,
            actor=str(request.user),
            reason=asked.validated_data["reason"],
            message=asked.validated_data["message"],
        )
        if self.action == "stop" and not stopped:
            raise NotFound("No such call is running.")
        return Response({"stopped": [str(call.request_id) for call in stopped]})
