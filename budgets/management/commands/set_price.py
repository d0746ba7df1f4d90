import json
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from tenants import generations
from tenants.commands import PENDING, moment, tenant_called, told_plainly

MICRO = 1_000_000
PRICES = {
    "input": "US dollars for a million input tokens",
    "cached": "the same for input that the model had in its cache; as other input if left out",
    "output": "US dollars for a million output tokens",
    "gpu-second": "US dollars for a second of GPU time",
}


class Command(BaseCommand):
    help = "Set what a model costs, from now or a moment on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--model", required=True, metavar="NAME", help="its canonical name, such as llama3.2:latest"
        )
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
                input_price=_micro_usd(options["input"]),
                cached_price=None if cached is None else _micro_usd(cached),
                output_price=_micro_usd(options["output"]),
                gpu_price=_micro_usd(options["gpu_second"]),
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
            tokens = (price.input_price, price.cached_price, price.output_price)
            cost = (
                "{} in, {} cached and {} out for a million tokens".format(*map(_usd, tokens))
                + f", {_usd(price.gpu_price)} for a second of GPU time"
            )
        self.stdout.write(f"{price}{f' for {tenant.slug}' if tenant else ''}: {cost}.")
        if not in_force:
            self.stdout.write(PENDING)


def _micro_usd(text: str | None) -> int:
    """An amount of dollars in millionths; raises ``CommandError`` for a part of one, or no amount at all."""
    try:
        amount = Decimal(text or "0") * MICRO
        whole = int(amount)
    except (InvalidOperation, ValueError, OverflowError) as exc:
        raise CommandError(f"{text!r} is no amount of dollars, such as 0.25.") from exc
    if whole != amount:
        raise CommandError(f"{text} is not a whole number of millionths of a dollar.")
    return whole


def _usd(micro_usd: int) -> str:
    return f"${Decimal(micro_usd) / MICRO:f}"
