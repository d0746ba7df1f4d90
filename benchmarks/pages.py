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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks import books
from benchmarks.furnishing import DAYS, SLUG, first_day_of_entries, furnish

AIM_MS = 100
# Asked once, and then so often; with none the first counts.
REPEATS = 9
OPERATOR, OWNER, MEMBER = "operator", "member-0", "member-1"
DAY_BY_DAY = "from={first_day}&before={before_day}"
# Beside what a page shows by itself.
QUERIES = {
    "portal": ("?q=ac",),
    "portal-usage": (
        "", "?by=day", "?by=model&by=day", "?by=hour", "?by=team&by=member",
        f"?by=day&{DAY_BY_DAY}", f"?by=key&by=model&by=day&{DAY_BY_DAY}&order=-cost_micro_usd",
        f"?by=hour&key={{key_id}}&{DAY_BY_DAY}", f"?by=model&{DAY_BY_DAY}&team={{team_id}}&limit=1000",
        f"?by=route&{DAY_BY_DAY}", f"?by=run&{DAY_BY_DAY}", f"?by=request&{DAY_BY_DAY}",
        f"?by=model&route=chat&{DAY_BY_DAY}",
    ),
    "portal-entries": (
        "", f"?{DAY_BY_DAY}", f"?key={{key_id}}&{DAY_BY_DAY}", "?model={model}", "?after={after}",
        "?route=chat", "?run=nightly",
    ),
    "portal-key": ("", "?span=7d", "?span=30d", "?span=period"),
    "portal-keys": ("", "?q=key", "?state=any&page=2", "?state=expiring", "?owner=member:{member_id}"),
    "portal-keys-revoke": ("?key={key_id}",),
    "portal-keys-disable": ("?key={key_id}",),
    "portal-keys-enable": ("?key={key_id}",),
    "portal-refusals": ("", "?request={request_id}"),
    "portal-audit": ("", "?action=budget.set", "?since={first_day}&before={before_day}", "?subject={key_id}"),
    "portal-exports": (
        "", "?from_day={first_day}&before_day={before_day}&profile=day",
        "?from_day={first_day}&before_day={before_day}&profile=requests",
    ),
}  # fmt: skip
# Where something else stands in an address than its name says elsewhere.
OTHERWISE: dict[str, dict[str, str]] = {
    "portal-refusal": {"request_id": "refused_id"},
}
# Of the pages under ``/account/`` those that are the portal's own.
OWN_PAGES = ("account", "account_email")
NO_PAGE = (HTTPStatus.FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement that a page sent, what was put into it, and how long it took."""

    sql: str
    values: Any
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """What it took to answer ``who`` for one address: milliseconds, and the queries of one answer.

    ``own_ms`` is the processor time of this process; the rest of the median is
    the database, and other work on the machine, of which the fastest has least.
    """

    name: str
    who: str
    address: str
    status: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    own_ms: float
    queries: list[Query] = field(repr=False)

    @property
    def is_too_slow(self) -> bool:
        return self.median_ms >= AIM_MS

    @property
    def repeated(self) -> list[str]:
        """What was asked of the database more than once."""
        asked = Counter((query.sql, repr(query.values)) for query in self.queries if is_question(query.sql))
        return [sql for (sql, _), times in asked.items() if times > 1]


def is_question(sql: str) -> bool:
    """Whether a statement reads tables; what begins and ends transactions and says who asks does not."""
    return sql.startswith(("SELECT", "WITH")) and "FROM" in sql


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
        from django.db import connection

        call_command("migrate", verbosity=0)
        furnish(given.rows)
        with connection.cursor() as cursor:
            # What PostgreSQL does by itself within a minute after so much has come.
            cursor.execute("VACUUM ANALYZE")
        pages, without = measured()
        for line in report(pages, without):
            print(line)  # noqa: T201
        if given.explain:
            for page in pages:
                if page.is_too_slow:
                    print(f"\n{page.address} {page.who}\n{explained(page)}")  # noqa: T201
                for sql in page.repeated:
                    print(f"\n{page.address} {page.who} twice: {sql}")  # noqa: T201
    if given.json:
        told = [{**asdict(page), "queries": len(page.queries)} for page in pages]
        Path(given.json).write_text(json.dumps(told, indent=1))
    return 1 if any(page.is_too_slow for page in pages) else 0


def measured(repeats: int = REPEATS) -> tuple[list[Page], list[str]]:
    """Every page, the slowest first, and the routes for which there is nothing here to show.

    Those of the portal are asked for by an owner, who sees the whole tenant,
    and by a member, who sees what is theirs.
    """
    found, without = [], []
    known = _known()
    clients = {who: _signed_in(who) for who in (OPERATOR, OWNER, MEMBER)}
    for route, name in _routes():
        address = _filled_in(
            route, known | {part: known[of] for part, of in OTHERWISE.get(name, {}).items() if of in known}
        )
        if address is None:
            without.append(route)
            continue
        for who in (OPERATOR,) if route.startswith("admin/") else (OWNER, MEMBER):
            asked = [address + query.format(**known) for query in QUERIES.get(name, ("",))]
            found += [_asked(clients[who], name, who, one, repeats) for one in asked]
    # What takes only forms leads to a page and is none, nor is one that somebody may not see.
    found = [page for page in found if page.status not in NO_PAGE]
    return sorted(found, key=lambda page: -page.median_ms), without


def _signed_in(who: str) -> Any:
    """A client of Django's with the session of somebody."""
    from django.test import Client

    from tenants.models import User

    client = Client(headers={"host": "localhost"})
    client.force_login(User.objects.get(username=who))
    return client


def _routes() -> Iterator[tuple[str, str]]:
    """Pages of the portal, those about oneself, and lists of the admin: the route and its name."""
    from django.urls import URLPattern, URLResolver, get_resolver

    def below(resolver: URLResolver, beginning: str) -> Iterator[tuple[str, str]]:
        for pattern in resolver.url_patterns:
            route = f"{beginning}{pattern.pattern}"
            if isinstance(pattern, URLResolver):
                yield from below(pattern, route)
            elif isinstance(pattern, URLPattern):
                yield route, pattern.name or ""

    for route, name in below(get_resolver(), ""):
        if (
            route.startswith("portal/")
            or name in OWN_PAGES
            or (route.startswith("admin/") and (name == "index" or name.endswith("_changelist")))
        ):
            yield route, name


def _known() -> dict[str, Any]:
    """What may stand in an address, by the name that it has in the routes; of the member, where it can be."""
    from budgets.models import Budget, Export, LedgerEntry, RaiseRequest, Recipient, RefusedCall, Statement
    from budgets.paging import page_of
    from budgets.usage import Selection
    from keys.models import ApiKey
    from tenants.models import Invitation, Member, ServiceAccount, Tenant

    tenant = Tenant.objects.get(slug=SLUG)
    member = Member.objects.get(tenant=tenant, user__username=MEMBER)
    key = ApiKey.objects.get(member=member)
    first_day = first_day_of_entries()
    some: dict[str, Any] = {
        "request_id": LedgerEntry.objects.filter(key_id=key.pk).order_by("-id").values_list("request_id"),
        "refused_id": RefusedCall.objects.filter(tenant_id=tenant.pk).values_list("pk"),
        "account_id": ServiceAccount.objects.values_list("pk"),
        "invitation_id": Invitation.objects.values_list("pk"),
        "limit_id": Budget.objects.filter(scope="key", key=key).values_list("pk"),
        "recipient_id": Recipient.objects.exclude(tenant=None).values_list("pk"),
        "raise_id": RaiseRequest.objects.filter(asked_by=member.user).values_list("pk"),
        "export_id": Export.objects.filter(state="ready").values_list("pk"),
        "link": Export.objects.filter(state="ready").values_list("link"),
        "number": Statement.objects.values_list("number"),
        "model": LedgerEntry.objects.values_list("model"),
    }
    known = {name: found[0][0] for name, found in some.items() if found.exists()}
    return known | {
        "slug": SLUG,
        "key_id": key.pk,
        "member_id": member.pk,
        "team_id": member.team_id,
        "first_day": first_day,
        "before_day": first_day + timedelta(days=DAYS),
        "after": page_of(Selection(tenant.pk)).next,
    }


def _filled_in(route: str, known: dict[str, Any]) -> str | None:
    """The address of a route; None if something stands in it that is not known."""
    names = re.findall(r"<(?:\w+:)?(\w+)>", route)
    if not set(names) <= set(known):
        return None
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: str(known[found[1]]), route)


