"""Endpoint scopes: which doors a key may be limited to, and which scope each door belongs to.

``DOORS`` is the one table; what a call or a listing is let through by, what
forms offer and what ``docs/keys.md`` tells all come from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.core.exceptions import ValidationError

DOORS: dict[str, tuple[str, ...]] = {
    "chat": ("/api/chat", "/v1/chat/completions"),
    "completions": ("/api/generate", "/v1/completions"),
    "embeddings": ("/api/embed", "/api/embeddings", "/v1/embeddings"),
    "responses": ("/v1/responses",),
    "messages": ("/v1/messages", "/v1/messages/count_tokens"),
    "models": ("/api/tags", "/api/show", "/api/ps", "/v1/models"),
}
# What a key is told of itself, whatever it may do.
ALWAYS_OPEN = ("/v1/usage", "/v1/key")

ENDPOINTS = tuple(DOORS)
_SCOPES = {door: scope for scope, doors in DOORS.items() for door in doors}


def scope_of(door: str) -> str | None:
    """The scope that a key needs for ``door``; None for one that is open to every key.

    Raises ``KeyError`` for a door that nobody has put into the table.
    """
    return None if door in ALWAYS_OPEN else _SCOPES[door]


def doors_of(scopes: Iterable[str] | None) -> list[str]:
    """The doors that are open with ``scopes``, in the order of the table; None is all scopes."""
    open_to = ENDPOINTS if scopes is None else frozenset(scopes)
    return [door for scope, doors in DOORS.items() if scope in open_to for door in doors]


def validate_endpoints(scopes: list[str]) -> None:
    if unknown := sorted(set(scopes) - set(ENDPOINTS)):
        raise ValidationError(
            f"There is no endpoint scope {', '.join(unknown)}. There are {', '.join(ENDPOINTS)}.",
            code="endpoints",
        )
