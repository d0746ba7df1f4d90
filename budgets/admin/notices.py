"""Who is told of what."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from audit.admin import ReadOnlyAdmin, ServiceAdmin, ask_reason
from budgets import deliveries, notices, services, webhooks
from budgets.models import (
    Delivery,
    Happening,
    Notice,
    Recipient,
    happenings_told_of,
)

# Each may take ten seconds, and somebody waits for the page.
MOST_TRIED_OUT = 3


class RecipientForm(forms.ModelForm):
    happenings = forms.MultipleChoiceField(
        choices=[choice for choice in Happening.choices if choice[0] != Happening.TEST],
        initial=happenings_told_of,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What they are told of. None chosen: of nothing.",
    )


@admin.register(Recipient)
class RecipientAdmin(ServiceAdmin):
    """Who is told of what. Adding a webhook shows the secret it is signed with, that one time."""

    form = RecipientForm
    fields = ["tenant", "kind", "address", "happenings", "active"]
    list_display = ["shown_address", "kind", "tenant", "happenings", "active"]
    list_select_related = ["tenant"]
    list_filter = ["kind", "active"]
    search_fields = ["tenant__slug"]
    autocomplete_fields = ["tenant"]
    actions = ["try_out", "new_secret"]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str]:
        return ["tenant", "kind", "address"] if obj else ["active"]

    def save_model(self, request: HttpRequest, obj: Recipient, form: Any, change: bool) -> None:
        actor = str(request.user)
        if change:
            services.change_recipient(
                recipient=obj, actor=actor, happenings=obj.happenings, active=obj.active
            )
            return
        added = services.add_recipient(
            tenant=obj.tenant, kind=obj.kind, address=obj.address, happenings=obj.happenings, actor=actor
        )
        obj.pk, obj.salt = added.pk, added.salt

    def delete_model(self, request: HttpRequest, obj: Recipient) -> None:
        services.remove_recipient(recipient=obj, actor=str(request.user))

    def response_add(
        self, request: HttpRequest, obj: Recipient, post_url_continue: str | None = None
    ) -> HttpResponse:
        if obj.kind == Recipient.Kind.WEBHOOK:
            return self._show_secret(request, obj, webhooks.secret_of(obj))
        return super().response_add(request, obj, post_url_continue)

    def _show_secret(self, request: HttpRequest, recipient: Recipient, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Secret of the webhook",
            "opts": self.opts,
            "recipient": recipient,
            "secret": secret,
        }
        return TemplateResponse(
            request, "admin/budgets/recipient/secret.html", context, headers={"Cache-Control": "no-store"}
        )

    @admin.action(description="Send a test to selected recipients", permissions=["change"])
    def try_out(self, request: HttpRequest, recipients: QuerySet[Recipient]) -> None:
        if len(recipients) > MOST_TRIED_OUT:
            self.message_user(request, f"Select {MOST_TRIED_OUT} at most.", messages.ERROR)
            return
        for recipient in recipients:
            delivery = deliveries.deliver_now(notices.try_out(recipient, str(request.user)))
            if delivery.state == Delivery.State.DELIVERED:
                self.message_user(request, f"{recipient}: delivered.", messages.SUCCESS)
            else:
                error = delivery.attempts[-1]["error"]
                self.message_user(request, f"{recipient}: {error}. It is tried again.", messages.ERROR)

    @admin.action(description="Give a selected webhook another secret", permissions=["change"])
    def new_secret(self, request: HttpRequest, recipients: QuerySet[Recipient]) -> HttpResponse | None:
        recipient = recipients.first()
        if recipient is None or len(recipients) > 1 or recipient.kind != Recipient.Kind.WEBHOOK:
            self.message_user(request, "Select one webhook.", messages.ERROR)
            return None
        reason = request.POST.get("reason", "").strip()
        if not reason:
            return ask_reason(
                self,
                request,
                recipients,
                action="new_secret",
                title="Give this webhook another secret",
                effect="From the next delivery on, repeats included, it is signed with the new secret alone. "
                "A receiver that knows the old one refuses it until it is told the new one, which the next "
                "page shows once.",
            )
        secret = services.new_webhook_secret(recipient=recipient, actor=str(request.user), reason=reason)
        return self._show_secret(request, recipient, secret)


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    """What happened that people are told of. Search: the whole id of a tenant."""

    id_fields = ("tenant_id",)
    list_display = ["at", "happening", "text"]
    list_filter = ["happening", "at"]
    search_fields = ["=subject"]


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    """Notices on their way: to whom, how often it was tried, what went wrong."""

    list_display = ["notice", "to", "state", "begun", "last_error", "next_at", "delivered_at"]
    list_select_related = ["notice"]
    list_filter = ["state"]
    search_fields = ["=to"]

    @admin.display(description="last error")
    def last_error(self, obj: Delivery) -> str:
        return str(obj.attempts[-1]["error"]) if obj.attempts else ""
