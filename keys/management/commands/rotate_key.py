import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from keys import secrets, services
from keys.commands import key_called
from keys.lifetimes import Grace
from tenants import generations
from tenants.commands import PENDING, told_plainly


class Command(BaseCommand):
    help = "Give a key another secret and print it, once. The one before works on for a grace."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", metavar="PUBLIC_ID|KEY_ID", help="12 characters after tg_, or the key's UUID"
        )
        parser.add_argument(
            "--grace",
            required=True,
            choices=Grace.values,
            help="for how long the secret before works beside the new one",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        key, grace = key_called(options["key"]), Grace(options["grace"])
        with told_plainly():
            _, secret = services.rotate_key(key=key, actor=person_at_the_shell(), grace=grace)
        in_force = generations.in_force(key.tenant_id)
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "public_id": secrets.public_id_of(secret),
                "secret": secret,
                "tenant": key.tenant.slug,
                "label": key.label,
                "grace": str(grace),
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        if not in_force:
            self.stdout.write(PENDING)
        # The secret is the last line, for those who take it from there.
        self.stdout.write(
            f"Rotated key {key.label} ({key.pk}) of {key.tenant.slug}. The secret before works on: "
            f"{grace.label.lower()}. The new one is not shown again:"
        )
        self.stdout.write(secret)
