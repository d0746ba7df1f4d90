"""Hold many races for budgets: ``python -m tests.overspend --rounds N``; ``docs/testing.md`` explains."""

from __future__ import annotations

import argparse
import contextlib
import sys

from tests.standalone import emptied, standing_alone


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.overspend", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next count on")
    parser.add_argument("--callers", type=int, default=200, help="at the barrier (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="gateways (default: %(default)s)")
    options = parser.parse_args()
    with standing_alone() as ollama, contextlib.ExitStack() as gateways:
        from tests import racing
        from tests.conftest import furnish
        from tests.gateway import Gateway

        emptied(ollama)
        furnish(ollama)
        running = [gateways.enter_context(Gateway()) for _ in range(options.processes)]
        lost = 0
        for seed in range(options.seed, options.seed + options.rounds):
            emptied(ollama)
            furnish(ollama)
            race = racing.draw(seed, options.callers)
            counts, broken = racing.run(race, ollama, running)
            sys.stdout.write("\n  ".join([f"{race}: {counts}", *broken]) + "\n")
            sys.stdout.flush()
            lost += bool(broken)
    sys.stdout.write(f"{options.rounds} rounds, {lost} of them with broken promises\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
