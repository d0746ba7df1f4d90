"""The page about a tenant's people and programs: who may do what there, and who goes with which keys."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client

from audit.models import AuditEvent
from keys.models import ApiKey
from keys.services import issue_key
from tenants import services
from tenants.access import access_to
from tenants.invitations import invite
from tenants.models import Invitation, Member, ServiceAccount, Tenant, User
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, a_browser, a_member, a_person

# Who may be given, changed and removed by whom.
ALL_ROLES = frozenset(Member.Role)
GRANTS = {
    "owner": ALL_ROLES,
    "admin": ALL_ROLES - {Member.Role.OWNER},
    "superuser": ALL_ROLES,
}
READS_ALL = frozenset({"owner", "admin", "finance", "auditor", *OPERATORS})


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    cache.delete_pattern("*allauth*")  # type: ignore[attr-defined]  # what django-redis adds
    return services.create_tenant(slug="acme", name="ACME", actor="test")


def without_tokens(page: str) -> list[str]:
    return [line for line in page.splitlines() if "csrfmiddlewaretoken" not in line]


@pytest.mark.parametrize("who", EVERYBODY)
def test_who_sees_whom(acme: Tenant, who: str) -> None:
    a_member(acme, "mia")
    invite(
        tenant=acme, email="new@example.org", role="member", invited_by=a_member(acme, "olga", "owner").user
    )
    browser = a_browser(a_person(who, acme))

    answer = browser.get("/portal/acme/team/")
    page = answer.content.decode()

    if who in UNKNOWN:
        assert answer.status_code == 302
    elif who not in ROLES | OPERATORS:
        assert answer.status_code == 404
    else:
        assert answer.status_code == 200
        assert ("mia@example.org" in page) == (who in READS_ALL)
        assert ("new@example.org" in page) == (who in READS_ALL)
        assert ("Create a service account" in page) == (who in GRANTS)


@pytest.mark.parametrize("who", [*sorted(ROLES), *sorted(OPERATORS)])
@pytest.mark.parametrize("role", sorted(ALL_ROLES))
def test_who_may_change_whom_into_what(acme: Tenant, who: str, role: str) -> None:
    a_member(acme, "olga", "owner")
    theirs = a_member(acme, "mia", role)
    plain = a_member(acme, "max")
    browser = a_browser(a_person(who, acme))
    may = role in GRANTS.get(who, ())

    form = browser.get(f"/portal/acme/team/members/{theirs.pk}/")
    changed = browser.post(f"/portal/acme/team/members/{plain.pk}/", {"role": role, "team": ""})
    browser.post("/portal/acme/team/", {"email": "new@example.org", "role": role})
    removed = browser.post(f"/portal/acme/team/members/{theirs.pk}/remove/")

    refused = 400 if who in GRANTS else 403
    assert form.status_code == (200 if may else 403)
    assert changed.status_code == (302 if may else refused)
    assert Member.objects.get(pk=plain.pk).role == (role if may else "member")
    assert Invitation.objects.filter(role=role).exists() == may
    assert removed.status_code == (302 if may else 403)
    assert Member.objects.filter(pk=theirs.pk).exists() != may


@pytest.mark.parametrize("who", EVERYBODY)
def test_who_may_open_and_close_service_accounts(acme: Tenant, who: str) -> None:
    account = services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    browser = a_browser(a_person(who, acme))

    browser.post("/portal/acme/team/service-accounts/", {"account-name": "report"})
    browser.post(f"/portal/acme/team/service-accounts/{account.pk}/close/", {"reason": "not needed"})

    account.refresh_from_db()
    assert ServiceAccount.objects.filter(name="report").exists() == (who in GRANTS)
    assert (account.closed_at is not None) == (who in GRANTS)


def test_a_reason_that_the_database_cannot_keep_is_refused_in_words(acme: Tenant) -> None:
    account = services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    browser = a_browser(a_person("owner", acme))
    closing = f"/portal/acme/team/service-accounts/{account.pk}/close/"

    refused = [browser.post(closing, {"reason": reason}) for reason in ("a\0b", "x" * 501)]
    still_open = ServiceAccount.objects.get(pk=account.pk).closed_at is None
    closed = browser.post(closing)

    assert [answer.status_code for answer in refused] == [400, 400]
    assert "Null characters are not allowed" in refused[0].content.decode()
    assert still_open
    assert closed.status_code == 302
    assert ServiceAccount.objects.get(pk=account.pk).closed_at is not None


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_rules_say_it_too(acme: Tenant, who: str) -> None:
    access = access_to(a_person(who, acme), "acme")

    if access is None:
        assert who not in ROLES | OPERATORS
    else:
        assert access.grants == GRANTS.get(who, frozenset())
        assert access.manages_team == (who in GRANTS)
        assert access.reads_team == (who in READS_ALL)


def addresses(acme: Tenant) -> dict[str, str]:
    """Every address of the team's pages with something in it that is of ``acme``."""
    member = a_member(acme, "mia")
    invitation, _ = invite(
        tenant=acme, email="new@example.org", role="member", invited_by=a_member(acme, "olga", "owner").user
    )
    account = services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    return {
        "member": f"members/{member.pk}/",
        "removal": f"members/{member.pk}/remove/",
        "invitation": f"invitations/{invitation.pk}/",
        "closing": f"service-accounts/{account.pk}/close/",
    }


