"""The OpenAPI document of the management API, for those who may ask it anything."""

from __future__ import annotations

from drf_spectacular.views import SpectacularJSONAPIView

from tenants.api.permissions import SignedIn


class Document(SpectacularJSONAPIView):
    """GET /manage/v1/openapi.json: OpenAPI 3.0, made from the views."""

    # Its own default is everybody.
    permission_classes = [SignedIn]
    urlconf = "config.urls"
