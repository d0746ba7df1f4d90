import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from budgets import usage
from budgets.commands import key_of
from tenants.commands import moment, tenant_called

SHARE = "estimated"


class Command(BaseCommand):
    help = "Show what the ledger says a tenant, or one of its keys, has used."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG")
        parser.add_argument("--key", metavar="PUBLIC_ID", help="only what this key has used")
        parser.add_argument("--run", metavar="NAME", help="only what this run has used")
        parser.add_argument(
            "--since", metavar="WHEN", help="calls that ended then or later: a date or a time"
        )
        parser.add_argument("--until", metavar="WHEN", help="calls that ended before: a date or a time")
        parser.add_argument("--by", choices=list(usage.PARTS), help="one line for each")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        tenant = tenant_called(options["tenant"])
        since = moment(options["since"], tenant.time_zone) if options["since"] else None
        until = moment(options["until"], tenant.time_zone) if options["until"] else None
        key = key_of(tenant, options["key"]) if options["key"] else None
        selection = usage.Selection(
            tenant_id=tenant.pk, key_id=key.pk if key else None, run=options["run"], since=since, until=until
        )
        rows = usage.by_part(selection, options["by"]) if options["by"] else []
        total = usage.totals(selection)
        if options["json"]:
            described = {
                "tenant": tenant.slug,
                "time_zone": tenant.time_zone,
                "key": key and key.label,
                "run": options["run"],
                "since": since and since.isoformat(),
                "until": until and until.isoformat(),
                "by": options["by"],
                "rows": [row | _share(row) for row in rows],
                "total": total | _share(total),
            }
            self.stdout.write(json.dumps(described))
            return
        names = [str(row[options["by"]]) or "-" for row in rows] + ["total"]
        width = max(map(len, [*names, options["by"] or ""]))
        self.stdout.write("  ".join([(options["by"] or "").ljust(width), *usage.FIGURES, SHARE]))
        for name, row in zip(names, [*rows, total], strict=True):
            figures = [str(row[figure]).rjust(len(figure)) for figure in usage.FIGURES]
            share = usage.in_percent(usage.estimated_share(row)).rjust(len(SHARE))
            self.stdout.write("  ".join([name.ljust(width), *figures, share]))


def _share(row: dict[str, Any]) -> dict[str, int]:
    return {"estimated_share_per_mille": usage.estimated_share(row)}
