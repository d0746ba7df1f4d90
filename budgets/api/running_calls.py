"""Calls that run now, under ``/manage/v1/running-calls/``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from budgets import services
from budgets.models import RunningCall
from budgets.running_calls import running_call, running_calls
from keys.models import ApiKey
from tenants.api.fields import OwnField, TenantField
from tenants.api.managed import Managed
from tenants.api.paging import MOST, USUAL
from tenants.api.programs import tenant_of
from tenants.models import Tenant


class RunningCallSerializer(serializers.ModelSerializer):
    """A running call as far as its last heartbeat has told."""

    class Meta:
        model = RunningCall
        fields = [
            "request_id", "tenant_id", "tenant", "key_id", "key", "member", "model", "upstream", "route",
            "stream", "admitted_at", "output_tokens", "output_cap", "started", "stopping", "client",
            "held_tokens", "held_micro_usd",
        ]  # fmt: skip


def call_as_json(call: RunningCall) -> dict[str, Any]:
    """A running call as programs see it."""
    return dict(RunningCallSerializer(call).data)


class WhoseSerializer(serializers.Serializer):
    """Whose calls: of a tenant (slug), of a key (id), or everybody's."""

    tenant = TenantField(required=False, help_text="Slug.")
    key = OwnField(ApiKey, required=False)

    def calls(self) -> list[RunningCall]:
        own = tenant_of(self.context["request"].user)
        tenant: Tenant | None = self.validated_data.get("tenant") or own
        key: ApiKey | None = self.validated_data.get("key")
        return list(running_calls(tenant_id=tenant.pk if tenant else None, key_id=key.pk if key else None))


class ListSerializer(WhoseSerializer):
    """Which page of them."""

    page_size = serializers.IntegerField(min_value=1, max_value=MOST, default=USUAL)
    cursor = serializers.RegexField(r"^\d{1,16}\.[0-9a-f]{32}\Z", required=False)


class StopSerializer(WhoseSerializer):
    """Which calls end; ``all`` has to be said when it is everybody's."""

    all = serializers.BooleanField(default=False)
    reason = serializers.CharField(help_text="Why, for the audit.")
    message = serializers.CharField(
        default="", allow_blank=True, max_length=200, help_text="What callers are told besides."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if sum(map(bool, (attrs["all"], attrs.get("tenant"), attrs.get("key")))) != 1:
            raise serializers.ValidationError("Say one of tenant, key, and all: true.")
        return attrs


class StopOneSerializer(serializers.Serializer):
    reason = serializers.CharField(help_text="Why, for the audit.")
    message = serializers.CharField(
        default="", allow_blank=True, max_length=200, help_text="What its caller is told besides."
    )


class StoppedSerializer(serializers.Serializer):
    """The calls that end, by their request ids; others had ended by themselves."""

    stopped = serializers.ListField(child=serializers.UUIDField())


class RunningCallViewSet(Managed):
    """Calls that run now, on all processes, the oldest first. ``stop`` ends one, or those of somebody."""

    serializer_class = RunningCallSerializer
    scope = "calls"
    needs = {
        "list": "budgets.view_runningcall",
        "stop": "budgets.stop_runningcall",
        "stop_several": "budgets.stop_runningcall",
    }
    # They lie in Redis, where nothing is looked up by these.
    filters = {}

    @extend_schema(
        parameters=[
            OpenApiParameter("tenant", description="Slug."),
            OpenApiParameter("key", OpenApiTypes.UUID),
        ]
    )
    def list(self, request: Request) -> Response:
        """Calls that run now, the oldest first."""
        asked = ListSerializer(data=request.query_params.dict(), context=self.get_serializer_context())
        asked.is_valid(raise_exception=True)
        size, after = asked.validated_data["page_size"], asked.validated_data.get("cursor")
        calls = sorted(asked.calls(), key=_place)
        page = [call for call in calls if after is None or _place(call) > _place_in(after)][: size + 1]
        following = None
        if len(page) > size:
            page = page[:size]
            here = request.build_absolute_uri()
            following = replace_query_param(here, "cursor", _cursor(page[-1]))
        return Response(
            {"next": following, "previous": None, "results": [call_as_json(call) for call in page]}
        )

    @extend_schema(request=StopOneSerializer, responses=StoppedSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: Any) -> Response:
        """End one call."""
        said, own, call = self.read(StopOneSerializer), tenant_of(request.user), running_call(pk)
        if call is not None and own is not None and call.tenant_id != own.pk:
            call = None
        stopped = self._stop(() if call is None else (call,), said)
        if not stopped:
            raise NotFound("No such call is running.")
        return self._told(stopped)

    @extend_schema(request=StopSerializer, responses=StoppedSerializer)
    @action(detail=False, methods=["post"], url_path="stop")
    def stop_several(self, request: Request) -> Response:
        """End the calls of a tenant, of a key, or all."""
        asked = StopSerializer(data=request.data, context=self.get_serializer_context())
        asked.is_valid(raise_exception=True)
        return self._told(self._stop(asked.calls(), asked.validated_data))

    def _stop(self, calls: Iterable[RunningCall], said: dict[str, Any]) -> Sequence[RunningCall]:
        return services.stop_calls(
            calls=calls, actor=self.actor, reason=said["reason"], message=said["message"]
        )

    def _told(self, stopped: Iterable[RunningCall]) -> Response:
        return Response({"stopped": [str(call.request_id) for call in stopped]})


def _place(call: RunningCall) -> tuple[int, str]:
    """A call's place in the list: the millisecond of its admission; of one millisecond, by request id."""
    return round(call.admitted_at.timestamp() * 1000), call.request_id.hex


def _cursor(call: RunningCall) -> str:
    """The place of a call, which has perhaps ended when the page after it is asked for."""
    return "{}.{}".format(*_place(call))


def _place_in(cursor: str) -> tuple[int, str]:
    milliseconds, _, request_id = cursor.partition(".")
    return int(milliseconds), request_id
