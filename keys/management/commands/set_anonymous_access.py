import json
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from keys import services
from tenants import generations
from tenants.commands import PENDING, tenant_called, told_plainly

LIMITS = {
    "visitor_tokens": "tokens of one visitor in a day",
    "address_tokens": "tokens of one address in a day",
    "address_streams": "calls of one address at one time",
    "check_after": "requests of one address in a day until a human check is demanded",
}


def number_or_none(text: str) -> int | None:
    """``none`` is no limit, which is not 0."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text!r} is neither a number nor none.") from exc


class Command(BaseCommand):
    help = "Say whether people without a key may call a tenant, and how much."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose door it is")
        door = parser.add_mutually_exclusive_group()
        door.add_argument("--enable", action="store_true", default=None, dest="enabled", help="open it")
        door.add_argument("--disable", action="store_false", default=None, dest="enabled", help="close it")
        for name, meaning in LIMITS.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=number_or_none,
                default=...,
                metavar="N",
                help=f"{meaning}; none: no limit, 0: nothing",
            )
        parser.add_argument(
            "--warning-percent", type=int, metavar="P", help="from how much of an allowance on to warn"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--model",
            action="append",
            dest="models",
            metavar="NAME",
            help="a model that visitors may call, such as llama3.2:latest; may be repeated",
        )
        which.add_argument("--no-models", action="store_const", const=[], dest="models", help="no model")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        changes = {name: options[name] for name in LIMITS if options[name] is not ...}
        said = {name: options[name] for name in ("enabled", "warning_percent", "models")}
        changes |= {name: value for name, value in said.items() if value is not None}
        with told_plainly():
            access = services.set_anonymous_access(tenant=tenant, actor=person_at_the_shell(), **changes)
        in_force = generations.in_force(tenant.pk)
        if options["json"]:
            told = {name: getattr(access, name) for name in (*LIMITS, *said)}
            described = {"tenant": tenant.slug, "key_id": str(access.key_id), **told, "in_force": in_force}
            self.stdout.write(json.dumps(described))
            return
        if access.enabled:
            models = ", ".join(access.models) or "no model yet"
            self.stdout.write(f"Visitors of {tenant.slug} may call {models}.")
            for name, meaning in LIMITS.items():
                limit = getattr(access, name)
                self.stdout.write(f"  {meaning}: {'no limit' if limit is None else limit}")
        else:
            self.stdout.write(f"Without a key nobody may call {tenant.slug}.")
        if not in_force:
            self.stdout.write(PENDING)
