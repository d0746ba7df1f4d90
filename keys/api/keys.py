"""Keys for calls, under ``/manage/v1/keys/``."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from keys import services
from keys.above import above
from keys.callers import caller_of
from keys.effects import running_calls
from keys.endpoints import ENDPOINTS
from keys.lifetimes import Grace
from keys.models import ApiKey, KeySecret
from tenants.api.fields import MomentField, OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed
from tenants.models import Member, ServiceAccount


class SecretSerializer(serializers.ModelSerializer):
    """What is known of a secret, and when it was last used: noted once a minute at most, null for never.

    With ``retires_at`` it works until then, with ``retires_on_use`` until the newest is used, and else
    as long as the key. ``last_address_block`` is 24 bits of IPv4 or 48 of IPv6.
    """

    last_used_at = serializers.DateTimeField(source="use.used_at", allow_null=True, default=None)
    last_model = serializers.CharField(source="use.model", allow_null=True, default=None)
    last_address_block = serializers.CharField(source="use.address_block", allow_null=True, default=None)

    class Meta:
        model = KeySecret
        fields = [
            "public_id", "created_at", "retires_at", "retires_on_use", "last_used_at", "last_model",
            "last_address_block",
        ]  # fmt: skip


class KeySerializer(WithForce, serializers.ModelSerializer):
    """A key for calls, of a member, of a service account, or of the tenant itself.

    ``public_ids`` are the 12 characters behind ``tg_`` of its ``secrets``, the newest first. Of
    ``allow_all_models`` and ``models`` null means: as the tenant says. ``scopes`` null is every
    endpoint, ``address_blocks`` null anywhere.
    """

    tenant = serializers.CharField(source="tenant.slug")
    member_id = serializers.UUIDField(allow_null=True)
    service_account_id = serializers.UUIDField(allow_null=True)
    public_ids = serializers.SerializerMethodField()
    scopes = serializers.ListField(child=serializers.ChoiceField(ENDPOINTS), allow_null=True)
    address_blocks = serializers.ListField(child=serializers.CharField(), allow_null=True)
    secrets = SecretSerializer(many=True)

    class Meta:
        model = ApiKey
        fields = [
            "id", "tenant_id", "tenant", "member_id", "service_account_id", "label", "kind", "public_ids",
            "secrets", "allow_all_models", "models", "scopes", "address_blocks", "created_at", "expires_at",
            "disabled_at", "disabled_reason", "revoked_at", "revoked_reason", "in_force",
        ]  # fmt: skip

    def get_public_ids(self, key: ApiKey) -> list[str]:
        return [secret.public_id for secret in key.secrets.all()]


class IssuedKeySerializer(KeySerializer):
    """A key with its ``secret``, which is shown this once."""

    secret = serializers.CharField()

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "secret"]


RUNNING = "Calls that ran with it, which end within seconds. Null: Redis cannot be asked."


class RevokedKeySerializer(KeySerializer):
    revoked_now = serializers.BooleanField(help_text="False if it was revoked before.")
    running_calls = serializers.IntegerField(allow_null=True, help_text=RUNNING)

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "revoked_now", "running_calls"]


class DisabledKeySerializer(KeySerializer):
    changed_now = serializers.BooleanField(help_text="False if it was so before, or is revoked.")
    running_calls = serializers.IntegerField(allow_null=True, help_text=RUNNING)

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "changed_now", "running_calls"]


class EnabledKeySerializer(KeySerializer):
    changed_now = serializers.BooleanField(help_text="False if it was so before, or is revoked.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "changed_now"]


class EndedGraceSerializer(KeySerializer):
    ended_now = serializers.BooleanField(help_text="False if only the newest secret worked before.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "ended_now"]


class KeySettingsSerializer(serializers.Serializer):
    """What may be changed of a key; what is left out stays."""

    label = serializers.CharField(max_length=80, required=False)
    expires_at = MomentField(
        required=False,
        allow_null=True,
        help_text="Within the tenant's ``max_key_days`` of its newest secret.",
    )
    allow_all_models = serializers.BooleanField(required=False, allow_null=True)
    models = serializers.ListField(
        child=serializers.CharField(max_length=350), required=False, allow_null=True, max_length=1000
    )
    scopes = serializers.ListField(
        child=serializers.ChoiceField(ENDPOINTS),
        required=False,
        allow_null=True,
        min_length=1,
        max_length=len(ENDPOINTS),
        help_text="Endpoint scopes. Null: every endpoint.",
    )
    address_blocks = serializers.ListField(
        child=serializers.CharField(max_length=50),
        required=False,
        allow_null=True,
        min_length=1,
        max_length=100,
        help_text="Networks such as 192.0.2.0/24. Null: anywhere.",
    )


class NewKeySerializer(KeySettingsSerializer):
    tenant = TenantField(help_text="Slug. A key of one tenant may leave it out.", required=False)
    member = OwnField(Member, required=False, allow_null=True)
    service_account = OwnField(ServiceAccount, required=False, allow_null=True)
    label = serializers.CharField(max_length=80)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "tenant" not in attrs:
            raise serializers.ValidationError({"tenant": ["This field is required."]})
        return attrs


class RotationSerializer(serializers.Serializer):
    grace = serializers.ChoiceField(
        Grace.choices, help_text="For how long the secret before works beside the new one."
    )


class LimitAheadSerializer(serializers.Serializer):
    """A limit that refuses; ``left`` null where it comes back all the time or nobody knows."""

    name = serializers.CharField()
    scope = serializers.CharField()
    unit = serializers.CharField()
    window = serializers.CharField()
    model = serializers.CharField(help_text="Empty: calls to all models are counted.")
    upstream = serializers.CharField(help_text="Empty: calls to all upstreams are counted.")
    limit = serializers.IntegerField()
    used = serializers.IntegerField(allow_null=True)
    held = serializers.IntegerField(allow_null=True)
    left = serializers.IntegerField(allow_null=True)
    resets_at = serializers.DateTimeField(allow_null=True)
    empty_at = serializers.DateTimeField(allow_null=True, help_text="If it goes on like this.")


class PreviewSerializer(serializers.Serializer):
    """What the key may call now, and what will refuse it: the limit that refuses first in front.

    ``refused`` are the codes of refusals that every call would get now.
    """

    models = serializers.ListField(child=serializers.CharField())
    scopes = serializers.ListField(child=serializers.CharField())
    endpoints = serializers.ListField(child=serializers.CharField())
    address_blocks = serializers.ListField(child=serializers.CharField(), allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    refused = serializers.ListField(child=serializers.CharField())
    limits = LimitAheadSerializer(many=True)
    counted = serializers.BooleanField(help_text="False: Redis cannot be asked what is used.")


class KeyViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Keys for calls. POST issues one and shows its secret, this once.

    ``rotate`` gives one another secret, ``disable`` refuses one until ``enable``, and ``revoke`` ends one
    for good.
    """

    queryset = ApiKey.objects.select_related("tenant").prefetch_related("secrets__use")
    serializer_class = KeySerializer
    scope = "keys"
    needs = {
        "list": "keys.view_apikey",
        "retrieve": "keys.view_apikey",
        "create": "keys.add_apikey",
        "partial_update": "keys.change_apikey",
        "preview": "keys.view_apikey",
        **dict.fromkeys(("rotate", "end_grace", "disable", "enable", "revoke"), "keys.change_apikey"),
    }
    filters = {
        "tenant": "tenant__slug", "member": "member", "service_account": "service_account", "label": "label",
    }  # fmt: skip
    showing_secrets = frozenset({"create", "rotate"})

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

    @extend_schema(responses=PreviewSerializer)
    @action(detail=True, methods=["get"])
    def preview(self, request: Request, pk: Any) -> Response:
        return Response(PreviewSerializer(above.preview(caller_of(self.get_object()))).data)

    @extend_schema(request=RotationSerializer, responses=IssuedKeySerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(RotationSerializer)
        _, secret = services.rotate_key(key=key, actor=self.actor, grace=Grace(said["grace"]))
        return self.told(self.get_object(), secret=secret)

    @extend_schema(request=ReasonSerializer, responses=EndedGraceSerializer)
    @action(detail=True, methods=["post"], url_path="end-grace")
    def end_grace(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(ReasonSerializer)
        ended_now = services.end_grace(key=key, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), ended_now=ended_now)

    @extend_schema(request=ReasonSerializer, responses=DisabledKeySerializer)
    @action(detail=True, methods=["post"])
    def disable(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(ReasonSerializer)
        running = running_calls([key])
        changed_now = services.disable_key(key=key, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), changed_now=changed_now, running_calls=running)

    @extend_schema(request=ReasonSerializer, responses=EnabledKeySerializer)
    @action(detail=True, methods=["post"])
    def enable(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(ReasonSerializer)
        changed_now = services.enable_key(key=key, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), changed_now=changed_now)

    @extend_schema(request=ReasonSerializer, responses=RevokedKeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: Any) -> Response:
        key, said = self.get_object(), self.read(ReasonSerializer)
        running = running_calls([key])
        revoked_now = services.revoke_key(key=key, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), revoked_now=revoked_now, running_calls=running)
