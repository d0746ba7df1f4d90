from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import InlineModelAdmin
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.timezone import now
from unfold.admin import TabularInline
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from audit.admin import ReadOnlyAdmin, ServiceAdmin
from audit.models import LoggedPrompt
from audit.sealing import Unreadable
from keys import services
from keys.account_actions import ServiceAccountActions
from keys.admin_actions import KeyActions, ReasonForm
from keys.endpoints import DOORS
from keys.lifetimes import check_changeable
from keys.management_keys import works
from keys.models import AnonymousAccess, ApiKey, KeySecret, ManagementKey, PolicyRule, PromptRules
from keys.prompts import check_lifetime, find_prompt, read_prompt, set_prompt_rules
from keys.scopes import SCOPES
from keys.states import State, in_state
from tenants.admin import OnePerTenantAdmin
from tenants.forms import WhichModelsForm
from tenants.models import ServiceAccount, User

admin.site.register(ServiceAccount, ServiceAccountActions)

ANONYMOUS_LIMITS = ("visitor_tokens", "address_tokens", "address_streams", "check_after")


class KeyForm(WhichModelsForm):
    silence = "As the tenant says"
    allow_all_when_silent = None

    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {', '.join(doors)}") for scope, doors in DOORS.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        required=False,
        help_text="What it may ask for. None chosen: everything.",
    )

    def clean(self) -> dict[str, Any]:
        check_changeable(self.instance)
        return super().clean()

    def clean_scopes(self) -> list[str] | None:
        return self.cleaned_data["scopes"] or None

    def clean_address_blocks(self) -> list[str] | None:
        return self.cleaned_data["address_blocks"] or None

    def clean_prompt_log_days(self) -> int | None:
        days: int | None = self.cleaned_data["prompt_log_days"]
        if days != self.instance.prompt_log_days:
            try:
                check_lifetime(days)
            except ValidationError as exc:
                raise ValidationError(exc.messages) from exc
        return days


class StateFilter(admin.SimpleListFilter):
    """Keys that work, and those that no longer do."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [(state.value, state.value.capitalize()) for state in State]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        state = self.value()
        return queryset.filter(in_state(State(state), now())) if state in State.values else queryset


class ManagementStateFilter(StateFilter):
    """The same of management keys, which nobody disables."""

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        return [choice for choice in super().lookups(request, model_admin) if choice[0] != State.DISABLED]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case State.LIVE:
                return queryset.filter(works(now()))
            case State.EXPIRED:
                return queryset.filter(revoked_at=None, expires_at__lte=now())
            case State.REVOKED:
                return queryset.filter(revoked_at__isnull=False)
        return queryset


class SecretInline(TabularInline):
    """What is known of a key's secrets: never the secret, and no digest either."""

    model = KeySecret
    fields = ["public_id", "created_at", "retires_at", "retires_on_use", "last_used"]
    readonly_fields = ["public_id", "created_at", "retires_at", "retires_on_use", "last_used"]
    extra = 0
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[KeySecret]:
        return super().get_queryset(request).select_related("use")

    def last_used(self, secret: KeySecret) -> str:
        use = getattr(secret, "use", None)
        return (
            "never" if use is None else f"{use.used_at:%Y-%m-%d %H:%M} UTC by {use.address_block} {use.model}"
        )

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class IssuedOnce(ServiceAdmin):
    """Keys whose secret the page after the form shows, once; ``save_model`` leaves it at the request."""

    issued = "Key issued"

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": self.issued,
            "opts": self.opts,
            "key": obj,
            "secret": request.issued_secret,  # type: ignore[attr-defined]
        }
        return TemplateResponse(
            request, "admin/keys/apikey/issued.html", context, headers={"Cache-Control": "no-store"}
        )


