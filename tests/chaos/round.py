"""One round, from its plan to its verdict."""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from budgets import ledger
from budgets.counters import HOLDS, redis_in_bytes
from budgets.models import SpooledSettlement
from proxy.simulator.server import SimulatorThread
from tests.chaos import checks
from tests.chaos.clients import Client
from tests.chaos.faults import Faults
from tests.chaos.plan import KEYS_PER_FAULT, Plan
from tests.chaos.stage import Stage, on_stage
from tests.chaos.watcher import Watcher
from tests.chaos.workers import Worker
from tests.conftest import eventually

WORKERS = 2
END_SECONDS = 40


@dataclass(frozen=True, slots=True)
class Report:
    """``counts`` say what happened, ``problems`` what should not have; none of them is a good round."""

    plan: Plan
    seconds: float
    counts: dict[str, int]
    problems: list[str]

    def __str__(self) -> str:
        told = " ".join(f"{name}={count}" for name, count in self.counts.items())
        lines = [f"seed {self.plan.seed}: {self.seconds:.0f} s, {' '.join(self.plan.faults)}: {told}"]
        return "\n  ".join([*lines, *self.problems])


def play(plan: Plan, ollama: SimulatorThread, directory: Path) -> Report:
    """Play one round on an empty database; everything it starts has ended when it returns."""
    began = time.monotonic()
    with on_stage(plan, ollama, directory) as stage:
        workers = [Worker(number) for number in range(WORKERS)]
        clients = [Client(stage, number) for number in range(plan.clients)]
        watcher = Watcher()
        with running(*workers), running(watcher):
            with running(*clients):
                random = Random(f"{plan.seed} pauses")
                faults = Faults(stage, workers)
                for fault in plan.faults:
                    stage.issue_keys(KEYS_PER_FAULT)
                    time.sleep(random.uniform(0.2, 0.8))
                    faults.do(fault)
                time.sleep(0.5)
            come_to_rest(stage)
        watcher.look()
        asked = [one for client in clients for one in client.asked]
        evidence = checks.gather(stage, watcher, workers, asked)
        found = checks.problems(evidence)
    statuses = Tally(str(one.status) for one in asked)
    counts = {
        **dict(sorted(statuses.items())),
        "whole": sum(one.whole for one in asked),
        "upstream": len(ollama.calls),
        "entries": len(evidence.entries),
        "orphans": sum(entry.outcome == "orphaned" for entry in evidence.entries.values()),
        "adjusted": len(evidence.adjustments),
        "late": sum(entry.late for entry in evidence.entries.values()),
        "looks": watcher.looks,
    }
    return Report(plan, time.monotonic() - began, counts, found)


@contextlib.contextmanager
def running(*threads: Worker | Client | Watcher) -> Iterator[None]:
    """Start threads, and stop them at the end."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join(END_SECONDS)
            assert not thread.is_alive(), f"{thread.name} does not end"


def come_to_rest(stage: Stage) -> None:
    """Let the gateways end, and everything that waits be booked."""
    for door in stage.doors:
        assert door.end() == 0, door.log

    def at_rest() -> bool:
        waiting = redis_in_bytes().zcard(HOLDS) or SpooledSettlement.objects.exists() or ledger.backlog()
        return not waiting

    eventually(at_rest, END_SECONDS)