def test_what_is_of_another_tenant_is_not_there(acme: Tenant) -> None:
    theirs = addresses(acme)
    events = AuditEvent.objects.filter(tenant_id=acme.pk).count()
    browser = a_browser(a_person("foreign owner", acme))

    for what, path in theirs.items():
        for method in ("get", "post"):
            if (what, method) == ("invitation", "get"):
                continue
            for tenant in ("globex", "acme"):
                address = f"/portal/{tenant}/team/{path}"
                assert getattr(browser, method)(address, {"role": "member"}).status_code == 404, address

    unknown = browser.get("/portal/globex/team/members/01900000-0000-7000-8000-000000000000/")
    foreign = browser.get(f"/portal/globex/team/{theirs['member']}")
    assert without_tokens(unknown.content.decode()) == without_tokens(foreign.content.decode())
    assert AuditEvent.objects.filter(tenant_id=acme.pk).count() == events


def test_whoever_is_removed_takes_their_keys_along_and_no_others(acme: Tenant) -> None:
    mia = a_member(acme, "mia")
    robot = services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    own, _ = issue_key(tenant=acme, label="laptop", member=mia, actor="mia")
    revoked, _ = issue_key(tenant=acme, label="phone", member=mia, actor="mia")
    ApiKey.objects.filter(pk=revoked.pk).update(revoked_at=revoked.created_at)
    robots, _ = issue_key(tenant=acme, label="nightly", service_account=robot, actor="mia")
    browser = a_browser(a_person("owner", acme))

    asked = browser.get(f"/portal/acme/team/members/{mia.pk}/remove/").content.decode()
    done = browser.post(f"/portal/acme/team/members/{mia.pk}/remove/", follow=True).content.decode()

    assert "laptop" in asked
    assert "phone" not in asked
    assert "mia is no member any more. 1 key was revoked." in done
    assert ApiKey.objects.get(pk=own.pk).revoked_at is not None
    assert ApiKey.objects.get(pk=robots.pk).revoked_at is None
    actions = set(AuditEvent.objects.filter(actor="owner").values_list("action", flat=True))
    assert {"key.revoked", "member.removed"} <= actions


def test_closing_a_service_account_tells_which_keys_go_with_it(acme: Tenant) -> None:
    robot = services.create_service_account(tenant=acme, name="nightly-build", actor="test")
    issue_key(tenant=acme, label="nightly", service_account=robot, actor="test")
    browser = a_browser(a_person("admin", acme))
    address = f"/portal/acme/team/service-accounts/{robot.pk}/close/"

    asked = browser.get(address).content.decode()
    done = browser.post(address, {"reason": "moved"}, follow=True).content.decode()

    assert "nightly" in asked
    assert "Service account nightly-build is closed. 1 key was revoked." in done
    assert AuditEvent.objects.get(action="service_account.closed").reason == "moved"
    assert browser.get(address).status_code == 404


