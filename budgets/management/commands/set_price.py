import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.commands import micro_usd_written
from budgets.money import price_told
from tenants import generations
from tenants.commands import PENDING, moment, tenant_called, told_plainly

PRICES = {
    "input": "US dollars for a million input tokens",
    "cached": "the same for input that the model had in its cache; as other input if left out",
    "output": "US dollars for a million output tokens",
    "gpu-second": "US dollars for a second of GPU time",
}


class Command(BaseCommand):
    help = "Set what a model costs, from now or a moment on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--model", required=True, metavar="NAME", help="such as llama3.2:latest")
        parser.add_argument("--tenant", metavar="SLUG", help="for this tenant only")
        for name, meaning in PRICES.items():
            parser.add_argument(f"--{name}", metavar="USD", help=meaning)
        parser.add_argument("--free", action="store_true", help="it costs nothing, on purpose")
        parser.add_argument(
            "--from", dest="starts", metavar="WHEN", help="12h, 30d from now, or a date or a time; now"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        starts = options["starts"]
        cached = options["cached"]
        with told_plainly():
            price = services.set_price(
                model=options["model"],
                tenant=tenant,
                input_price=micro_usd_written(options["input"]),
                cached_price=None if cached is None else micro_usd_written(cached),
                output_price=micro_usd_written(options["output"]),
                gpu_price=micro_usd_written(options["gpu_second"]),
                starts_at=moment(starts, tenant.time_zone if tenant else "UTC") if starts else None,
                free=options["free"],
                actor=person_at_the_shell(),
            )
        in_force = generations.in_force(price.tenant_id)
        if options["json"]:
            described = {
                "price_id": str(price.pk),
                "model": price.model,
                "tenant": tenant and tenant.slug,
                "input_micro_usd_per_million": price.input_price,
                "cached_micro_usd_per_million": price.cached_price,
                "output_micro_usd_per_million": price.output_price,
                "gpu_micro_usd_per_second": price.gpu_price,
                "starts_at": price.starts_at.isoformat(),
                "free": price.free,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        cost = "free"
        if not price.free:
            cost = price_told(price)
        self.stdout.write(f"{price}{f' for {tenant.slug}' if tenant else ''}: {cost}.")
        if not in_force:
            self.stdout.write(PENDING)
