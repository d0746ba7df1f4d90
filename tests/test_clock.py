"""Redis' clock as a process follows it: small steps at once, large ones only when all agree for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import time_machine

from tenants import clock as module
from tenants.clock import RedisClock

START = 1_800_000_000_000


class Bench:
    """A clock of the machine and one that only runs forward, both moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, traveller: time_machine.Traveller) -> None:
        self._steady_ms = 5_000.0
        self._traveller = traveller
        monkeypatch.setattr(module, "_steady_ms", lambda: self._steady_ms)
        self.wall_ms = START
        self.sets(0)
        self.clock = RedisClock()

    def passes(self, seconds: float) -> None:
        self._steady_ms += seconds * 1000
        self.sets(seconds)

    def sets(self, seconds: float) -> None:
        """Somebody sets the machine's clock forward by so much."""
        self.wall_ms += int(seconds * 1000)
        self._traveller.move_to(self.wall_ms / 1000)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with time_machine.travel(START / 1000, tick=False) as traveller:
        yield Bench(monkeypatch, traveller)


def test_it_begins_with_the_time_of_the_machine_and_runs_on(bench: Bench) -> None:
    bench.passes(90)

    assert bench.clock.now_ms() == START + 90_000


def test_a_clock_that_is_slewed_is_followed_wherever_it_goes(bench: Bench) -> None:
    redis_ms = START
    for _ in range(100):
        bench.passes(5)
        redis_ms += 7000
        assert bench.clock.learn(redis_ms)

    assert bench.clock.now_ms() == redis_ms


def test_setting_the_clock_of_the_machine_moves_nothing(bench: Bench) -> None:
    bench.clock.learn(START)
    bench.sets(3600)

    assert bench.clock.now_ms() == START
    assert bench.clock.learn(START)


@pytest.mark.parametrize("seconds", [-3600, -11, 11, 3600, 86_400 * 400])
def test_a_step_of_redis_alone_is_never_believed(bench: Bench, seconds: int) -> None:
    bench.clock.learn(START)
    for _ in range(100):
        bench.passes(5)
        assert not bench.clock.learn(bench.wall_ms + seconds * 1000)

    assert bench.clock.now_ms() == bench.wall_ms
    assert bench.clock.learn(bench.wall_ms)


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_step_of_both_is_believed_after_a_minute(bench: Bench, seconds: int) -> None:
    bench.clock.learn(START)
    bench.sets(seconds)
    refused = 0
    while not bench.clock.learn(bench.wall_ms):
        bench.passes(5)
        refused += 5

    assert refused == 60
    assert bench.clock.now_ms() == bench.wall_ms


def test_a_step_that_is_taken_back_meanwhile_begins_the_minute_again(bench: Bench) -> None:
    bench.clock.learn(START)
    bench.sets(3600)
    assert not bench.clock.learn(bench.wall_ms)
    bench.passes(30)
    assert not bench.clock.learn(bench.wall_ms - 3_600_000 * 2)
    bench.passes(31)

    assert not bench.clock.learn(bench.wall_ms)
    bench.passes(59)
    assert not bench.clock.learn(bench.wall_ms)
    bench.passes(1)
    assert bench.clock.learn(bench.wall_ms)


def test_a_process_that_starts_with_a_wrong_clock_waits_until_it_is_set(bench: Bench) -> None:
    right = START + 7_200_000
    assert not bench.clock.learn(right)
    bench.sets(7200)
    assert not bench.clock.learn(right)
    bench.passes(60)

    assert bench.clock.learn(right + 60_000)
