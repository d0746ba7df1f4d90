"""How the views describe themselves in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter

from tenants.api.idempotency import HEADER

PROBLEM = {
    "type": "object",
    "description": "What went wrong (RFC 9457). `errors` has what is wrong with each field.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {},
    },
    "required": ["type", "title", "status", "detail"],
}
EVERYWHERE = {
    "400": "Something in the request is not valid.",
    "401": "No key or session, or one that is refused.",
    "403": "The key lacks the scope, or the person the permission.",
    "404": "There is no such thing, or nothing of it may be known.",
    "429": "Too many requests in this minute. `Retry-After` tells when the next one begins.",
    "503": "A store that knows the answer cannot be reached.",
}
OF_BODIES = {
    "409": "Something else is in the way, such as the first request with the same `Idempotency-Key`.",
    "415": "The body is not JSON.",
}
OF_POSTS = {"422": "Another request came with the same `Idempotency-Key` before."}


class Schema(AutoSchema):
    """Adds what every view built on ``Managed`` has: filters, ``Idempotency-Key``, and a tag."""

    def get_override_parameters(self) -> list[Any]:
        parameters: list[Any] = []
        if self.method == "POST":
            what = (
                "The same request twice is carried out once; the repeat gets the first answer for 24 hours."
            )
            parameters.append(OpenApiParameter(HEADER, location="header", description=what))
        elif getattr(self.view, "action", None) == "list":
            parameters += [
                OpenApiParameter(name, _type(lookup)) for name, lookup in self.view.filters.items()
            ]
        return parameters

    def get_operation_id(self) -> str:
        return f"{self.get_tags()[0]}_{getattr(self.view, 'action', self.method)}".replace("-", "_").lower()

    def get_tags(self) -> list[str]:
        return [self.path.removeprefix("/manage/v1/").partition("/")[0]]


def _type(lookup: str) -> Any:
    """What a filter is compared with."""
    if lookup.partition("__")[0] == "at":
        return OpenApiTypes.DATETIME
    return OpenApiTypes.UUID if lookup in ("team", "member", "key") else OpenApiTypes.STR


def with_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Add the answers that any request may get."""
    result["components"]["schemas"]["Problem"] = PROBLEM
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in result["paths"].values():
        for method, operation in operations.items():
            told = (
                EVERYWHERE | (OF_BODIES if method != "get" else {}) | (OF_POSTS if method == "post" else {})
            )
            for status, description in told.items():
                operation["responses"].setdefault(status, {"description": description, "content": content})
    return result
