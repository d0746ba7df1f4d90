"""The pages about usage: whose figures, in which words, and the way down to the lines of a cost."""

from __future__ import annotations

import csv
import re
from datetime import timedelta
from decimal import Decimal
from html import unescape
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.test import Client
from django.urls import reverse

from budgets import portal, usage_drawn
from budgets.models import LedgerEntry, UsageRollup
from budgets.usage import Selection, breakdown
from tenants import services
from tenants.models import Member, Tenant, User
from tests import ledgers
from tests.ledgers import NOON, an_entry, book
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person

pytestmark = pytest.mark.django_db

MARCH = "?from=2026-03-01&before=2026-04-01"
REQUEST = UUID("019cd7d6-7c00-7000-8000-000000000001")
PAGES = {
    "/portal/acme/usage/": ROLES | OPERATORS,
    "/portal/acme/usage/entries/": ROLES | OPERATORS,
    f"/portal/acme/requests/{REQUEST}/": (ROLES | OPERATORS) - {"member"},
    f"/portal/acme/requests/{UUID(int=1)}/": frozenset(),
    "/portal/nobody/usage/": frozenset(),
}


@pytest.fixture
def finance(acme: Tenant) -> Client:
    return a_browser(a_person("finance", acme))


def text_of(page: str) -> str:
    """What is read on a page, with single spaces and none before a comma or a colon."""
    main = page.partition("<main")[2]
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).split())
    return re.sub(r" (?=[,:.](?: |$))", "", words)


def shown(browser: Client, address: str) -> str:
    response = browser.get(address)
    assert response.status_code == 200
    return text_of(response.content.decode())


def rows_of(response: Any) -> list[str]:
    """The lines of the table of a page, one string for each."""
    page = re.sub(r"<figure.*?</figure>", "", response.content.decode(), flags=re.DOTALL)
    table = page.partition("<tbody>")[2].partition("</table>")[0]
    rows = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in table.split("</tr>")]
    return [row for row in rows if row]


def link(response: Any, text: str) -> str:
    """Where the first link with this text leads."""
    found = re.search(
        rf'<a href="([^"]*)"[^>]*>\s*(?:<[^a][^>]*>)?{re.escape(text)}', response.content.decode()
    )
    assert found is not None, text
    address = unescape(found.group(1))
    return address if address.startswith("/") else response.request["PATH_INFO"] + address


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("page", PAGES)
def test_each_page_opens_for_those_who_may_read_it(acme: Tenant, page: str, who: str) -> None:
    book(ledgers.of(acme, request_id=REQUEST))

    status = a_browser(a_person(who, acme)).get(page).status_code

    expected = 200 if who in PAGES[page] else 302 if who in UNKNOWN else 404
    assert status == expected


def test_an_operator_without_the_permission_is_told_that_it_is_not_allowed(acme: Tenant) -> None:
    olga = a_person("operator", acme)
    assert isinstance(olga, User)
    olga.user_permissions.remove(*olga.user_permissions.filter(codename="view_ledgerentry"))
    browser = a_browser(olga)

    answers = [browser.get(page) for page in PAGES if page.startswith("/portal/acme/")]

    assert [answer.status_code for answer in answers] == [403] * 4
    assert "you may not see this page" in text_of(answers[0].content.decode())
    assert "Usage" not in browser.get("/portal/acme/").content.decode()


def test_members_see_the_usage_of_their_own_keys_and_cannot_ask_for_more(acme: Tenant) -> None:
    browser = a_browser(a_person("member", acme))
    mine = Member.objects.get(tenant=acme)
    zoe: dict[str, Any] = {"member_id": UUID(int=7), "member": "zoe", "key": "of zoe"}
    [theirs] = book(ledgers.of(acme, **zoe, output_tokens=700_700))
    [own] = book(ledgers.of(acme, member_id=mine.pk, member="member", key="my own"))
    page = f"/portal/acme/usage/{MARCH}"

    usage = shown(browser, page)
    entries = shown(browser, f"/portal/acme/usage/entries/{MARCH}")

    assert "figures of your own keys" in usage
    assert "my own" in usage
    assert "my own" in entries
    assert "of zoe" not in usage + entries
    # With a comma in it, as no id of a request has.
    assert "700,700" not in usage + entries
    assert browser.get(f"{page}&member={UUID(int=7)}").status_code == 404
    assert browser.get(f"{page}&without=member").status_code == 404
    assert browser.get(f"/portal/acme/requests/{own.request_id}/").status_code == 200
    assert browser.get(f"/portal/acme/requests/{theirs.request_id}/").status_code == 404


