import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets.commands import month_written
from budgets.models import ClosedMonth
from budgets.month_closing import confirm_reopening, reopening_asked, request_reopening
from tenants.commands import tenant_called, told_plainly


class Command(BaseCommand):
    help = "Open a closed month again: one person asks, another one agrees with the same command."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose month")
        parser.add_argument("--month", required=True, metavar="MONTH", help="such as 2026-10")
        parser.add_argument("--reason", default="", help="why, for the audit; who agrees need not say it")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant, month = tenant_called(options["tenant"]), month_written(options["month"])
        closing = ClosedMonth.objects.filter(tenant_id=tenant.pk, month=month, reopened_at=None).first()
        if closing is None:
            raise CommandError(f"{options['month']} of {tenant.slug} is not closed.")
        with told_plainly():
            if reopening_asked(closing):
                closing = confirm_reopening(closing=closing, actor=person_at_the_shell())
            else:
                closing = request_reopening(
                    closing=closing, actor=person_at_the_shell(), reason=options["reason"]
                )
        if options["json"]:
            described = {
                "tenant": closing.tenant,
                "month": options["month"],
                "asked_at": closing.reopening_asked_at and closing.reopening_asked_at.isoformat(),
                "asked_by": closing.reopening_asked_by,
                "reason": closing.reopening_reason,
                "reopened_at": closing.reopened_at and closing.reopened_at.isoformat(),
                "reopened_by": closing.reopened_by or None,
            }
            self.stdout.write(json.dumps(described))
        elif closing.reopened_at is None:
            self.stdout.write(f"Asked for {closing}. Within a day another person has to say the same.")
        else:
            self.stdout.write(f"Opened {closing} again, as {closing.reopening_asked_by} has asked.")
