"""Which handler serves which path, the way gin and Go's mux decide it."""

import ipaddress
import posixpath
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from proxy.simulator import anthropic, listing, mutations, native, openai, responses
from proxy.simulator.exchange import Exchange
from proxy.simulator.wire import Request

Handler = Callable[[Exchange], Awaitable[None]]

INFERENCE: dict[str, Handler] = {
    "/api/chat": native.chat,
    "/api/generate": native.generate,
    "/api/embed": native.embed,
    "/api/embeddings": native.old_embeddings,
    "/v1/chat/completions": openai.chat_completions,
    "/v1/completions": openai.completions,
    "/v1/embeddings": openai.embeddings,
    "/v1/responses": responses.create,
    "/v1/messages": anthropic.messages,
    "/v1/audio/transcriptions": openai.transcriptions,
}
# Routes that read a zstd body.
ZSTD = frozenset(path for path in INFERENCE if path.startswith("/v1/") and "audio" not in path)

TABLE: dict[str, dict[str, Handler]] = {
    "/": {"GET": listing.root, "HEAD": listing.root},
    "/api/version": {"GET": listing.version, "HEAD": listing.version},
    "/api/tags": {"GET": listing.tags, "HEAD": listing.tags},
    "/api/ps": {"GET": listing.running},
    "/api/show": {"POST": listing.show},
    "/v1/models": {"GET": listing.v1_models},
    **{path: {"POST": handler} for path, handler in INFERENCE.items()},
    **mutations.TABLE,
}
_ALLOWED_ORIGIN = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d+)?"
    r"|(app|file|tauri)://.*|(vscode-webview|vscode-file)://.*|(chrome|moz|safari-web)-extension://.*"
)
_ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a request leads to: a handler, else a redirect, else a plain refusal."""

    handler: Handler | None = None
    redirect: tuple[int, str] | None = None
    status: int = 404
    allow: str = ""


def path_of(target: str) -> tuple[str, str]:
    """The raw path and the query of a request target, absolute ones included."""
    path, mark, query = (target if target.startswith("/") else _relative(target)).partition("?")
    return path, mark + query


def find(request: Request) -> Found:
    """Look up the method and the decoded path."""
    raw, query = path_of(request.target)
    code = 301 if request.method in ("GET", "HEAD") else 307
    if (clean := _clean(raw)) != raw:
        return Found(redirect=(code, clean + query))
    path = unquote(raw, errors="replace")
    methods = _methods(path)
    if methods is None:
        if path.endswith("/") and _methods(path[:-1]) is not None:
            prefix = (request.header("x-forwarded-prefix") or "").rstrip("/")
            return Found(redirect=(code, prefix + raw[:-1] + query))
        return Found()
    handler = methods.get(request.method)
    return Found(handler) if handler else Found(status=405, allow=", ".join(sorted(methods)))


def origin_allowed(origin: str | None) -> bool:
    return origin is None or origin == "" or _ALLOWED_ORIGIN.fullmatch(origin) is not None


def host_allowed(host: str | None) -> bool:
    """Whether a server bound to loopback answers to this Host."""
    name = (urlsplit(f"//{host}").hostname or "") if host else ""
    if name in ("", "localhost", socket.gethostname().lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def preflight_headers(origin: str) -> list[tuple[str, str]]:
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
        ("Access-Control-Max-Age", "43200"),
    ]


def _methods(path: str) -> dict[str, Handler] | None:
    if path in TABLE:
        return TABLE[path]
    for prefix, make in _ONE_SEGMENT.items():
        segment = path.removeprefix(prefix)
        if path.startswith(prefix) and segment and "/" not in segment:
            return make(segment)
    return None


def _model_route(segment: str) -> dict[str, Handler]:
    return {"GET": lambda exchange: listing.v1_model(exchange, segment)}


_ONE_SEGMENT: dict[str, Callable[[str], dict[str, Handler]]] = {
    "/v1/models/": _model_route,
    "/api/blobs/": mutations.blob_route,
    "/api/user/keys/": mutations.user_key_route,
}


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path or "/").replace("//", "/")
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def _relative(target: str) -> str:
    parts = urlsplit(target)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
