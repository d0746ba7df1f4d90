"""Exports in the portal and in the management API: who may, what they are told, and what leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.db import connection
from django.shortcuts import resolve_url
from django.test import Client
from django.utils.timezone import now

from audit import months
from audit.models import AuditEvent
from benchmarks.ledger_rows import FILL
from budgets import rollups, usage
from budgets.exports import serving
from budgets.exports.jobs import make_exports, order_export
from budgets.models import Export
from tenants.models import Member, Tenant, User
from tenants.services import add_member, create_tenant
from tests.conftest import eventually
from tests.exporting import an_entry, an_order, written
from tests.gateway import Gateway
from tests.people import EVERYBODY, MAY_EXPORT, UNKNOWN, a_browser, a_person

pytestmark = pytest.mark.django_db(transaction=True)

PAGE, API = "/portal/acme/exports/", "/manage/v1/exports/"
MONTH = {"from_day": "2026-10-01", "before_day": "2026-11-01"}
SEES_ACME = {"owner", "admin", "finance", "auditor", "member", "operator", "superuser"}


@pytest.fixture
def fay(acme: Tenant) -> User:
    user = User.objects.create(username="fay")
    add_member(tenant=acme, user=user, role="finance", actor="test")
    return user


@contextmanager
def at(gateway: Gateway, user: User) -> Iterator[httpx.Client]:
    """A browser of ``user`` that talks to the gateway's own port."""
    signed_in = a_browser(user).cookies[settings.SESSION_COOKIE_NAME].value
    cookies = {settings.SESSION_COOKIE_NAME: signed_in}
    with httpx.Client(base_url=gateway.url, cookies=cookies, timeout=30, trust_env=False) as browser:
        yield browser


def with_token(browser: httpx.Client, **fields: Any) -> dict[str, Any]:
    """What a form of the page sends."""
    page = browser.get(PAGE).text
    [token, *_] = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    return {**MONTH, **fields, "csrfmiddlewaretoken": token}


def a_made_export(acme: Tenant, user: User, profile: str = "requests") -> Export:
    order_export(order=an_order(acme, profile), user=user)
    make_exports()
    return Export.objects.get(user_id=user.pk)


def post(browser: Client, address: str, body: Any) -> tuple[int, Any]:
    response = browser.post(address, json.dumps(body), content_type="application/json")
    return response.status_code, response.json()


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_page_is_for_those_who_may_take_usage_with_them(acme: Tenant, who: str) -> None:
    browser = a_browser(a_person(who, acme))

    opened = browser.get(PAGE)
    ordered = browser.post(PAGE, {**MONTH, "profile": "day"})

    if who in MAY_EXPORT:
        assert opened.status_code == 200
        assert ordered.status_code == 302
        assert f'href="{PAGE}"' in browser.get("/portal/acme/").content.decode()
    elif who in SEES_ACME:
        assert opened.status_code == ordered.status_code == 403
        assert PAGE not in browser.get("/portal/acme/").content.decode()
    elif who in UNKNOWN:
        assert opened.headers["Location"] == f"{resolve_url(settings.LOGIN_URL)}?next={PAGE}"
        assert ordered.status_code == 302
    else:
        assert opened.status_code == ordered.status_code == 404
    assert Export.objects.count() == AuditEvent.objects.filter(action="export.ordered").count()
    assert Export.objects.count() == (who in MAY_EXPORT)


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_api_is_for_the_same(acme: Tenant, who: str) -> None:
    browser = a_browser(a_person(who, acme))
    asked = {**MONTH, "tenant": "acme", "profile": "focus"}

    ordered, told = post(browser, API, asked)
    estimated = browser.get(f"{API}estimate/", asked).status_code

    if who in MAY_EXPORT:
        assert (ordered, estimated) == (201, 200)
        assert (told["state"], told["user"], told["tenant"]) == ("waiting", who, "acme")
    elif who in SEES_ACME:
        assert (ordered, estimated) == (403, 403)
    elif who in UNKNOWN:
        assert (ordered, estimated) == (401, 401)
    else:
        assert (ordered, estimated) == (404, 404)
    assert Export.objects.count() == (who in MAY_EXPORT)


