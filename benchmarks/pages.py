"""How long the server takes for a page: ``python3 benchmarks/pages.py --rows 1000000``.

Asks for every page of the portal and every list of the admin, as the URL table
has them, over a ledger of that many entries of one tenant in the last four
weeks. Ends with status 1 if a page took longer than it should.

Starts PostgreSQL and Valkey of its own and throws them away. A million entries
with their events take some 2 GB of disk meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks import books
from benchmarks.ledger_rows import FILL

AIM_MS = 100
DAYS, KEYS, MEMBERS = 28, 40, 40
SLUG = "acme"
ACTOR = "benchmark"
# Asked once, so that templates are loaded and pools are filled, and then so often.
REPEATS = 9
# Beside what a page shows by itself.
QUERIES = {
    "portal-usage": ("", "?by=day", "?by=model&by=day", "?by=hour"),
    "portal-key": ("", "?span=7d", "?span=30d", "?span=period"),
    "portal-keys-revoke": ("?key={key_id}",),
    "portal-exports": ("", "?from_day={first_day}&before_day={before_day}&profile=day"),
}

# The call of each entry as it went by, and one refused beside every twentieth.
EVENTS = """
INSERT INTO audit_requestevent (
    request_id, at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, run, status,
    outcome, refusal, refused_by, input_tokens, output_tokens, exact, admitted_at, ended_at)
SELECT request_id, ended_at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, '', 200,
    'completed', '', '{}'::text[], input_tokens, output_tokens, exact, admitted_at, ended_at
FROM budgets_ledgerentry
UNION ALL
SELECT overlay(request_id::text PLACING 'b' FROM 20)::uuid, ended_at, tenant_id, tenant, key_id, key, route,
    dialect, model, '', stream, '', 429, 'refused', 'budget_exhausted', '{}'::text[], 0, 0, true,
    NULL, ended_at
