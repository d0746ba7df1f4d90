"""Pages for people, and the API to manage with. The doors for programs are in ``proxy.urls``."""

from allauth.account.decorators import secure_admin_login
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from allauth.urls import urlpatterns as signing_in
from allauth.usersessions.models import UserSession
from django.contrib import admin
from django.db import transaction
from django.templatetags.static import static
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.generic import RedirectView

from config.openapi import Document
from config.problems import nothing_there

# People of both doors sign in at one place.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign, no-untyped-call]
# What people sign in with is theirs: changed at /account/ or by a command, where it is audited.
admin.site.unregister([EmailAddress, Authenticator, SocialAccount, SocialApp, SocialToken, UserSession])


handler500 = "config.broken.broken"


def _in_one_transaction(patterns: list[URLPattern | URLResolver]) -> None:
    """Commit what a page changes together with the audit event of it."""
    for entry in patterns:
        if isinstance(entry, URLResolver):
            _in_one_transaction(entry.url_patterns)
        else:
            entry.callback = transaction.atomic(entry.callback)


_in_one_transaction(signing_in)

urlpatterns = [
    # Browsers ask here for the icon of whatever names none, refusals among it.
    path("favicon.ico", RedirectView.as_view(url=static("portal/icon.svg"), permanent=True), name="favicon"),
    path("admin/", admin.site.urls),
    path("manage/v1/", include("tenants.urls")),
    path("manage/v1/", include("keys.urls")),
    path("manage/v1/", include("budgets.urls")),
    path("manage/v1/", include("proxy.manage_urls")),
    path("manage/v1/openapi.json", Document.as_view(), name="openapi"),
    re_path("^manage/", nothing_there),
    path("account/", include("tenants.portal_account")),
    path("account/", include("tenants.portal_invitations")),
    path("account/", include(signing_in)),
    path("portal/", include("tenants.portal")),
    path("portal/", include("tenants.portal_team")),
    path("portal/", include("tenants.portal_teams")),
    path("portal/", include("tenants.portal_audit")),
    path("portal/<slug:slug>/", include("proxy.portal_home")),
    path("portal/<slug:slug>/", include("proxy.portal_models")),
    path("portal/", include("budgets.portal_statements")),
    path("portal/<slug:slug>/", include("budgets.portal")),
    path("portal/<slug:slug>/", include("budgets.portal_limits")),
    path("portal/<slug:slug>/", include("budgets.portal_refusals")),
    path("portal/<slug:slug>/", include("budgets.portal_raises")),
    path("portal/", include("budgets.exports.portal")),
    path("portal/<slug:slug>/keys/", include("proxy.portal_keys.urls")),
]