@pytest.mark.parametrize("who", EVERYBODY)
def test_only_operators_take_the_usage_of_all(acme: Tenant, who: str) -> None:
    status, told = post(a_browser(a_person(who, acme)), API, {**MONTH, "profile": "day"})

    assert status == (201 if who in ("operator", "superuser") else 401 if who in UNKNOWN else 403)
    if status == 201:
        assert (told["tenant"], told["tenant_id"]) == ("all-tenants", None)


def test_an_operator_who_may_not_see_usage_takes_none(acme: Tenant) -> None:
    olga = User.objects.create(username="olga", is_staff=True)
    olga.user_permissions.set(Permission.objects.filter(codename="view_tenant"))

    assert a_browser(olga).get(PAGE).status_code == 403
    assert post(a_browser(olga), API, {**MONTH, "profile": "day"})[0] == 403


def test_a_foreign_tenant_and_none_at_all_are_told_apart_by_nothing(acme: Tenant, fay: User) -> None:
    create_tenant(slug="globex", name="Globex", actor="test")
    browser = a_browser(fay)

    answers = [
        post(browser, API, {**MONTH, "tenant": slug, "profile": "day"}) for slug in ("globex", "nobody")
    ]

    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_nobody_sees_or_fetches_the_exports_of_another(acme: Tenant, fay: User) -> None:
    """Not a colleague, not an operator: the answers are those for what there is not."""
    export = a_made_export(acme, fay)
    addresses = {
        f"{PAGE}{export.pk}/": f"{PAGE}{acme.pk}/",
        f"{PAGE}files/{export.link}/": f"{PAGE}files/nothing/",
        f"{PAGE}files/{export.link}/sidecar/": f"{PAGE}files/nothing/sidecar/",
        f"{API}{export.pk}/": f"{API}{acme.pk}/",
        f"{API}files/{export.link}/": f"{API}files/nothing/",
    }

    for who in ("owner", "operator", "superuser", "foreign owner", "nobody"):
        browser = a_browser(a_person(who, acme))
        for theirs, nobodys in addresses.items():
            answers = [browser.get(address) for address in (theirs, nobodys)]
            assert [answer.status_code for answer in answers] == [404, 404], (who, theirs)
            told = [re.sub(rb".*csrfmiddlewaretoken.*", b"", answer.content) for answer in answers]
            assert told[0] == told[1]
        if who in MAY_EXPORT:
            assert str(export.pk) not in browser.get(PAGE).content.decode()
            assert browser.get(API).json()["results"] == []
    assert {a_browser(fay).get(address).status_code for address in list(addresses)[::3]} == {200}
    assert AuditEvent.objects.filter(action="usage.exported").count() == 0


def test_an_export_of_one_tenant_is_not_found_at_another(acme: Tenant, fay: User) -> None:
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    add_member(tenant=globex, user=fay, role="finance", actor="test")
    export = a_made_export(acme, fay)

    for rest in (f"{export.pk}/", f"files/{export.link}/", f"files/{export.link}/sidecar/"):
        assert a_browser(fay).get(f"/portal/globex/exports/{rest}").status_code == 404


def test_who_may_not_export_any_more_cannot_fetch_what_they_ordered(acme: Tenant, fay: User) -> None:
    export = a_made_export(acme, fay)
    Member.objects.filter(user=fay).update(role="member")
    browser = a_browser(fay)

    assert browser.get(f"{PAGE}files/{export.link}/").status_code == 403
    assert browser.get(f"{API}files/{export.link}/").status_code == 404
    Member.objects.filter(user=fay).delete()
    assert browser.get(f"{PAGE}files/{export.link}/").status_code == 404


