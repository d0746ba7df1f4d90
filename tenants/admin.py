from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from audit.admin import AuditedAdmin, ServiceAdmin
from tenants import generations, services
from tenants.forms import WhichModelsForm
from tenants.models import Member, ServiceAccount, Team, Tenant, User

admin.site.unregister(Group)


class GroupForm(forms.ModelForm):
    class Meta:
        model = Group
        fields = ["name", "permissions"]
        help_texts: ClassVar = {"name": "What its operators do, such as Night shift."}


@admin.register(Group)
class GroupAdmin(AuditedAdmin, DjangoGroupAdmin):
    """Bundles of permissions for operators."""

    form = GroupForm

    def details_of(self, obj: Group) -> dict[str, Any]:
        return {"permissions": [str(permission) for permission in obj.permissions.all()]}


class PersonForm(UserChangeForm):
    class Meta(UserChangeForm.Meta):
        help_texts: ClassVar = {
            "first_name": "Such as Ada.",
            "last_name": "Such as Lovelace.",
            "email": "Where mails go, such as ada@example.org. An address belongs to one person.",
        }


@admin.register(User)
class UserAdmin(AuditedAdmin, DjangoUserAdmin):
    """People who sign in. They are made inactive, not deleted: the books name them."""

    form = PersonForm
    add_form = UserCreationForm
    # Unfold's own, which come first, are none: a form without a name.
    add_fieldsets = DjangoUserAdmin.add_fieldsets
    change_password_form = AdminPasswordChangeForm
    readonly_fields = ["last_login", "date_joined"]
    list_display = ["username", "email", "is_active", "is_staff", "is_superuser", "last_login"]
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    @transaction.atomic
    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002
        return super().user_change_password(request, id, form_url)

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        transaction.on_commit(generations.project_quietly)

    def details_of(self, obj: User) -> dict[str, Any]:
        return {
            "is_active": obj.is_active,
            "is_staff": obj.is_staff,
            "is_superuser": obj.is_superuser,
            "groups": [group.name for group in obj.groups.all()],
            "permissions": [str(permission) for permission in obj.user_permissions.all()],
        }


class TenantForm(WhichModelsForm):
    silence = "Nothing, unless a key says so itself"
    allow_all_when_silent = False


@admin.register(Tenant)
class TenantAdmin(ServiceAdmin):
    """Tenants are suspended (``keys.tenant_actions``), not deleted: the books name them."""

    form = TenantForm
    fields = [
        "slug",
        "name",
        "state",
        "time_zone",
        "language",
        "week_start",
        "may_call",
        "listed",
        "needs_second_factor",
        "max_key_days",
        "created_at",
    ]
    readonly_fields = ["state", "created_at"]
    list_display = ["slug", "name", "state", "time_zone", "allow_all_models", "created_at"]
    list_filter = ["state", "allow_all_models"]
    search_fields = ["slug", "name"]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Tenant, form: TenantForm, change: bool) -> None:
        actor = str(request.user)
        if not change:
            obj.pk = services.create_tenant(actor=actor, **form.settings()).pk
        elif changes := form.changes():
            services.change_tenant(tenant=obj, actor=actor, **changes)
            if {"time_zone", "week_start"} & changes.keys():
                self.message_user(
                    request,
                    "Each budget follows the new calendar from the end of its present period on, "
                    "and accounting days follow it from the end of the present one on.",
                )


class OnePerTenantAdmin(ServiceAdmin):
    """Settings of which a tenant has one row at most; it is changed, and never goes."""

    list_select_related = ["tenant"]
    search_fields = ["tenant__slug"]
    autocomplete_fields = ["tenant"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Team)
class TeamAdmin(ServiceAdmin):
    """Members of a tenant who share a budget."""

    list_display = ["name", "tenant"]
    list_select_related = ["tenant"]
    search_fields = ["name", "tenant__slug"]
    autocomplete_fields = ["tenant"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant"] if obj else []

    def save_model(self, request: HttpRequest, obj: Team, form: Any, change: bool) -> None:
        actor = str(request.user)
        if change:
            services.rename_team(team=obj, name=obj.name, actor=actor)
        else:
            obj.pk = services.create_team(tenant=obj.tenant, name=obj.name, actor=actor).pk

    def delete_model(self, request: HttpRequest, obj: Team) -> None:
        services.delete_team(team=obj, actor=str(request.user))


@admin.register(Member)
class MemberAdmin(ServiceAdmin):
    """A user's place in a tenant; of the team only those of the same tenant are taken."""

    list_display = ["user", "tenant", "team", "role"]
    list_select_related = ["user", "tenant", "team"]
    list_filter = ["role"]
    search_fields = ["user__username", "user__email", "tenant__slug"]
    autocomplete_fields = ["tenant", "user", "team"]
    # A whole selection would end at the first who is a last owner.
    actions = None

    def get_queryset(self, request: HttpRequest) -> QuerySet[Member]:
        # Also for menus of other pages, which show the member by user and tenant.
        return super().get_queryset(request).select_related("user", "tenant", "team")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "user"] if obj else []

    def save_model(self, request: HttpRequest, obj: Member, form: Any, change: bool) -> None:
        actor = str(request.user)
        if change:
            services.change_member(member=obj, role=obj.role, team=obj.team, actor=actor)
        else:
            obj.pk = services.add_member(
                tenant=obj.tenant, user=obj.user, role=obj.role, team=obj.team, actor=actor
            ).pk

    def get_deleted_objects(
        self, objs: Iterable[Member], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Keys protect a member in the database; the service revokes them and leaves them to the tenant."""
        gone = [f"{member}; their own keys are revoked" for member in objs]
        return gone, {"members": len(gone)}, set(), []

    def delete_model(self, request: HttpRequest, obj: Member) -> None:
        services.remove_member(member=obj, actor=str(request.user))


class ServiceAccountAdmin(ServiceAdmin):
    """Programs of tenants that have keys of their own. Closing one revokes its keys."""

    fields = ["tenant", "name", "team", "created_at", "closed_at"]
    list_display = ["name", "tenant", "team", "created_at", "closed_at"]
    list_select_related = ["tenant", "team"]
    list_filter = [("closed_at", admin.EmptyFieldListFilter)]
    search_fields = ["name", "tenant__slug"]
    autocomplete_fields = ["tenant", "team"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "created_at", "closed_at"] if obj else ["created_at", "closed_at"]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ServiceAccount, form: Any, change: bool) -> None:
        actor = str(request.user)
        if change:
            services.change_service_account(account=obj, name=obj.name, team=obj.team, actor=actor)
        else:
            obj.pk = services.create_service_account(
                tenant=obj.tenant, name=obj.name, team=obj.team, actor=actor
            ).pk
