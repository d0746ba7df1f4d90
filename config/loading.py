"""Loading all the code there is, of which each process of the gateway has to wait for once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Without the collector of garbage: what is loaded stays, so it looks and looks and finds nothing.

    That takes a fifth of the time. What is there at the end is not looked at later either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
