"""The whole gateway as one plain ASGI application.

``manage.py serve`` runs it; so does any other server of ASGI 3.
"""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
site = get_asgi_application()

# These need the applications that the line above has loaded.
from audit.walls import closed  # noqa: E402
from budgets import refusals, spool  # noqa: E402
from budgets.epochs import expected  # noqa: E402
from budgets.estimators import estimators  # noqa: E402
from budgets.tallies import tallies  # noqa: E402
from config import health, live, metrics  # noqa: E402
from config.background import background  # noqa: E402
from keys.last_use import uses  # noqa: E402
from proxy import running, upstream  # noqa: E402
from proxy.catalog import catalog  # noqa: E402
from proxy.handler import ProxyHandler, Receive, Scope, Send  # noqa: E402
from proxy.prompt_log import prompt_log  # noqa: E402
from tenants import generations  # noqa: E402
from tenants.clock import clock  # noqa: E402
from tenants.quick_settings import settings  # noqa: E402

background.add("models", catalog.keep_fresh)
background.add("generations", generations.listen)
background.add("running calls", running.watch)
background.add("spool", spool.keep_replaying)
background.add("epoch", expected.keep_vouching)
background.add("clock", clock.keep_looking)
background.add("estimators", estimators.keep_fresh)
background.add("metrics", tallies.keep_handing_over)
background.add("last use", uses.keep_handing_over)
background.add_last("settlements", running.all_settled)
background.add_last("refusals", refusals.notes.flush)
background.add_last("prompt log", prompt_log.flush)
background.add_last("metrics", tallies.hand_over)
background.add_last("last use", uses.leave)
background.add_last("connections to upstreams", upstream.close)

# Whatever begins like one of the doors for programs is answered as they
# answer, in JSON and without redirects, and so is a path that tries to look
# like something else. The rest is the site's.
DOORS = ("/v1", "/api", "//", "/./", "/../")


class Gateway:
    """The application; ``doors`` answers the programs."""

    def __init__(self, doors: ProxyHandler) -> None:
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request to the part of us that answers its path."""
        if scope["type"] == "http":
            background.start()
            await _answer(self._doors, scope, receive, send)
        elif scope["type"] == "websocket":
            # A door too: closed until a view says whose rows it shows.
            with closed():
                await live.answer(scope, receive, send)
        else:
            await _follow(receive, send)


async def _answer(doors: ProxyHandler, scope: Scope, receive: Receive, send: Send) -> None:
    # A prefix is ours to set (FORCE_SCRIPT_NAME), not a server's or, through it, a client's.
    scope["root_path"] = ""
    path = scope["path"]
    if path.lower().startswith(DOORS) or path == "/":
        await doors(scope, receive, send)
    elif path in ("/livez", "/readyz"):
        await health.answer(scope, send)
    elif path == "/metrics" and settings.METRICS_TOKEN:
        await metrics.answer(scope, send)
    else:
        await site(scope, receive, send)


async def _follow(receive: Receive, send: Send) -> None:
    """Follow the server's own start and stop."""
    await receive()
    background.start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    health.readiness.draining = True
    await background.stop()
    await send({"type": "lifespan.shutdown.complete"})


application = Gateway(ProxyHandler())