@admin.register(ApiKey)
class ApiKeyAdmin(KeyActions, IssuedOnce):
    """Keys are issued, changed, rotated and ended here. A new secret is shown that one time."""

    form = KeyForm
    fields = [
        "tenant",
        "member",
        "service_account",
        "label",
        "may_call",
        "listed",
        "scopes",
        "address_blocks",
        "expires_at",
        "prompt_log_days",
        "created_at",
        "disabled_at",
        "disabled_reason",
        "revoked_at",
        "revoked_reason",
    ]
    list_display = [
        "label", "tenant", "member", "service_account", "created_at", "expires_at", "disabled_at",
        "revoked_at",
    ]  # fmt: skip
    list_select_related = ["tenant", "member__tenant", "member__user", "service_account"]
    list_filter = [StateFilter, "created_at", "expires_at"]
    search_fields = [
        "label__startswith",
        "secrets__public_id__exact",
        "tenant__slug__exact",
        "member__user__email",
        "service_account__name__startswith",
    ]
    search_help_text = (
        "Beginning of a label or service account, a public id (12 characters after tg_), a tenant, "
        "or an e-mail address"
    )
    autocomplete_fields = ["tenant", "member", "service_account"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        never = ["created_at", "disabled_at", "disabled_reason", "revoked_at", "revoked_reason"]
        return ["tenant", "member", "service_account", *never] if obj else never

    def get_inlines(self, request: HttpRequest, obj: Model | None) -> list[type[InlineModelAdmin]]:
        return [SecretInline] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """The key of visitors can only be revoked: the rest of it is told by their anonymous access."""
        by_hand = not isinstance(obj, ApiKey) or obj.kind != ApiKey.Kind.ANONYMOUS
        return by_hand and super().has_change_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: ApiKey, form: KeyForm, change: bool) -> None:
        actor = str(request.user)
        if not change:
            key, secret = services.issue_key(actor=actor, **form.settings())
            obj.pk = key.pk
            # From here to the page and nowhere else: neither session nor messages may hold it.
            request.issued_secret = secret  # type: ignore[attr-defined]
        elif changes := form.changes():
            services.change_key(key=obj, actor=actor, **changes)


class ManagementKeyForm(forms.ModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {what}") for scope, what in SCOPES.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What may be done with it; for a program that only reads, those that end in :read.",
    )

    class Meta:
        model = ManagementKey
        fields = ["label", "scopes", "tenant", "expires_at"]


@admin.register(ManagementKey)
class ManagementKeyAdmin(IssuedOnce):
    """Keys for the management API are issued and revoked here. Adding one shows its secret, that one time."""

    issued = "Management key issued"

    form = ManagementKeyForm
    chosen = ["label", "scopes", "tenant", "expires_at"]
    told = ["public_id", "created_at", "created_by", "last_used_at", "revoked_at", "revoked_reason"]
    list_display = ["label", "public_id", "tenant", "created_by", "expires_at", "last_used_at", "revoked_at"]
    list_select_related = ["tenant"]
    list_filter = [ManagementStateFilter]
    search_fields = ["label__startswith", "public_id__exact", "tenant__slug__exact"]
    autocomplete_fields = ["tenant"]
    actions = ["revoke"]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return [*self.chosen, *self.told] if obj else self.chosen

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        """What a key may do does not change: whoever wants another one issues another one."""
        return [*self.chosen, *self.told] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ManagementKey, form: Any, change: bool) -> None:
        if change:
            return
        key, secret = services.issue_management_key(actor=str(request.user), **form.cleaned_data)
        obj.pk = key.pk
        # From here to the page and nowhere else: neither session nor messages may hold it.
        request.issued_secret = secret  # type: ignore[attr-defined]

    @admin.action(description="Revoke selected management keys", permissions=["change"])
    def revoke(self, request: HttpRequest, keys: QuerySet[ManagementKey]) -> HttpResponse | None:
        """Ask why, beside who is cut off from what; once that is answered, do it."""
        chosen = list(keys.select_related("tenant"))
        form = ReasonForm(request.POST if "reason" in request.POST else None)
        if form.is_valid():
            actor, reason = str(request.user), form.cleaned_data["reason"]
            revoked = sum(
                services.revoke_management_key(key=key, actor=actor, reason=reason) for key in chosen
            )
            self.message_user(request, f"Revoked {revoked} of {len(chosen)} keys.", messages.SUCCESS)
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": f"Revoke {len(chosen)} management {'key' if len(chosen) == 1 else 'keys'}",
            "opts": self.opts,
            "keys": chosen,
            "working": list(keys.filter(works(now()))),
            "form": form,
            "checkbox": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/keys/managementkey/revoke.html", context)


