import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.models import PeriodKind, Unit
from keys.models import ApiKey
from tenants import generations
from tenants.commands import PENDING, tenant_called, told_plainly
from tenants.models import Tenant


class Command(BaseCommand):
    help = "Set how much a tenant, or one of its keys, may use in a period."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose calls are counted")
        parser.add_argument("--key", metavar="PUBLIC_ID", help="only those of this key")
        parser.add_argument("--unit", required=True, choices=Unit.values)
        parser.add_argument(
            "--period", required=True, choices=[kind for kind in PeriodKind.values if kind != "fixed"]
        )
        parser.add_argument(
            "--limit", required=True, metavar="N", help="how much; none: no limit, only counted"
        )
        parser.add_argument(
            "--thresholds",
            metavar="PERCENTS",
            help="of the limit, at which people are told, such as 80,95,100; none: never",
        )
        parser.add_argument("--shadow", action="store_true", help="count and report, never refuse")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        key = key_of(tenant, options["key"]) if options["key"] else None
        with told_plainly():
            budget = services.set_budget(
                scope="tenant" if key is None else "key",
                tenant=tenant,
                key=key,
                unit=options["unit"],
                period=options["period"],
                limit=_number(options["limit"]),
                shadow=options["shadow"],
                thresholds=_percents(options["thresholds"]),
                actor=person_at_the_shell(),
            )
        in_force = generations.in_force(tenant.pk)
        if options["json"]:
            described = {
                "budget_id": str(budget.pk),
                "scope": budget.scope,
                "tenant": tenant.slug,
                "key": key and key.label,
                "unit": budget.unit,
                "period": budget.period,
                "limit": budget.limit,
                "shadow": budget.shadow,
                "thresholds": budget.thresholds,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        limit = "no limit" if budget.limit is None else str(budget.limit)
        self.stdout.write(f"{limit}: {budget}{', in shadow mode' if budget.shadow else ''}.")
        if not in_force:
            self.stdout.write(PENDING)


def _number(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError as exc:
        raise CommandError(f"{text!r} is no limit: a whole number, or none.") from exc


def _percents(text: str | None) -> list[int] | None:
    if text is None or text == "none":
        return None if text is None else []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise CommandError(f"{text!r} are no thresholds. An example: 80,95,100.") from exc


def key_of(tenant: Tenant, public_id: str) -> ApiKey:
    """The key of ``tenant`` that has a secret with this public id; raises ``CommandError``."""
    try:
        return ApiKey.objects.get(tenant=tenant, secrets__public_id=public_id)
    except ApiKey.DoesNotExist as exc:
        raise CommandError(f"{tenant.slug} has no key with the public id {public_id!r}.") from exc