def test_a_link_that_is_over_leads_nowhere(acme: Tenant, fay: User) -> None:
    export = a_made_export(acme, fay)
    past = now() - timedelta(seconds=1)
    Export.objects.update(created_at=past - timedelta(days=7), expires_at=past)
    browser = a_browser(fay)

    for address in (
        f"{PAGE}files/{export.link}/",
        f"{PAGE}files/{export.link}/sidecar/",
        f"{API}files/{export.link}/",
    ):
        assert browser.get(address).status_code == 404
    assert browser.get(f"{API}{export.pk}/").json()["file_url"] is None


@pytest.mark.parametrize("address", [PAGE, API])
def test_a_form_from_elsewhere_orders_nothing(acme: Tenant, fay: User, address: str) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(fay)

    response = browser.post(address, {**MONTH, "profile": "day", "tenant": "acme"})

    assert response.status_code == 403
    assert Export.objects.count() == 0


def test_before_anything_is_exported_the_page_says_how(acme: Tenant, fay: User) -> None:
    page = a_browser(fay).get(PAGE).content.decode()

    assert "You have not exported anything yet." in page
    # Last month, as its days begin where the tenant is.
    assert re.search(r'name="from_day" value="\d{4}-\d\d-01"', page)
    assert "Download now" not in page


def test_looking_first_shows_what_the_file_will_add_up_to(acme: Tenant, fay: User) -> None:
    for _ in range(3):
        an_entry(acme, input_tokens=1_000_000)
    rollups.rebuild(part=rollups.Part(), actor="test", write=True)

    page = a_browser(fay).get(PAGE, {**MONTH, "profile": "requests", "layout": "csv"}).content.decode()

    totals = usage.totals(an_order(acme).selection)
    assert "3, from 3 entries of the ledger" in page
    assert totals["cost_micro_usd"] == 900_219
    assert '<span title="900,219 micro-USD">$0.900219</span>' in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "3,000,000, 0 of them cached" in page
    assert "Download now" in page
    assert Export.objects.count() == 0
    assert AuditEvent.objects.filter(action="usage.exported").count() == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"before_day": "2026-10-01"}, "The range is empty"),
        ({"before_day": "soon"}, "Enter a valid date."),
        ({"profile": "<script>alert(1)</script>"}, "&lt;script&gt;alert(1)&lt;/script&gt; is not one of"),
        ({"layout": "xlsx", "gzip": "on"}, "A workbook is compressed already."),
        ({"separator": "tab"}, "Separator and decimal comma are for the spreadsheet layout."),
    ],
)
def test_what_cannot_be_made_is_told_beside_the_form(
    acme: Tenant, fay: User, asked: dict[str, str], said: str
) -> None:
    fields = {**MONTH, "profile": "day", **asked}
    browser = a_browser(fay)

    looked, ordered = browser.get(PAGE, fields), browser.post(PAGE, fields)

    assert (looked.status_code, ordered.status_code) == (200, 400)
    for page in (looked.content.decode(), ordered.content.decode()):
        assert said in page
        assert "<script" not in page
    assert Export.objects.count() == 0


def test_an_order_is_followed_on_a_page_that_looks_again_by_itself(acme: Tenant, fay: User) -> None:
    an_entry(acme)
    browser = a_browser(fay)

    ordered = browser.post(PAGE, {**MONTH, "profile": "requests"})
    page = ordered.headers["Location"]
    waiting = browser.get(page)
    Export.objects.update(state="running", lease=acme.pk, leased_until=now(), rows=0)
    running = browser.get(page)
    make_exports()
    ready = browser.get(page)

    assert (waiting.headers["Refresh"], running.headers["Refresh"]) == ("2", "2")
    assert "It waits for its turn" in waiting.content.decode()
    assert '<progress max="1" value="0">' in running.content.decode()
    assert "Refresh" not in ready.headers
    export = Export.objects.get()
    for text in (export.sha256, f"{PAGE}files/{export.link}/", "It is ready. The link is yours alone."):
        assert text in ready.content.decode()
    listed = browser.get(PAGE).content.decode()
    assert page in listed
    assert export.sha256[:12] in listed
    assert "<script" not in listed + ready.content.decode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"state": "failed", "error": "<b>broken</b>", "error_id": "abcdef123456"},
            "&lt;b&gt;broken&lt;/b&gt;",
        ),
        ({"state": "failed", "error": "broken", "error_id": "abcdef123456"}, "<code>abcdef123456</code>"),
        ({"state": "expired"}, "Its week is over"),
        ({"state": "streamed"}, "It went straight to your browser"),
    ],
)
def test_each_end_of_an_export_is_told(acme: Tenant, fay: User, changes: dict[str, str], said: str) -> None:
    export = a_made_export(acme, fay)
    Export.objects.update(**changes)

    page = a_browser(fay).get(f"{PAGE}{export.pk}/").content.decode()

    assert said in page


