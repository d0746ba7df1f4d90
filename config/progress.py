"""Lines that tell a person what is being done and how long it took."""

import contextlib
import sys
import time
from collections.abc import Iterator


class Step:
    """One thing being done; ``result`` is what its line ends with."""

    def __init__(self) -> None:
        self.result = ""


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def step(name: str) -> Iterator[Step]:
    """Print ``name`` now, and the seconds it took with its result when the block is left."""
    sys.stdout.write(f"  {name:<15}")
    sys.stdout.flush()
    current = Step()
    begun = time.monotonic()
    try:
        yield current
    except BaseException:
        say("failed")
        raise
    say(f"{time.monotonic() - begun:5.1f} s  {current.result}".rstrip())
