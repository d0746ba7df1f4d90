"""``/manage/v1/usage/`` and the entries behind each of its rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from django.test import Client

from budgets.pricing import PER_MILLION
from tenants import services
from tenants.models import Member, Tenant, User
from tests import ledgers
from tests.ledgers import NOON, an_entry, book
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, a_browser, a_person

pytestmark = pytest.mark.django_db

USAGE = "/manage/v1/usage/"
ENTRIES = "/manage/v1/usage/entries/"


@pytest.fixture
def operator(acme: Tenant) -> Client:
    return a_browser(a_person("operator", acme))


@pytest.fixture
def finance(acme: Tenant) -> Client:
    return a_browser(a_person("finance", acme))


def get(browser: Client, address: str, **query: Any) -> Any:
    response = browser.get(f"{address}?{urlencode(query, doseq=True)}" if query else address)
    assert response.status_code == 200, response.content
    return response.json()


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("address", [USAGE, ENTRIES])
def test_a_tenants_usage_is_told_to_those_who_may_read_it(acme: Tenant, address: str, who: str) -> None:
    book(ledgers.of(acme, member_id=UUID(int=7)), an_entry(tenant="globex"))

    answer = a_browser(a_person(who, acme)).get(f"{address}?tenant=acme")

    expected = 200 if who in ROLES | OPERATORS else 401 if who in UNKNOWN else 404
    assert answer.status_code == expected
    if expected == 200:
        # Members have no key in these books.
        assert len(answer.json()["results"]) == (0 if who == "member" else 1)
    else:
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_operators_are_told_of_all_and_each_row_leads_to_its_entries(acme: Tenant, operator: Client) -> None:
    book(ledgers.of(acme), ledgers.of(acme, output_tokens=30), an_entry(tenant="globex", exact=False))

    found = get(operator, USAGE, by="tenant")

    acmes, globexs = found["results"]
    assert (acmes["tenant"], acmes["requests"], acmes["deleted"]) == ("acme", 2, [])
    assert (globexs["tenant"], globexs["estimated_share_per_mille"], globexs["deleted"]) == (
        "globex",
        1000,
        ["tenant"],
    )
    assert (found["total"]["requests"], found["left_out"], found["rest"]["requests"]) == (3, 0, 0)
    assert (acmes["cost_micro_usd"], acmes["cost_usd"]) == (54, "0.000054")
    for row in (acmes, globexs, found["total"]):
        entries = get(operator, row["rows"])["results"]
        assert len(entries) == row["requests"]
        assert sum(entry["cost_micro_usd"] for entry in entries) == row["cost_micro_usd"]


def test_any_row_of_any_breakdown_leads_to_what_it_is_the_sum_of(acme: Tenant, operator: Client) -> None:
    for number in range(6):
        book(
            ledgers.of(
                acme,
                ended_at=NOON + timedelta(minutes=50 * number),
                run=["", "nightly"][number % 2],
                team_id=UUID(int=3) if number < 3 else None,
                team="Research" if number < 3 else "",
                output_tokens=number,
            )
        )

    for by in (["run", "team"], ["hour"], ["month", "key"], ["request"], ["day", "route"]):
        found = get(operator, USAGE, tenant="acme", by=by)
        assert sum(row["output_tokens"] for row in found["results"]) == found["total"]["output_tokens"] == 15
        for row in found["results"]:
            entries = get(operator, row["rows"])["results"]
            assert sum(entry["output_tokens"] for entry in entries) == row["output_tokens"]
            assert len(entries) == row["requests"]


def test_people_of_one_tenant_need_not_name_it_and_stay_within_it(acme: Tenant, finance: Client) -> None:
    book(ledgers.of(acme, key="of acme"), an_entry(tenant="globex", key_id=UUID(int=9), key="of globex"))

    found = get(finance, USAGE)
    foreign = get(finance, USAGE, key=UUID(int=9))

    assert [row["key"] for row in found["results"]] == ["of acme"]
    assert "tenant=acme" in found["total"]["rows"]
    assert len(get(finance, found["total"]["rows"])["results"]) == 1
    assert foreign["results"] == []
    assert finance.get(f"{USAGE}?tenant={UUID(int=1)}").status_code == 404


def test_people_of_several_tenants_say_which(acme: Tenant, finance: Client) -> None:
    globex = services.create_tenant(slug="globex", name="Globex", actor="test")
    services.add_member(
        tenant=globex, user=User.objects.get(username="finance"), role="finance", actor="test"
    )
    book(ledgers.of(globex))

    assert "Name one" in finance.get(USAGE).json()["errors"]["tenant"][0]
    assert get(finance, USAGE, tenant="globex")["total"]["requests"] == 1


def test_members_are_told_of_their_own_keys_only(acme: Tenant) -> None:
    browser = a_browser(a_person("member", acme))
    mine = Member.objects.get(tenant=acme)
    book(ledgers.of(acme, member_id=mine.pk, member="member"), ledgers.of(acme, member_id=UUID(int=7)))

    assert get(browser, USAGE)["total"]["requests"] == 1
    assert len(get(browser, ENTRIES)["results"]) == 1
    assert get(browser, USAGE, member=mine.pk)["total"]["requests"] == 1
    assert browser.get(f"{USAGE}?member={UUID(int=7)}").status_code == 404
    assert browser.get(f"{ENTRIES}?without=member").status_code == 404


def test_an_entry_tells_its_price_its_lines_and_how_its_tokens_are_known(
    acme: Tenant, operator: Client
) -> None:
    book(ledgers.of(acme, exact=False, estimator="learned:3"))

    [entry] = get(operator, ENTRIES)["results"]

    assert entry["rates"] == {
        "input_price": 300_000,
        "cached_price": 30_000,
        "output_price": 1_000_000,
        "gpu_price": 55,
    }
    assert entry["price_id"] == ledgers.PRICE.id
    assert (entry["exact"], entry["estimator"], entry["cost_follows_from_rates"]) == (
        False,
        "learned:3",
        True,
    )
    assert (entry["cost_micro_usd"], entry["cost_usd"]) == (22, "0.000022")
    assert sum(millionths(line["usd"]) for line in entry["lines"]) == 22 * PER_MILLION
    assert (entry["ended_at"], entry["day"]) == ("2026-03-10T12:00:00Z", "2026-03-10")
    assert (entry["kind"], entry["corrects"], entry["closed_month"]) == ("usage", None, None)


def millionths(usd: str) -> int:
    whole, _, places = usd.partition(".")
    return int(whole + places)


def test_entries_come_in_pages_without_gaps_and_of_a_bounded_size(acme: Tenant, operator: Client) -> None:
    booked = book(*(ledgers.of(acme, ended_at=NOON + timedelta(seconds=number // 3)) for number in range(7)))

    pages = [get(operator, ENTRIES, tenant="acme", page_size=3)]
    while pages[-1]["next"]:
        book(ledgers.of(acme, ended_at=NOON + timedelta(hours=1)))
        pages.append(get(operator, pages[-1]["next"]))

    seen = [entry["request_id"] for page in pages for entry in page["results"]]
    assert [len(page["results"]) for page in pages] == [3, 3, 1]
    assert sorted(seen) == sorted(str(entry.request_id) for entry in booked)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        pytest.param({"by": "planet"}, "by", id="no such part"),
        pytest.param({"from": "soon"}, "from", id="no day"),
        pytest.param({"since": NOON, "until": NOON}, "until", id="nothing in between"),
        pytest.param({"key": "nightly"}, "key", id="a name for an id"),
        pytest.param({"modell": "tiny"}, "non_field_errors", id="a misspelt filter"),
        pytest.param({"limit": 100_000}, "limit", id="more rows than there may be"),
    ],
)
def test_what_cannot_be_read_is_told_by_field(operator: Client, query: dict[str, Any], field: str) -> None:
    for address in (USAGE, ENTRIES):
        answer = operator.get(f"{address}?{urlencode(query)}")

        assert answer.status_code == 400
        assert set(answer.json()["errors"]) == {field}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page_size", "0"), ("page_size", "1001"), ("page_size", "9" * 5000), ("after", "soon"),
        ("after", f"{10**30}-1"), ("after", "1-x"),
    ],
)  # fmt: skip
def test_a_page_that_there_cannot_be_is_refused(operator: Client, name: str, value: str) -> None:
    answer = operator.get(f"{ENTRIES}?{urlencode({name: value})}")

    assert (answer.status_code, list(answer.json()["errors"])) == (400, [name])


def test_a_position_beyond_all_ids_is_a_position(acme: Tenant, operator: Client) -> None:
    book(ledgers.of(acme))

    assert len(get(operator, ENTRIES, after=f"{10**16}-{10**30}")["results"]) == 1


def test_a_limit_leaves_the_rest_as_one_sum(acme: Tenant, operator: Client) -> None:
    for model, tokens in (("a", 1), ("b", 5), ("c", 3)):
        book(ledgers.of(acme, model=model, output_tokens=tokens))

    found = get(operator, USAGE, by="model", order="-output_tokens", limit=1)

    assert [row["model"] for row in found["results"]] == ["b"]
    assert (found["left_out"], found["rest"]["output_tokens"], found["total"]["output_tokens"]) == (2, 4, 9)


@pytest.mark.parametrize("address", [USAGE, ENTRIES])
def test_usage_is_only_read(operator: Client, address: str) -> None:
    for method in (operator.post, operator.put, operator.patch, operator.delete):
        assert method(address).status_code == 405
