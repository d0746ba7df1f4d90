"""The OpenAPI document of the management API, for those who may ask it anything."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularJSONAPIView

from audit.walls import across
from tenants.api.permissions import SignedIn


class Document(SpectacularJSONAPIView):
    """GET /manage/v1/openapi.json: OpenAPI 3.0, made from the views."""

    # Its own default is everybody.
    permission_classes = [SignedIn]
    urlconf = "config.urls"

    @extend_schema(exclude=True)
    def get(self, *args: Any, **kwargs: Any) -> Any:
        # Its making looks at what the views are made of, and at no row.
        with across():
            return super().get(*args, **kwargs)  # type: ignore[no-untyped-call]
