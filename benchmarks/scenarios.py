"""What is measured in a round, one function or table row per kind of load."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bars import Result, percentile
from benchmarks.native import Load
from benchmarks.processes import resident_bytes
from benchmarks.servers import Server, upstream_hangups, upstream_stats

STREAMED = {"stream": 1, "bytes": 16}
QUIET_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Scenario:
    """Callers that each ask again as soon as they are answered.

    ``options`` are those of ``load.c``; ``targets`` are measured one after the
    other in each round; ``bars`` need it.
    """

    name: str
    callers: int
    targets: tuple[str, ...]
    bars: frozenset[int]
    options: dict[str, int] = dataclasses.field(default_factory=dict)
    measure_ms: int = 3000
    warmup_ms: int = 500


# One worker with everything around it on one core, and two workers with everything on two: bar 14 asks
# what a second worker on a second core is worth, so what they share has to have its share in both.
ONE_CORE, TWO_CORES = "one core", "two cores"

EVERY_10_MS = {**STREAMED, "pieces": 100, "every_us": 10_000, "spread_ms": 1000}
EVERY_50_MS = {**STREAMED, "pieces": 100, "every_us": 50_000, "spread_ms": 2000}

SCENARIOS = (
    Scenario("16 callers", 16, ("direct", "nginx", "gateway"), frozenset({1, 2, 4, 5})),
    Scenario("256 callers", 256, ("gateway",), frozenset({5}), warmup_ms=1000),
    Scenario("1 caller", 1, ("direct", "nginx", "gateway"), frozenset({3})),
    Scenario(
        "32 paced streams", 32, ("direct", "nginx", "gateway"), frozenset({6, 7, 8}), EVERY_10_MS, 5000, 1200
    ),
    Scenario("128 paced streams", 128, ("direct", "gateway"), frozenset({9}), EVERY_10_MS, 4000, 1200),
    Scenario("512 paced streams", 512, ("direct", "gateway"), frozenset({10}), EVERY_50_MS, 5000, 2500),
    Scenario("1-MiB prompt", 1, ("direct", "gateway"), frozenset({15}), {"prompt": 2**20}, 2000),
    Scenario("64 callers", 64, ("gateway", ONE_CORE, TWO_CORES), frozenset({14})),
)


def quick(scenario: Scenario) -> Scenario:
    """The same, but only long enough to see that it works."""
    return dataclasses.replace(
        scenario, measure_ms=min(scenario.measure_ms, 1000), warmup_ms=min(scenario.warmup_ms, 1200)
    )


def measure(
    load: Load, scenario: Scenario, target: Server, upstream: Server, around: Mapping[str, int]
) -> Result:
    """One measured span of ``scenario`` against ``target``; ``around`` are processes it needs, by name."""
    span = {"warmup_ms": scenario.warmup_ms, "measure_ms": scenario.measure_ms}
    pids = (*target.pids, *around.values())
    told = load.run("run", target.port, scenario.callers, {**span, **scenario.options}, pids)
    wait_until_quiet(upstream)
    return Result.from_json(told, tuple(around))


def wait_until_quiet(upstream: Server) -> None:
    """Wait until no stream is open upstream; raise ``RuntimeError`` if one stays."""
    deadline = time.monotonic() + QUIET_SECONDS
    while (stats := upstream_stats(upstream))["streams_open"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{stats['streams_open']} streams are still open upstream")
        time.sleep(0.05)
    time.sleep(0.2)


def client_gone(
    load: Load, target: Server, upstream: Server, *, times: int, first_tag: int
) -> dict[str, float]:
    """How long after a client hung up the upstream sees it, in milliseconds."""
    endless = {**STREAMED, "pieces": 2000, "every_us": 5_000, "tag": first_tag, "measure_ms": 20_000}
    told = load.run("hangup", target.port, times, endless)
    if told["errors"] or len(told["hangups"]) != times:
        raise RuntimeError(f"errors: {len(told['hangups'])} of {times} streams; {told['first_error']}")
    wait_until_quiet(upstream)
    seen = upstream_hangups(upstream)
    passed = [(seen[tag] - left) / 1e6 for tag, left in told["hangups"]]
    return {"gone_p50_ms": percentile(passed, 0.5), "gone_max_ms": max(passed)}


@contextmanager
def _held_open(load: Load, mode: str, target: Server, callers: int, **options: int) -> Iterator[None]:
    """Keep streams open in the block, each with its first piece received (or, when stuck, asked for)."""
    process = subprocess.Popen(
        load.command(mode, target.port, callers, {"measure_ms": 60_000, "stream": 1, **options}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=load.environment,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    try:
        line = process.stdout.readline().strip()
        if line != "ready":
            raise RuntimeError(f"errors: {line and json.loads(line)['first_error']}")
        yield
        process.stdin.close()
        told = json.loads(process.stdout.readline())
        if told["errors"] or told["open"] != callers:
            raise RuntimeError(
                f"errors: {told['open']} of {callers} streams stayed open; {told['first_error']}"
            )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def memory_per_stream(load: Load, target: Server, upstream: Server, *, streams: int) -> dict[str, float]:
    """What an idle stream costs a fresh process that has answered one call, in KiB."""
    before = resident_bytes(target.pid)
    with _held_open(load, "hold", target, streams, pieces=2, every_us=90_000_000, bytes=16, spread_ms=4000):
        time.sleep(1)
        after = resident_bytes(target.pid)
    wait_until_quiet(upstream)
    return {"stream_kib": (after - before) / streams / 1024}


def memory_when_stuck(load: Load, target: Server, upstream: Server, *, seconds: float) -> dict[str, float]:
    """How far memory grows while a client reads nothing of an answer of 40 MiB, in MiB."""
    before = most = resident_bytes(target.pid)
    sent_before = upstream_stats(upstream)["stream_bytes"]
    with _held_open(load, "stuck", target, 1, pieces=5120, bytes=8192):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            most = max(most, resident_bytes(target.pid))
            time.sleep(0.05)
        sent = upstream_stats(upstream)["stream_bytes"] - sent_before
    if sent < 2**18:
        raise RuntimeError(f"errors: only {sent} bytes of the answer left the upstream")
    wait_until_quiet(upstream)
    return {"stuck_mib": (most - before) / 2**20}
