"""How fast usage is exported, and in how much memory: ``python3 benchmarks/exports.py --rows 5000000``.

Makes up a ledger of that many entries in a PostgreSQL of its own, and exports
it with ``manage.py export_usage``, each kind in a process of its own. A
workbook gets as many rows as a sheet has, at most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import bootstrap  # noqa: E402

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

import psycopg  # noqa: E402

from benchmarks.ledger_rows import FILL  # noqa: E402
from benchmarks.servers import manage  # noqa: E402
from config.embedded import Postgres, remove_directory  # noqa: E402

SHEET_ROWS = 1_000_000
SPREAD_DAYS = 28
# Options of the command, and the most rows that it can have.
KINDS: dict[str, tuple[list[str], int | None]] = {
    "nothing": (["--profile", "requests"], 0),
    "CSV, each request": (["--profile", "requests"], None),
    "the same, gzip": (["--profile", "requests", "--gzip"], None),
    "CSV by key": (["--profile", "key"], None),
    "FOCUS 1.2": (["--profile", "focus"], None),
    "XLSX, each request": (["--profile", "requests", "--layout", "xlsx"], SHEET_ROWS),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """What one export took: entries that were read, rows and bytes written, and the peak of its process."""

    entries: int
    rows: int
    bytes: int
    seconds: float
    peak_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000, help="entries of the ledger (5000000)")
    parser.add_argument("--json", type=Path, help="write every figure into this file too")
    given = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as directory, ledger(Path(directory), given.rows) as environment:
        say(f"{'':22}{'rows':>10}{'MB':>9}{'s':>8}{'entries/s':>11}{'peak MiB':>10}{'load':>6}")
        for kind, (options, most) in KINDS.items():
            figures[kind] = figure = measured(options, most, given.rows, environment, Path(directory))
            say(
                f"{kind:22}{figure.rows:10}{figure.bytes / 1e6:9.1f}{figure.seconds:8.1f}"
                f"{figure.entries / figure.seconds:11.0f}{figure.peak_bytes / 2**20:10.1f}"
                f"{os.getloadavg()[0]:6.1f}"
            )
    if given.json:
        described = {kind: asdict(figure) for kind, figure in figures.items()}
        given.json.write_text(json.dumps(described, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def ledger(directory: Path, rows: int) -> Iterator[dict[str, str]]:
    """The environment of a database with a ledger of so many entries."""
    with Postgres(directory / "postgres", log=directory / "postgres.log", durable=False) as postgres:
        environment = {
            **os.environ,
            "DATABASE_URL": postgres.url,
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "SECRET_KEY": secrets.token_hex(32),
            "KEY_PEPPER": secrets.token_hex(32),
        }
        manage(environment, "manage.py", "migrate", "--verbosity", "0")
        began = time.monotonic()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            tenant_id = uuid4()
            connection.execute(
                "INSERT INTO tenants_tenant (id, slug, name, state, time_zone, week_start, allow_all_models, "
                "created_at) VALUES (%s, 'acme', 'ACME', 'active', 'Europe/Berlin', 1, true, now())",
                [tenant_id],
            )
            connection.execute(
                FILL,
                {"rows": rows, "tenant_id": tenant_id, "tenant": "acme", "first_day": first_day()},
            )
            connection.execute("VACUUM ANALYZE budgets_ledgerentry")
        say(f"{rows} entries made up in {time.monotonic() - began:.0f} s")
        yield environment
    remove_directory(directory / "postgres")


def first_day() -> date:
    """The first day of this month: partitions of it are there."""
    return datetime.now(UTC).date().replace(day=1)


def measured(
    options: list[str], most: int | None, rows: int, environment: dict[str, str], directory: Path
) -> Figure:
    """One export in a process of its own, from its start to its end."""
    days = SPREAD_DAYS if most is None else min(SPREAD_DAYS, most * SPREAD_DAYS // max(rows, 1))
    # What is empty begins before anything was used.
    first = first_day() if days else first_day() - timedelta(days=1)
    before = first + timedelta(days=days or 1)
    output = directory / "export"
    command = [sys.executable, "manage.py", "export_usage", "--tenant", "acme", "--json", *options]
    command += ["--from", str(first), "--before", str(before), "--output", str(output)]
    began = time.monotonic()
    with (directory / "told").open("w+") as told:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=told)
        # Of this one process; ``getrusage`` would tell the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        seconds = time.monotonic() - began
        told.seek(0)
        sidecar = json.load(told)
    return Figure(
        entries=sidecar["totals"]["requests"],
        rows=sidecar["rows"],
        bytes=sidecar["bytes"],
        seconds=seconds,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
