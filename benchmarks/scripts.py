"""What reserving and settling a call costs Redis: ``python3 benchmarks/scripts.py``.

Starts a Valkey of its own, makes calls with ten limits in one process, and prints
the processor time of Valkey and of that process in microseconds per call.
``--beside DIRECTORY`` does the same with the code of another checkout, in turns
with this one, and prints the ratio of the medians: that says what a change is
worth also on a machine that has other work.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

TREE = Path(os.environ.get("BENCHMARK_TREE") or Path(__file__).resolve().parent.parent)
sys.path.insert(0, str(TREE))

from config import bootstrap  # noqa: E402

if __name__ == "__main__" and "BENCHMARK_TREE" not in os.environ:
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks.processes import cpu_seconds  # noqa: E402
from config.embedded import Valkey  # noqa: E402

NEVER_REACHED = 10**14
WARM_UP = 500
FIGURES = {"redis_us": "Valkey", "process_us": "the calling process", "journal_bytes": "journal, bytes"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000, help="how many in each round (10000)")
    parser.add_argument("--callers", type=int, default=64, help="how many at one time (64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="a checkout to compare with")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        sys.stdout.write(json.dumps(measure(given.calls, given.callers)) + "\n")
        return 0
    trees = {"here": TREE} | ({"beside": given.beside.resolve()} if given.beside else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(given.rounds):
        for name, tree in trees.items():
            found[name].append(in_a_process(tree, given.calls, given.callers))
    for figure, label in FIGURES.items():
        medians = {name: statistics.median(one[figure] for one in rounds) for name, rounds in found.items()}
        told = "   ".join(f"{name} {median:8.1f}" for name, median in medians.items())
        if given.beside:
            told += f"   here ÷ beside {medians['here'] / medians['beside']:.2f}"
        sys.stdout.write(f"{label + ' per call':32} {told}\n")
    return 0


def in_a_process(tree: Path, calls: int, callers: int) -> dict[str, float]:
    """One measurement of a checkout, in a process that imports nothing of another one."""
    ran = subprocess.run(
        [sys.executable, __file__, "--once", "--calls", str(calls), "--callers", str(callers)],
        env={**os.environ, "BENCHMARK_TREE": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        raise SystemExit(f"{tree}: {ran.stderr.strip()}")
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


def measure(calls: int, callers: int) -> dict[str, float]:
    """Processor time in µs, and bytes of the journal, of one reserve and settle."""
    with tempfile.TemporaryDirectory(prefix="tollgate-scripts-") as name:
        directory = Path(name)
        with Valkey(directory / "valkey", log=directory / "valkey.log", durable=True) as valkey:
            os.environ |= {
                "DJANGO_SETTINGS_MODULE": "config.settings",
                "SECRET_KEY": secrets.token_hex(32),
                "KEY_PEPPER": secrets.token_hex(32),
                # Nothing asks it: all that limits the caller is in memory.
                "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
                "REDIS_URL": valkey.url,
                "MAX_BACKLOG": "100000000",
            }
            importlib.import_module("django").setup()
            assert valkey.process is not None  # noqa: S101, it was started by the line above
            return asyncio.run(_measured(valkey.process.pid, directory / "valkey", calls, callers))


async def _measured(pid: int, journal: Path, calls: int, callers: int) -> dict[str, float]:
    one = _caller()
    await _all(one, WARM_UP, callers)
    # As a worker does (``config.daphne_server``); else much of it is Python's search for cycles.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    redis, own, written = cpu_seconds(pid), time.process_time(), _size(journal)
    await _all(one, calls, callers)
    return {
        "redis_us": (cpu_seconds(pid) - redis) / calls * 1e6,
        "process_us": (time.process_time() - own) / calls * 1e6,
        "journal_bytes": (_size(journal) - written) / calls,
    }


def _size(journal: Path) -> int:
    return sum(file.stat().st_size for file in journal.rglob("*.aof"))


async def _all(one: Any, calls: int, callers: int) -> None:
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(caller() for _ in range(callers)))


def _caller() -> Any:
    """A function that makes one call: the ten limits of ``benchmarks.tenant``, and a price."""
    from budgets.pricing import PinnedPrice
    from budgets.reservations import reserve, settle
    from budgets.settlements import Moments
    from tests import counting

    counting.empty_redis()
    many = NEVER_REACHED
    limits = [counting.concurrency(many), counting.a_budget(many, "micro_usd", window="month")]
    for _ in ("tenant", "key"):
        limits += [counting.a_rate(many), counting.a_rate(many, "tokens")]
        limits += [counting.a_budget(many, "requests"), counting.a_budget(many, window="month")]
    price = PinnedPrice(uuid4().hex, 100_000, 50_000, 400_000)
    ada = counting.ada(*limits, prices={counting.MODEL: price}, member_id=uuid4(), member="ada@example.org")

    async def call() -> None:
        reservation = await reserve(ada, counting.a_demand(100, 1000))
        moments = Moments(reservation.admitted_at_ms + 1, reservation.admitted_at_ms + 2)
        await settle(reservation, counting.some_usage(), "completed", moments, 200)

    return call


if __name__ == "__main__":
    raise SystemExit(main())
