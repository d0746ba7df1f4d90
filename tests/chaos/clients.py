"""Clients that ask at random, and write down what they got."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from tests.chaos.stage import EMBEDDER, MODEL, Door, Keyed, Stage

ROUTES = {
    "/api/chat": 4,
    "/api/generate": 2,
    "/v1/chat/completions": 4,
    "/v1/completions": 1,
    "/api/embed": 1,
}
# Longer than a gateway sleeps.
READ_SECONDS = 20
NEWEST_KEYS = 4


@dataclass(slots=True)
class Asked:
    """One call as its client saw it. Instants are Unix seconds.

    ``marker`` is in the prompt. ``status`` is 0 without an answer. ``pieces``
    are the parts of text that came, ``whole`` says that the end mark came,
    ``trouble`` what was told of an error, or how the answer broke, ``left``
    that the client hung up.
    """

    marker: str
    key: Keyed
    door: Door
    route: str
    stream: bool
    sent_at: float
    ended_at: float = 0.0
    status: int = 0
    request_id: str = ""
    pieces: int = 0
    whole: bool = False
    trouble: str = ""
    left: bool = False

    def __str__(self) -> str:
        how = [name for name in ("stream", "whole", "left") if getattr(self, name)]
        return (
            f"{self.marker} {self.route} {' '.join(how)} by {self.key.key} at gateway {self.door.number} "
            f"from {self.sent_at:.3f} to {self.ended_at:.3f}: {self.status} {self.request_id} "
            f"{self.pieces} pieces {self.trouble}"
        )


class Client(threading.Thread):
    """Asks, one call after the other, until told to stop; ``asked`` is its log."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(name=f"client {number}")
        self.asked: list[Asked] = []
        self._stage = stage
        self._number = number
        self._random = Random(f"{stage.plan.seed} {number}")
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        timeout = httpx.Timeout(READ_SECONDS, connect=5)
        with httpx.Client(timeout=timeout, trust_env=False) as http:
            while not self._stopping.is_set():
                doors = [door for door in self._stage.doors if door.gateway is not None]
                if doors:
                    self._ask(http, self._random.choice(doors))
                time.sleep(self._random.uniform(0, 0.05))

    def _ask(self, http: httpx.Client, door: Door) -> None:
        random = self._random
        route = random.choices(list(ROUTES), list(ROUTES.values()))[0]
        stream = route != "/api/embed" and random.random() < 0.7
        marker = f"marker-{self._number}-{len(self.asked)}."
        # Of the older ones many have used up what they had.
        keys = self._stage.keys if random.random() < 0.4 else self._stage.keys[-NEWEST_KEYS:]
        key = random.choice(keys)
        leaves_after = random.randint(0, 20) if random.random() < 0.2 else None
        body = _body(route, marker + " word" * random.randint(0, 20), stream, random)
        gateway = door.gateway
        if gateway is None:
            return
        asked = Asked(marker, key, door, route, stream, time.time())
        self.asked.append(asked)
        headers = {"Authorization": f"Bearer {key.secret}"}
        try:
            with http.stream("POST", gateway.url + route, json=body, headers=headers) as answer:
                asked.status = answer.status_code
                asked.request_id = answer.headers.get("X-Request-Id", "")
                if asked.status == 200:
                    _read(answer, asked, leaves_after)
                else:
                    asked.trouble = answer.read().decode()
        except httpx.HTTPError as exc:
            asked.trouble = repr(exc)
        asked.ended_at = time.time()


def _body(route: str, prompt: str, stream: bool, random: Random) -> dict[str, Any]:
    if route == "/api/embed":
        return {"model": EMBEDDER, "input": prompt}
    wish = random.choice([random.randint(1, 20), random.randint(20, 150)])
    body: dict[str, Any] = {"model": MODEL, "stream": stream}
    chats = route in ("/api/chat", "/v1/chat/completions")
    body |= {"messages": [{"role": "user", "content": prompt}]} if chats else {"prompt": prompt}
    if route.startswith("/api/"):
        return body | {"options": {"num_predict": wish}}
    if stream and random.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    return body | {"max_tokens": wish}


def _read(answer: httpx.Response, asked: Asked, leaves_after: int | None) -> None:
    """Read an answer to its end, or leave after so many pieces."""
    if not asked.stream:
        answer.read()
        asked.whole = True
        return
    for frame in answer.iter_lines():
        line = frame.removeprefix("data: ")
        if line == "[DONE]":
            asked.whole = True
        elif line:
            _see(json.loads(line), asked)
        if leaves_after is not None and asked.pieces >= leaves_after and not asked.whole:
            asked.left = True
            return


def _see(frame: dict[str, Any], asked: Asked) -> None:
    if "error" in frame:
        asked.trouble = f"told: {frame['error']}"
    elif frame.get("done") is True:
        asked.whole = True
    else:
        choices = frame.get("choices", [frame])
        asked.pieces += any(_text(choice) for choice in choices)


def _text(choice: dict[str, Any]) -> str:
    """The text in a frame of any dialect used here."""
    part = choice.get("message") or choice.get("delta") or choice
    return part.get("content") or part.get("response") or part.get("text") or ""
