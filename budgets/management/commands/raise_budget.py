import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import services
from budgets.commands import key_of
from budgets.limits import limit_now
from budgets.models import Budget, Unit
from budgets.periods import kind_and_seconds
from tenants import generations
from tenants.commands import PENDING, moment, tenant_called, told_plainly


class Command(BaseCommand):
    help = "Give a tenant, or one of its keys, more of a budget until a moment."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose budget is raised")
        parser.add_argument("--key", metavar="PUBLIC_ID", help="the budget of this key")
        parser.add_argument("--unit", required=True, choices=Unit.values)
        parser.add_argument("--period", required=True, metavar="PERIOD", help="as it was set: day, 90m …")
        amount = parser.add_mutually_exclusive_group(required=True)
        amount.add_argument("--to", type=int, metavar="N", help="the limit meanwhile")
        amount.add_argument("--by", type=int, metavar="N", help="what is added to the limit meanwhile")
        parser.add_argument(
            "--until", required=True, metavar="WHEN", help="90m, 12h, 7d from now, or a date or a time"
        )
        parser.add_argument("--reason", required=True)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        key = key_of(tenant, options["key"]) if options["key"] else None
        try:
            kind, seconds = kind_and_seconds(options["period"])
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        budgets = Budget.objects.filter(
            scope="tenant" if key is None else "key",
            tenant=tenant,
            key=key,
            unit=options["unit"],
            period=kind,
            seconds=seconds,
            shadow=False,
        )
        if len(budgets) != 1:
            whose = tenant.slug if key is None else f"{key} of {tenant.slug}"
            raise CommandError(
                f"{whose} has {len(budgets) or 'no'} budgets of {options['unit']} per {options['period']}."
            )
        with told_plainly():
            raised = services.raise_budget(
                budget=budgets[0],
                to=options["to"],
                by=options["by"],
                ends_at=moment(options["until"], tenant.time_zone),
                reason=options["reason"],
                actor=person_at_the_shell(),
            )
        holds, in_force = limit_now(raised.budget), generations.in_force(tenant.pk)
        if options["json"]:
            described = {
                "raise_id": str(raised.pk),
                "budget_id": str(raised.budget_id),
                "limit": raised.budget.limit,
                "limit_now": holds,
                "to": raised.to,
                "by": raised.by,
                "starts_at": raised.starts_at.isoformat(),
                "ends_at": raised.ends_at.isoformat(),
                "reason": raised.reason,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        self.stdout.write(
            f"{raised.budget}: {holds} until {raised.ends_at:%Y-%m-%d %H:%M} UTC, then {raised.budget.limit}."
        )
        if not in_force:
            self.stdout.write(PENDING)
