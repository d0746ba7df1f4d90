"""A drain that is killed between its commit and the acknowledgement; a process of its own."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

# How long it waits for something to drain.
PATIENCE_SECONDS = 5


def main() -> None:
    import django

    django.setup()
    from budgets import ledger

    def die(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # The one script that a drain runs is the acknowledgement.
    vars(ledger)["run_now"] = die
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        ledger.drain()
        time.sleep(0.01)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    main()