def test_nothing_of_another_tenant_is_told_whatever_is_asked_for(acme: Tenant, finance: Client) -> None:
    [theirs] = book(an_entry(tenant="globex", key_id=UUID(int=9), key="of globex", output_tokens=700))

    for page in ("usage", "usage/entries"):
        told = shown(finance, f"/portal/acme/{page}/{MARCH}&key={UUID(int=9)}")
        assert "There is no entry" in told
        assert "globex" not in told
    assert finance.get(f"/portal/acme/requests/{theirs.request_id}/").status_code == 404


def test_no_data_is_not_a_zero(acme: Tenant, finance: Client) -> None:
    nothing = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "gpu_ms": 0, "requests": 0}
    book(ledgers.of(acme, model="failed:1b", **nothing))

    with_a_zero = finance.get(f"/portal/acme/usage/{MARCH}&by=model")
    without_data = shown(finance, "/portal/acme/usage/?from=2026-04-01&before=2026-05-01&by=model")

    assert rows_of(with_a_zero) == ["failed:1b 0 0.000000 none 0 0 0 0 0", "Total 0 0.000000 none 0 0 0 0 0"]
    assert "not a total of zero" in without_data


def test_the_table_tells_figures_shares_and_what_is_gone(acme: Tenant, finance: Client) -> None:
    book(
        ledgers.of(acme, key="gone", input_tokens=1_000_000, cached_tokens=0, gpu_ms=1_200),
        ledgers.of(acme, key="gone", input_tokens=500_000, cached_tokens=0, output_tokens=0, exact=False),
    )

    page = finance.get(f"/portal/acme/usage/{MARCH}&by=key&by=model")

    [row, total] = rows_of(page)
    figures = "2 0.450087 500,000 (33.4 %) 1,500,000 20 0 0 1,206"
    assert row == f"gone deleted tiny:1b {figures}"
    assert total == f"Total {figures}"


def rows_of_file(answer: Any) -> list[dict[str, str]]:
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(StringIO(answer.content.decode())))


