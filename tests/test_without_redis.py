"""Redis gone, hung, full, read-only or flushed: nothing is admitted, and everybody is told so soon."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from redis.exceptions import ResponseError

from budgets import ledger, spool
from budgets.counters import CLOCK
from budgets.models import Budget, SpooledSettlement
from budgets.rebuild import ensure_epoch
from budgets.services import set_budget
from config.embedded import Valkey
from proxy.calls import ROUTES
from proxy.simulator.server import SimulatorThread
from tenants.redis import redis_now
from tests.conftest import Caller, House, eventually, furnish
from tests.counting import put_back, redis, take_backup, with_redis_at
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway

TEXT = {"role": "user", "content": "How is the weather?"}
BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": "tiny:1b", "messages": [TEXT]},
    "/api/generate": {"model": "tiny:1b", "prompt": "Hello"},
    "/api/embed": {"model": "emb", "input": "Hello"},
    "/api/embeddings": {"model": "emb", "prompt": "Hello"},
    "/v1/chat/completions": {"model": "tiny:1b", "messages": [TEXT]},
    "/v1/completions": {"model": "tiny:1b", "prompt": "Hello"},
    "/v1/embeddings": {"model": "emb", "input": "Hello"},
    "/v1/responses": {"model": "tiny:1b", "input": "Hello"},
    "/v1/messages": {"model": "tiny:1b", "max_tokens": 9, "messages": [TEXT]},
}
LISTINGS = ("/api/tags", "/api/ps", "/v1/models")


class Fragile:
    """A gateway whose Redis can go wrong, a tenant with a key, and what the key may use."""

    def __init__(self, house: House, line: FaultProxy) -> None:
        self.house = house
        self.line = line

    def answer(self, caller: Caller, path: str = "/api/chat") -> httpx.Response:
        return caller.http.request("POST" if path in BODIES else "GET", path, json=BODIES.get(path))

    def is_answered(self, caller: Caller, path: str) -> bool:
        return self.answer(caller, path).status_code == 200

    def is_refused_soon(self, caller: Caller, path: str) -> bool:
        """Whether the answer is 503, as it must be, and comes within half a second."""
        began = time.monotonic()
        answer = self.answer(caller, path)
        seconds = time.monotonic() - began
        assert answer.status_code == 503, answer.text
        assert "retry-after" in answer.headers
        return seconds < 0.5


@contextmanager
def a_fragile_one(ollama: SimulatorThread, valkey: Valkey, patience: str) -> Iterator[Fragile]:
    with with_redis_at(valkey.url):
        furnish(ollama)
        with (
            line_to(valkey.url) as (line, url),
            Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS=patience) as gateway,
            House(gateway, ollama).opened() as house,
        ):
            yield Fragile(house, line)
            line.thaw()


@pytest.fixture
def fragile(transactional_db: None, ollama: SimulatorThread, valkey: Valkey) -> Iterator[Fragile]:
    with a_fragile_one(ollama, valkey, patience="2") as fragile:
        yield fragile


@pytest.fixture
def hasty(transactional_db: None, ollama: SimulatorThread, valkey: Valkey) -> Iterator[Fragile]:
    """One that waits for Redis no longer than in production, whatever else the machine does."""
    with a_fragile_one(ollama, valkey, patience="0.25") as fragile:
        yield fragile


Spoil = Callable[[Fragile], object]


def full(_: Fragile) -> None:
    redis().config_set("maxmemory", 1)


def read_only(_: Fragile) -> None:
    redis().execute_command("REPLICAOF", "127.0.0.1", 1)


FAULTS: dict[str, tuple[Spoil, Spoil]] = {
    "hung": (lambda fragile: fragile.line.freeze(), lambda fragile: fragile.line.thaw()),
    "gone": (lambda fragile: fragile.line.refuse(), lambda fragile: fragile.line.take_again()),
    "full": (full, lambda _: redis().config_set("maxmemory", 0)),
    "read-only": (read_only, lambda _: redis().execute_command("REPLICAOF", "NO", "ONE")),
    "without replicas": (
        # As a disk that is full does, it makes every write an error that is not for want of memory.
        lambda _: redis().config_set("min-replicas-to-write", 1),
        lambda _: redis().config_set("min-replicas-to-write", 0),
    ),
    "flushed": (lambda _: redis().flushall(), lambda _: ensure_epoch()),
}


def test_every_door_is_in_the_table_of_bodies() -> None:
    assert set(BODIES) == {route.path for route in ROUTES}


@pytest.mark.parametrize(
    "faults",
    # After the last a gateway sends again what it booked: one that lived through others has more to send.
    [[fault for fault in FAULTS if fault != "flushed"], ["flushed"]],
    ids=["away", "flushed"],
)
def test_without_redis_every_door_says_503_within_half_a_second(hasty: Fragile, faults: list[str]) -> None:
    """E1, E2, E4, E7, E13, INV11."""
    budget = set_budget(
        scope="tenant", tenant=hasty.house.acme, unit="tokens", period="lifetime", limit=10**6, actor="test"
    )
    for fault in faults:
        try:
            assert_every_door_is_closed_while(fault, hasty, budget)
        except Exception as why:
            why.add_note(f"The fault: {fault}.")
            raise


def assert_every_door_is_closed_while(fault: str, fragile: Fragile, budget: Budget) -> None:
    """It comes and goes; at the end all is booked and counted that was before it, and one call after it."""
    house = fragile.house
    spoil, mend = FAULTS[fault]
    for path in BODIES:
        eventually(functools.partial(fragile.is_answered, house.ada, path))
    calls = len(house.ollama.calls)
    stranger = house.caller()

    spoil(fragile)
    for caller in (house.ada, stranger):
        for path in BODIES:
            eventually(functools.partial(fragile.is_refused_soon, caller, path))
    if fault in ("hung", "gone", "flushed"):
        for path in LISTINGS:
            eventually(functools.partial(fragile.is_refused_soon, stranger, path))
    assert len(house.ollama.calls) == calls

    mend(fragile)
    eventually(lambda: fragile.answer(stranger).status_code == 200)
    booked = house.booked(calls + 1)
    used = sum(entry.input_tokens + entry.output_tokens for entry in booked)
    counters = [redis().hgetall(key) for key in redis().keys(f"{{p0}}:budget:{budget.pk.hex}:*")]
    assert [int(counter[b"used"]) for counter in counters] == [used]
    assert sum(int(counter.get(b"held", 0)) for counter in counters) == 0


def test_what_a_full_redis_cannot_take_is_booked_when_there_is_room(fragile: Fragile) -> None:
    """E7: a stream that runs while Redis fills up ends well, and its settlement waits elsewhere."""
    house = fragile.house
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=10**6, actor="test")
    # It has not come to its end before Redis is full.
    house.ollama.settings.piece_delay = 1
    house.ollama.fault("pieces-30")

    with house.ada.http.stream("POST", "/api/chat", json=BODIES["/api/chat"]) as stream:
        lines = stream.iter_lines()
        next(lines)
        full(fragile)
        house.ollama.settings.piece_delay = 0
        assert '"done":true' in list(lines)[-1]
    with pytest.raises(ResponseError):
        redis_now().set("more", 1)
    eventually(SpooledSettlement.objects.count)
    FAULTS["full"][1](fragile)

    assert spool.replay() == 1
    (entry,) = house.booked()
    assert (entry.outcome, entry.exact) == ("completed", True)


def readiness(fragile: Fragile) -> Any:
    return fragile.house.ada.http.get("/readyz").json()


def test_a_redis_that_may_evict_counters_is_not_ready(fragile: Fragile) -> None:
    """E6."""
    eventually(lambda: readiness(fragile) == {"status": "ok"})
    redis().config_set("maxmemory", 2**30)
    redis().config_set("maxmemory-policy", "allkeys-lru")

    eventually(lambda: readiness(fragile) == {"status": "not ready", "failing": ["counters"]})
    redis().config_set("maxmemory-policy", "noeviction")
    eventually(lambda: readiness(fragile) == {"status": "ok"})
    redis().config_set("maxmemory", 0)


def test_a_clock_that_went_back_is_refused_and_readiness_says_why(fragile: Fragile) -> None:
    house = fragile.house
    assert fragile.answer(house.ada).status_code == 200
    calls = len(house.ollama.calls)
    redis().incrby(CLOCK, 3_600_000)

    answer = fragile.answer(house.ada)

    assert (answer.status_code, answer.json()["error"]) == (
        503,
        "The clocks here do not agree, so nothing is started.",
    )
    assert len(house.ollama.calls) == calls
    eventually(lambda: readiness(fragile) == {"status": "not ready", "failing": ["clock"]})
    ensure_epoch(force=True)
    eventually(lambda: fragile.answer(house.ada).status_code == 200)
    eventually(lambda: readiness(fragile) == {"status": "ok"})


def test_a_backup_that_has_the_right_epoch_is_not_believed(fragile: Fragile) -> None:
    """E14: the counters of before the last call, put back."""
    house = fragile.house
    budget = set_budget(
        scope="tenant", tenant=house.acme, unit="requests", period="lifetime", limit=2, actor="test"
    )
    assert fragile.answer(house.ada).status_code == 200
    backup = take_backup()
    assert fragile.answer(house.ada).status_code == 200
    house.booked(2)
    put_back(backup)

    assert fragile.answer(house.ada).status_code == 503
    ensure_epoch()
    eventually(lambda: fragile.answer(house.ada).status_code == 429)
    (counter,) = redis().keys(f"{{p0}}:budget:{budget.pk.hex}:*")

    def used() -> int:
        # The gateway sends again what it settled lately, and the drain knows it already.
        ledger.drain()
        return int(redis().hget(counter, "used"))

    eventually(lambda: used() == 2)


def test_scripts_that_redis_has_forgotten_are_sent_again(fragile: Fragile) -> None:
    """E8."""
    assert fragile.answer(fragile.house.ada).status_code == 200

    redis().script_flush()

    assert fragile.answer(fragile.house.ada).status_code == 200


def test_connections_that_redis_has_closed_cost_one_refusal_at_most(fragile: Fragile) -> None:
    """E12: and they are not replaced by ever more."""
    house = fragile.house
    eventually(lambda: fragile.answer(house.ada).status_code == 200)
    before = len(redis().client_list())

    for _ in range(5):
        redis().client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: fragile.answer(house.ada).status_code == 200)

    assert len(redis().client_list()) <= before + 4
