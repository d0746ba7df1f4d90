"""``manage.py serve``: the gateway's web processes."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config.trial_secrets import is_loopback
from config.weak_secrets import weaknesses
from config.workers import NotStarted, PortTaken, Workers


class Command(BaseCommand):
    """Serve until SIGTERM or SIGINT, then drain; see ``docs/server.md``."""

    help = "Serve the gateway over HTTP. SIGTERM or Ctrl-C drains; a second one does not wait."

    # The workers find out what is wrong; every second of a start counts in a deployment.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
        parser.add_argument(
            "--port", type=int, default=8000, help="port; 0 takes a free one (default: %(default)s)"
        )
        parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
        parser.add_argument(
            "--trial",
            action="store_true",
            help="accept secrets that a quickstart made, at a loopback address",
        )

    def handle(self, *, host: str, port: int, workers: int, trial: bool, **options: Any) -> None:
        if workers < 1:
            raise CommandError("There has to be at least one worker.")
        if not settings.DEBUG and (weak := list(weaknesses(on_trial=trial and is_loopback(host)))):
            raise CommandError(" ".join(weak))
        if not asyncio.run(self._serve(host, port, workers)):
            sys.exit(1)

    async def _serve(self, host: str, port: int, count: int) -> bool:
        try:
            workers = Workers(host, port, count)
        except PortTaken as exc:
            raise CommandError(f"Cannot serve: {exc}.") from exc
        except OSError as exc:
            raise CommandError(f"Cannot listen at {host} port {port}: {exc.strerror}.") from exc
        shown = f"[{host}]" if ":" in host else host

        def ready() -> None:
            self.stdout.write(f"Serving http://{shown}:{workers.port} with {count} worker(s).")
            self.stdout.flush()

        try:
            return await workers.run(ready)
        except NotStarted as exc:
            raise CommandError("A worker did not start.") from exc
