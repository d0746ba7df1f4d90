import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from budgets.commands import key_of
from budgets.models import Budget
from budgets.periods import in_words
from budgets.standing import Standing, standings
from tenants.commands import tenant_called
from tenants.redis import RedisError

COLUMNS = ("budget", "limit", "used", "held", "left", "starts_at", "ends_at")


class Command(BaseCommand):
    help = "Show the budgets of a tenant or of the platform: present period, what is used, held and left."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="SLUG", help="its budgets; without, those that are nobody's")
        parser.add_argument("--key", metavar="PUBLIC_ID", help="only those of this key of the tenant")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["key"] and not options["tenant"]:
            raise CommandError("--key needs the --tenant whose key it is.")
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        which = Q(tenant=tenant)
        if tenant is not None and options["key"]:
            which &= Q(key=key_of(tenant, options["key"]))
        rows = Budget.objects.filter(which).select_related("tenant", "team", "member__user", "key")
        rows = rows.prefetch_related("raises").order_by("scope", "unit", "created_at")
        try:
            found = standings(list(rows))
        except RedisError as exc:
            raise CommandError(f"Redis cannot be reached: {exc}") from exc
        described = [_described(one) for one in found]
        if options["json"]:
            self.stdout.write(json.dumps({"tenant": tenant and tenant.slug, "budgets": described}))
            return
        lines = [COLUMNS, *(tuple(_in_words(name, row[name]) for name in COLUMNS) for row in described)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            self.stdout.write("  ".join(map(str.ljust, line, widths)).rstrip())
        for row in described:
            if row["then_per"]:
                self.stdout.write(
                    f"{row['budget']}: from {row['ends_at']} on per {row['then_per']}, {row['then_in']}."
                )
            if row["limit"] != row["limit_without_raises"]:
                self.stdout.write(f"{row['budget']}: raised from {row['limit_without_raises']}.")
            if row["refused"]:
                did = "would have refused" if row["shadow"] else "refused"
                self.stdout.write(f"{row['budget']}: {did} {row['refused']} calls.")
            if row["empty_at"]:
                self.stdout.write(f"{row['budget']}: at this pace empty on {row['empty_at']}.")


def _described(standing: Standing) -> dict[str, Any]:
    """What is told of a budget; instants in the tenant's zone."""
    row, follows = standing.budget, standing.follows
    return {
        "budget_id": str(row.pk),
        "budget": str(row),
        "scope": row.scope,
        "unit": row.unit,
        "shadow": row.shadow,
        "period": standing.length,
        "time_zone": standing.calendar.zone.key,
        "starts_at": standing.starts_at.isoformat(),
        "ends_at": standing.ends_at and standing.ends_at.isoformat(),
        "limit": standing.limit,
        "limit_without_raises": row.limit,
        "used": standing.used,
        "held": standing.held,
        "left": standing.left,
        "refused": standing.refused,
        "empty_at": standing.empty_at and standing.empty_at.astimezone(standing.calendar.zone).isoformat(),
        "then_per": follows and in_words(follows.kind, follows.seconds),
        "then_in": follows and follows.zone.key,
    }


def _in_words(name: str, value: Any) -> str:
    if value is None:
        return "never" if name == "ends_at" else "no limit"
    return str(value)