def test_what_is_too_large_to_wait_for_is_made_in_the_background(
    acme: Tenant, fay: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_entry(acme)
    monkeypatch.setattr(serving, "MOST_STREAMED_ROWS", 0)
    browser = a_browser(fay)

    looked = browser.get(PAGE, {**MONTH, "profile": "requests"})
    ordered = browser.post(PAGE, {**MONTH, "profile": "requests", "download": "1"}, follow=True)

    assert "Download now" not in looked.content.decode()
    assert "the file is made in the background" in ordered.content.decode()
    assert Export.objects.get().state == "waiting"


def test_who_has_ordered_too_much_is_told_so(acme: Tenant, fay: User) -> None:
    browser = a_browser(fay)
    for _ in range(5):
        browser.post(PAGE, {**MONTH, "profile": "day"})

    page = browser.post(PAGE, {**MONTH, "profile": "day"})
    status, told = post(browser, API, {**MONTH, "tenant": "acme", "profile": "day"})

    assert page.status_code == status == 400
    assert "5 of your exports are not made yet" in page.content.decode()
    assert "5 of your exports are not made yet" in str(told["errors"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "0"),
        ({}, "from_day"),
        ({"from_day": 5}, "from_day"),
        ({"from_day": None}, "from_day"),
        ({"from_day": "2026-10-01\x00"}, "from_day"),
        ({"before_day": "2026-09-01"}, "non_field_errors"),
        ({"profile": ["day"]}, "profile"),
        ({"tenant": "ac\x00me"}, "tenant"),
        ({"tenant": "acme/../globex"}, "tenant"),
        ({"layout": "pdf"}, "layout"),
        ({"layout": "xlsx", "gzip": True}, "non_field_errors"),
        ({"decimal_comma": True}, "non_field_errors"),
    ],
)
def test_the_api_tells_what_is_wrong_with_which_field(acme: Tenant, fay: User, body: Any, field: str) -> None:
    if body:
        body = {**MONTH, "tenant": "acme", "profile": "day", **body}

    status, told = post(a_browser(fay), API, body)

    assert status == 400
    assert field in told["errors"] or field == "0"
    assert Export.objects.count() == 0


def test_an_estimate_tells_size_and_totals(acme: Tenant, fay: User) -> None:
    an_entry(acme)
    rollups.rebuild(part=rollups.Part(), actor="test", write=True)

    told = a_browser(fay).get(f"{API}estimate/", {**MONTH, "tenant": "acme", "profile": "requests"}).json()

    assert told.pop("bytes") > 500
    assert told == {
        "entries": 1,
        "rows": 1,
        "exact": True,
        "small": True,
        "totals": usage.totals(an_order(acme).selection),
    }


