"""Play many rounds: ``python -m tests.chaos --rounds N --seed S``; ``docs/testing.md`` explains."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests import servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next count on")
    parser.add_argument("--gateways", type=int, default=3, help="processes (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="threads (default: %(default)s)")
    parser.add_argument("--faults", default="", help="these, comma-separated, instead of those drawn")
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    with contextlib.ExitStack() as cleanup:
        servers._prepare(cleanup)
        return _play(options, cleanup)


def _play(options: argparse.Namespace, cleanup: contextlib.ExitStack) -> int:
    """Return the exit status: 1 if a promise was broken."""
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from proxy.simulator.server import SimulatorThread
    from tests.chaos.plan import draw
    from tests.chaos.round import play

    real = connection.settings_dict["NAME"]
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    cleanup.callback(connection.creation.destroy_test_db, real, verbosity=0)
    directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
    ollama = cleanup.enter_context(SimulatorThread())
    broken = 0
    for seed in range(options.seed, options.seed + options.rounds):
        faults = list(filter(None, options.faults.split(",")))
        plan = draw(seed, gateways=options.gateways, clients=options.clients, faults=faults)
        call_command("flush", verbosity=0, interactive=False)
        ollama.reset()
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
