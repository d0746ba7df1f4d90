"""Calls that run now, under ``/manage/v1/running-calls/``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rest_framework import serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from budgets import services
from budgets.api.operators import OperatorsOnly, Page
from budgets.models import RunningCall
from budgets.running_calls import running_call, running_calls
from keys.models import ApiKey
from tenants.models import Tenant


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
