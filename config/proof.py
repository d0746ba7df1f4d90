"""Asking Ollama and the gateway over plain HTTP, as any client would. Standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A model may have to be loaded first.
ANSWER_SECONDS = 300
RETRIES = 3


class AskingError(Exception):
    """What was asked did not answer as it should; the message says how."""


class UnavailableError(AskingError):
    """The gateway says that it cannot take the call at the moment."""


@dataclass(frozen=True)
class Answer:
    """What a streamed chat came to; tokens as the gateway told them."""

    request_id: str
    text: str
    input_tokens: int
    output_tokens: int


def answers(url: str) -> bool:
    """Whether ``url`` is answered within a few seconds, and not with an error."""
    with contextlib.suppress(AskingError):
        _ask(url, seconds=3)
        return True
    return False


def chat_model_of(url: str) -> str | None:
    """The smallest installed model that can chat, or None if there is none; raises ``AskingError``."""
    models = _ask(f"{url}/api/tags")["models"]
    for model in sorted(models, key=lambda model: int(model["size"])):
        shown = _ask(f"{url}/api/show", {"model": model["name"]})
        # Those that run at ollama.com are refused by the gateway.
        if "completion" in shown.get("capabilities", ["completion"]) and not model.get("remote_host"):
            return str(model["name"])
    return None


def wait_until_ready(url: str, seconds: float, check: Callable[[], None], *, key: str = "") -> None:
    """Return once ``url`` answers well; raises ``AskingError`` if it never does, or what ``check`` raises."""
    deadline = time.monotonic() + seconds
    while True:
        check()
        try:
            _ask(url, seconds=5, key=key)
        except AskingError as exc:
            if time.monotonic() > deadline:
                raise AskingError(f"not ready after {seconds:.0f} seconds: {exc}") from exc
            time.sleep(0.1)
        else:
            return


def chat(url: str, *, key: str, model: str) -> Answer:
    """One streamed chat with ``model`` through the gateway at ``url``.

    A gateway that cannot count at the moment says so with a 503 and is asked
    again, as the official clients do. Raises ``AskingError`` for every other
    refusal, for an answer that is cut short, and for one without its tokens.
    """
    for _ in range(RETRIES):
        with contextlib.suppress(UnavailableError):
            return _chat(url, key, model)
        time.sleep(1)
    return _chat(url, key, model)


def _chat(url: str, key: str, model: str) -> Answer:
    question = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello in five words."}],
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, usage, whole = "", None, False
    try:
        with _open(f"{url}/v1/chat/completions", question, ANSWER_SECONDS, key) as response:
            request_id = response.headers["X-Request-Id"]
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                data = line[6:].strip()
                if data == b"[DONE]":
                    whole = True
                    break
                event = json.loads(data)
                if "error" in event:
                    raise AskingError(f"the answer broke off: {event['error']}")
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                usage = event.get("usage") or usage
    except urllib.error.HTTPError as exc:
        kind = UnavailableError if exc.code == 503 else AskingError
        said = exc.read(2000).decode(errors="replace")
        raise kind(f"the chat was refused: {exc.code} {said}") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise AskingError(f"the chat failed: {exc}") from exc
    if not whole or usage is None:
        raise AskingError("the answer ended without its count of tokens or its last event")
    return Answer(request_id, text.strip(), usage["prompt_tokens"], usage["completion_tokens"])


def _ask(url: str, body: object = None, *, seconds: float = 10, key: str = "") -> Any:
    try:
        with _open(url, body, seconds, key) as response:
            return json.loads(response.read() or b"null")
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise AskingError(f"{url}: {exc}") from exc


def _open(url: str, body: object, seconds: float, key: str) -> Any:
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())  # noqa: S310
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    # Straight to the address: a proxy of the environment knows nothing of our loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=seconds)
