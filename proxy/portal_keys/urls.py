"""The pages about keys, under ``/portal/<slug>/keys/``."""

from django.urls import path

from proxy.portal_keys import editing
from proxy.portal_keys.changing import CHANGES, change
from proxy.portal_keys.detail import detail
from proxy.portal_keys.issuing import may_call, new
from proxy.portal_keys.listing import listing
from proxy.portal_keys.rotating import end, rotate, secrets

urlpatterns = [
    path("", listing, name="portal-keys"),
    path("new/", new, name="portal-key-new"),
    path("new/may-call/", may_call, name="portal-key-may-call"),
    *(path(f"change/{what}/", change, {"what": what}, name=f"portal-keys-{what}") for what in CHANGES),
    path("<uuid:key_id>/", detail, name="portal-key"),
    path("<uuid:key_id>/edit/", editing.edit, name="portal-key-edit"),
    path("<uuid:key_id>/edit/may-call/", editing.may_call, name="portal-key-edit-may-call"),
    path("<uuid:key_id>/secrets/", secrets, name="portal-key-secrets"),
    path("<uuid:key_id>/rotate/", rotate, name="portal-key-rotate"),
    path("<uuid:key_id>/end-grace/", end, name="portal-key-end-grace"),
]
