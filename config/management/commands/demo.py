"""``manage.py demo``: what ``quickstart`` needs of the database. JSON in, JSON out."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from config import demo


class Command(BaseCommand):
    """A command of its own, because the process that starts all others loads no Django."""

    help = "Prepare the data of the quickstart (reads its wishes as JSON), or wait for a call's ledger entry."

    # They load every page there is, and a quickstart, which runs this twice, starts a web process anyway.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("prepare")
        booked = actions.add_parser("booked")
        booked.add_argument("request_id")
        booked.add_argument(
            "--seconds", type=float, default=30, help="how long to wait (default: %(default)s)"
        )

    def handle(self, *, action: str, **options: Any) -> None:
        if action == "prepare":
            answer = demo.prepare(**json.load(sys.stdin))
        else:
            answer = demo.wait_until_booked(options["request_id"], seconds=options["seconds"])
        self.stdout.write(json.dumps(answer))
