"""A gateway process of its own, as tests and people start it: ``manage.py serve``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self
from urllib.parse import quote

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30


def database_url() -> str:
    """The address of the database that this test run works on."""
    parts = connection.settings_dict
    return (
        f"postgres://{quote(parts['USER'])}:{quote(parts['PASSWORD'])}"
        f"@{parts['HOST']}:{parts['PORT']}/{quote(parts['NAME'])}"
    )


def environment() -> dict[str, str]:
    """What a process needs to work on this test run's database and Redis."""
    return {
        **os.environ,
        "DATABASE_URL": database_url(),
        "REDIS_URL": settings.REDIS_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "KEY_PEPPER": settings.KEY_PEPPER,
    }


class Gateway:
    """``manage.py serve`` on a free port, with the test's database and Redis.

    ``extra`` are environment variables that differ from the test's own. Use as
    a context manager; leaving it drains and waits.
    """

    def __init__(self, *, workers: int = 1, **extra: str) -> None:
        self._arguments = ["serve", "--trial", "--port", "0", "--workers", str(workers)]
        self._environment = {**environment(), "CATALOG_REFRESH_SECONDS": "0.5", **extra}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as files:
            self._log = files.enter_context(tempfile.TemporaryFile("w+"))
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "manage.py", *self._arguments],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            assert self.process.stdout is not None
            line = files.enter_context(self.process.stdout).readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                self.process.wait(timeout=START_SECONDS)
                raise AssertionError(f"the gateway did not start: {line}{self.log()}")
            self.url = found.group().rstrip(".")
            self._files = files.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._files.close()

    def kill(self) -> None:
        """End it as a crash would: no clean-up runs, in the worker processes neither."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker processes and then to their parent."""
        workers = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in map(int, workers):
            os.kill(pid, number)
        self.process.send_signal(number)

    def log(self) -> str:
        """What it has written to standard error so far.

        Read without moving: its processes write where the same file stands, so what they said while we
        read from the beginning would go over what is there.
        """
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace")


class SharedGateway(Gateway):
    """The one that most tests share."""

    # The mark of the counters of the last house; None before the first.
    mark: bytes | None = None

    def renew(self) -> None:
        """Have another process do its work, at another address; it knows nothing of what was before."""
        self.__exit__()
        self.__enter__()