@pytest.mark.parametrize("who", sorted(ROLES))
def test_everybody_may_leave_by_themselves(acme: Tenant, who: str) -> None:
    a_member(acme, "olga", "owner")
    browser = a_browser(a_person(who, acme))

    assert browser.get("/portal/acme/team/leave/").status_code == 200
    done = browser.post("/portal/acme/team/leave/", follow=True)

    assert "You are no member of ACME any more." in done.content.decode()
    assert not Member.objects.filter(user__username=who).exists()
    assert browser.get("/portal/acme/").status_code == 404


def test_an_operator_who_is_no_member_has_nothing_to_leave(acme: Tenant) -> None:
    assert a_browser(a_person("superuser", acme)).post("/portal/acme/team/leave/").status_code == 403


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        pytest.param("leave/", {}, id="leaves"),
        pytest.param("members/{own}/remove/", {}, id="is removed"),
        pytest.param("members/{own}/", {"role": "admin"}, id="becomes something else"),
    ],
)
def test_the_last_owner_stays_one(acme: Tenant, path: str, sent: dict[str, str]) -> None:
    owner = a_person("owner", acme)
    own = Member.objects.get(user__username="owner")
    sleeping = a_member(acme, "olga", "owner")
    User.objects.filter(pk=sleeping.user_id).update(is_active=False)

    answer = a_browser(owner).post(f"/portal/acme/team/{path.format(own=own.pk)}", sent)

    assert answer.status_code == 400
    assert "owner is the only owner. Somebody else has to become one first." in answer.content.decode()
    assert Member.objects.get(pk=own.pk).role == "owner"


@pytest.mark.parametrize("how", ["both leave", "both step down", "one leaves and one steps down"])
def test_of_two_owners_who_go_at_once_one_stays(acme: Tenant, how: str) -> None:
    owners = [a_member(acme, "olga", "owner"), a_member(acme, "oskar", "owner")]
    barrier, refused = threading.Barrier(2), []

    def go(member: Member, steps_down: bool) -> None:
        barrier.wait()
        try:
            if steps_down:
                services.change_member(member=member, role="member", team=None, actor="test")
            else:
                services.remove_member(member=member, actor="test")
        except ValidationError as exc:
            refused.append(exc.code)
        finally:
            connection.close()

    steps_down = {"both leave": (False, False), "both step down": (True, True)}.get(how, (False, True))
    threads = [threading.Thread(target=go, args=pair) for pair in zip(owners, steps_down, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert refused == ["last_owner"]
    assert Member.objects.filter(tenant=acme, role="owner").count() == 1


def test_a_member_who_is_gone_meanwhile_is_told_of_in_words(acme: Tenant, monkeypatch: Any) -> None:
    mia = a_member(acme, "mia")
    browser = a_browser(a_person("owner", acme))
    look = Member.objects.select_related("user", "team").get(pk=mia.pk)
    services.remove_member(member=mia, actor="somebody else")
    # What the page saw a moment before the other one was done.
    monkeypatch.setattr("tenants.portal_team._changeable", lambda *_: look)

    answer = browser.post(f"/portal/acme/team/members/{look.pk}/", {"role": "admin"}, follow=True)

    assert "Somebody else was quicker" in answer.content.decode()


def test_forms_of_the_team_need_their_token(acme: Tenant) -> None:
    owner = a_person("owner", acme)
    browser = Client(enforce_csrf_checks=True)
    assert isinstance(owner, User)
    browser.force_login(owner)

    answer = browser.post("/portal/acme/team/", {"email": "eve@example.org", "role": "owner"})

    assert answer.status_code == 403
    assert not Invitation.objects.exists()