def _asked(client: Any, name: str, who: str, address: str, repeats: int) -> Page:
    from django.db import connection

    queries: list[Query] = []

    def watched(execute: Callable[..., Any], sql: str, values: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, values, many, context)
        finally:
            queries.append(Query(sql, values, 1000 * (time.perf_counter() - began)))

    took, own = [], []
    for number in range(repeats + 1):
        watching = connection.execute_wrapper(watched) if number == 0 else nullcontext()
        began, worked = time.perf_counter(), time.thread_time()
        with watching:
            status = client.get(address).status_code
        took.append(1000 * (time.perf_counter() - began))
        own.append(1000 * (time.thread_time() - worked))
    # The first one loaded templates and filled pools.
    took, own = took[1:] or took, own[1:] or own
    figures = statistics.median(took), min(took), max(took), statistics.median(own)
    return Page(name, who, address, status, *figures, queries)


def report(pages: list[Page], without: list[str]) -> Iterator[str]:
    """The table, line by line."""
    width = max(len(page.address) for page in pages)
    yield f"{'page'.ljust(width)}  {'who':8}  status  median ms  fastest ms  slowest ms  own ms  queries"
    for page in pages:
        times = f"{page.median_ms:9.1f}  {page.fastest_ms:10.1f}  {page.slowest_ms:10.1f}"
        figures = f"{times}  {page.own_ms:6.1f}  {len(page.queries):7}"
        more = "  TOO SLOW" * page.is_too_slow + f"  {len(page.repeated)} TWICE" * bool(page.repeated)
        yield f"{page.address.ljust(width)}  {page.who:8}  {page.status:6}  {figures}{more}"
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
