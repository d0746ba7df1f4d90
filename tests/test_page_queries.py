"""What pages ask of the database: nothing twice, and no more where there are more people, keys, limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks import pages
from benchmarks.furnishing import SLUG, add_people, furnish
from benchmarks.pages import MEMBER, OWNER, Page
from tenants.models import Tenant
from tests.counting import empty_redis
from tests.emptying import empty_tables

# A machine with other work takes its time for four hundred pages.
pytestmark = [pytest.mark.django_db, pytest.mark.timeout(600)]

FEW, MANY = 2, 9

# The most queries of a page, by the name of its route; five of each find out who asks, and where.
MOST = {
    "portal-tenant": 21,
    "portal-key-new": 21,
    "portal-key": 22,
    "portal-key-edit": 41,
    "portal-keys": 16,
    "portal-limits": 15,
    "portal-keys-revoke": 15,
    "portal-keys-disable": 15,
    "portal-keys-enable": 15,
    "portal-key-rotate": 15,
    "portal-key-secrets": 12,
    "portal-one-team": 11,
    "tenants_tenant_changelist": 13,
    "budgets_price_changelist": 12,
    # The dashboard: everything about the whole installation.
    "index": 47,
}
USUALLY = 10
# Where the same is asked for by parts that do not know of each other.
ASKED_TWICE = {
    # Each part is made by itself, as it is when it changes while somebody looks.
    "index",
    # The list, and how the upstreams are.
    "proxy_upstream_changelist",
    # The key as it is, and as it would be.
    "portal-key-edit",
    # Told apart by two things: what has names in the table has them in its chart.
    "portal-usage",
    # Django's own list.
    "auth_group_changelist",
}


@dataclass(frozen=True)
class Asked:
    """Every page, by person and address, of a tenant with few and the same with many of everything."""

    few: dict[str, Page]
    many: dict[str, Page]


@pytest.fixture(scope="module")
def asked(django_db_setup: None, django_db_blocker: Any) -> Iterator[Asked]:
    with django_db_blocker.unblock():
        empty_redis()
        try:
            furnish(280, people=FEW)
            few = _measured()
            add_people(Tenant.objects.get(slug=SLUG), range(FEW, MANY))
            yield Asked(few, _measured())
        finally:
            empty_tables(None)  # type: ignore[arg-type]  # it looks at no test case


def _measured() -> dict[str, Page]:
    found, _ = pages.measured(repeats=0)
    return {f"{page.who} {page.address}": page for page in found}


def test_nothing_is_asked_twice_for_one_page(asked: Asked) -> None:
    twice = {
        name: page.repeated
        for name, page in asked.many.items()
        if page.repeated and page.name not in ASKED_TWICE
    }

    assert twice == {}


def test_a_tenant_with_many_of_everything_costs_no_more_queries_than_one_with_few(asked: Asked) -> None:
    more = {
        name: (len(asked.few[name].queries), len(page.queries))
        for name, page in asked.many.items()
        if len(page.queries) > len(asked.few[name].queries)
    }

    assert more == {}


def test_no_page_asks_more_than_it_needs(asked: Asked) -> None:
    above = {
        name: len(page.queries)
        for name, page in asked.many.items()
        if len(page.queries) > MOST.get(page.name, USUALLY)
    }

    assert above == {}
    assert {page.name for page in asked.many.values()} >= set(MOST)


def test_the_portal_is_asked_for_by_who_sees_all_of_it_and_by_who_sees_their_own(asked: Asked) -> None:
    seen = {
        page.name: {one.who for one in asked.many.values() if one.name == page.name}
        for page in asked.many.values()
    }

    assert {"portal-tenant", "portal-usage", "portal-keys", "portal-key", "portal-limits"} <= {
        name for name, who in seen.items() if who == {OWNER, MEMBER}
    }
    assert seen["portal-audit"] == {OWNER}