FROM budgets_ledgerentry WHERE id % 20 = 0
"""


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that a page sent, what was put into it, and how long it took."""

    sql: str
    values: Any
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """What it took to answer for one address: milliseconds, and the queries of one answer.

    ``own_ms`` is the processor time of this process; the rest of the median is
    the database, and other work on the machine.
    """

    address: str
    status: int
    median_ms: float
    slowest_ms: float
    own_ms: float
    queries: list[Query] = field(repr=False)

    @property
    def is_too_slow(self) -> bool:
        return self.median_ms >= AIM_MS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="entries in the ledger")
    parser.add_argument(
        "--explain", action="store_true", help="tell the plan of what pages too slow waited for"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with books.servers():
        import django

        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        os.environ["OPERATORS_NEED_SECOND_FACTOR"] = "false"
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        furnish(given.rows)
        pages, without = measured()
        for line in report(pages, without):
            print(line)  # noqa: T201
        if given.explain:
            for page in pages:
                if page.is_too_slow:
                    print(f"\n{page.address}\n{explained(page)}")  # noqa: T201
    if given.json:
        told = [{**asdict(page), "queries": len(page.queries)} for page in pages]
        Path(given.json).write_text(json.dumps(told, indent=1))
    return 1 if any(page.is_too_slow for page in pages) else 0


def furnish(rows: int) -> None:
    """One tenant with so many entries, and something behind every kind of address."""
    from django.db import connection

    from audit import months
    from budgets import rollups
    from budgets.booking import BY_MONTH
    from budgets.exports.jobs import order_export
    from budgets.exports.orders import Order
    from budgets.month_closing import close_month
    from budgets.rebuild import ensure_epoch
    from budgets.rollups import Part
    from budgets.usage import Selection
    from keys.models import ApiKey
    from tenants import generations, services
    from tenants.invitations import invite
    from tenants.models import User

    tenant = services.create_tenant(slug=SLUG, name="ACME", actor=ACTOR, allow_all_models=True)
    first_day = datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    with connection.cursor() as cursor:
        for table in BY_MONTH:
            months.ensure(table, months.months_from(first_day, 2))
        cursor.execute(FILL, {"rows": rows, "tenant_id": tenant.pk, "tenant": SLUG, "first_day": first_day})
        cursor.execute(EVENTS)
        cursor.execute("SELECT DISTINCT key_id, key FROM budgets_ledgerentry ORDER BY key")
        ApiKey.objects.bulk_create(
            ApiKey(pk=key_id, tenant=tenant, label=label) for key_id, label in cursor.fetchall()
        )
    rollups.rebuild(part=Part(), actor=ACTOR, write=True)
    for number in range(MEMBERS):
        user = User.objects.create(username=f"member-{number}")
        services.add_member(tenant=tenant, user=user, role="owner" if number == 0 else "member", actor=ACTOR)
    owner = User.objects.get(username="member-0")
    services.create_service_account(tenant=tenant, name="nightly", actor=ACTOR)
    invite(tenant=tenant, email="mia@example.org", role="member", invited_by=owner)
    User.objects.create(username="operator", is_staff=True, is_superuser=True)
    generations.project()
    ensure_epoch()
    month = first_day.replace(day=1)
    close_month(tenant=tenant, month=(month - timedelta(days=1)).replace(day=1), actor=ACTOR)
    order_export(
        order=Order(Selection(tenant.pk, first_day, first_day + timedelta(days=DAYS)), "day"), user=owner
    )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def measured(repeats: int = REPEATS) -> tuple[list[Page], list[str]]:
    """Every page, the slowest first, and the routes for which there is nothing here to show."""
    from django.test import Client

    from tenants.models import User

    found, without = [], []
    known = _known()
    for route, name in _routes():
        address = _filled_in(route, known)
        if address is None:
            without.append(route)
            continue
        client = Client(headers={"host": "localhost"})
        who = "operator" if route.startswith("admin/") else "member-0"
        client.force_login(User.objects.get(username=who))
        asked = [address + query.format(**known) for query in QUERIES.get(name, ("",))]
        found += [_asked(client, one, repeats) for one in asked]
    # What takes only forms is no page.
    found = [page for page in found if page.status != HTTPStatus.METHOD_NOT_ALLOWED]
    return sorted(found, key=lambda page: -page.median_ms), without


def _routes() -> Iterator[tuple[str, str]]:
    """Pages of the portal and lists of the admin: the route and its name."""
    from django.urls import URLPattern, URLResolver, get_resolver

    def below(resolver: URLResolver, beginning: str) -> Iterator[tuple[str, str]]:
        for pattern in resolver.url_patterns:
            route = f"{beginning}{pattern.pattern}"
            if isinstance(pattern, URLResolver):
                yield from below(pattern, route)
            elif isinstance(pattern, URLPattern):
                yield route, pattern.name or ""

    for route, name in below(get_resolver(), ""):
        if route.startswith("portal/") or (
            route.startswith("admin/") and (name == "index" or name.endswith("_changelist"))
        ):
            yield route, name


def _known() -> dict[str, Any]:
    """What may stand in an address, by the name that it has in the routes."""
    from budgets.models import Budget, Export, LedgerEntry, RaiseRequest, Recipient, Statement
    from keys.models import ApiKey
    from tenants.models import Invitation, Member, ServiceAccount, Team

    first_day = datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    some = {
        "request_id": LedgerEntry.objects.order_by("-id").values_list("request_id", flat=True),
        "key_id": ApiKey.objects.values_list("pk", flat=True),
        "member_id": Member.objects.values_list("pk", flat=True),
        "account_id": ServiceAccount.objects.values_list("pk", flat=True),
        "invitation_id": Invitation.objects.values_list("pk", flat=True),
        "team_id": Team.objects.values_list("pk", flat=True),
        "budget_id": Budget.objects.exclude(limit=None).values_list("pk", flat=True),
        "recipient_id": Recipient.objects.exclude(tenant=None).values_list("pk", flat=True),
        "raise_id": RaiseRequest.objects.values_list("pk", flat=True),
        "export_id": Export.objects.values_list("pk", flat=True),
        "number": Statement.objects.values_list("number", flat=True),
    }
    known = {name: found[0] for name, found in some.items() if found.exists()}
    days = {"first_day": first_day, "before_day": first_day + timedelta(days=DAYS)}
    return {"slug": SLUG, **days, **known}


def _filled_in(route: str, known: dict[str, Any]) -> str | None:
    """The address of a route; None if something stands in it that is not known."""
    names = re.findall(r"<(?:\w+:)?(\w+)>", route)
    if not set(names) <= set(known):
        return None
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(known[found[1]]), route)


def _asked(client: Any, address: str, repeats: int) -> Page:
    from django.db import connection

    queries: list[Query] = []

    def watched(execute: Callable[..., Any], sql: str, values: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, values, many, context)
        finally:
            queries.append(Query(sql, values, 1000 * (time.perf_counter() - began)))

    with connection.execute_wrapper(watched):
        status = client.get(address).status_code
    took, own = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.thread_time()
        client.get(address)
        took.append(1000 * (time.perf_counter() - began))
        own.append(1000 * (time.thread_time() - worked))
    return Page(address, status, statistics.median(took), max(took), statistics.median(own), queries)


def report(pages: list[Page], without: list[str]) -> Iterator[str]:
    """The table, line by line."""
    width = max(len(page.address) for page in pages)
    yield f"{'page'.ljust(width)}  status  median ms  slowest ms  own ms  queries"
    for page in pages:
        figures = f"{page.median_ms:9.1f}  {page.slowest_ms:10.1f}  {page.own_ms:6.1f}  {len(page.queries):7}"
        slow = "  TOO SLOW" if page.is_too_slow else ""
        yield f"{page.address.ljust(width)}  {page.status:6}  {figures}{slow}"
    for route in without:
        yield f"not measured, nothing here to show: {route}"


def explained(page: Page) -> str:
    """What PostgreSQL did for the slowest query of a page."""
    from django.db import connection

    slowest = max(page.queries, key=lambda query: query.milliseconds)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {slowest.sql}", slowest.values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    return f"{slowest.milliseconds:.1f} ms: {slowest.sql}\n{plan}"


if __name__ == "__main__":
    sys.exit(main())
