"""What exists and what runs: tags, ps, show, version, ``/v1/models``."""

from typing import Any

from proxy.simulator import names
from proxy.simulator.exchange import Exchange
from proxy.simulator.generation import Refused
from proxy.simulator.go_json import Struct
from proxy.simulator.library import Model
from proxy.simulator.native import read

VERSION = "0.33.0"
_SHOW = Struct(
    "ShowRequest",
    {"model": str, "name": str, "system": str, "template": str, "verbose": bool, "options": dict},
)


async def root(exchange: Exchange) -> None:
    """GET /"""
    await exchange.send_text(200, "Ollama is running")


async def version(exchange: Exchange) -> None:
    """GET /api/version"""
    await exchange.send_json({"version": VERSION})


async def tags(exchange: Exchange) -> None:
    """GET /api/tags"""
    await exchange.send_json({"models": [model.listed() for model in exchange.library.newest_first()]})


async def running(exchange: Exchange) -> None:
    """GET /api/ps"""
    entries = []
    for entry in exchange.library.loaded():
        listed = entry.model.listed()
        kept = {key: listed[key] for key in ("name", "model", "size", "digest", "details")}
        num_ctx = entry.shape[0] or exchange.settings.num_ctx
        more = {"expires_at": entry.expires_text(), "size_vram": entry.model.size, "context_length": num_ctx}
        entries.append({**kept, **more})
    await exchange.send_json({"models": entries})


async def show(exchange: Exchange) -> None:
    """POST /api/show"""
    fields = read(exchange, _SHOW)
    spelling = fields.get("model") or fields.get("name") or ""
    if not spelling:
        raise Refused(400, "model is required")
    model = _find(exchange, spelling)
    shown = model.shown(verbose=fields.get("verbose", False))
    for name in ("system", "template"):
        if fields.get(name):
            shown[name] = fields[name]
    if (exchange.request.header("user-agent") or "").startswith("GitHubCopilotChat/"):
        shown["model_info"]["general.basename"] = spelling
    await exchange.send_json(shown)


async def v1_models(exchange: Exchange) -> None:
    """GET /v1/models"""
    models = [_v1_entry(model, model.name.short) for model in exchange.library.newest_first()]
    await exchange.send_json({"object": "list", "data": models or None}, newline=True)


async def v1_model(exchange: Exchange, spelling: str) -> None:
    """GET /v1/models/{id}"""
    await exchange.send_json(_v1_entry(_find(exchange, spelling), spelling), newline=True)


def _v1_entry(model: Model, spelling: str) -> dict[str, Any]:
    return {"id": spelling, "object": "model", "created": model.modified, "owned_by": model.name.namespace}


def _find(exchange: Exchange, spelling: str) -> Model:
    """The model to show; unlike elsewhere the text of a refusal has the canonical name."""
    try:
        name = names.parse(spelling)
    except names.BadName as exc:
        raise Refused(400, str(exc)) from None
    exchange.record.model, exchange.record.cloud = name.short, name.cloud
    model = exchange.library.find(name)
    if model is None:
        raise Refused(404, f"model '{name.short}' not found")
    return model
