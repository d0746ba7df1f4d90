"""Whoever needs a second factor and has none may do nothing but set one up."""

from __future__ import annotations

from allauth.account.authentication import get_authentication_records
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib import messages
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.utils.deprecation import MiddlewareMixin
from django.utils.translation import gettext_lazy as _

from tenants.models import User

GUARDED = ("/admin/", "/portal/", "/manage/")
WHY = _("Set up a second factor first. Your account needs one.")
# Asked before each of these pages: written out, for to have it put together takes longer than the answer.
NEEDED_SOMEWHERE = """
SELECT EXISTS (
    SELECT FROM tenants_member AS member JOIN tenants_tenant AS tenant ON tenant.id = member.tenant_id
    WHERE member.user_id = %s AND tenant.needs_second_factor
)
"""


class SecondFactor(MiddlewareMixin):
    """Sends such people to where it is set up; programs get 403."""

    def process_request(self, request: HttpRequest) -> HttpResponseBase | None:
        if not request.path_info.startswith(GUARDED) or not is_missing(request):
            return None
        if request.path_info.startswith("/manage/"):
            body = {"type": "about:blank", "title": "Forbidden", "status": 403, "detail": str(WHY)}
            return JsonResponse(body, status=403, content_type="application/problem+json")
        messages.warning(request, WHY)
        response: HttpResponse = redirect("mfa_activate_totp")
        return response


def is_missing(request: HttpRequest) -> bool:
    """Whether the person needs a second factor and has none.

    Who signed in elsewhere had it asked for there.
    """
    user = request.user
    if not isinstance(user, User) or not needs_one(user) or is_mfa_enabled(user):
        return False
    return all(record["method"] != "socialaccount" for record in get_authentication_records(request, user))


def needs_one(user: User) -> bool:
    """Operators, where the setting says so, and people of tenants that want it."""
    if user.is_staff and settings.OPERATORS_NEED_SECOND_FACTOR:
        return True
    with connection.cursor() as cursor:
        cursor.execute(NEEDED_SOMEWHERE, [user.pk])
        return bool(cursor.fetchone()[0])
