"""The control routes under ``/_sim/``: faults, settings, the truth log and the counts."""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from proxy.simulator.faults import BadFault
from proxy.simulator.names import BadName
from proxy.simulator.settings import BadSetting
from proxy.simulator.wire import Reply, Request

if TYPE_CHECKING:
    from proxy.simulator.server import Simulator


class BadControl(ValueError):
    """The control request makes no sense; the text says why."""


async def control(simulator: "Simulator", request: Request, reply: Reply, path: str, query: str) -> None:
    """Answer one control request."""
    try:
        status, value = _act(simulator, request, path, parse_qs(query.removeprefix("?")))
    except (BadControl, BadFault, BadName, BadSetting) as exc:
        status, value = 400, {"error": str(exc)}
    body = json.dumps(value).encode() + b"\n"
    await reply.whole(status, [("Content-Type", "application/json")], body)


def _act(simulator: "Simulator", request: Request, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
    match request.method, path.removeprefix("/_sim/"):
        case "POST", "faults":
            fields = _fields(request.body, ("fault", "model", "marker", "path", "times"))
            words = fields.pop("fault", "")
            simulator.fault(words, **_checked(fields))
            return 200, {"faults": simulator.script.rules()}
        case "GET", "faults":
            return 200, {"faults": simulator.script.rules()}
        case "DELETE", "faults":
            simulator.script.clear()
            return 200, {"faults": []}
        case "GET", "log":
            marker = query.get("marker", [""])[0]
            since = query.get("since", ["0"])[0]
            if not since.isdecimal():
                raise BadControl("since is a serial number")
            chosen = [
                record
                for record in simulator.requests
                if record.serial > int(since) and marker in record.body
            ]
            return 200, {"requests": [record.told() for record in chosen]}
        case "DELETE", "log":
            simulator.log.clear()
            return 200, {"requests": []}
        case "GET", "counts":
            return 200, {**simulator.log.counts(), "loads": simulator.library.loads}
        case "POST", "settings":
            simulator.settings.change(_object(request.body))
            return 200, simulator.settings.as_dict()
        case "GET", "settings":
            return 200, simulator.settings.as_dict()
        case "POST", "models":
            model = simulator.install(_fields(request.body, ("name",)).get("name") or "")
            return 200, {"name": model.name.short}
    return 404, {"error": "no such control route"}


def _fields(body: bytes, known: tuple[str, ...]) -> dict[str, Any]:
    fields = _object(body)
    if unknown := set(fields) - set(known):
        raise BadControl(f"unknown fields: {', '.join(sorted(unknown))}")
    return fields


def _checked(selectors: dict[str, Any]) -> dict[str, Any]:
    for name, value in selectors.items():
        if value is not None and type(value) is not (int if name == "times" else str):
            raise BadControl(f"{name} is of the wrong type")
    return selectors


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError:
        raise BadControl("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadControl("the body is not an object")
    return fields
