"""Closing months, and reading statements, through commands, the admin, the management API and the portal."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from datetime import date
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.urls import reverse

from audit.models import AuditEvent
from budgets.models import ClosedMonth, LedgerEntry, SpooledSettlement, Statement
from budgets.month_closing import close_month, confirm_reopening, request_reopening
from tenants.ids import new_id
from tenants.models import Tenant
from tests.accounts import a_tenant, ago, of_ledger, on, quiet_counters, used
from tests.counting import NOWHERE
from tests.managing import manager
from tests.people import EVERYBODY, READS_STATEMENTS, UNKNOWN, a_browser, a_person
from tests.test_stops_by_operators import signed_in

pytestmark = pytest.mark.django_db(transaction=True)

CLOSE = "admin:budgets_closedmonth_add"
LIST = "admin:budgets_closedmonth_changelist"
STATEMENTS = "/manage/v1/statements/"


@pytest.fixture(autouse=True)
def _books(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"
    quiet_counters()


@pytest.fixture
def acme() -> Tenant:
    return a_tenant()


@pytest.fixture
def last() -> date:
    return ago(1)


@pytest.fixture
def statement(acme: Tenant, last: date) -> Statement:
    used(acme, on(last), key="中文")
    return close_month(tenant=acme, month=last, actor="ada")


def said(name: str, *arguments: str) -> str:
    out = StringIO()
    call_command(name, *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def at_the_shell(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Who types the commands from now on."""
    return lambda name: monkeypatch.setenv("LOGNAME", name)


# Commands


