"""Measure revocation: ``python -m tests.revocation``; ``docs/keys.md`` tells the figures."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from tests.standalone import emptied, standing_alone


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.revocation", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="keys revoked (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="gateways (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=25, help="at each process (default: %(default)s)")
    parser.add_argument("--sql", type=int, default=100, help="revoked by plain SQL (default: %(default)s)")
    options = parser.parse_args()
    with standing_alone() as ollama, contextlib.ExitStack() as gateways:
        from tenants.services import create_tenant
        from tests import revoking
        from tests.conftest import furnish
        from tests.gateway import Gateway

        emptied(ollama)
        furnish(ollama)
        ollama.settings.piece_delay = 0.05
        ollama.fault("pieces-100000")
        acme = create_tenant(slug="acme", name="ACME", actor="trial", allow_all_models=True)
        running = [gateways.enter_context(Gateway()) for _ in range(options.processes)]
        trials = revoking.refusals(running, acme, options.trials)
        typed = revoking.refusals(running, acme, options.sql, revoking.by_sql)
        survived = revoking.survivals(running, acme, options.streams)
    late = sum(one.admitted for trial in trials for one in trial)
    report = [
        f"{options.trials} keys revoked, {options.processes} processes: calls admitted afterwards: {late}",
        _told("until every process had refused", [max(one.seconds for one in trial) for trial in trials]),
        _told("the same, revoked by plain SQL", [max(one.seconds for one in trial) for trial in typed]),
        _told("until a running stream had ended", survived),
    ]
    sys.stdout.write("\n".join(report) + "\n")
    return 1 if late else 0


def _told(what: str, seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    if not ordered:
        return f"{what}: not measured"
    marks = {"median": 0.5, "99 %": 0.99, "longest": 1.0}
    found = (
        f"{name} {ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000:.1f} ms"
        for name, share in marks.items()
    )
    return f"{what} ({len(ordered)}): {', '.join(found)}"


if __name__ == "__main__":
    sys.exit(main())
