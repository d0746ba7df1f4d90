import json
from datetime import date
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets.api.statements import statement_as_json
from budgets.commands import month_written
from budgets.month_closing import Outlook, close_month, outlook, tenants_to_close
from budgets.pricing import usd_in_full
from tenants.commands import tenant_called
from tenants.models import Tenant
from tenants.redis import RedisError


class Command(BaseCommand):
    help = "Freeze a month of a tenant, once it is over and booked, and draw up its statement."

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--tenant", metavar="SLUG", help="whose month")
        whose.add_argument("--all", action="store_true", help="that of everybody who used something in it")
        parser.add_argument("--month", required=True, metavar="MONTH", help="such as 2026-10")
        parser.add_argument("--reason", default="", help="for the audit")
        parser.add_argument(
            "--despite-parked",
            action="store_true",
            help="leave out records that are parked; booked later, they are late usage",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only tell what it comes to and what stands against it"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        month = month_written(options["month"])
        tenants = tenants_to_close(month) if options["all"] else [tenant_called(options["tenant"])]
        results: list[dict[str, Any]] = []
        try:
            results.extend(self._one(tenant, month, options) for tenant in tenants)
        except RedisError as exc:
            raise CommandError(f"Nobody knows whether all is booked: Redis cannot be asked. {exc}") from exc
        if options["json"]:
            self.stdout.write(json.dumps({"month": options["month"], "tenants": results}))
        elif not results:
            self.stdout.write(f"Nobody used anything in {options['month']} that is not closed.")
        if any(one["against"] for one in results):
            raise CommandError(f"{options['month']} is not closed for everybody.")

    def _one(self, tenant: Tenant, month: date, options: dict[str, Any]) -> dict[str, Any]:
        if options["dry_run"]:
            seen = outlook(tenant=tenant, month=month, despite_parked=options["despite_parked"])
            if not options["json"]:
                self._tell(seen)
            return {
                "tenant": tenant.slug,
                "against": seen.against,
                "time_zone": seen.time_zone,
                "entries": seen.entries,
                "totals": seen.totals,
            }
        try:
            statement = close_month(
                tenant=tenant,
                month=month,
                actor=person_at_the_shell(),
                reason=options["reason"],
                despite_parked=options["despite_parked"],
            )
        except ValidationError as exc:
            if not options["json"]:
                self.stderr.write(f"{tenant.slug}: {' '.join(exc.messages)}")
            return {"tenant": tenant.slug, "against": exc.messages, "statement": None}
        if not options["json"]:
            self.stdout.write(
                f"Closed {options['month']} of {tenant.slug}: statement {statement.number}, "
                f"{statement.closing.entries} entries, {statement.cost} USD."
            )
        return {"tenant": tenant.slug, "against": [], "statement": statement_as_json(statement)}

    def _tell(self, seen: Outlook) -> None:
        cost = usd_in_full(seen.totals["cost_micro_usd"])
        self.stdout.write(
            f"{seen.month:%Y-%m} of {seen.tenant.slug} ({seen.time_zone}): {seen.entries} entries, "
            f"{seen.totals['requests']} requests, {cost} USD."
        )
        for reason in seen.against:
            self.stdout.write(f"  against it: {reason}")
        if not seen.against:
            self.stdout.write("  nothing stands against closing it.")
