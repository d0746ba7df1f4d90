"""``manage.py reset``: delete the data directory of a quickstart. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from config.data_directory import DataDirectory, InUseError
from config.progress import say


def main(arguments: Sequence[str]) -> int:
    """Delete the directory after asking; returns the exit status, 0 also when there was nothing to delete."""
    parser = argparse.ArgumentParser(prog="manage.py reset", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=DataDirectory().path, help="default: %(default)s")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)

    data = DataDirectory(options.data_dir)
    if not data.exists():
        say(f"No quickstart has ever run in {data.path}; nothing is deleted.")
        return 0
    if data.in_use():
        say(f"A quickstart runs in {data.path}. Stop it first; nothing is deleted.")
        return 1
    if not options.yes and not _agreed(
        f"Delete {data.path} with its database, counters, keys and logs? [y/N] "
    ):
        say("Nothing is deleted.")
        return 1
    try:
        data.delete()
    except InUseError as exc:
        say(f"Nothing is deleted: {exc}.")
        return 1
    say(f"Deleted {data.path}.")
    return 0


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        say()
        return False
