"""The two C programs: built from their sources here, started, and understood."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


class NotMeasuredError(Exception):
    """Something cannot be measured here; the message says why."""


def build(directory: Path) -> None:
    """Compile ``upstream`` and ``load`` into ``directory``. Raises ``NotMeasuredError``."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotMeasuredError("there is no C compiler (cc) on this machine")
    for name in ("upstream", "load"):
        built = subprocess.run(
            [compiler, *FLAGS, "-o", directory / name, SOURCES / f"{name}.c"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if built.returncode != 0:
            raise NotMeasuredError(f"{name}.c cannot be compiled here:\n{built.stderr.strip()}")


class Load:
    """The load generator in ``directory``, calling ``path`` with ``secret``."""

    def __init__(self, directory: Path, path: str, secret: str) -> None:
        self._program = directory / "load"
        self._path = path
        # Not in the command line, which everybody on the machine can read.
        self.environment = {**os.environ, "LOAD_SECRET": secret}

    def command(self, mode: str, port: int, callers: int, options: Mapping[str, int]) -> list[str]:
        """The command line; ``options`` are explained at the head of ``load.c``."""
        given = [f"{name}={value}" for name, value in options.items()]
        return [str(self._program), mode, str(port), self._path, str(callers), *given]

    def run(
        self, mode: str, port: int, callers: int, options: Mapping[str, int], pids: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Run it to its end and return what it tells."""
        command = self.command(mode, port, callers, options) + [f"pid={pid}" for pid in pids]
        seconds = (options.get("warmup_ms", 200) + options.get("measure_ms", 1000)) / 1000
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 30, env=self.environment, check=False
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with status {ran.returncode}: {ran.stderr.strip()}")
        told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        return told