@admin.register(PolicyRule)
class PolicyRuleAdmin(ServiceAdmin):
    """What clients may ask of Ollama, for everybody, a tenant or a key."""

    fields = ["tenant", "key", "option", "allowed", "minimum", "maximum", "default_value"]
    list_display = ["whose", "option", "allowed", "minimum", "maximum", "default_value"]
    list_select_related = ["tenant", "key"]
    list_filter = ["option"]
    search_fields = ["tenant__slug", "key__label"]
    autocomplete_fields = ["tenant", "key"]

    @admin.display(description="whose")
    def whose(self, obj: PolicyRule) -> str:
        return obj.whose

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "key", "option"] if obj else []

    def save_model(self, request: HttpRequest, obj: PolicyRule, form: Any, change: bool) -> None:
        says = {name: getattr(obj, name) for name in ("allowed", "minimum", "maximum", "default_value")}
        rule = services.set_policy(
            option=obj.option, tenant=obj.tenant, key=obj.key, actor=str(request.user), **says
        )
        if rule is not None:
            obj.pk = rule.pk

    def delete_model(self, request: HttpRequest, obj: PolicyRule) -> None:
        services.remove_policy(rule=obj, actor=str(request.user))


@admin.register(AnonymousAccess)
class AnonymousAccessAdmin(OnePerTenantAdmin):
    """Whom tenants let in without a key. A door is closed, never deleted: its key is in the books."""

    fields = ["tenant", "enabled", "models", *ANONYMOUS_LIMITS, "warning_percent"]
    list_display = ["tenant", "enabled", *ANONYMOUS_LIMITS]
    list_filter = ["enabled"]

    def save_model(self, request: HttpRequest, obj: AnonymousAccess, form: Any, change: bool) -> None:
        names = ("enabled", "models", *ANONYMOUS_LIMITS, "warning_percent")
        changes = {name: getattr(obj, name) for name in names}
        services.set_anonymous_access(tenant=obj.tenant, actor=str(request.user), **changes)


@admin.register(PromptRules)
class PromptRulesAdmin(OnePerTenantAdmin):
    """Who may read what is kept of a tenant's calls, and what is left out of it."""

    fields = ["tenant", "readers", "redactions"]
    list_display = ["tenant", "readers", "redactions"]

    def save_model(self, request: HttpRequest, obj: PromptRules, form: Any, change: bool) -> None:
        changes = {"readers": obj.readers, "redactions": obj.redactions}
        set_prompt_rules(tenant=obj.tenant, actor=str(request.user), **changes)


@admin.register(LoggedPrompt)
class LoggedPromptAdmin(ReadOnlyAdmin):
    """Of which calls something is kept. What it is shows only the page that asks for a reason first."""

    fields = ["request_id", "at", "expires_at", "tenant", "key", "cut"]
    list_display = ["at", "request_id", "tenant", "key", "expires_at", "cut"]
    list_filter = ["at"]
    search_fields = ["=tenant", "=key"]
    search_help_text = "Id of a request, key or tenant, or a whole tenant or key"
    id_fields = ("request_id", "key_id", "tenant_id")

    def get_queryset(self, request: HttpRequest) -> QuerySet[LoggedPrompt]:
        return super().get_queryset(request).defer("prompt", "answer").filter(expires_at__gt=now())

    def get_urls(self) -> list[URLPattern]:
        page = self.admin_site.admin_view(self.read)
        return [path("<uuid:request_id>/read/", page, name="audit_loggedprompt_read"), *super().get_urls()]

    def read(self, request: HttpRequest, request_id: UUID) -> HttpResponse:
        """Ask for a reason, and show prompt and answer once there is one."""
        user = cast("User", request.user)
        context = {**self.admin_site.each_context(request), "title": "Read prompt", "opts": self.opts}
        try:
            context["row"] = find_prompt(request_id=request_id, roles=user)
            if request.method == "POST":
                context["reading"] = read_prompt(
                    request_id=request_id,
                    roles=user,
                    actor=str(user),
                    reason=request.POST.get("reason", ""),
                )
        except LoggedPrompt.DoesNotExist as exc:
            raise Http404 from exc
        except ValidationError as exc:
            context["trouble"] = " ".join(exc.messages)
        except Unreadable as exc:
            context["trouble"] = f"It cannot be read: {exc}."
        return TemplateResponse(
            request, "admin/audit/loggedprompt/read.html", context, headers={"Cache-Control": "no-store"}
        )