def test_chart_table_and_files_tell_the_same_figures(
    acme: Tenant, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, key in enumerate(("nightly", "chat", "=rest()", "report"), start=1):
        tokens = {"input_tokens": 1_000 * number, "output_tokens": number}
        book(ledgers.of(acme, key_id=UUID(int=number), key=key, model="tiny:1b", **tokens))
    monkeypatch.setattr(portal, "MOST_IN_FILE", 2)
    address = f"/portal/acme/usage/{MARCH}&by=model&by=key&order=-input_tokens&limit=2"

    page = finance.get(address)
    file = rows_of_file(finance.get(f"{address}&file=csv"))
    drawn = rows_of_file(finance.get(f"{address}&chart=usage.csv"))

    [chart] = page.context["charts"]
    total = breakdown(Selection(acme.pk), ()).total
    told = [re.sub(r"[^\d ]", "", row).split() for row in rows_of(page)]
    assert 'data-chart="usage"' in page.content.decode()
    assert [(row["key"], row["parts"]) for row in file] == [("report", "1"), ("'=rest()", "1"), ("", "2")]
    assert [row["input_tokens"] in line for row, line in zip(file, told, strict=False)] == [True] * 3
    for figure in ("requests", "input_tokens", "output_tokens", "gpu_ms"):
        assert sum(int(row[figure]) for row in file) == total[figure]
    assert sum(Decimal(row["cost_usd"]) for row in file) == Decimal(total["cost_micro_usd"]) / 10**6
    # By its first thing, and the figure by which the table is sorted.
    assert [(one.id, list(one.values)) for one in chart.series] == [("input_tokens", [10_000])]
    assert chart.title == "Input tokens by model"
    assert drawn == [{"Model": "tiny:1b", "Input tokens (tokens)": "10000"}]


def test_a_chart_has_a_place_for_each_day_and_no_data_is_no_zero(acme: Tenant, finance: Client) -> None:
    for day in (10, 12):
        book(ledgers.of(acme, ended_at=NOON.replace(day=day), input_tokens=day, output_tokens=1))

    [chart] = finance.get(f"/portal/acme/usage/{MARCH}&by=day&by=key").context["charts"]

    assert [point.value for point in chart.points] == ["2026-03-10", "2026-03-11", "2026-03-12"]
    assert [list(one.values) for one in chart.series] == [[10, None, 12], [1, None, 1]]


@pytest.mark.parametrize("part", ["key", "member", "team", "model", "route", "run", "hour", "day", "month"])
def test_usage_by_anything_but_requests_is_drawn(
    acme: Tenant, finance: Client, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    for hour in (9, 12):
        at = NOON.replace(hour=hour)
        ids = {"key_id": UUID(int=hour), "member_id": UUID(int=hour), "team_id": UUID(int=hour)}
        book(ledgers.of(acme, run=f"{hour}", model=f"m:{hour}b", ended_at=at, **ids))
    monkeypatch.setattr(usage_drawn, "MOST_BARS", 1)

    page = finance.get(f"/portal/acme/usage/{MARCH}&by={part}")
    by_request = finance.get(f"/portal/acme/usage/{MARCH}&by=request")

    [chart] = page.context["charts"]
    total = breakdown(Selection(acme.pk), ()).total
    told = [sum(value or 0 for value in one.values) for one in chart.series]
    assert told == [total["input_tokens"], total["output_tokens"]]
    assert by_request.context["charts"] == []


def test_without_a_range_it_is_the_present_month_of_the_tenant(acme: Tenant, finance: Client) -> None:
    for at in (NOON, NOON.replace(day=31, hour=22, minute=30)):
        book(ledgers.of(acme, ended_at=at))

    # Half past ten at night in UTC is April in Berlin.
    with time_machine.travel(NOON.replace(day=31, hour=22, minute=45), tick=False):
        finance = a_browser(User.objects.get(username="finance"))
        told = shown(finance, "/portal/acme/usage/")

    assert "days from 2026-04-01 to before 2026-05-01" in told
    assert "Total 1 " in told


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        pytest.param("by=planet", "by: Select a valid choice. planet", id="no such part"),
        pytest.param("order=price", "order: Select a valid choice", id="no such figure"),
        pytest.param("from=yesterday", "from: Enter a valid date", id="no day"),
        pytest.param("from=2026-04-01&before=2026-03-01", "before: It ends before it begins", id="backwards"),
        pytest.param("since=soon", "since: Enter a valid date/time", id="no moment"),
        pytest.param("since=0001-01-01T00:00:00Z", "since: Name a year from 1970", id="too early for a zone"),
        pytest.param("until=9999-12-31T23:59:59Z", "until: Name a year from 1970", id="too late for a zone"),
        pytest.param("key=nightly", "key: Enter a valid UUID", id="a name for an id"),
        pytest.param("modell=tiny", "Nothing is known by the name of modell", id="a misspelt filter"),
        pytest.param("model=%00", "model: Null characters are not allowed", id="what no model is called"),
        pytest.param("limit=0", "limit: Ensure this value is greater", id="no rows at all"),
        pytest.param("without=planet", "without: Select a valid choice", id="without what there is not"),
    ],
)
def test_an_address_that_means_nothing_is_refused_in_words(
    acme: Tenant, finance: Client, query: str, wrong: str
) -> None:
    for page in ("usage", "usage/entries"):
        response = finance.get(f"/portal/acme/{page}/?{query}")

        assert response.status_code == 400
        assert wrong in text_of(response.content.decode())


def test_each_number_leads_down_to_the_lines_of_its_cost(acme: Tenant, finance: Client) -> None:
    key = {"key_id": UUID(int=6), "key": "nightly"}
    [entry] = book(ledgers.of(acme, **key, exact=False, estimator="learned:3"))
    book(ledgers.of(acme, **key, model="big:70b"), ledgers.of(acme, **key, ended_at=NOON + timedelta(days=1)))

    by_month = finance.get("/portal/acme/usage/?from=2026-01-01&before=2027-01-01&by=month")
    by_key = finance.get(link(by_month, "2026-03"))
    by_model = finance.get(link(by_key, "nightly"))
    by_day = finance.get(link(by_model, "tiny:1b"))
    entries = finance.get(link(by_day, "2026-03-10"))
    request = finance.get(link(entries, str(entry.request_id)))

    assert [rows_of(page)[-1].split()[:2] for page in (by_month, by_key, by_model, by_day)] == [
        ["Total", "3"], ["Total", "3"], ["Total", "3"], ["Total", "2"],
    ]  # fmt: skip
    assert len(rows_of(entries)) == 1
    assert "2026-03-10 13:00:00" in text_of(entries.content.decode())
    assert 'title="2026-03-10 12:00:00 UTC"' in entries.content.decode()
    told = text_of(request.content.decode())
    assert "estimated by learned:3" in told
    assert f"version {entry.price_id}" in told
    assert rows_of(request) == [
        "Input 5 tokens 0.300000 a million 0.000001500000",
        "Cached input 2 tokens 0.030000 a million 0.000000060000",
        "Output 20 tokens 1.000000 a million 0.000020000000",
        "GPU time 6 ms 0.000055 a second 0.000000330000",
        "Rounded up to a whole micro-USD 0.000000110000",
        "Cost 0.000022",
    ]


