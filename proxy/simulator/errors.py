"""Refusals in the shape of each side."""

import secrets
from typing import Any

from proxy.simulator.exchange import CloudRefused, Exchange
from proxy.simulator.generation import Refused

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


async def send_refusal(exchange: Exchange, refusal: Refused) -> None:
    """Answer with ``refusal`` as the route's side writes it."""
    path = exchange.record.path
    body: dict[str, Any]
    if path == "/v1/messages":
        kind = _ANTHROPIC_TYPES.get(refusal.status, "api_error")
        error = {"type": kind, "message": refusal.text}
        body = {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
    elif path.startswith("/v1/"):
        kind = _OPENAI_TYPES.get(refusal.status, "api_error")
        body = {"error": {"message": refusal.text, "type": kind, "param": None, "code": None}}
    else:
        body = {"error": refusal.text}
    await exchange.send_json(body, status=refusal.status, newline=path.startswith("/v1/"))


async def send_cloud_refusal(exchange: Exchange, refusal: CloudRefused) -> None:
    """Answer for the cloud: arises before the v1 layer, so it is always in the native shape."""
    if refusal.signed_out:
        url = "https://cloud.invalid/connect?name=gpu-host-7&key=c3NoLWVk"
        await exchange.send_json({"error": "unauthorized", "signin_url": url}, status=401)
    else:
        text = "ollama cloud is disabled: remote model details are unavailable"
        await exchange.send_json({"error": text}, status=403)