def test_programs_follow_an_export_to_its_file(acme: Tenant, fay: User, gateway: Gateway) -> None:
    an_entry(acme)
    asked = {**MONTH, "tenant": "acme", "profile": "requests", "layout": "spreadsheet", "decimal_comma": True}
    browser = a_browser(fay)
    _, ordered = post(browser, API, {**asked, "gzip": True})
    make_exports()

    told = browser.get(f"{API}{ordered['id']}/").json()
    with at(gateway, fay) as program:
        file = program.get(told["file_url"])

    order = an_order(acme, layout="spreadsheet", separator="semicolon", decimal_comma=True, gzip=True)
    content, sidecar = written(order)
    assert (told["state"], told["sha256"], told["rows"]) == ("ready", sidecar["sha256"], 1)
    assert told["sidecar"]["totals"] == sidecar["totals"]
    assert file.status_code == 200
    assert file.content == content
    assert file.headers["Content-Type"] == "application/gzip"
    assert file.headers["Content-Length"] == str(len(content))
    assert file.headers["Cache-Control"] == "no-store"
    [event] = AuditEvent.objects.filter(action="usage.exported")
    assert (event.actor, event.subject, event.tenant_id) == ("fay", "acme", acme.pk)
    assert event.origin.startswith("manage from 127.0.0.1")
    assert event.details["sha256"] == sidecar["sha256"]
    assert Export.objects.get().downloads == 1


def test_people_fetch_the_file_and_its_sidecar(acme: Tenant, fay: User, gateway: Gateway) -> None:
    an_entry(acme)
    export = a_made_export(acme, fay, "focus")

    with at(gateway, fay) as browser:
        file = browser.get(f"{PAGE}files/{export.link}/")
        sidecar = browser.get(f"{PAGE}files/{export.link}/sidecar/")
        again = browser.get(f"{PAGE}files/{export.link}/")

    name = "acme-focus-2026-10-01-before-2026-11-01.csv"
    assert file.content == again.content == written(an_order(acme, "focus"))[0]
    assert file.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert sidecar.json() == export.sidecar
    assert sidecar.headers["Content-Disposition"] == f'attachment; filename="{name}.json"'
    assert AuditEvent.objects.filter(action="usage.exported").count() == 2


@pytest.mark.parametrize("layout", ["csv", "xlsx"])
def test_a_small_export_goes_straight_to_the_browser(
    acme: Tenant, fay: User, gateway: Gateway, layout: str
) -> None:
    an_entry(acme)

    with at(gateway, fay) as browser:
        answer = browser.post(PAGE, data=with_token(browser, profile="requests", layout=layout, download="1"))

    content, sidecar = written(an_order(acme, layout=layout))
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["Content-Disposition"].endswith(f'before-2026-11-01.{layout}"')
    export = eventually(Export.objects.first)
    assert (export.state, export.sha256, export.rows) == ("streamed", sidecar["sha256"], 1)
    assert export.sidecar["totals"] == sidecar["totals"]
    [event] = AuditEvent.objects.filter(action="usage.exported")
    assert (event.actor, event.origin.partition(" ")[0]) == ("fay", "portal")


def copying() -> int:
    """How many exports the database is writing."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND state <> 'idle' AND query LIKE 'COPY (SELECT%'"
        )
        return int(cursor.fetchone()[0])


def test_a_client_that_leaves_stops_its_export(acme: Tenant, fay: User, gateway: Gateway) -> None:
    months.ensure("budgets_ledgerentry", [date(2026, 10, 1)])
    with connection.cursor() as cursor:
        cursor.execute(
            FILL, {"rows": 45_000, "tenant_id": acme.pk, "tenant": "acme", "first_day": date(2026, 10, 1)}
        )

    with at(gateway, fay) as browser:
        fields = with_token(browser, profile="requests", download="1")
        with browser.stream("POST", PAGE, data=fields) as answer:
            first = next(answer.iter_raw())
            # It is not read on, so the database waits in the middle of the rows.
            assert copying() == 1

    assert first.startswith(b"request_id,kind,day")
    eventually(lambda: copying() == 0)
    assert Export.objects.count() == 0
    # Both turns are free again.
    for _ in range(2):
        with at(gateway, fay) as browser:
            whole = browser.post(PAGE, data=with_token(browser, profile="key", download="1"))
            assert len(whole.content.splitlines()) == 41
