"""Play many rounds: ``python -m tests.chaos --rounds N --seed S``; ``docs/testing.md`` explains."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.standalone import emptied, standing_alone

if TYPE_CHECKING:
    from proxy.simulator.server import SimulatorThread


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next count on")
    parser.add_argument("--gateways", type=int, default=3, help="processes (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="threads (default: %(default)s)")
    parser.add_argument("--faults", default="", help="these, comma-separated, instead of those drawn")
    options = parser.parse_args()
    with standing_alone() as ollama, tempfile.TemporaryDirectory() as directory:
        return _play(options, ollama, Path(directory))


def _play(options: argparse.Namespace, ollama: SimulatorThread, directory: Path) -> int:
    """Return the exit status: 1 if a promise was broken."""
    from tests.chaos.plan import draw
    from tests.chaos.round import play

    broken = 0
    for seed in range(options.seed, options.seed + options.rounds):
        faults = list(filter(None, options.faults.split(",")))
        plan = draw(seed, gateways=options.gateways, clients=options.clients, faults=faults)
        emptied(ollama)
        try:
            report = play(plan, ollama, directory)
        except Exception:  # noqa: BLE001, whatever a round dies of, its seed has to be told and the next one played
            sys.stdout.write(f"seed {seed}: {' '.join(plan.faults)}\n{traceback.format_exc()}")
            broken += 1
        else:
            sys.stdout.write(f"{report}\n")
            broken += bool(report.problems)
        sys.stdout.flush()
    sys.stdout.write(f"{options.rounds} rounds, {broken} of them with broken promises\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
