"""Lists of tables that grow: none counts, sorts or reads a table as a whole, and each finds what is asked."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db import connection, models, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from audit import growing
from audit.growing import span_of
from audit.models import AuditEvent, RequestEvent
from audit.recording import record
from benchmarks import ledger_rows
from budgets import ledger
from budgets.admin.finding import keys_called
from budgets.models import Budget, BudgetPeriod, KillSwitch, LedgerEntry, PeriodClosing, UsageRollup
from budgets.refusal_explained import Answer, explain_call, explain_refusal
from budgets.refusal_reasons import Asked
from budgets.services import arm_kill_switch, set_budget, set_price
from keys.services import issue_key, issue_management_key
from proxy.models import Upstream
from proxy.services import save_upstream
from tenants.models import Tenant, User
from tenants.services import add_member, create_team, create_tenant
from tests.conftest import House, eventually
from tests.people import a_browser

GROWING: list[type[models.Model]] = [
    AuditEvent, RequestEvent, LedgerEntry, UsageRollup, BudgetPeriod, PeriodClosing,
]  # fmt: skip
TABLES = [model._meta.db_table for model in GROWING]
EVENTS = """
INSERT INTO audit_requestevent (
    request_id, at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, run, status,
    outcome, refusal, refused_by, input_tokens, output_tokens, exact, admitted_at, ended_at)
SELECT request_id, ended_at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, '', 200,
    'completed', '', '{}', input_tokens, output_tokens, exact, admitted_at, ended_at
FROM budgets_ledgerentry
"""
ROLLUPS = """
INSERT INTO budgets_usagerollup (
    tenant_id, day, hour_start, key_id, model, upstream, operation, tenant, team, member, key, requests,
    input_tokens, cached_tokens, output_tokens, thinking_tokens, estimated_tokens, gpu_ms, cost_micro_usd)
SELECT tenant_id, day, date_trunc('hour', ended_at), key_id, model, upstream, operation, tenant, '', '', key,
    count(*), 0, 0, 0, 0, 0, 0, 0
