import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from tenants import generations
from tenants.commands import PENDING, tenant_called, told_plainly


class Command(BaseCommand):
    help = "Set how many tokens each process may let through for a tenant while Redis cannot be asked."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose calls may go on")
        parser.add_argument(
            "--tokens",
            required=True,
            type=int,
            metavar="N",
            help="for each process, input and output; 0: none",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        with told_plainly():
            credit = services.set_outage_credit(
                tenant=tenant, tokens=options["tokens"], actor=person_at_the_shell()
            )
        in_force = generations.in_force(tenant.pk)
        if options["json"]:
            described = {"tenant": tenant.slug, "tokens": credit.tokens, "in_force": in_force}
            self.stdout.write(json.dumps(described))
            return
        if credit.tokens:
            self.stdout.write(
                f"While Redis is away each process lets {tenant.slug} use up to {credit.tokens} tokens."
            )
        else:
            self.stdout.write(f"While Redis is away {tenant.slug} is refused.")
        if not in_force:
            self.stdout.write(PENDING)