def test_a_dry_run_tells_what_closing_comes_to_and_changes_nothing(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    month = f"{last:%Y-%m}"

    assert said("close_month", "--tenant", "acme", "--month", month, "--dry-run") == (
        f"{month} of acme (Europe/Berlin): 1 entries, 1 requests, 0.000023 USD.\n"
        "  nothing stands against closing it.\n"
    )
    seen = json.loads(said("close_month", "--tenant", "acme", "--month", month, "--dry-run", "--json"))
    assert seen["month"] == month
    assert seen["tenants"] == [
        {
            "tenant": "acme",
            "against": [],
            "time_zone": "Europe/Berlin",
            "entries": 1,
            "totals": of_ledger(acme),
        }
    ]
    assert not ClosedMonth.objects.exists()


def test_what_stands_against_it_is_told_and_fails(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    SpooledSettlement.objects.create(request_id=new_id(), settlement={})
    out, err = StringIO(), StringIO()
    month = f"{last:%Y-%m}"

    for arguments in (["--dry-run"], []):
        with pytest.raises(CommandError, match="is not closed for everybody"):
            call_command(
                "close_month", "--tenant", "acme", "--month", month, *arguments, stdout=out, stderr=err
            )

    assert "against it: 1 settlements wait in the spool" in out.getvalue()
    assert err.getvalue() == "acme: 1 settlements wait in the spool, of whichever tenant.\n"


def test_a_month_is_closed_for_everybody_who_used_something(acme: Tenant, last: date) -> None:
    globex = a_tenant("globex")
    a_tenant("initech")
    for tenant in (acme, globex):
        used(tenant, on(last))
    month = f"{last:%Y-%m}"

    closed = json.loads(said("close_month", "--all", "--month", month, "--json", "--reason", "month end"))

    assert [one["tenant"] for one in closed["tenants"]] == ["acme", "globex"]
    assert [one["statement"]["number"][5:] for one in closed["tenants"]] == ["000001", "000002"]
    assert set(AuditEvent.objects.filter(action="month.closed").values_list("reason", flat=True)) == {
        "month end"
    }
    assert said("close_month", "--all", "--month", month) == (
        f"Nobody used anything in {month} that is not closed.\n"
    )


def test_without_redis_nobody_knows_whether_a_month_can_be_closed(
    acme: Tenant, last: date, settings: Any
) -> None:
    settings.CACHES = NOWHERE

    with pytest.raises(CommandError, match="Redis cannot be asked"):
        said("close_month", "--tenant", "acme", "--month", f"{last:%Y-%m}")


@pytest.mark.parametrize("command", ["close_month", "reopen_month"])
def test_what_is_no_month_and_no_tenant_is_told(acme: Tenant, command: str) -> None:
    with pytest.raises(CommandError, match=r"'2026-13' is no month\. Example: 2026-10\."):
        said(command, "--tenant", "acme", "--month", "2026-13")
    with pytest.raises(CommandError, match="no tenant 'nobody'"):
        said(command, "--tenant", "nobody", "--month", "2026-10")


def test_a_month_is_opened_again_by_two_accounts(
    statement: Statement, last: date, at_the_shell: Callable[[str], None]
) -> None:
    which = ("--tenant", "acme", "--month", f"{last:%Y-%m}")
    at_the_shell("ada")
    with pytest.raises(CommandError, match="Say why"):
        said("reopen_month", *which)
    assert "Within a day another person" in said("reopen_month", *which, "--reason", "a wrong price")
    with pytest.raises(CommandError, match="Another person than the one who asked"):
        said("reopen_month", *which)

    at_the_shell("bob")
    opened = json.loads(said("reopen_month", *which, "--json"))

    assert (opened["asked_by"], opened["reopened_by"]) == ("ada (manage.py)", "bob (manage.py)")
    assert opened["reason"] == "a wrong price"
    with pytest.raises(CommandError, match="is not closed"):
        said("reopen_month", *which)


def test_a_statement_is_shown_and_its_papers_written(statement: Statement, tmp_path: Path) -> None:
    pdf, table = tmp_path / "a.pdf", tmp_path / "a.csv"

    shown = said("show_statement", statement.number, "--pdf", str(pdf), "--csv", str(table))
    told = json.loads(said("show_statement", statement.number, "--json"))

    assert (pdf.read_bytes(), table.read_bytes()) == (statement.pdf, statement.csv)
    assert shown.startswith(f"Statement {statement.number}: {statement.month:%Y-%m} of acme, Europe/Berlin")
    assert "usage: 中文 tiny:1b: 1 requests, 10 in, 20 out, 0.000023 USD" in shown
    assert (told["number"], told["cost_micro_usd"], told["lines"]) == (
        statement.number,
        23,
        statement.lines,
    )


def test_the_entries_of_a_closed_month_are_written_again_the_same(
    statement: Statement, acme: Tenant, last: date, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"

    said("show_statement", statement.number, "--entries", str(first))
    used(acme, on(last))
    said("show_statement", statement.number, "--entries", str(second))

    assert first.read_bytes() == second.read_bytes()
    assert hashlib.sha256(first.read_bytes()).hexdigest() == statement.closing.export_sha256


def test_entries_that_are_no_longer_those_of_the_closing_are_told(
    statement: Statement, acme: Tenant, last: date, tmp_path: Path
) -> None:
    request_reopening(closing=statement.closing, actor="ada", reason="a wrong price")
    confirm_reopening(closing=statement.closing, actor="bob")
    used(acme, on(last))

    with pytest.raises(CommandError, match="was closed with, which was opened again since"):
        said("show_statement", statement.number, "--entries", str(tmp_path / "entries.csv"))


def test_what_is_no_statement_and_no_place_for_a_paper_is_told(statement: Statement, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no statement '1999-000001'"):
        said("show_statement", "1999-000001")
    with pytest.raises(CommandError, match="cannot be written: Is a directory"):
        said("show_statement", statement.number, "--pdf", str(tmp_path))


def test_usage_is_corrected_by_command(acme: Tenant, last: date) -> None:
    entry = used(acme, on(last))

    told = json.loads(
        said(
            "correct_usage", str(entry.request_id), "--change", "output_tokens=-5",
            "--change", "cost_micro_usd=-3", "--reason", "counted twice", "--json",
        )
    )  # fmt: skip

    correction = LedgerEntry.objects.get(kind="correction")
    assert (told["correction"], told["day"]) == (str(correction.request_id), f"{entry.day}")
    assert (told["changes"]["output_tokens"], told["changes"]["cost_micro_usd"]) == (-5, -3)
    assert correction.actor.endswith(" (manage.py)")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["what", "--change", "output_tokens=1"], "'what' is no id"),
        (["{id}", "--change", "output_tokens"], "'output_tokens' is no change"),
        (["{id}", "--change", "output_tokens=1", "--change", "output_tokens=2"], "each figure once"),
        (["{id}", "--change", "output_tokens=-21"], "it cannot be -1"),
        (
            ["{id}", "--change", f"cost_micro_usd={10**30}"],
            "cannot be more than 9007199254740991",
        ),
    ],
)
def test_what_is_no_correction_is_told(acme: Tenant, last: date, arguments: list[str], told: str) -> None:
    entry = used(acme, on(last))

    with pytest.raises(CommandError, match=told):
        said(
            "correct_usage",
            *(one.format(id=entry.request_id) for one in arguments),
            "--reason",
            "counted twice",
        )


# The admin


def told_to(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def test_the_page_shows_what_closing_comes_to_before_it_closes(acme: Tenant, last: date) -> None:
    used(acme, on(last))
    ada = signed_in("close_month", "view_closedmonth", "view_statement", is_staff=True)
    which = {"tenant": "acme", "month": f"{last:%Y-%m}"}

    shown = ada.get(reverse(CLOSE), which).content.decode()

    assert "<td>0.000023 USD</td>" in shown
    assert f"Close {last:%Y-%m} of acme</button>" in shown
    assert not ClosedMonth.objects.exists()

    response = ada.post(reverse(CLOSE), {**which, "reason": "month end"})

    statement = Statement.objects.get()
    assert response.headers["Location"] == reverse("admin:budgets_statement_change", args=[statement.pk])
    assert told_to(response) == [f"Closed {last:%Y-%m} of acme: statement {statement.number}, 0.000023 USD."]
    assert ada.get(response.headers["Location"]).status_code == 200


def test_the_page_says_what_stands_against_it_and_offers_no_button(acme: Tenant, last: date) -> None:
    used(acme, on(ago(2)))
    ada = signed_in("close_month", is_staff=True)
    which = {"tenant": "acme", "month": f"{last:%Y-%m}"}

    shown = ada.get(reverse(CLOSE), which).content.decode()
    refused = ada.post(reverse(CLOSE), {**which, "reason": "month end"}).content.decode()

    for page in (shown, refused):
        assert f"Earlier months of acme are open: {ago(2):%Y-%m}." in page
        assert "of acme</button>" not in page
    assert not ClosedMonth.objects.exists()


def test_without_redis_the_page_says_that_nobody_knows(acme: Tenant, last: date, settings: Any) -> None:
    ada = signed_in("close_month", is_staff=True)
    settings.CACHES = NOWHERE

    shown = ada.get(reverse(CLOSE), {"tenant": "acme", "month": f"{last:%Y-%m}"})

    assert "Redis cannot be asked" in shown.content.decode()


@pytest.mark.parametrize("month", ["2026-13", "", "soon"])
def test_a_month_that_is_none_is_asked_for_again(acme: Tenant, month: str) -> None:
    shown = signed_in("close_month", is_staff=True).get(reverse(CLOSE), {"tenant": "acme", "month": month})

    assert (shown.status_code, ClosedMonth.objects.count()) == (200, 0)
    assert "errorlist" in shown.content.decode()


def test_nobody_closes_or_opens_without_the_permission(acme: Tenant, statement: Statement) -> None:
    looker = signed_in("view_closedmonth", is_staff=True)

    assert looker.get(reverse(CLOSE)).status_code == 403
    assert looker.post(reverse(CLOSE), {"tenant": "acme", "month": "2026-10"}).status_code == 403
    page = looker.get(reverse(LIST)).content.decode()
    assert "ask_reopening" not in page
    looker.post(
        reverse(LIST), {"action": "ask_reopening", "_selected_action": statement.closing_id, "reason": "x"}
    )
    assert ClosedMonth.objects.get().reopening_asked_at is None


def test_two_operators_open_a_month_again(statement: Statement) -> None:
    ada, bob = (signed_in("view_closedmonth", "reopen_month", is_staff=True) for _ in range(2))
    of_month = {"_selected_action": statement.closing_id}

    asked = ada.post(reverse(LIST), {"action": "ask_reopening", **of_month})
    assert "Reason, for the audit" in asked.content.decode()
    ada.post(reverse(LIST), {"action": "ask_reopening", "reason": "a wrong price", **of_month})
    assert "asks to open it: a wrong price" in bob.get(reverse(LIST)).content.decode()
    agree = {"action": "agree_to_reopening", "agreed": "yes", **of_month}
    own = ada.post(reverse(LIST), agree)
    again = bob.post(reverse(LIST), {"action": "ask_reopening", "reason": "me too", **of_month})
    shown = bob.post(reverse(LIST), {"action": "agree_to_reopening", **of_month}).content.decode()
    assert not ClosedMonth.objects.get().reopened_by
    agreed = bob.post(reverse(LIST), agree)

    for told in (statement.number, f"{statement.cost} USD", "a wrong price", "draws up another"):
        assert told in shown
    assert told_to(own)[-1] == "Another person than the one who asked has to agree."
    assert "another person has to agree" in told_to(again)[0]
    assert told_to(agreed)[-1] == f"Opened {statement.closing} again."
    assert ClosedMonth.objects.get().reopened_by
    assert "opened again by" in bob.get(reverse(LIST)).content.decode()


def test_papers_are_handed_out_in_the_admin_to_those_who_may_see_statements(statement: Statement) -> None:
    finance, other = signed_in("view_statement", is_staff=True), signed_in("view_closedmonth", is_staff=True)

    for kind, content in (("pdf", statement.pdf), ("csv", statement.csv)):
        address = reverse(f"admin:budgets_statement_{kind}", args=[statement.pk])
        assert address in finance.get(reverse("admin:budgets_statement_changelist")).content.decode()
        assert finance.get(address).content == content
        assert other.get(address).status_code == 403
        assert Client().get(address).status_code == 302


# The management API


def test_statements_are_listed_and_selected(statement: Statement, acme: Tenant, last: date) -> None:
    close_month(tenant=a_tenant("globex"), month=ago(2), actor="ada")
    ada = signed_in("view_statement", is_staff=True)

    def numbers(query: str) -> list[str]:
        answer = ada.get(STATEMENTS + query).json()
        return [one["number"][5:] for one in answer["results"]]

    assert numbers("") == ["000002", "000001"]
    assert numbers("?tenant=acme") == ["000001"]
    assert numbers(f"?month={ago(2):%Y-%m}") == ["000002"]
    assert numbers("?tenant=nobody") == []
    refused = ada.get(STATEMENTS + "?month=soon")
    assert (refused.status_code, refused.json()["errors"]["month"]) == (
        400,
        ["'soon' is no month. Example: 2026-10."],
    )


def test_a_statement_is_told_with_lines_and_digests(statement: Statement) -> None:
    ada = signed_in("view_statement", is_staff=True)

    [of_list] = ada.get(STATEMENTS).json()["results"]
    told = ada.get(f"{STATEMENTS}{statement.number}/").json()

    assert "lines" not in of_list
    assert told == of_list | {"lines": statement.lines, "prices": statement.prices}
    assert told["export_sha256"] == statement.closing.export_sha256
    assert (told["replaces"], told["replaced_by"]) == (None, None)
    assert ada.get(f"{STATEMENTS}1999-000001/").status_code == 404


def test_papers_come_with_their_digest(statement: Statement) -> None:
    ada = signed_in("view_statement", is_staff=True)

    for kind, media_type in (("pdf", "application/pdf"), ("csv", "text/csv; charset=utf-8")):
        answer = ada.get(f"{STATEMENTS}{statement.number}/{kind}/")
        digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
        assert answer.content == getattr(statement, kind)
        assert answer.headers["Content-Type"] == media_type
        assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
        assert f'filename="statement-{statement.number}.{kind}"' in answer.headers["Content-Disposition"]


def test_statements_are_for_operators_who_may_see_them(statement: Statement) -> None:
    clients = (
        Client(),
        signed_in("view_statement"),
        signed_in("view_closedmonth", is_staff=True),
        signed_in("view_statement", is_staff=True),
    )

    for address in ("", "{number}/", "{number}/pdf/", "{number}/csv/"):
        where = STATEMENTS + address.format(number=statement.number)

        assert [client.get(where).status_code for client in clients] == [401, 403, 403, 200], where


def test_nothing_is_changed_through_the_api(statement: Statement) -> None:
    ada = signed_in("view_statement", "change_statement", "delete_statement", is_staff=True)

    for method in (ada.post, ada.put, ada.patch, ada.delete):
        assert method(f"{STATEMENTS}{statement.number}/").status_code == 405


# The portal


@pytest.mark.parametrize("who", EVERYBODY)
def test_statements_open_for_those_who_export_or_audit(statement: Statement, who: str) -> None:
    acme = Tenant.objects.get(slug="acme")
    browser = a_browser(a_person(who, acme))

    for page in ("", f"{statement.number}.pdf", f"{statement.number}.csv"):
        answer = browser.get("/portal/acme/statements/" + page)

        if who in READS_STATEMENTS:
            assert answer.status_code == 200, page
            if page:
                assert answer.content == getattr(statement, page[-3:]), page
        elif who in UNKNOWN:
            assert answer.status_code == 302, page
        else:
            assert answer.status_code == (403 if who in ("admin", "member") else 404), page


def test_the_page_lists_ones_own_statements_and_says_what_was_replaced(
    statement: Statement, acme: Tenant, last: date
) -> None:
    globex = a_tenant("globex")
    theirs = close_month(tenant=globex, month=last, actor="ada")
    request_reopening(closing=statement.closing, actor="ada", reason="a wrong price")
    confirm_reopening(closing=statement.closing, actor="bob")
    second = close_month(tenant=acme, month=last, actor="ada")
    browser = a_browser(a_person("finance", acme))

    page = browser.get("/portal/acme/statements/").content.decode()

    assert page.index(second.number) < page.index(statement.number + "<br>")
    assert f"replaced by {second.number}" in page
    assert theirs.number not in page
    assert browser.get(f"/portal/acme/statements/{theirs.number}.pdf").status_code == 404
    assert 'aria-current="page">Statements' in page


def test_a_member_is_not_offered_what_they_may_not_open(acme: Tenant) -> None:
    assert "Statements" not in a_browser(a_person("member", acme)).get("/portal/acme/").content.decode()


def test_before_the_first_closing_the_page_says_so(acme: Tenant) -> None:
    page = a_browser(a_person("owner", acme)).get("/portal/acme/statements/").content.decode()

    assert "No month of ACME Laboratories has been closed yet." in page


def test_a_management_key_of_one_tenant_reads_its_own_statements_alone(statement: Statement) -> None:
    theirs, ours = manager(tenant=a_tenant("globex")), manager(tenant=Tenant.objects.get(slug="acme"))
    path = f"statements/{statement.number}/"

    assert [row["number"] for row in ours.get("statements/").json()["results"]] == [statement.number]
    assert theirs.get("statements/").json()["results"] == []
    for part in ("", "pdf/", "csv/"):
        assert ours.get(path + part).status_code == 200
        refused, unknown = theirs.get(path + part), theirs.get(f"statements/ST-1999-000001/{part}")
        assert (refused.status_code, refused.json()) == (404, unknown.json())


def test_a_statement_leads_to_the_usage_that_it_is_made_of(statement: Statement, acme: Tenant) -> None:
    browser = a_browser(a_person("finance", acme))
    page = browser.get("/portal/acme/statements/").content.decode()

    found = re.search(r'href="([^"]+)" aria-label="Requests behind', page)
    assert found is not None
    behind = browser.get(unescape(found[1]))

    assert behind.status_code == 200
    assert behind.context["selection"].from_day == statement.month
    assert behind.context["selection"].before_day == statement.before
    assert statement.cost in behind.content.decode()
    assert "0.0 %" in page
