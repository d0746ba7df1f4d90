"""Processes of our own: started so that they end with us, stopped in good order.

Linux tells a child when its parent dies, however hard. That holds for the
thread that started it too, so children are started from the main thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1

# Looked up here because after a fork nothing may be loaded any more.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@dataclass(frozen=True)
class Account:
    """The system account under which a child runs; ``Account()`` is our own."""

    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """No groups of ours go with a child that runs under another account."""
        return None if self.uid is None else []


def tether(death_signal: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` after which the child is sent ``death_signal`` when we die.

    It has to run after a change of user, which wipes the wish; ``Popen`` does it
    in that order. Without Linux nothing is promised: the next start stops what
    a crash left behind.
    """
    parent = os.getpid()

    def wish() -> None:
        if _prctl is None:
            return
        _prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        # We may have died between the fork and the wish, and nobody will tell.
        if os.getppid() != parent:
            os._exit(1)

    return wish


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    account: Account = Account(),
    death_signal: signal.Signals = signal.SIGKILL,
    directory: Path = Path("/"),
) -> subprocess.Popen[bytes]:
    """Start ``command`` with its output in ``log``, tethered to us.

    It gets a process group of its own, so that Ctrl-C reaches us alone and we
    decide in which order things stop.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=directory,
            process_group=0,
            user=account.uid,
            group=account.gid,
            extra_groups=account.extra_groups,
            # Safe: the wish is one system call, whatever other threads may hold.
            preexec_fn=tether(death_signal),  # noqa: PLW1509
        )


def run(
    command: Sequence[str | Path],
    *,
    account: Account = Account(),
    env: Mapping[str, str] | None = None,
    text: str = "",
    directory: Path = Path("/"),
    seconds: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end under ``account``, feeding it ``text``; the caller looks at the status.

    Raises ``PermissionError`` if the account cannot reach the program, and
    ``TimeoutExpired`` after ``seconds``.
    """
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        env=env,
        cwd=directory,
        process_group=0,
        user=account.uid,
        group=account.gid,
        extra_groups=account.extra_groups,
        preexec_fn=tether(signal.SIGKILL),
        timeout=seconds,
        check=False,
    )


def stop(
    process: subprocess.Popen[bytes], *, with_signal: signal.Signals = signal.SIGTERM, seconds: float
) -> bool:
    """Ask ``process`` to end and wait; return False if it had to be killed.

    Whatever is left of its process group is killed in any case. Repeating is harmless.
    """
    if process.returncode is None:
        process.send_signal(with_signal)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    willing = process.returncode is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return willing


def command_of(pid: int) -> str | None:
    """The command line of a running process, or None if there is no such process."""
    try:
        # Linux; elsewhere there is no such directory.
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return None
        command = run(["ps", "-p", str(pid), "-o", "args="]).stdout
    return command.strip() or None


def stop_leftover(pid: int, *, of: str, with_signal: signal.Signals, seconds: float) -> bool:
    """Stop process ``pid`` if its command line contains ``of``; return whether there was one.

    For servers that outlived a crash. A number that was given to a stranger
    since is left alone.
    """

    def runs() -> bool:
        return of in (command_of(pid) or "")

    if not runs():
        return False
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, with_signal)
        while runs() and time.monotonic() < deadline:
            time.sleep(0.02)
        if runs():
            os.kill(pid, signal.SIGKILL)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for telling why something did not start."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
