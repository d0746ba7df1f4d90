"""How long after its revocation a key is still good, measured from outside at every process."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.db import connection

from keys.models import ApiKey
from keys.services import issue_key, revoke_key
from tenants.models import Tenant
from tests.conftest import eventually
from tests.gateway import Gateway

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "How is the weather?"}]}
SHORT = {**CHAT, "stream": False, "options": {"num_predict": 1}}
LONG = {**CHAT, "options": {"num_predict": 5000}}
# Between two revocations whose streams are watched, so that they meet heartbeats at different times.
STAGGER_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Refusal:
    """Seconds from the end of the revocation to the first 401 of a process; ``admitted`` calls before it."""

    seconds: float
    admitted: int


class Line:
    """A connection to one process, kept from call to call."""

    def __init__(self, gateway: Gateway) -> None:
        where = urlsplit(gateway.url)
        self._connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)

    def status(self, secret: str) -> int:
        """How one short call is answered."""
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        self._connection.request("POST", "/api/chat", json.dumps(SHORT), headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def begin(self, secret: str) -> Callable[[], None]:
        """Open a stream and read its beginning; what is returned reads on to its end."""
        self._connection.request("POST", "/api/chat", json.dumps(LONG), {"Authorization": f"Bearer {secret}"})
        answer = self._connection.getresponse()
        assert answer.status == 200
        assert answer.readline()

        def to_its_end() -> None:
            while answer.readline():
                pass

        return to_its_end

    def close(self) -> None:
        self._connection.close()


def by_service(key: ApiKey) -> None:
    """As the admin and the command do."""
    revoke_key(key=key, actor="trial", reason="")


def by_sql(key: ApiKey) -> None:
    """As somebody at a database prompt does; a trigger and a listener have to carry it on."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE keys_apikey SET revoked_at = now() WHERE id = %s", [key.pk])


def refusals(
    gateways: Sequence[Gateway], tenant: Tenant, trials: int, revoke: Callable[[ApiKey], None] = by_service
) -> list[list[Refusal]]:
    """For each trial, a key that was good everywhere, what each process did once it was revoked."""
    lines = [Line(gateway) for gateway in gateways]
    found = []
    with ThreadPoolExecutor(len(lines)) as threads:
        for number in range(trials):
            key, secret = issue_key(tenant=tenant, label=f"trial {revoke.__name__} {number}", actor="trial")

            def is_good(secret: str = secret) -> bool:
                return {line.status(secret) for line in lines} == {200}

            eventually(is_good)
            revoke(key)
            over_at = time.monotonic()
            asked = [threads.submit(_first_refusal, line, secret, over_at) for line in lines]
            found.append([one.result() for one in asked])
    for line in lines:
        line.close()
    return found


def _first_refusal(line: Line, secret: str, over_at: float) -> Refusal:
    admitted = 0
    while True:
        status = line.status(secret)
        if status == 401:
            return Refusal(time.monotonic() - over_at, admitted)
        admitted += status == 200
        assert time.monotonic() < over_at + 60, "a revoked key is still not refused"


def survivals(gateways: Sequence[Gateway], tenant: Tenant, trials: int) -> list[float]:
    """For each of ``trials`` keys, seconds from its revocation to the end of its stream at each process."""
    lines: list[Line] = []
    running: list[tuple[ApiKey, list[Callable[[], None]]]] = []
    for number in range(trials):
        key, secret = issue_key(tenant=tenant, label=f"stream {number}", actor="trial")
        own = [Line(gateway) for gateway in gateways]
        running.append((key, [line.begin(secret) for line in own]))
        lines += own
    found: list[float] = []
    with ThreadPoolExecutor(len(lines)) as threads:

        def end_of(stream: Callable[[], None]) -> float:
            stream()
            return time.monotonic()

        ends: list[list[Future[float]]] = [
            [threads.submit(end_of, stream) for stream in streams] for _, streams in running
        ]
        over: list[float] = []
        for key, _ in running:
            by_service(key)
            over.append(time.monotonic())
            time.sleep(STAGGER_SECONDS)
        for over_at, own_ends in zip(over, ends, strict=True):
            found += [end.result() - over_at for end in own_ends]
    for line in lines:
        line.close()
    return found
