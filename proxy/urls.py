"""Every door for programs. What is not here is refused, whatever it is.

Paths are matched as they are, without adding slashes and without redirects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import URLPattern, path, re_path

from proxy import calls, views
from proxy.dialects import anthropic, ollama, openai, responses
from proxy.replies import Reply

PARSERS: dict[calls.Route, Callable[[bytes], calls.Call]] = {
    calls.CHAT: ollama.parse_chat,
    calls.GENERATE: ollama.parse_generate,
    calls.EMBED: ollama.parse_embed,
    calls.EMBEDDINGS: ollama.parse_embeddings,
    calls.V1_CHAT: openai.parse_chat,
    calls.V1_COMPLETIONS: openai.parse_completions,
    calls.V1_EMBEDDINGS: openai.parse_embeddings,
    calls.V1_RESPONSES: responses.parse,
    calls.V1_MESSAGES: anthropic.parse,
}


def only(methods: frozenset[str], view: views.Door, **bound: Any) -> views.Door:
    """``view`` for these methods; any other method is refused like an unknown path."""

    async def chosen(request: HttpRequest, **parts: Any) -> Reply:
        door = view if request.method in methods else views.refuse_route
        reply: Reply = await door(request, **(bound if door is view else {}), **parts)
        return reply

    return chosen


GET = frozenset({"GET", "HEAD"})
POST = frozenset({"POST"})

urlpatterns: list[URLPattern] = [
    *(
        path(route.path[1:], only(POST, views.infer, route=route, parse=PARSERS[route]))
        for route in calls.ROUTES
    ),
    path("", only(GET, views.root)),
    path("api/version", only(GET, views.version)),
    path("api/tags", only(GET, views.tags)),
    path("api/show", only(POST, views.show)),
    path("api/ps", only(GET, views.ps)),
    path("v1/usage", only(GET, views.usage)),
    path("v1/key", only(GET, views.key)),
    path("v1/models", only(GET, views.models)),
    path("v1/models/<path:name>", only(GET, views.model)),
    path("v1/messages/count_tokens", only(POST, views.count_tokens)),
    re_path(r"", views.refuse_route),
]
