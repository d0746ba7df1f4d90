"""Routes that change the host or leave it; a gateway lets nobody near them.

They work and are logged like all others, so that a leak is noticed.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from proxy.simulator import frames, names
from proxy.simulator.exchange import Exchange
from proxy.simulator.generation import Refused
from proxy.simulator.go_json import ListOf, Pointer, Struct
from proxy.simulator.native import read

Handler = Callable[[Exchange], Awaitable[None]]

_BY_NAME = Struct(
    "PullRequest",
    {
        "model": str,
        "name": str,
        "stream": Pointer(bool),
        "insecure": bool,
        "from": str,
        "files": dict,
        "system": str,
        "template": str,
        "license": object,
        "parameters": dict,
        "messages": ListOf(object),
        "quantize": str,
    },
)
_COPY = Struct("CopyRequest", {"source": str, "destination": str})


async def pull(exchange: Exchange) -> None:
    """POST /api/pull: installs whatever is asked for."""
    fields, name = _named(exchange)
    digest = hashlib.sha256(name.encode()).hexdigest()
    exchange.library.add(name)
    layer: dict[str, Any] = {
        "status": f"pulling {digest[:12]}",
        "digest": f"sha256:{digest}",
        "total": 1000,
        "completed": 1000,
    }
    steps: list[dict[str, Any]] = [
        {"status": "pulling manifest"},
        layer,
        {"status": "verifying sha256 digest"},
    ]
    await _progress(exchange, fields, [*steps, {"status": "writing manifest"}])


async def push(exchange: Exchange) -> None:
    """POST /api/push"""
    fields, name = _named(exchange)
    _require(exchange, name)
    await _progress(exchange, fields, [{"status": "retrieving manifest"}, {"status": "pushing manifest"}])


async def create(exchange: Exchange) -> None:
    """POST /api/create"""
    fields, name = _named(exchange)
    exchange.library.add(name)
    await _progress(exchange, fields, [{"status": "using existing layer"}, {"status": "writing manifest"}])


async def copy(exchange: Exchange) -> None:
    """POST /api/copy"""
    fields = read(exchange, _COPY)
    source = _require(exchange, fields.get("source", ""))
    exchange.library.copy(source, _parse(fields.get("destination", "")))
    await exchange.send_nothing(200)


async def delete(exchange: Exchange) -> None:
    """DELETE /api/delete, with a JSON body"""
    _, name = _named(exchange)
    if not exchange.library.remove(_parse(name)):
        raise Refused(404, f"model '{name}' not found")
    await exchange.send_nothing(200)


async def status(exchange: Exchange) -> None:
    """GET /api/status"""
    disabled = exchange.settings.cloud == "disabled"
    await exchange.send_json({"cloud": {"disabled": disabled, "source": "none"}})


async def me(exchange: Exchange) -> None:
    """POST /api/me: the operator's account"""
    account = {"id": "u-17", "email": "operator@cloud.invalid", "name": "operator", "plan": "pro"}
    await exchange.send_json(account)


async def done(exchange: Exchange) -> None:
    """Sign-out and the removal of a key"""
    await exchange.send_nothing(200)


async def web(exchange: Exchange) -> None:
    """POST /api/experimental/web_search and web_fetch: would leave the house"""
    result = {"title": "A page", "url": "https://page.invalid/", "content": "Found on the web."}
    await exchange.send_json({"results": [result], **result, "links": []})


async def recommendations(exchange: Exchange) -> None:
    """GET /api/experimental/model-recommendations"""
    await exchange.send_json({"models": [{"model": "tiny:1b"}]})


def blob_route(digest: str) -> dict[str, Handler]:
    async def upload(exchange: Exchange) -> None:
        found = hashlib.sha256(exchange.request.body).hexdigest()
        if digest.removeprefix("sha256:").removeprefix("sha256-") != found:
            raise Refused(400, f"digest mismatch, expected {digest!r}, got 'sha256:{found}'")
        exchange.library.blobs.add(found)
        await exchange.send_nothing(201)

    async def probe(exchange: Exchange) -> None:
        known = digest.removeprefix("sha256:").removeprefix("sha256-") in exchange.library.blobs
        await exchange.send_nothing(200 if known else 404)

    return {"POST": upload, "HEAD": probe}


def user_key_route(_key: str) -> dict[str, Handler]:
    return {"DELETE": done}


TABLE: dict[str, dict[str, Handler]] = {
    "/api/pull": {"POST": pull},
    "/api/push": {"POST": push},
    "/api/create": {"POST": create},
    "/api/copy": {"POST": copy},
    "/api/delete": {"DELETE": delete},
    "/api/signout": {"POST": done},
    "/api/me": {"POST": me},
    "/api/status": {"GET": status},
    "/api/experimental/web_search": {"POST": web},
    "/api/experimental/web_fetch": {"POST": web},
    "/api/experimental/model-recommendations": {"GET": recommendations},
}


def _named(exchange: Exchange) -> tuple[dict[str, Any], str]:
    fields = read(exchange, _BY_NAME)
    name = fields.get("model") or fields.get("name") or ""
    exchange.record.model = _parse(name).short
    return fields, name


def _parse(name: str) -> names.Name:
    try:
        return names.parse(name)
    except names.BadName as exc:
        raise Refused(400, str(exc)) from None


def _require(exchange: Exchange, name: str) -> names.Name:
    parsed = _parse(name)
    if exchange.library.find(parsed) is None:
        raise Refused(404, f"model '{name}' not found")
    return parsed


async def _progress(exchange: Exchange, fields: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """Lines of progress, or just the last one when streaming is turned off."""
    success = {"status": "success"}
    if fields.get("stream") is False:
        await exchange.send_json(success)
        return
    exchange.record.status = 200
    await exchange.reply.begin(200, [("Content-Type", "application/x-ndjson")])
    for step in [*steps, success]:
        await exchange.reply.send(frames.encode(step) + b"\n")
    await exchange.reply.end()