FROM budgets_ledgerentry GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 11
"""


@pytest.fixture
def acme(transactional_db) -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test")


@pytest.fixture
def olga(transactional_db) -> Client:
    return a_browser(User.objects.create_superuser("olga", "olga@example.org"))


@pytest.fixture
def many_rows(acme: Tenant) -> None:
    """Some thousand rows of each table, and statistics that tell the planner so."""
    first_day = datetime.now(UTC).date().replace(day=1)
    with connection.cursor() as cursor:
        cursor.execute(
            ledger_rows.FILL, {"rows": 5000, "tenant_id": acme.pk, "tenant": "acme", "first_day": first_day}
        )
        cursor.execute(EVENTS)
        cursor.execute(ROLLUPS)
        for table in TABLES:
            cursor.execute(f"ANALYZE {table}")
    with transaction.atomic():
        for number in range(200):
            record(action="key.issued", actor="test", subject=f"key {number}", tenant_id=acme.pk)


def address_of(model: type[models.Model], page: str = "changelist", *arguments: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=arguments)


def whole_tables_read(asked: CaptureQueriesContext) -> list[str]:
    """Where a query can be answered only by reading all of a table that grows, or by sorting all of it."""
    found = []
    with connection.cursor() as cursor:
        # What an index can answer is then answered by it, however few rows there are.
        cursor.execute("SET enable_seqscan = off")
        cursor.execute("SET enable_bitmapscan = off")
        for one in asked.captured_queries:
            if not one["sql"].startswith("SELECT") or not any(table in one["sql"] for table in TABLES):
                continue
            cursor.execute("EXPLAIN " + one["sql"])
            plan = [line for (line,) in cursor.fetchall()]
            found += [
                f"{line.strip()}: {one['sql']}"
                for line in plan
                if "Seq Scan on" in line and any(table in line for table in TABLES)
            ]
        cursor.execute("RESET enable_seqscan")
        cursor.execute("RESET enable_bitmapscan")
    return found


SHOWN = {
    Answer.YES: "passed", Answer.NO: "ended here", Answer.UNTOLD: "not written down",
    Answer.NOT_ASKED: "not asked",
}  # fmt: skip
QUESTIONS: list[dict[str, str]] = [
    {},
    {"p": "2"},
    {"when": "hour"},
    {"when": f"{datetime.now(UTC):%Y-%m}"},
    {"q": "nowhere"},
    {"q": str(uuid4())},
    {"q": "acme"},
    {"q": "nobody@example.org"},
    {"tenant_id": str(uuid4())},
    {"key_id": str(uuid4())},
    {"kind": "correction"},
    {"marked": "estimated"},
    {"marked": "late", "when": f"{datetime.now(UTC):%Y-%m-%d}"},
    {"status_class": "5"},
    {"status_class": "refused", "tenant_id": str(uuid4())},
]


def test_no_list_reads_a_table_as_a_whole(olga: Client, many_rows: None) -> None:
    for model in GROWING:
        page: Any = admin.site._registry[model]
        own = {"p", "q"} | {one.parameter_name for one in page.list_filter}
        for query in QUESTIONS:
            if not set(query) <= own:
                continue
            with CaptureQueriesContext(connection) as asked:
                answer = olga.get(address_of(model), query)
            assert answer.status_code == 200, (model, query)
            assert whole_tables_read(asked) == [], (model, query)
            assert len(asked) <= 25, (model, query)


@pytest.mark.parametrize("model", GROWING, ids=lambda model: model.__name__)
def test_columns_without_an_index_are_neither_sorted_by_nor_looked_up(model: Any, olga: Client) -> None:
    in_order = admin.site._registry[model].get_ordering(None)  # type: ignore[arg-type]

    listed = olga.get(address_of(model), {"o": "-3.2"})

    assert listed.context["cl"].queryset.query.order_by == in_order
    for lookup in ("pk__gt", "tenant_id__isnull"):
        # Anything but a filter of the list is refused.
        assert olga.get(address_of(model), {lookup: "1"}).status_code in (302, 400)


def test_the_plans_that_are_forbidden_are_recognised(olga: Client, many_rows: None) -> None:
    with CaptureQueriesContext(connection) as asked:
        list(LedgerEntry.objects.filter(outcome="failed").order_by("cost_micro_usd")[:10])

    assert whole_tables_read(asked) != []


def test_what_no_index_knows_is_looked_for_among_the_newest(monkeypatch, olga: Client, many_rows) -> None:
    monkeypatch.setattr(growing, "LOOK_BACK", 10)
    newest = LedgerEntry.objects.order_by("-ended_at")[:10]
    estimated = {entry.pk for entry in newest if not entry.exact}

    listed = olga.get(address_of(LedgerEntry), {"marked": "estimated"}).context["cl"]

    assert {entry.pk for entry in listed.result_list} == estimated
    assert "10" in olga.get(address_of(LedgerEntry)).content.decode()


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("2026-11", datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12", datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-11-27T09", datetime(2026, 11, 27, 9, tzinfo=UTC), datetime(2026, 11, 27, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_month_a_day_or_an_hour(text: str, begin: datetime, end: datetime) -> None:
    assert span_of(text, now()) == (begin, end)


@pytest.mark.parametrize("text", ["2026-13", "2026-11-31", "2026-11-27T24", "yesterday", "2026-11-27T09:30"])
def test_what_is_no_time_finds_nothing(text: str, olga: Client, acme: Tenant) -> None:
    with pytest.raises(ValueError, match=r"."):
        span_of(text, now())
    assert list(olga.get(address_of(AuditEvent), {"when": text}).context["cl"].result_list) == []


def test_times_lead_from_months_to_days_to_hours(olga: Client, acme: Tenant) -> None:
    present = datetime.now(UTC)

    def offered(**query: str) -> list[str]:
        (spec,) = [
            one
            for one in olga.get(address_of(AuditEvent), query).context["cl"].filter_specs
            if one.parameter_name == "when"
        ]
        return [value for value, _ in spec.lookup_choices]

    assert offered()[:2] == ["hour", f"{present:%Y-%m-%d}"]
    assert f"{present:%Y-%m-%d}" in offered(when=f"{present:%Y-%m}")
    assert f"{present:%Y-%m}" in offered(when=f"{present:%Y-%m-%d}")
    assert f"{present:%Y-%m-%dT%H}" in offered(when=f"{present:%Y-%m-%d}")
    assert f"{present - timedelta(hours=0):%Y-%m-%d}" in offered(when=f"{present:%Y-%m-%dT%H}")


def test_calls_are_found_by_all_that_operators_have(house: House) -> None:
    grace = User.objects.create(username="grace", email="grace@example.org")
    member = add_member(tenant=house.acme, user=grace, role="member", actor="test")
    globex = create_tenant(slug="globex", name="Globex", actor="test", allow_all_models=True)
    hers, theirs = house.caller(member=member), house.caller(tenant=globex)
    for caller in (hers, theirs):
        assert caller.chat().status_code == 200
    mine = next(entry for entry in house.booked(2) if entry.key_id == hers.key.pk)
    browser = a_browser(User.objects.create_superuser("olga"))

    for model in (LedgerEntry, RequestEvent):
        for term in (
            str(mine.request_id), str(mine.key_id), "acme", str(house.acme.pk), "GRACE@example.org",
            hers.secret[:15], hers.secret[3:15], hers.key.label,
        ):  # fmt: skip
            listed = browser.get(address_of(model), {"q": term}).context["cl"].result_list
            assert [row.request_id for row in listed] == [mine.request_id], (model, term)
        assert len(browser.get(address_of(model), {"q": "tiny:1b"}).context["cl"].result_list) == 2
        for term in (str(uuid4()), "nobody@example.org", "nothing-is-called-so"):
            assert len(browser.get(address_of(model), {"q": term}).context["cl"].result_list) == 0


def test_a_term_that_is_many_labels_is_bounded(monkeypatch, acme: Tenant) -> None:
    monkeypatch.setattr("budgets.admin.finding.MOST_KEYS", 2)
    for number in range(3):
        tenant = create_tenant(slug=f"tenant-{number}", name="One of many", actor="test")
        issue_key(tenant=tenant, label="nightly", actor="test")

    assert len(keys_called("nightly")) == 2


def test_a_call_tells_its_questions_its_time_and_its_booking(house: House) -> None:
    set_price(model="tiny:1b", input_price=10**6, output_price=10**6, actor="test")
    assert house.ada.chat(model="nowhere").status_code == 403
    assert house.ada.chat().status_code == 200
    entry = house.booked()[0]
    browser = a_browser(User.objects.create_superuser("olga"))

    admitted = browser.get(address_of(RequestEvent, "change", entry.request_id)).content.decode()
    refusal = first_refusal()
    refused = browser.get(address_of(RequestEvent, "change", refusal.pk)).content.decode()

    assert "Is there room in every limit?" in admitted
    assert "waiting for upstream" in admitted
    assert address_of(LedgerEntry, "change", entry.pk) in admitted
    assert "model_not_allowed" in refused
    assert "Nothing was booked" in refused
    assert "It was not admitted" in refused


def test_operators_read_the_same_questions_as_the_people_of_the_tenant(house: House) -> None:
    budget = set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=1000, actor="test")
    assert house.ada.chat("x" * 2000).status_code == 429
    refusal = first_refusal()
    explained = explain_refusal(refusal.pk)

    page = opened(refusal)

    assert explained is not None
    assert explained.reason is not None
    assert str(explained.reason.found) in page
    assert answers_on(page) == [(str(one.text), SHOWN[one.answer]) for one in explained.questions]
    (limit,) = explained.limits
    assert f"{limit.needed:,}" in page
    assert address_of(Budget, "change", budget.pk) in page


def test_operators_read_who_stopped_a_call_and_why(house: House) -> None:
    switch = arm_kill_switch(
        scope="tenant", tenant=house.acme, reason="card 17 burns", message="Back at noon.", actor="otto"
    )
    eventually(lambda: house.ada.chat().status_code == 403)
    refusal = first_refusal()

    page = opened(refusal)

    assert "armed by otto: card 17 burns" in page
    assert address_of(KillSwitch, "change", switch.pk) in page
    assert dict(answers_on(page))["Has an operator stopped these calls?"] == "ended here"


def test_of_a_call_that_was_let_through_is_told_what_shadow_limits_would_have_said(house: House) -> None:
    set_budget(
        scope="key", key=house.ada.key, unit="requests", period="day", limit=0, shadow=True, actor="test"
    )
    assert house.ada.chat().status_code == 200
    (entry,) = house.booked()
    event = RequestEvent.objects.get(pk=entry.request_id)

    page = opened(event)

    assert {answer for _, answer in answers_on(page)} == {"passed"}
    assert len(answers_on(page)) == len(Asked)
    assert event.refused_by != []
    assert f"Would have refused: {', '.join(event.refused_by)}." in page


@pytest.mark.parametrize(
    ("ended", "last"),
    [
        ({"outcome": "completed"}, Answer.YES),
        ({"outcome": "client_left"}, Answer.UNTOLD),
        ({"outcome": "upstream_failed", "refusal": "upstream_timeout"}, Answer.NO),
    ],
    ids=str,
)
def test_the_last_question_is_put_to_calls_that_were_let_through(ended: dict[str, str], last: Answer) -> None:
    found = explain_call(RequestEvent(request_id=uuid4(), at=now(), admitted_at=now(), **ended))

    assert [one.answer for one in found.questions] == [Answer.YES] * (len(Asked) - 1) + [last]
    assert found.told


def first_refusal() -> RequestEvent:
    """The first call that was refused, once it is written down."""

    def found() -> RequestEvent | None:
        ledger.drain()
        return RequestEvent.objects.exclude(refusal="").order_by("at").first()

    event: RequestEvent = eventually(found)
    return event


def opened(event: RequestEvent) -> str:
    """The page of a call, as a superuser sees it."""
    browser = a_browser(User.objects.create_superuser("olga"))
    return browser.get(address_of(RequestEvent, "change", event.pk)).content.decode()


def answers_on(page: str) -> list[tuple[str, str]]:
    """The questions that the page of a call shows, in order, each with its answer."""
    listed = page[page.index('<ol class="questions">') :]
    found = re.findall(
        r'<li>\s*<span class="state state-\w+">([^<]+)</span>\s*<strong>([^<]+)</strong>', listed
    )
    return [(asked, answer) for answer, asked in found]


@pytest.fixture
def furnished(house: House) -> House:
    """A house with something on most pages."""
    user = User.objects.create(username="grace", email="grace@example.org")
    team = create_team(tenant=house.acme, name="physics", actor="test")
    add_member(tenant=house.acme, user=user, team=team, role="member", actor="test")
    set_price(model="tiny:1b", input_price=10**6, output_price=10**6, actor="test")
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=10**6, actor="test")
    issue_management_key(label="terraform", scopes=["tenants:read"], actor="test")
    save_upstream(upstream=Upstream(name="away", base_url="http://127.0.0.1:1"), actor="test")
    assert house.ada.chat().status_code == 200
    house.booked()
    return house


def models_shown() -> list[type[models.Model]]:
    """Every model that has pages, once the addresses are known: some are taken out with them."""
    reverse("admin:index")
    return list(admin.site._registry)


def objects_shown() -> list[models.Model]:
    """The newest row of each model that the admin shows."""
    rows = [model._default_manager.order_by("-pk").first() for model in models_shown() if model._meta.managed]
    return [row for row in rows if row is not None]


def test_every_page_opens_for_a_superuser(furnished: House) -> None:
    browser = a_browser(User.objects.create_superuser("olga"))

    answers = {address_of(model): browser.get(address_of(model)).status_code for model in models_shown()}
    answers |= {
        address: browser.get(address).status_code
        for row in objects_shown()
        for address in (address_of(type(row), "change", row.pk), address_of(type(row), "history", row.pk))
    }

    assert {address: status for address, status in answers.items() if status != 200} == {}
    assert len(answers) > 60


def test_every_page_opens_for_who_may_only_look_and_offers_nothing_to_change(furnished: House) -> None:
    wanda = User.objects.create(username="wanda", is_staff=True)
    wanda.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    browser = a_browser(wanda)
    wrong: dict[str, Any] = {}
    for model in models_shown():
        listed = browser.get(address_of(model))
        if listed.status_code != 200 or b'class="addlink' in listed.content:
            wrong[address_of(model)] = listed.status_code
        if browser.get(address_of(model, "add")).status_code != 403:
            wrong[address_of(model, "add")] = "may be added"
    for row in objects_shown():
        page = browser.get(address_of(type(row), "change", row.pk))
        saved = browser.post(address_of(type(row), "change", row.pk), {"name": "another"})
        if page.status_code != 200 or b'name="_save"' in page.content or saved.status_code != 403:
            wrong[address_of(type(row), "change", row.pk)] = (page.status_code, saved.status_code)

    assert wrong == {}


def test_the_menu_leads_to_every_list_and_shows_only_what_may_be_seen(furnished: House) -> None:
    everything = a_browser(User.objects.create_superuser("olga")).get("/admin/").content.decode()
    nothing = a_browser(User.objects.create(username="wanda", is_staff=True)).get("/admin/").content.decode()

    missing = [model for model in models_shown() if f'href="{address_of(model)}"' not in everything]

    assert missing == []
    assert [model for model in models_shown() if f'href="{address_of(model)}"' in nothing] == []


@pytest.mark.parametrize(
    ("term", "expected"),
    [("ledg", "Ledger"), ("acm", "Tenant ACME"), ("grace@example.org", "grace"), ("", None), ("zzz", None)],
)
def test_the_search_finds_pages_and_things(furnished: House, term: str, expected: str | None) -> None:
    page = a_browser(User.objects.create_superuser("olga")).get(
        "/admin/search/", {"s": term, "extended": "1"}
    )

    assert page.status_code == 200
    found = page.content.decode()
    assert ("No results" in found) if expected is None else (expected in found)


def test_the_search_shows_nobody_what_they_may_not_see(furnished: House) -> None:
    wanda = a_browser(User.objects.create(username="wanda", is_staff=True))

    for term in ("acme", "Ledger", "grace@example.org", str(RequestEvent.objects.get().pk)):
        assert "No results" in wanda.get("/admin/search/", {"s": term}).content.decode()
