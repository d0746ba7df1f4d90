"""What Linux tells of processes: which cores they may use, what they cost, what they hold."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Collection, Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Start processes in here, and they and all their threads stay on ``cores``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pids: Collection[int], cores: Collection[int]) -> None:
    """Have processes, with all their threads, stay on ``cores`` from now on."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def tree(pid: int) -> list[int]:
    """``pid`` and all that descend from it."""
    pids = [pid]
    for parent in pids:
        # A process may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time so far, in ticks of 10 ms; children that ended are not in it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The name stands in brackets and may hold spaces.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Memory that ``pid`` and its descendants hold, what they share counted once among them."""
    total = 0
    for member in tree(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def allow_many_files(wanted: int) -> int:
    """Raise the limit on open files, for us and what we start; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(soft, limit)


class Strangers:
    """How busy the machine was with work that is not ours, since the last look."""

    def __init__(self) -> None:
        self._before = self._look()

    def share(self) -> float:
        """Of all cores, 0 to 1; time that a hypervisor took away is counted as a stranger's."""
        before, now = self._before, self._look()
        self._before = now
        total, busy, ours = (now[i] - before[i] for i in range(3))
        return max(0.0, (busy - ours) / total) if total else 0.0

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds of all cores so far: passed, busy, and busy for us and what we started."""
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(ticks) / TICKS for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = user + nice + system + irq + softirq + steal
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = sum(cpu_seconds(pid) for pid in tree(os.getpid())) + ended.ru_utime + ended.ru_stime
        return busy + idle + iowait, busy, ours
