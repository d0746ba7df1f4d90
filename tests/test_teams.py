"""Teams on the page about people and programs: who shares a budget, and who may say so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import ProtectedError
from django.test import Client

from audit.models import AuditEvent
from budgets.models import Budget
from budgets.services import set_budget
from keys.callers import caller_of
from keys.models import ApiKey
from keys.services import issue_key
from tenants import services
from tenants.models import Member, ServiceAccount, Team, Tenant
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, a_browser, a_member, a_person
from tests.test_team import GRANTS, READS_ALL
from tests.test_usage_pages import text_of

TEAMS = "/portal/acme/team/teams/"


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    return services.create_tenant(slug="acme", name="ACME", actor="test")


@pytest.fixture
def research(acme: Tenant) -> Team:
    return services.create_team(tenant=acme, name="Research", actor="test")


@pytest.fixture
def owner(acme: Tenant) -> Client:
    return a_browser(a_person("owner", acme))


def page_of(team: Team, what: str = "") -> str:
    return f"{TEAMS}{team.pk}/{what}"


def read(answer: Any) -> str:
    return text_of(answer.content.decode())


def done_by(actor: str) -> list[tuple[str, Any, Any]]:
    events = AuditEvent.objects.filter(actor=actor).order_by("pk")
    return [(event.action, event.details.get("before"), event.details.get("after")) for event in events]


@pytest.mark.parametrize("who", EVERYBODY)
def test_who_sees_teams_and_who_changes_them(acme: Tenant, research: Team, who: str) -> None:
    mia, max_ = a_member(acme, "mia"), a_member(acme, "max")
    services.put_into_team(team=research, members=[max_], actor="test")
    empty = services.create_team(tenant=acme, name="Empty", actor="test")
    browser = a_browser(a_person(who, acme))
    may = who in GRANTS

    page = browser.get(page_of(research))
    listed = browser.get("/portal/acme/team/")
    answers = [
        browser.post(TEAMS, {"team-name": "Sales"}),
        browser.post(page_of(research), {"name": "Lab"}),
        browser.post(page_of(research, "put-in/"), {"members": [str(mia.pk)]}),
        browser.post(page_of(research, f"members/{max_.pk}/take-out/")),
        browser.post(page_of(empty, "remove/")),
    ]

    shown = who in READS_ALL
    known = who in ROLES | OPERATORS
    assert page.status_code == (200 if shown else 403 if known else 302 if who in UNKNOWN else 404)
    assert ("max" in read(page)) == shown
    assert ("Put somebody in" in read(page)) == may
    assert ("Research" in read(listed)) == shown
    assert ("Create a team" in listed.content.decode()) == may
    refused = 403 if known else 302 if who in UNKNOWN else 404
    assert {answer.status_code for answer in answers} == {302 if may else refused}
    names = set(Team.objects.values_list("name", flat=True))
    assert names == ({"Sales", "Lab"} if may else {"Research", "Empty"})
    mia.refresh_from_db()
    max_.refresh_from_db()
    assert (mia.team_id, max_.team_id) == ((research.pk, None) if may else (None, research.pk))


def test_a_team_is_created_filled_emptied_and_removed(acme: Tenant, owner: Client) -> None:
    mia = a_member(acme, "mia")
    robot = services.create_service_account(tenant=acme, name="build", actor="test")

    created = owner.post(TEAMS, {"team-name": " Research "}, follow=True)
    research = Team.objects.get()
    filled = owner.post(
        page_of(research, "put-in/"), {"members": [mia.pk], "accounts": [robot.pk]}, follow=True
    )
    too_early = owner.post(page_of(research, "remove/"))
    renamed = owner.post(page_of(research), {"name": "Lab"}, follow=True)
    owner.post(page_of(research, f"members/{mia.pk}/take-out/"))
    emptied = owner.post(page_of(research, f"service-accounts/{robot.pk}/take-out/"), follow=True)
    asked = owner.get(page_of(research, "remove/"))
    removed = owner.post(page_of(research, "remove/"), follow=True)

    assert "Team Research is there. Put somebody in." in read(created)
    assert "2 are in the team now." in read(filled)
    assert too_early.status_code == 409
    assert "Take them out first." in read(too_early)
    assert "The team is called Lab now." in read(renamed)
    assert "build is in no team now." in read(emptied)
    assert "Its limits go with it" in read(asked)
    assert "Team Lab is removed." in read(removed)
    assert not Team.objects.exists()
    in_it, out_of_it = {"team": str(research.pk)}, {"team": None}
    assert done_by("owner") == [
        ("team.created", None, None),
        ("member.changed", out_of_it, in_it),
        ("service_account.changed", out_of_it, in_it),
        ("team.renamed", "Research", "Lab"),
        ("member.changed", in_it, out_of_it),
        ("service_account.changed", in_it, out_of_it),
        ("team.deleted", None, None),
    ]


def test_the_limits_of_the_team_hold_for_whoever_is_in_it_and_their_place_stays(
    acme: Tenant, research: Team, owner: Client
) -> None:
    mia = a_member(acme, "mia", "finance")
    issue_key(tenant=acme, label="laptop", member=mia, actor="test")

    owner.post(page_of(research, "put-in/"), {"members": [mia.pk]})
    inside = caller_of(ApiKey.objects.get()).team
    owner.post(page_of(research, f"members/{mia.pk}/take-out/"))

    mia.refresh_from_db()
    assert (inside, caller_of(ApiKey.objects.get()).team) == ("Research", "")
    assert mia.role == "finance"


def test_who_is_in_another_team_is_told_of_and_moves(acme: Tenant, research: Team, owner: Client) -> None:
    mia = a_member(acme, "mia")
    sales = services.create_team(tenant=acme, name="Sales", actor="test")
    services.put_into_team(team=sales, members=[mia], actor="test")

    offered = read(owner.get(page_of(research)))
    owner.post(page_of(research, "put-in/"), {"members": [mia.pk]})
    late = owner.post(page_of(sales, f"members/{mia.pk}/take-out/"), follow=True)

    assert "mia, now in Sales" in offered
    assert "mia was not in this team any more." in read(late)
    mia.refresh_from_db()
    assert mia.team_id == research.pk


@pytest.mark.parametrize(
    ("address", "sent", "told"),
    [
        (TEAMS, {"team-name": "Research"}, "another team of this name"),
        (TEAMS, {"team-name": "  "}, "This field is required"),
        (TEAMS, {"team-name": "x" * 81}, "at most 80 characters"),
        ("{team}", {"name": "Sales"}, "another team of this name"),
        ("{team}put-in/", {}, "Choose somebody first."),
        ("{team}put-in/", {"members": "{foreign}"}, "not one of the available choices"),
        ("{team}put-in/", {"accounts": "{closed}"}, "not one of the available choices"),
    ],
)
def test_mistakes_are_told_and_change_nothing(
    acme: Tenant, research: Team, owner: Client, address: str, sent: dict[str, str], told: str
) -> None:
    services.create_team(tenant=acme, name="Sales", actor="test")
    globex = services.create_tenant(slug="globex", name="Globex", actor="test")
    foreign = a_member(globex, "gus")
    services.create_service_account(tenant=acme, name="build", actor="test")
    closed = services.create_service_account(tenant=acme, name="old", actor="test")
    services.close_service_account(account=closed, actor="test", reason="over")
    ids = {"team": page_of(research), "foreign": foreign.pk, "closed": closed.pk}

    answer = owner.post(address.format(**ids), {name: value.format(**ids) for name, value in sent.items()})

    assert answer.status_code == 400
    assert told in read(answer)
    assert done_by("owner") == []
    assert not Member.objects.exclude(team=None).exists()


def test_an_admin_puts_no_owner_into_a_team_and_takes_none_out(acme: Tenant, research: Team) -> None:
    olga, oskar = a_member(acme, "olga", "owner"), a_member(acme, "oskar", "owner")
    services.put_into_team(team=research, members=[oskar], actor="test")
    browser = a_browser(a_person("admin", acme))

    page = browser.get(page_of(research)).content.decode()
    put = browser.post(page_of(research, "put-in/"), {"members": [olga.pk]})
    taken = browser.post(page_of(research, f"members/{oskar.pk}/take-out/"))

    assert "Take oskar out" not in page
    assert (put.status_code, taken.status_code) == (400, 403)
    assert list(research.members.values_list("user__username", flat=True)) == ["oskar"]


def test_what_is_of_another_tenant_is_not_there(acme: Tenant, research: Team) -> None:
    mia = a_member(acme, "mia")
    robot = services.create_service_account(tenant=acme, name="build", actor="test")
    services.put_into_team(team=research, members=[mia], accounts=[robot], actor="test")
    browser = a_browser(a_person("foreign owner", acme))
    own = services.create_team(tenant=Tenant.objects.get(slug="globex"), name="Own", actor="test")

    for team, what in [
        (research, ""),
        (research, "put-in/"),
        (research, "remove/"),
        (research, f"members/{mia.pk}/take-out/"),
        (own, f"members/{mia.pk}/take-out/"),
        (own, f"service-accounts/{robot.pk}/take-out/"),
    ]:
        assert browser.post(f"/portal/globex/team/teams/{team.pk}/{what}").status_code == 404, what
        assert browser.post(f"/portal/acme/team/teams/{team.pk}/{what}").status_code == 404, what
    assert (research.members.count(), research.service_accounts.count()) == (1, 1)


def test_a_team_that_is_gone_meanwhile_is_told_of_in_words(
    acme: Tenant, research: Team, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mia = a_member(acme, "mia")
    # What each page saw a moment before the other one was done.
    monkeypatch.setattr("tenants.portal_teams._team", lambda *_: research)
    services.delete_team(team=Team.objects.get(pk=research.pk), actor="somebody else")

    renamed = owner.post(page_of(research), {"name": "Lab"}, follow=True)
    removed = owner.post(page_of(research, "remove/"), follow=True)
    filled = owner.post(page_of(research, "put-in/"), {"members": [mia.pk]})

    assert "Somebody else was quicker" in read(renamed)
    assert "Somebody else was quicker" in read(removed)
    assert filled.status_code == 400
    assert "not there any more" in read(filled)


def test_the_limits_of_a_team_go_with_it(acme: Tenant, research: Team, owner: Client) -> None:
    set_budget(scope="team", team=research, unit="tokens", period="day", limit=9, actor="test")

    owner.post(page_of(research, "remove/"))

    assert not Budget.objects.exists()


PUTTING: dict[str, Callable[[Tenant, Team, Member, ServiceAccount], object]] = {
    "is put in": lambda _, team, member, __: services.put_into_team(
        team=team, members=[member], actor="test"
    ),
    "changes place": lambda _, team, member, __: services.change_member(
        member=member, role="admin", team=team, actor="test"
    ),
    "opens": lambda acme, team, _, __: services.create_service_account(
        tenant=acme, name="report", team=team, actor="test"
    ),
    "changes": lambda _, team, __, account: services.change_service_account(
        account=account, name="build", team=team, actor="test"
    ),
}


@pytest.mark.parametrize("putting", PUTTING)
def test_of_a_team_that_is_filled_and_removed_at_once_one_is_refused(
    acme: Tenant, research: Team, putting: str
) -> None:
    member = a_member(acme, "mia")
    account = services.create_service_account(tenant=acme, name="build", actor="test")
    barrier, refused = threading.Barrier(2), []

    def at_once(do: Callable[[], object]) -> None:
        barrier.wait()
        try:
            do()
        except (ValidationError, ProtectedError) as exc:
            refused.append(exc)
        finally:
            connection.close()

    threads = [
        threading.Thread(target=at_once, args=[do])
        for do in (
            lambda: PUTTING[putting](acme, research, member, account),
            lambda: services.delete_team(team=research, actor="test"),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    there = Team.objects.filter(pk=research.pk).exists()
    inside = [kind.objects.filter(team=research).count() for kind in (Member, ServiceAccount)]
    assert [type(exc) for exc in refused] == [ProtectedError if there else ValidationError]
    assert sum(inside) == (1 if there else 0)
