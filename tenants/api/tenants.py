"""Tenants, their teams and members."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import ProtectedError
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response

from tenants import services
from tenants.api.fields import OwnField, ReasonSerializer, TenantField, WithForce
from tenants.api.managed import Managed
from tenants.models import Member, Team, Tenant, User


class StillUsed(APIException):
    status_code = 409
    default_detail = "Something still belongs to it."


class TenantSerializer(WithForce, serializers.ModelSerializer):
    """A tenant. Keys that say nothing themselves may call what ``allow_all_models`` and ``models`` say."""

    class Meta:
        model = Tenant
        fields = [
            "id", "slug", "name", "state", "time_zone", "language", "week_start", "allow_all_models",
            "models", "needs_second_factor", "max_key_days", "created_at", "in_force",
        ]  # fmt: skip

    def subject(self, row: Tenant) -> UUID:
        return row.pk


class ChangedTenantSerializer(TenantSerializer):
    changed_now = serializers.BooleanField(help_text="False if it was so before.")

    class Meta(TenantSerializer.Meta):
        fields = [*TenantSerializer.Meta.fields, "changed_now"]


class TenantSettingsSerializer(serializers.Serializer):
    """What may be changed of a tenant; what is left out stays."""

    name = serializers.CharField(max_length=200, required=False)
    time_zone = serializers.CharField(max_length=64, required=False, help_text="Such as Europe/Berlin.")
    language = serializers.ChoiceField(
        choices=settings.LANGUAGES,
        required=False,
        allow_blank=True,
        help_text="Of mails to those who have chosen none. Empty: English.",
    )
    week_start = serializers.IntegerField(
        min_value=1, max_value=7, required=False, help_text="1 is Monday, 7 is Sunday."
    )
    allow_all_models = serializers.BooleanField(required=False)
    models = serializers.ListField(
        child=serializers.CharField(max_length=350), required=False, allow_null=True, max_length=1000
    )
    needs_second_factor = serializers.BooleanField(required=False)
    max_key_days = serializers.IntegerField(
        min_value=1,
        max_value=32767,
        required=False,
        allow_null=True,
        help_text="For how many days a secret of its keys works at most. Null: for ever.",
    )


class NewTenantSerializer(TenantSettingsSerializer):
    slug = serializers.CharField(max_length=50)
    name = serializers.CharField(max_length=200)


class TenantViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Tenants. They are never deleted: ``suspend`` refuses all keys of one until ``resume``."""

    queryset = Tenant.objects.all()
    serializer_class = TenantSerializer
    scope = "tenants"
    of_tenant = "pk"
    subject_field = "id"
    needs = {
        "list": "tenants.view_tenant",
        "retrieve": "tenants.view_tenant",
        "create": "tenants.add_tenant",
        "partial_update": "tenants.change_tenant",
        "suspend": "tenants.change_tenant",
        "resume": "tenants.change_tenant",
    }
    platform_actions = frozenset({"create", "suspend", "resume"})
    filters = {"slug": "slug", "state": "state"}

    @extend_schema(request=NewTenantSerializer, responses={201: TenantSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.create_tenant(**self.read(NewTenantSerializer), actor=self.actor), 201)

    @extend_schema(request=TenantSettingsSerializer, responses=TenantSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        tenant, changes = self.get_object(), self.read(TenantSettingsSerializer)
        return self.told(services.change_tenant(tenant=tenant, actor=self.actor, **changes))

    @extend_schema(request=ReasonSerializer, responses=ChangedTenantSerializer)
    @action(detail=True, methods=["post"])
    def suspend(self, request: Request, pk: Any) -> Response:
        tenant, said = self.get_object(), self.read(ReasonSerializer)
        changed = services.suspend_tenant(tenant=tenant, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), changed_now=changed)

    @extend_schema(request=ReasonSerializer, responses=ChangedTenantSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: Any) -> Response:
        tenant, said = self.get_object(), self.read(ReasonSerializer)
        changed = services.resume_tenant(tenant=tenant, actor=self.actor, reason=said["reason"])
        return self.told(self.get_object(), changed_now=changed)


class TeamSerializer(WithForce, serializers.ModelSerializer):
    tenant = serializers.CharField(source="tenant.slug")

    class Meta:
        model = Team
        fields = ["id", "tenant_id", "tenant", "name", "in_force"]


class TeamNameSerializer(serializers.Serializer):
    name = serializers.CharField(max_length=80)


class NewTeamSerializer(TeamNameSerializer):
    tenant = TenantField(help_text="Slug. A key of one tenant may leave it out.")


class TeamViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Teams. One is deleted once nobody and nothing belongs to it."""

    queryset = Team.objects.select_related("tenant")
    serializer_class = TeamSerializer
    scope = "tenants"
    needs = {
        "list": "tenants.view_team",
        "retrieve": "tenants.view_team",
        "create": "tenants.add_team",
        "partial_update": "tenants.change_team",
        "destroy": "tenants.delete_team",
    }

    @extend_schema(request=NewTeamSerializer, responses={201: TeamSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.create_team(**self.read(NewTeamSerializer), actor=self.actor), 201)

    @extend_schema(request=TeamNameSerializer, responses=TeamSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        team, said = self.get_object(), self.read(TeamNameSerializer)
        return self.told(services.rename_team(team=team, name=said["name"], actor=self.actor))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        try:
            services.delete_team(team=self.get_object(), actor=self.actor)
        except ProtectedError as exc:
            raise StillUsed from exc
        return Response(status=204)


class MemberSerializer(WithForce, serializers.ModelSerializer):
    tenant = serializers.CharField(source="tenant.slug")
    username = serializers.CharField(source="user.username")
    email = serializers.CharField(source="user.email")
    team_id = serializers.UUIDField(allow_null=True)

    class Meta:
        model = Member
        fields = ["id", "tenant_id", "tenant", "username", "email", "role", "team_id", "in_force"]


class MemberSettingsSerializer(serializers.Serializer):
    """The role and the team of a member; what is left out stays."""

    role = serializers.ChoiceField(Member.Role.choices, required=False)
    team = OwnField(Team, required=False, allow_null=True)


class NewMemberSerializer(MemberSettingsSerializer):
    tenant = TenantField(help_text="Slug.")
    user = serializers.SlugRelatedField(
        slug_field="username", queryset=User.objects.all(), help_text="Name of a person who is there already."
    )


class MemberViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """Members of tenants. Who is not there yet is added in the admin first, or signs in from outside."""

    queryset = Member.objects.select_related("tenant", "user", "team")
    serializer_class = MemberSerializer
    scope = "tenants"
    needs = {
        "list": "tenants.view_member",
        "retrieve": "tenants.view_member",
        "create": "tenants.add_member",
        "partial_update": "tenants.change_member",
        "destroy": "tenants.delete_member",
    }
    # It would tell one tenant who else is here.
    platform_actions = frozenset({"create"})
    filters = {"tenant": "tenant__slug", "team": "team", "role": "role"}

    @extend_schema(request=NewMemberSerializer, responses={201: MemberSerializer})
    def create(self, request: Request) -> Response:
        return self.told(services.add_member(**self.read(NewMemberSerializer), actor=self.actor), 201)

    @extend_schema(request=MemberSettingsSerializer, responses=MemberSerializer)
    def partial_update(self, request: Request, pk: Any) -> Response:
        member, said = self.get_object(), self.read(MemberSettingsSerializer)
        settings = {"role": member.role, "team": member.team} | said
        services.change_member(member=member, actor=self.actor, **settings)
        return self.told(self.get_object())

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: Any) -> Response:
        services.remove_member(member=self.get_object(), actor=self.actor)
        return Response(status=204)
