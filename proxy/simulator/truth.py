"""The truth log: what was received and what was sent, request by request."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

# What the log may hold before the oldest requests are dropped.
MAX_RECORDS = 10_000
MAX_BODY_BYTES = 64 * 2**20


@dataclass(slots=True)
class Record:
    """One request. Times are Unix seconds.

    ``fields`` is the body as Go would read it, ``state`` is active, finished,
    aborted (the client left) or broken (we broke the connection, on purpose),
    ``counters`` are those of the final object under Ollama's native names,
    ``complete`` says that its frames were sent,
    ``output_tokens`` those really generated, whatever the counters say.
    """

    serial: int
    connection: int
    method: str
    target: str
    path: str
    headers: list[tuple[str, str]]
    body: str
    route: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    cloud: bool = False
    fault: str = ""
    stream: bool = False
    prompt: str = ""
    status: int = 0
    pieces: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    counters: dict[str, Any] = field(default_factory=dict)
    done_reason: str = ""
    complete: bool = False
    state: str = "active"
    started_at: float = field(default_factory=time.time)
    first_byte_at: float | None = None
    ended_at: float | None = None
    client_closed_at: float | None = None

    @property
    def text(self) -> str:
        """Everything generated that was sent, thinking included."""
        return "".join(self.pieces)

    def header(self, name: str) -> str | None:
        """The first header of that name, in any letter case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def told(self) -> dict[str, Any]:
        """The record as ``GET /_sim/log`` gives it."""
        return {**asdict(self), "text": self.text}

    def end(self, state: str) -> None:
        """Leave the state active; a later call changes nothing."""
        if self.state == "active":
            self.state, self.ended_at = state, time.time()


class TruthLog:
    """The latest requests in the order they came, and how many there were in each state."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._body_size = 0
        self._serial = 0

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records))

    def add(
        self,
        *,
        connection: int,
        method: str,
        target: str,
        path: str,
        headers: list[tuple[str, str]],
        body: str,
    ) -> Record:
        self._serial += 1
        record = Record(self._serial, connection, method, target, path, headers, body)
        self._records.append(record)
        self._body_size += len(body)
        while len(self._records) > MAX_RECORDS or (
            self._body_size > MAX_BODY_BYTES and len(self._records) > 1
        ):
            self._body_size -= len(self._records.popleft().body)
        return record

    def clear(self) -> None:
        """Forget all requests but those still running; serial numbers go on."""
        self._records = deque(record for record in self if record.state == "active")
        self._body_size = sum(len(record.body) for record in self)

    def counts(self) -> dict[str, int]:
        states = [record.state for record in self]
        return {state: states.count(state) for state in ("active", "finished", "aborted", "broken")}
