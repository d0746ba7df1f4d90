import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.commands import micro_usd_written
from budgets.money import usd, usd_total
from tenants.commands import moment, told_plainly


class Command(BaseCommand):
    help = "Enter what an upstream costs, from now or a moment on, until its next cost begins."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--upstream", required=True, metavar="NAME", help="as in reports: gpu-1")
        parser.add_argument(
            "--hardware", metavar="USD", help="US dollars for all of its hardware; 0 once it is written off"
        )
        parser.add_argument(
            "--life", required=True, type=int, metavar="MONTHS", help="the months over which that is spread"
        )
        parser.add_argument(
            "--busy-watts", type=int, default=0, metavar="WATTS", help="what it draws while every GPU works"
        )
        parser.add_argument(
            "--idle-watts", type=int, default=0, metavar="WATTS", help="what it draws while no GPU works"
        )
        parser.add_argument("--kwh", metavar="USD", help="US dollars for a kilowatt-hour")
        parser.add_argument("--other", metavar="USD", help="US dollars a month for rent, network, people")
        parser.add_argument("--gpus", type=int, default=1, metavar="NUMBER", help="how many GPUs it has (1)")
        parser.add_argument(
            "--from", dest="starts", metavar="WHEN", help="12h, 30d from now, or a date or a time; now"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        starts = options["starts"]
        with told_plainly():
            cost = services.set_upstream_cost(
                upstream=options["upstream"],
                hardware_price=micro_usd_written(options["hardware"]),
                life_months=options["life"],
                busy_watts=options["busy_watts"],
                idle_watts=options["idle_watts"],
                kwh_price=micro_usd_written(options["kwh"]),
                other_per_month=micro_usd_written(options["other"]),
                gpus=options["gpus"],
                starts_at=moment(starts, "UTC") if starts else None,
                actor=person_at_the_shell(),
            )
        if options["json"]:
            described = {
                "upstream_cost_id": str(cost.pk),
                "upstream": cost.upstream,
                "starts_at": cost.starts_at.isoformat(),
                "hardware_micro_usd": cost.hardware_price,
                "life_months": cost.life_months,
                "busy_watts": cost.busy_watts,
                "idle_watts": cost.idle_watts,
                "micro_usd_per_kwh": cost.kwh_price,
                "other_micro_usd_per_month": cost.other_per_month,
                "gpus": cost.gpus,
            }
            self.stdout.write(json.dumps(described))
            return
        self.stdout.write(
            f"{cost} UTC: {usd_total(cost.hardware_price)} over {cost.life_months} months and "
            f"{usd_total(cost.other_per_month)} a month for {cost.gpus} GPUs; "
            f"{cost.busy_watts} W busy, {cost.idle_watts} W idle at {usd(cost.kwh_price)} a kWh."
        )
