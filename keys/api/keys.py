"""Keys for calls, under ``/manage/v1/keys/``."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from keys import services
from keys.models import ApiKey
from tenants.api.fields import MomentField, OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed
from tenants.models import Member


class KeySerializer(WithForce, serializers.ModelSerializer):
    """A key for calls; ``public_ids`` are the 12 characters behind ``tg_`` of its secrets.

    Of ``allow_all_models`` and ``models`` null means: as the tenant says.
    """

    tenant = serializers.CharField(source="tenant.slug")
    member_id = serializers.UUIDField(allow_null=True)
    public_ids = serializers.SerializerMethodField()

    class Meta:
        model = ApiKey
        fields = [
            "id", "tenant_id", "tenant", "member_id", "label", "kind", "public_ids", "allow_all_models",
            "models", "created_at", "expires_at", "revoked_at", "revoked_reason", "in_force",
        ]  # fmt: skip

    def get_public_ids(self, key: ApiKey) -> list[str]:
        return [secret.public_id for secret in key.secrets.all()]


class IssuedKeySerializer(KeySerializer):
    """A key with its ``secret``, which is shown this once."""

    secret = serializers.CharField()

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "secret"]


class RevokedKeySerializer(KeySerializer):
    revoked_now = serializers.BooleanField(help_text="False if it was revoked before.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "revoked_now"]


class KeySettingsSerializer(serializers.Serializer):
    """What may be changed of a key; what is left out stays."""

    label = serializers.CharField(max_length=80, required=False)
    expires_at = MomentField(required=False, allow_null=True)
    allow_all_models = serializers.BooleanField(required=False, allow_null=True)
    models = serializers.ListField(
        child=serializers.CharField(max_length=350), required=False, allow_null=True, max_length=1000
    )


class NewKeySerializer(KeySettingsSerializer):
    tenant = TenantField(help_text="Slug. A key of one tenant may leave it out.", required=False)
    member = OwnField(Member, required=False, allow_null=True)
    label = serializers.CharField(max_length=80)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "tenant" not in attrs:
            raise serializers.ValidationError({"tenant": ["This field is required."]})
        return attrs


class KeyViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Keys for calls. POST issues one and shows its secret, this once; ``revoke`` ends one for good."""

    queryset = ApiKey.objects.select_related("tenant").prefetch_related("secrets")
    serializer_class = KeySerializer
    scope = "keys"
    needs = {
        "list": "keys.view_apikey",
        "retrieve": "keys.view_apikey",
        "create": "keys.add_apikey",
        "partial_update": "keys.change_apikey",
        "revoke": "keys.change_apikey",
    }
    filters = {"tenant": "tenant__slug", "member": "member", "label": "label"}
    showing_secrets = frozenset({"create"})

    @extend_schema(request=NewKeySerializer, responses={201: IssuedKeySerializer})
    def create(self, request: Request) -> Response:
        key, secret = services.issue_key(**self.read(NewKeySerializer), actor=self.actor)
        return self.told(key, 201, secret=secret)

    @extend_schema(request=KeySettingsSerializer, responses=KeySerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        key = self.get_object()
        if key.kind != ApiKey.Kind.SECRET:
            raise serializers.ValidationError("What visitors may call is told by the anonymous access.")
        services.change_key(key=key, actor=self.actor, **self.read(KeySettingsSerializer))
        return self.told(self.get_object())

    @extend_schema(request=ReasonSerializer, responses=RevokedKeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(ReasonSerializer)
        revoked_now = services.revoke_key(key=key, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), revoked_now=revoked_now)
