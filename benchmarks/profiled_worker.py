"""One web worker that is looked at again and again while it works.

    python -m benchmarks.profiled_worker HOST PORT OUTPUT

It is the worker of ``manage.py serve`` with a timer beside it, which goes off
after each millisecond of processor time, or at the kernel's next tick. SIGUSR1
begins to count anew, SIGUSR2 writes what was counted since into OUTPUT as JSON:
the processor time in seconds, the number of looks, and for each function its
package, its name, how often it was at work itself, and how often it or what it
called was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from config import serve

EVERY_SECONDS = 0.001
ROOT = Path(serve.__file__).resolve().parent.parent


class Sampler:
    """Counts where the program is whenever the timer of its processor time goes off.

    Python runs a handler between two of its own instructions: what C code
    takes is counted for the Python function that called it.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._begin()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._look)
        signal.signal(signal.SIGUSR1, lambda *_: self._begin())
        signal.signal(signal.SIGUSR2, lambda *_: self._write())
        signal.setitimer(signal.ITIMER_PROF, EVERY_SECONDS, EVERY_SECONDS)

    def _begin(self) -> None:
        self._own: Counter[CodeType] = Counter()
        self._within: Counter[CodeType] = Counter()
        self._looks = 0
        self._began = time.process_time()

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._looks += 1
        self._own[frame.f_code] += 1
        seen: set[CodeType] = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        self._within.update(seen)

    def _write(self) -> None:
        functions = [
            [package_of(code), name_of(code), self._own[code], within]
            for code, within in self._within.most_common()
        ]
        told = {"seconds": time.process_time() - self._began, "looks": self._looks, "functions": functions}
        partial = self._output.with_suffix(".partial")
        partial.write_text(json.dumps(told))
        partial.rename(self._output)


def package_of(code: CodeType) -> str:
    """Whose code it is: an installed package, an app of ours, or a module of Python's own."""
    path = Path(code.co_filename)
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1].removesuffix(".py")
    if path.is_relative_to(ROOT):
        return f"ours: {path.relative_to(ROOT).parts[0]}"
    return f"Python: {path.parent.name if path.parent.name == 'asyncio' else path.stem}"


def name_of(code: CodeType) -> str:
    """Where the function is, short: ``proxy/views.py infer``."""
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-2:])}:{code.co_firstlineno} {code.co_qualname}"


def main(host: str, port: int, output: Path) -> int:
    Sampler(output).start()
    return serve.main(host, port, os.open(os.devnull, os.O_WRONLY))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
