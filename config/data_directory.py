"""The directory of a quickstart: data, logs, secrets, and the lock that says it runs.

Standard library only: ``manage.py`` reads it before the environment exists.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from config.embedded import remove_directory

ROOT = Path(__file__).resolve().parent.parent


class InUseError(Exception):
    """Another quickstart runs in this directory."""


class DataDirectory:
    """``<data-dir>`` of ``manage.py quickstart``, by default ``.data`` beside ``manage.py``.

    ``quickstart.env`` stays after a stop, readable by its owner only: the next
    run goes on with the secrets in it, and a script with the addresses.
    """

    def __init__(self, path: Path = ROOT / ".data") -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.spool = self.path / "spool"
        self.exports = self.path / "exports"
        self.postgres = self.path / "postgres"
        self.valkey = self.path / "valkey"
        self.environment_file = self.path / "quickstart.env"
        self._lock_file = self.path / "lock"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the directory if it is missing and keep others out; raises ``InUseError``.

        The lock goes with the process, however that ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # Passable, so that the account under which root's PostgreSQL runs gets to its own data.
        self.path.chmod(0o711)
        with self._lock_file.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip()
                raise InUseError(f"a quickstart runs in {self.path} already (process {owner})") from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self.logs.mkdir(mode=0o700, exist_ok=True)
            yield

    def in_use(self) -> bool:
        """Whether a quickstart runs in this directory."""
        with contextlib.suppress(FileNotFoundError, PermissionError), self._lock_file.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def exists(self) -> bool:
        """Whether a quickstart ever ran in this directory."""
        return self._lock_file.exists()

    def remembered(self) -> dict[str, str]:
        """What ``quickstart.env`` says; nothing if there is none."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            lines = self.environment_file.read_text().splitlines()
            return dict("".join(shlex.split(line)).split("=", 1) for line in lines if "=" in line)
        return {}

    def remember(self, values: Mapping[str, str]) -> None:
        """Write ``quickstart.env``, for a shell's ``.`` and for the next run, at once or not at all."""
        new = self.environment_file.with_suffix(".new")
        new.unlink(missing_ok=True)
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
            output.write(text)
        new.rename(self.environment_file)

    def delete(self) -> None:
        """Delete the directory with everything in it; raises ``InUseError`` while a quickstart runs."""
        with self.lock():
            remove_directory(self.postgres)
            shutil.rmtree(self.path)


def join_running_quickstart(environment: MutableMapping[str, str]) -> None:
    """Without a ``DATABASE_URL``, use the servers and secrets of a quickstart that runs beside us."""
    data = DataDirectory()
    if not environment.get("DATABASE_URL") and data.in_use():
        for name, value in data.remembered().items():
            environment.setdefault(name, value)
