"""Playwright in a thread of its own, asked from a test's thread as if it ran there.

Playwright's synchronous objects live in one thread and keep an event loop
running in it. In the thread of the tests Django would then refuse every query,
and whatever else of the run starts a loop would fail.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import playwright.sync_api


class BrowserThread:
    """The thread; use as a context manager, which at its end waits for what was asked for."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="browser")

    def __enter__(self) -> BrowserThread:
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function returns there, or raises; objects of Playwright come as ``Remote``."""
        args = tuple(_there(value) for value in args)
        kwargs = {name: _there(value) for name, value in kwargs.items()}
        return self._here(self._executor.submit(function, *args, **kwargs).result())

    def _here(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._here(one) for one in value]
        ours = type(value).__module__.startswith("playwright.") and not isinstance(value, str | dict)
        return Remote(self, value) if ours or callable(value) else value


class Remote:
    """Stands for an object of Playwright, or one of its methods.

    Functions that are given to it, such as listeners, are called in the
    browser's thread: they may use Playwright, and not the database.
    """

    def __init__(self, thread: BrowserThread, there: Any) -> None:
        self._thread = thread
        self._there = there

    def __getattr__(self, name: str) -> Any:
        return self._thread.call(getattr, self._there, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._thread.call(self._there, *args, **kwargs)

    def __enter__(self) -> Any:
        return self._thread.call(self._there.__enter__)

    def __exit__(self, *exc: object) -> None:
        self._thread.call(self._there.__exit__, *exc)

    def __repr__(self) -> str:
        return repr(self._there)


def _there(value: Any) -> Any:
    return value._there if isinstance(value, Remote) else value


if TYPE_CHECKING:
    from playwright.sync_api import expect as expect
else:

    def expect(actual: Remote) -> Any:
        """What Playwright expects of a page or a part of one, waited for."""
        return actual._thread.call(playwright.sync_api.expect, actual)