def test_the_requests_of_a_total_lead_to_all_its_entries(acme: Tenant, finance: Client) -> None:
    book(*(ledgers.of(acme, model=model) for model in ("a", "a", "b")))

    page = finance.get(f"/portal/acme/usage/{MARCH}&by=model&model=a")
    entries = finance.get(link(page, "2"))

    assert len(rows_of(entries)) == 2
    assert "Together, days from 2026-03-01 to before 2026-04-01: 2 requests" in text_of(
        entries.content.decode()
    )


def test_entries_are_read_page_by_page_and_none_is_missed_or_seen_twice(
    acme: Tenant, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five of them at the same millisecond, over the edge of a page.
    ended = [NOON + timedelta(seconds=max(0, number - 5)) for number in range(12)]
    booked = book(*(ledgers.of(acme, ended_at=at) for at in ended))
    monkeypatch.setattr("budgets.paging.page_of.__defaults__", ("", 4))

    seen: list[str] = []
    page = finance.get(f"/portal/acme/usage/entries/{MARCH}")
    while True:
        seen += re.findall(r"<code>([0-9a-f-]{36})</code>", page.content.decode())
        if "Older" not in page.content.decode():
            break
        book(ledgers.of(acme, ended_at=NOON + timedelta(days=1)))
        page = finance.get(link(page, "Older"))

    assert len(seen) == len(set(seen)) == 12
    assert set(seen) == {str(entry.request_id) for entry in booked}
    assert finance.get(f"/portal/acme/usage/entries/{MARCH}&after=nonsense").status_code == 404
    assert finance.get(f"/portal/acme/usage/entries/{MARCH}&after={10**30}-1").status_code == 404


def test_what_usage_is_narrowed_to_is_named_and_can_be_taken_back(acme: Tenant, finance: Client) -> None:
    team = services.create_team(tenant=acme, name="Research", actor="test")
    book(ledgers.of(acme, team_id=team.pk, team="Research"), ledgers.of(acme, run="nightly"))

    narrowed = finance.get(f"/portal/acme/usage/{MARCH}&by=day&team={team.pk}&without=run")
    wider = finance.get(link(narrowed, "remove"))

    told = text_of(narrowed.content.decode())
    assert "team: Research" in told
    assert "run: none" in told
    assert rows_of(narrowed)[-1].startswith("Total 1 ")
    assert "team:" not in text_of(wider.content.decode())
    # The form keeps it for other days.
    assert f'<input type="hidden" name="team" value="{team.pk}">' in narrowed.content.decode()


def test_a_route_that_nobody_knows_any_more_is_said_to_be_so_and_can_be_asked_for(
    acme: Tenant, finance: Client
) -> None:
    book(ledgers.of(acme, route="/api/chat"), ledgers.of(acme, route="/api/generate", output_tokens=700))
    UsageRollup.objects.filter(route="/api/generate").update(route="")

    by_route = finance.get(f"/portal/acme/usage/{MARCH}&by=route")
    narrowed = finance.get(link(by_route, "not known"))

    assert [row.split(" 1 ")[0] for row in rows_of(by_route)[:-1]] == ["not known", "/api/chat"]
    assert "route: not known" in text_of(narrowed.content.decode())
    assert "700" in rows_of(narrowed)[-1]


def test_an_hour_is_told_by_the_clock_of_the_tenant_and_leads_to_its_entries(
    acme: Tenant, finance: Client
) -> None:
    book(ledgers.of(acme), ledgers.of(acme, ended_at=NOON + timedelta(hours=1)))

    by_hour = finance.get(f"/portal/acme/usage/{MARCH}&by=hour")
    within = finance.get(link(by_hour, "<time").partition("&by=")[0])

    assert rows_of(by_hour)[0].startswith("2026-03-10 13:00:00 1 ")
    assert "ended since: 2026-03-10 13:00:00" in text_of(within.content.decode())
    assert rows_of(within)[-1].startswith("Total 1 ")


def test_rows_are_sorted_by_the_head_of_a_column(acme: Tenant, finance: Client) -> None:
    for model, tokens in (("a", 20), ("b", 30), ("c", 10)):
        book(ledgers.of(acme, model=model, output_tokens=tokens))

    page = finance.get(f"/portal/acme/usage/{MARCH}&by=model")
    most_first = finance.get(link(page, "Output tokens"))
    least_first = finance.get(link(most_first, "Output tokens"))
    limited = finance.get(f"/portal/acme/usage/{MARCH}&by=model&limit=1")

    assert [row[0] for row in rows_of(most_first)] == ["b", "a", "c", "T"]
    assert [row[0] for row in rows_of(least_first)] == ["c", "a", "b", "T"]
    assert 'aria-sort="descending"' in most_first.content.decode()
    assert [row[:6] for row in rows_of(limited)] == ["a 1 0.", "2 more", "Total "]


def test_more_requests_than_a_page_can_compare_are_told_one_by_one(
    acme: Tenant, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    book(ledgers.of(acme), ledgers.of(acme), ledgers.of(acme, model="small:1b"))
    monkeypatch.setattr(portal, "MOST_COMPARED", 2)

    too_many = finance.get(f"/portal/acme/usage/{MARCH}&by=request", follow=True)
    narrowed = finance.get(f"/portal/acme/usage/{MARCH}&by=request&model=small:1b")

    assert too_many.redirect_chain == [(f"/portal/acme/usage/entries/{MARCH}", 302)]
    assert "3 requests are too many to be compared with each other" in text_of(too_many.content.decode())
    assert len(rows_of(too_many)) == 3
    assert [row.split()[1] for row in rows_of(narrowed)] == ["1", "1"]


def test_a_request_tells_of_adjustments_corrections_and_closed_months(acme: Tenant, finance: Client) -> None:
    differing: dict[str, Any] = {"requests": 0, "input_tokens": 0, "cached_tokens": 0, "gpu_ms": 0}
    late = {
        "ended_at": NOON,
        "day": NOON.date() + timedelta(days=30),
        "closed_month": NOON.date().replace(day=1),
    }
    book(ledgers.of(acme, request_id=REQUEST, exact=False))
    book(ledgers.of(acme, request_id=REQUEST, kind="adjustment", output_tokens=-4, **differing, **late))
    book(
        ledgers.of(
            acme, kind="correction", corrects=REQUEST, actor="olga", reason="wrong <rate>", output_tokens=0,
            cost_micro_usd=-3, **differing,
        )
    )  # fmt: skip

    page = finance.get(f"/portal/acme/requests/{REQUEST}/")

    told = text_of(page.content.decode())
    assert "0.000015 USD, of 3 entries" in told
    assert "2026-03; it came too late for that month" in told
    assert "by olga: wrong <rate>" in told
    assert "wrong <rate>" not in page.content.decode()
    assert "do not give its cost" not in told


def test_a_cost_that_its_rates_do_not_give_is_pointed_out(acme: Tenant, finance: Client) -> None:
    book(ledgers.of(acme, request_id=REQUEST, cost_micro_usd=99))

    assert "do not give its cost" in shown(finance, f"/portal/acme/requests/{REQUEST}/")


@pytest.mark.parametrize("page", [page for page, who in PAGES.items() if who])
def test_the_pages_have_one_heading_landmarks_and_nothing_inline(
    acme: Tenant, finance: Client, page: str
) -> None:
    book(ledgers.of(acme, request_id=REQUEST, key='<b onclick="x">', model="tiny:1b"))

    outline = Outline(finance.get(f"{page}{MARCH if 'usage' in page else ''}").content.decode())

    assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
    # That of the chart, too.
    assert outline.tags.count("table") == (2 if page.endswith("/usage/") else 1)
    assert outline.inline == []


def test_the_admin_leads_from_an_entry_to_how_its_cost_came_about(acme: Tenant) -> None:
    browser = a_browser(a_person("superuser", acme))
    [entry] = book(ledgers.of(acme))
    [gone] = book(an_entry(tenant="globex"))

    def admin_page(of: LedgerEntry) -> str:
        return browser.get(reverse("admin:budgets_ledgerentry_change", args=[of.pk])).content.decode()

    there = f"/portal/acme/requests/{entry.request_id}/"
    assert f'href="{there}"' in admin_page(entry)
    assert browser.get(there).status_code == 200
    assert "/portal/globex/" not in admin_page(gone)
