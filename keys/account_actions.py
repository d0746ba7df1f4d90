"""Closing service accounts in the admin: what that does to keys and calls is shown first."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from audit.admin import ask_reason
from keys import effects
from tenants import services
from tenants.admin import ServiceAccountAdmin
from tenants.models import ServiceAccount


class ServiceAccountActions(ServiceAccountAdmin):
    """The page of service accounts, with the action that closes them and revokes their keys."""

    actions = ["close"]

    @admin.action(description="Close selected service accounts", permissions=["change"])
    def close(self, request: HttpRequest, accounts: QuerySet[ServiceAccount]) -> HttpResponse | None:
        chosen = list(accounts)
        reason = request.POST.get("reason", "").strip()
        if not reason:
            keys = effects.keys_of_accounts(chosen)
            effect = f"Keys that are revoked for good: {len(keys)}. {effects.cut_calls(keys)}"
            return ask_reason(
                self, request, accounts, action="close", title="Close service accounts", effect=effect
            )
        actor = str(request.user)
        revoked = [
            services.close_service_account(account=account, actor=actor, reason=reason) for account in chosen
        ]
        closed = [keys for keys in revoked if keys is not None]
        self.message_user(
            request,
            f"Closed {len(closed)} of {len(chosen)} service accounts; keys revoked: {sum(closed)}.",
            messages.SUCCESS,
        )
        return None
