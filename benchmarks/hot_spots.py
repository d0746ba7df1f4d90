"""Where the gateway's processor time goes: ``python3 benchmarks/hot_spots.py``.

Runs one worker under load and prints its functions by the time spent in them,
in microseconds per answer (or per piece, for paced streams).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks import servers
from benchmarks.run import ROUTES, prepared, progress, say
from benchmarks.scenarios import SCENARIOS
from config.embedded import free_port


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", choices=names, default=names[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=50, help="how many to show")
    parser.add_argument("--route", choices=ROUTES, default=ROUTES[0])
    given = parser.parse_args()
    scenario = SCENARIOS[names.index(given.scenario)]
    with prepared(given.route) as bench:
        port = free_port()
        output = bench.directory / "profile.json"
        with servers.running(
            "the worker",
            [sys.executable, "-m", "benchmarks.profiled_worker", "127.0.0.1", str(port), str(output)],
            port,
            lambda: servers.answers(port, bench.secret),
            cores=bench.gateway_cores,
            log=bench.directory / "worker.log",
            env=bench.environment,
        ) as worker:
            progress(f"{scenario.name}, {given.seconds} s")
            span = {"warmup_ms": scenario.warmup_ms, "measure_ms": given.seconds * 1000}
            bench.load.run("run", port, scenario.callers, {**span, **scenario.options})
            os.kill(worker.pid, signal.SIGUSR1)
            told = bench.load.run("run", port, scenario.callers, {**span, **scenario.options})
            os.kill(worker.pid, signal.SIGUSR2)
            deadline = time.monotonic() + 10
            while not output.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            profile = json.loads(output.read_text())
    paced = "every_us" in scenario.options
    count = told["pieces"] if paced else told["total_answers"]
    say(table(profile, count, "piece" if paced else "answer", given.functions))
    return 0


def table(profile: dict[str, Any], count: int, unit: str, functions: int) -> str:
    """The profile in microseconds per ``unit``, of which there were ``count``."""
    whole = profile["seconds"] * 1e6 / count
    per_look = whole / max(profile["looks"], 1)
    rows = [
        (package, name, own * per_look, within * per_look)
        for package, name, own, within in profile["functions"]
    ]
    packages: Counter[str] = Counter()
    for package, _, own, _ in rows:
        packages[package] += own
    lines = [
        f"{whole:.0f} µs of processor time per {unit}; {profile['looks']} looks, {count} {unit}s",
        "",
        "by package:",
        *(f"{spent:9.1f}   {package}" for package, spent in packages.most_common(25)),
    ]
    for column, title in (
        (2, "by what is spent in the function itself and the C code it calls:"),
        (3, "by what is spent in the function and all that it calls:"),
    ):
        lines += ["", title, f"{'itself':>9} {'with all':>9}   function"]
        for row in sorted(rows, key=lambda row: -float(row[column]))[:functions]:
            lines.append(f"{row[2]:9.1f} {row[3]:9.1f}   {row[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
