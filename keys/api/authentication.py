"""Telling who asks by the management key that they send."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from audit.walls import across
from keys.management_keys import management_key_of
from tenants.api.programs import Program


class ManagementKeyAuthentication(BaseAuthentication):
    """``Authorization: Bearer tgm_…``; one answer for a secret that opens nothing, whatever the reason."""

    def authenticate(self, request: Request) -> tuple[Program, None] | None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        scheme, _, secret = authorization.partition(" ")
        # Whose it is is asked for where nothing can be seen yet.
        with across():
            key = management_key_of(secret) if scheme.lower() == "bearer" else None
        if key is None:
            raise AuthenticationFailed("This is no management key, or one that is refused.")
        return Program(key.pk, key.label, key.public_id, frozenset(key.scopes), key.tenant), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ManagementKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the OpenAPI document describes it."""

    target_class = ManagementKeyAuthentication
    name = "managementKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "tgm_…"}
