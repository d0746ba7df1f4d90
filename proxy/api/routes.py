"""Upstreams and other names of models."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from proxy import services
from proxy.models import ModelAlias, Upstream
from tenants.api.fields import TenantField, WithForce
from tenants.api.managed import Managed


class UpstreamSerializer(WithForce, serializers.ModelSerializer):
    class Meta:
        model = Upstream
        fields = ["id", "name", "base_url", "enabled", "created_at", "in_force"]


class UpstreamSettingsSerializer(serializers.Serializer):
    """What may be changed of an upstream; what is left out stays."""

    base_url = serializers.CharField(max_length=255, required=False, help_text="http://10.0.0.5:11434")
    enabled = serializers.BooleanField(required=False, help_text="False: no new call is sent there.")


class NewUpstreamSerializer(UpstreamSettingsSerializer):
    name = serializers.CharField(max_length=63)
    base_url = serializers.CharField(max_length=255, help_text="http://10.0.0.5:11434")


class UpstreamViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Ollama servers that calls are sent to. The books keep the name of one that is deleted."""

    queryset = Upstream.objects.all()
    serializer_class = UpstreamSerializer
    scope = "routes"
    of_tenant = None
    needs = {
        "list": "proxy.view_upstream",
        "retrieve": "proxy.view_upstream",
        "create": "proxy.add_upstream",
        "partial_update": "proxy.change_upstream",
        "destroy": "proxy.delete_upstream",
    }
    platform_actions = frozenset({"create"})
    filters = {"name": "name"}

    @extend_schema(request=NewUpstreamSerializer, responses={201: UpstreamSerializer})
    def create(self, request: Request) -> Response:
        upstream = Upstream(**self.read(NewUpstreamSerializer))
        return self.told(services.save_upstream(upstream=upstream, actor=self.actor), 201)

    @extend_schema(request=UpstreamSettingsSerializer, responses=UpstreamSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        upstream = self.get_object()
        for name, value in self.read(UpstreamSettingsSerializer).items():
            setattr(upstream, name, value)
        return self.told(services.save_upstream(upstream=upstream, actor=self.actor))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_upstream(upstream=self.get_object(), actor=self.actor)
        return Response(status=204)


class AliasSerializer(WithForce, serializers.ModelSerializer):
    tenant = serializers.CharField(source="tenant.slug", default=None, allow_null=True)
    tenant_id = serializers.UUIDField(allow_null=True)

    class Meta:
        model = ModelAlias
        fields = ["id", "tenant_id", "tenant", "alias", "model", "in_force"]


class AliasedSerializer(serializers.Serializer):
    model = serializers.CharField(max_length=350, help_text="The installed model: llama3.2:3b")


class NewAliasSerializer(AliasedSerializer):
    tenant = TenantField(required=False, allow_null=True, help_text="Slug. Left out: for every tenant.")
    alias = serializers.CharField(max_length=350, help_text="The name that callers use: default:latest")


class AliasViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Other names of installed models, for one tenant or for all."""

    queryset = ModelAlias.objects.select_related("tenant")
    serializer_class = AliasSerializer
    scope = "routes"
    needs = {
        "list": "proxy.view_modelalias",
        "retrieve": "proxy.view_modelalias",
        "create": "proxy.add_modelalias",
        "partial_update": "proxy.change_modelalias",
        "destroy": "proxy.delete_modelalias",
    }
    filters = {"tenant": "tenant__slug", "alias": "alias", "model": "model"}

    @extend_schema(request=NewAliasSerializer, responses={201: AliasSerializer})
    def create(self, request: Request) -> Response:
        alias = ModelAlias(**self.read(NewAliasSerializer))
        return self.told(services.save_alias(alias=alias, actor=self.actor), 201)

    @extend_schema(request=AliasedSerializer, responses=AliasSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        alias = self.get_object()
        alias.model = self.read(AliasedSerializer)["model"]
        return self.told(services.save_alias(alias=alias, actor=self.actor))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_alias(alias=self.get_object(), actor=self.actor)
        return Response(status=204)
