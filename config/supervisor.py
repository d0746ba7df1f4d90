"""The parts of a quickstart: started one after the other, watched, stopped in reverse order."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from config import children
from config.data_directory import ROOT
from config.embedded import EmbeddedServer
from config.progress import step

# Migrations of a big database take their time.
COMMAND_SECONDS = 600


class PartError(Exception):
    """A part did not do what it was started for; the message ends with the tail of its log."""


class Supervisor:
    """Everything it starts is stopped when its ``with`` block is left, whatever ended it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._servers: list[EmbeddedServer] = []
        self._children: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_of(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def start_server(self, server: EmbeddedServer) -> None:
        """Start an embedded server; raises ``EmbeddedServerError``."""
        self._servers.append(server)
        server.start()

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str], *, patience: float
    ) -> None:
        """Start a Python program of the project; when it is stopped it has ``patience`` seconds to end."""
        process = children.start([sys.executable, *command], log=self.log_of(name), env=env, directory=ROOT)
        self._children[name] = (process, patience)

    def run(self, command: Sequence[str], env: Mapping[str, str], text: str = "") -> str:
        """Run a ``manage.py`` command to its end and return its output; raises ``PartError``."""
        program = [sys.executable, "manage.py", *command]
        try:
            ran = children.run(program, env=env, text=text, directory=ROOT, seconds=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as exc:
            raise PartError(f"manage.py {command[0]} did not end within {COMMAND_SECONDS} seconds") from exc
        log = self.log_of(command[0])
        with log.open("a") as output:
            output.write(ran.stderr)
        if ran.returncode != 0:
            raise PartError(f"manage.py {command[0]} failed; {log} ends with:\n{children.tail(log)}")
        return ran.stdout

    def check(self) -> None:
        """Raise ``PartError`` if any part has ended."""
        for name, (process, _) in self._children.items():
            if process.poll() is not None:
                raise _died(name, process.returncode, self.log_of(name))
        for server in self._servers:
            if server.process is not None and server.process.poll() is not None:
                raise _died(server.name, server.process.returncode, server.log)

    def watch(self) -> None:
        """Return never; raises ``PartError`` when a part ends."""
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop what runs, the last started first. Repeating is harmless."""
        while self._children:
            name, (process, patience) = self._children.popitem()
            with step(f"stop {name}") as current:
                current.result = _told(children.stop(process, seconds=patience))
        while self._servers:
            server = self._servers.pop()
            with step(f"stop {server.name}") as current:
                current.result = _told(server.stop())


def _died(name: str, status: int | None, log: Path) -> PartError:
    return PartError(f"{name} ended with status {status}; {log} ends with:\n{children.tail(log)}")


def _told(willing: bool) -> str:
    return "" if willing else "had to be killed"
