"""Service accounts, under ``/manage/v1/service-accounts/``."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from tenants import services
from tenants.api.fields import OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed
from tenants.models import ServiceAccount, Team


class ServiceAccountSerializer(WithForce, serializers.ModelSerializer):
    """A program of a tenant that has keys of its own."""

    tenant = serializers.CharField(source="tenant.slug")
    team_id = serializers.UUIDField(allow_null=True)

    class Meta:
        model = ServiceAccount
        fields = ["id", "tenant_id", "tenant", "name", "team_id", "created_at", "closed_at", "in_force"]


class ClosedServiceAccountSerializer(ServiceAccountSerializer):
    closed_now = serializers.BooleanField(help_text="False if it was closed before.")
    revoked_keys = serializers.IntegerField(help_text="How many keys were revoked by that.")

    class Meta(ServiceAccountSerializer.Meta):
        fields = [*ServiceAccountSerializer.Meta.fields, "closed_now", "revoked_keys"]


class ServiceAccountSettingsSerializer(serializers.Serializer):
    """What may be changed of a service account; what is left out stays."""

    name = serializers.CharField(max_length=80, required=False)
    team = OwnField(Team, required=False, allow_null=True)


class NewServiceAccountSerializer(ServiceAccountSettingsSerializer):
    tenant = TenantField(help_text="Slug. A key of one tenant may leave it out.")
    name = serializers.CharField(max_length=80)


class ServiceAccountViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Service accounts. ``close`` ends one for good and revokes its keys; its name may be used again."""

    queryset = ServiceAccount.objects.select_related("tenant", "team")
    serializer_class = ServiceAccountSerializer
    scope = "tenants"
    needs = {
        "list": "tenants.view_serviceaccount",
        "retrieve": "tenants.view_serviceaccount",
        "create": "tenants.add_serviceaccount",
        "partial_update": "tenants.change_serviceaccount",
        "close": "tenants.change_serviceaccount",
    }
    filters = {"tenant": "tenant__slug", "team": "team", "name": "name"}

    @extend_schema(request=NewServiceAccountSerializer, responses={201: ServiceAccountSerializer})
    def create(self, request: Request) -> Response:
        said = self.read(NewServiceAccountSerializer)
        return self.told(services.create_service_account(**said, actor=self.actor), 201)

    @extend_schema(request=ServiceAccountSettingsSerializer, responses=ServiceAccountSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        account, said = self.get_object(), self.read(ServiceAccountSettingsSerializer)
        settings = {"name": account.name, "team": account.team} | said
        return self.told(services.change_service_account(account=account, actor=self.actor, **settings))

    @extend_schema(request=ReasonSerializer, responses=ClosedServiceAccountSerializer)
    @action(detail=True, methods=["post"])
    def close(self, request: Request, pk: Any) -> Response:
        account, said = self.get_object(), self.read(ReasonSerializer)
        revoked = services.close_service_account(account=account, actor=self.actor, reason=said["reason"])
        closed_now = revoked is not None
        return self.told(self.get_object(), closed_now=closed_now, revoked_keys=revoked or 0)
