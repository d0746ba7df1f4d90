"""Where whatever runs now was asked for, such as ``admin from 192.0.2.7`` or ``command set_price on ada-pc``.

Set by those who begin something (the site for each request, ``manage.py`` for
a command, the worker); read by ``audit.recording.record``. Empty: nobody said.
"""

from __future__ import annotations

from contextvars import ContextVar

origin: ContextVar[str] = ContextVar("origin", default="")
