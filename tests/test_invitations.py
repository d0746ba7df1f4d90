"""Invitations: from the mail to a member, once, in time, and by nobody who guesses."""

from __future__ import annotations

import logging
import re
import threading
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client, override_settings
from django.utils.timezone import now

from audit.models import AuditEvent
from tenants import services
from tenants.invitations import (
    GOOD_FOR,
    InvitationGone,
    accept_invitation,
    digest,
    invite,
    renew_invitation,
    withdraw_invitation,
)
from tenants.models import Invitation, Member, Tenant, User
from tests.people import a_browser, a_person
from tests.receivers import MailServer

PASSWORD = "correct horse battery staple"
LINK = re.compile(r"http://testserver(/account/invitation/[\w-]+/)")


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    cache.delete_pattern("*allauth*")  # type: ignore[attr-defined]  # what django-redis adds
    return services.create_tenant(slug="acme", name="ACME", actor="test")


@pytest.fixture
def owner(acme: Tenant) -> User:
    owner = a_person("owner", acme)
    assert isinstance(owner, User)
    return owner


def an_invitation(acme: Tenant, owner: User, **options: Any) -> tuple[Invitation, str]:
    given: dict[str, Any] = {
        "tenant": acme,
        "invited_by": owner,
        "email": "mia@example.org",
        "role": "member",
    }
    return invite(**given | options)


def opened(token: str) -> tuple[Client, Any]:
    """A browser of nobody that opened a link, and the page it was led to."""
    browser = Client()
    return browser, browser.get(f"/account/invitation/{token}/", follow=True)


def test_an_invitation_is_in_the_language_and_by_the_clock_of_whom_it_is_for(
    acme: Tenant, owner: User, mail: MailServer
) -> None:
    services.change_tenant(tenant=acme, language="de", time_zone="Europe/Berlin", actor="test")
    yuki = services.create_user(username="yuki", email="yuki@example.org", actor="test")
    User.objects.filter(pk=yuki.pk).update(language="en", time_zone="Asia/Tokyo")
    browser = a_browser(owner)

    for email in ("yuki@example.org", "nobody-yet@example.org"):
        browser.post("/portal/acme/team/", {"email": email, "role": "member", "team": ""})

    of_yuki, of_another = mail.mails
    assert of_yuki.message["Subject"] == "[Tollgate] Invitation to ACME"
    assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d JST", of_yuki.message.get_content())  # type: ignore[attr-defined]
    assert of_another.message["Subject"] == "[Tollgate] Einladung zu ACME"
    assert re.search(r"bis \d\d\.\d\d\.\d{4} \d\d:\d\d CES?T", of_another.message.get_content())  # type: ignore[attr-defined]


def test_owners_and_admins_choose_the_language_for_those_who_have_chosen_none(
    acme: Tenant, owner: User, mail: MailServer
) -> None:
    browser = a_browser(owner)

    unknown = browser.post("/portal/acme/team/language/", {"language": "tlh"})
    page = browser.post("/portal/acme/team/language/", {"language": "de"}, follow=True).content.decode()
    browser.post("/portal/acme/team/language/", {"language": "de"})
    browser.post("/portal/acme/team/", {"email": "nobody-yet@example.org", "role": "member", "team": ""})

    assert unknown.status_code == 400
    assert "tlh is not one of the available choices" in unknown.content.decode()
    assert '<option value="de" selected>' in page
    assert [letter.message["Subject"] for letter in mail.mails] == ["[Tollgate] Einladung zu ACME"]
    # Chosen again it is no change.
    [event] = AuditEvent.objects.filter(tenant_id=acme.pk, action="tenant.changed")
    assert (event.actor, event.details["after"]) == (str(owner), {"language": "de"})


@pytest.mark.parametrize("who", ["owner", "admin", "finance", "auditor", "member", "superuser"])
def test_only_who_may_choose_the_language_of_mails_is_offered_it(acme: Tenant, who: str) -> None:
    page = a_browser(a_person(who, acme)).get("/portal/acme/team/").content.decode()

    assert ("/portal/acme/team/language/" in page) == (who in ("owner", "admin", "superuser"))


def test_from_the_mail_to_a_member_who_is_signed_in(acme: Tenant, owner: User, mail: MailServer) -> None:
    answer = a_browser(owner).post(
        "/portal/acme/team/", {"email": "Mia@Example.org", "role": "member", "team": ""}, follow=True
    )
    assert "An invitation was sent to Mia@example.org." in answer.content.decode()

    [letter] = mail.mails
    text = letter.message.get_content()  # type: ignore[attr-defined]
    assert letter.recipients == ["Mia@example.org"]
    assert "ACME" in letter.message["Subject"]
    found = LINK.search(text)
    assert found is not None, text
    browser = Client()
    page = browser.get(found[1], follow=True)
    assert page.redirect_chain == [("/account/invitation/", 302)]
    assert "Invitation to ACME" in page.content.decode()

    done = browser.post("/account/invitation/", {"username": "mia", "password": PASSWORD}, follow=True)

    assert done.redirect_chain[-1][0] == "/portal/acme/"
    assert "Welcome to ACME." in done.content.decode()
    member = Member.objects.get(user__username="mia")
    assert (member.tenant, member.role, member.user.email) == (acme, "member", "Mia@example.org")
    assert member.user.check_password(PASSWORD)
    actions = list(AuditEvent.objects.order_by("id").values_list("action", "actor"))[-4:]
    assert actions == [
        ("invitation.sent", "owner"),
        ("user.created", "mia"),
        ("invitation.accepted", "mia"),
        ("member.added", "mia"),
    ]


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("mia", "short", "too short"),
        ("mia", "password1234", "too common"),
        ("mia", "739201847562", "entirely numeric"),
        ("mia-the-first", "mia-the-first", "too similar"),
        ("owner", PASSWORD, "already exists"),
        ("m i a", PASSWORD, "valid username"),
        ("", PASSWORD, "required"),
    ],
)
def test_name_and_password_obey_the_rules_of_every_sign_in(
    acme: Tenant, owner: User, name: str, password: str, told: str
) -> None:
    _, token = an_invitation(acme, owner)
    browser, _ = opened(token)

    answer = browser.post("/account/invitation/", {"username": name, "password": password})

    assert answer.status_code == 400
    assert told in answer.content.decode()
    assert f'value="{password}"' not in answer.content.decode() or password == name
    assert User.objects.count() == 1


def test_whoever_has_an_account_signs_in_and_accepts(acme: Tenant, owner: User) -> None:
    services.create_user(username="mia", email="MIA@example.org", password=PASSWORD, actor="test")
    _, token = an_invitation(acme, owner, role="finance")
    browser, page = opened(token)
    assert "There is an account with this address." in page.content.decode()

    signed_in = browser.post(
        "/account/login/",
        {"login": "mia", "password": PASSWORD, "next": "/account/invitation/"},
        follow=True,
    )
    assert signed_in.redirect_chain[-1][0] == "/account/invitation/"
    assert "You are signed in as mia." in signed_in.content.decode()
    done = browser.post("/account/invitation/", follow=True)

    assert done.redirect_chain[-1][0] == "/portal/acme/"
    assert Member.objects.get(user__username="mia").role == "finance"


def test_an_account_that_is_there_is_not_made_a_second_time(acme: Tenant, owner: User) -> None:
    services.create_user(username="mia", email="mia@example.org", actor="test")
    _, token = an_invitation(acme, owner)
    browser, _ = opened(token)

    browser.post("/account/invitation/", {"username": "mia2", "password": PASSWORD})

    assert not User.objects.filter(username="mia2").exists()
    assert Invitation.objects.get().accepted_at is None


def test_whoever_is_signed_in_as_somebody_else_is_told_so(acme: Tenant, owner: User) -> None:
    _, token = an_invitation(acme, owner)
    eve = services.create_user(username="eve", email="eve@example.org", actor="test")
    browser = a_browser(eve)

    page = browser.get(f"/account/invitation/{token}/", follow=True).content.decode()

    assert "The invitation was sent to mia@example.org, and you are signed in as eve." in page


def test_a_member_does_not_use_an_invitation_up(acme: Tenant, owner: User) -> None:
    _, token = an_invitation(acme, owner)
    browser = a_browser(owner)
    browser.get(f"/account/invitation/{token}/")

    answer = browser.post("/account/invitation/")

    assert answer.status_code == 409
    assert "a member of ACME already" in answer.content.decode()
    assert Invitation.objects.get().accepted_at is None


def without_tokens(page: str) -> str:
    return "\n".join(line for line in page.splitlines() if "csrfmiddlewaretoken" not in line)


def test_a_link_that_works_no_more_looks_like_one_that_never_was(acme: Tenant, owner: User) -> None:
    tokens = {"never": "x" * 43, "short": "x"}
    for what in ("used", "withdrawn", "expired", "replaced"):
        invitation, tokens[what] = an_invitation(acme, owner, email=f"{what}@example.org")
        match what:
            case "used":
                person = services.create_user(username="mia", email="", actor="test")
                accept_invitation(invitation=invitation, user=person)
            case "withdrawn":
                withdraw_invitation(invitation=invitation, actor="test")
            case "expired":
                Invitation.objects.filter(pk=invitation.pk).update(expires_at=now())
            case "replaced":
                renew_invitation(invitation=invitation, actor="test")

    answers = {what: Client().get(f"/account/invitation/{token}/") for what, token in tokens.items()}

    assert {answer.status_code for answer in answers.values()} == {404}
    assert len({without_tokens(answer.content.decode()) for answer in answers.values()}) == 1
    assert not any(answer.cookies.get("sessionid") for answer in answers.values())


@pytest.mark.parametrize("what", ["used", "withdrawn", "expired", "replaced"])
def test_what_happens_to_an_invitation_counts_for_a_page_that_is_open_already(
    acme: Tenant, owner: User, what: str
) -> None:
    invitation, token = an_invitation(acme, owner)
    browser, _ = opened(token)
    match what:
        case "used":
            person = services.create_user(username="eve", email="", actor="test")
            accept_invitation(invitation=invitation, user=person)
        case "withdrawn":
            withdraw_invitation(invitation=invitation, actor="test")
        case "expired":
            Invitation.objects.update(expires_at=now())
        case "replaced":
            renew_invitation(invitation=invitation, actor="test")

    answer = browser.post("/account/invitation/", {"username": "mia", "password": PASSWORD})

    assert answer.status_code == 404
    assert "This link does not work" in answer.content.decode()
    assert not User.objects.filter(username="mia").exists()


def test_a_link_is_good_for_seven_days_and_not_a_moment_longer(acme: Tenant, owner: User) -> None:
    invitation, token = an_invitation(acme, owner)
    person = services.create_user(username="mia", email="", actor="test")
    assert timedelta(days=7) == GOOD_FOR

    with time_machine.travel(invitation.created_at + GOOD_FOR + timedelta(seconds=1), tick=False):
        assert opened(token)[1].status_code == 404
        with pytest.raises(InvitationGone):
            accept_invitation(invitation=invitation, user=person)
    with time_machine.travel(invitation.created_at + GOOD_FOR - timedelta(seconds=1), tick=False):
        assert opened(token)[1].status_code == 200
        accept_invitation(invitation=invitation, user=person)


def test_of_two_who_accept_at_once_one_becomes_a_member(acme: Tenant, owner: User) -> None:
    invitation, _ = an_invitation(acme, owner)
    people = [services.create_user(username=name, email="", actor="test") for name in ("mia", "eve")]
    barrier, outcomes = threading.Barrier(2), []

    def accept(person: User) -> None:
        barrier.wait()
        try:
            accept_invitation(invitation=invitation, user=person)
            outcomes.append("member")
        except InvitationGone:
            outcomes.append("gone")
        finally:
            connection.close()

    threads = [threading.Thread(target=accept, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["gone", "member"]
    assert Member.objects.filter(tenant=acme).count() == 2


def test_the_token_is_nowhere_but_in_the_mail(
    acme: Tenant, owner: User, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        a_browser(owner).post("/portal/acme/team/", {"email": "mia@example.org", "role": "member"})
        found = LINK.search(mail.mails[0].message.get_content())  # type: ignore[attr-defined]
        assert found is not None
        token = found[1].split("/")[3]
        browser = Client()
        answer = browser.get(found[1])
        page = browser.get("/account/invitation/").content.decode()

    kept = [str(row) for model in (Invitation, AuditEvent) for row in model.objects.values()]
    sessions = [str(session.get_decoded()) for session in Session.objects.all()]
    assert digest(token) in str(kept)
    for where in (str(kept), str(sessions), caplog.text, page, answer.headers["Location"]):
        assert token not in where
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("trouble", ["no EMAIL_URL", "refused", "no mail server"])
def test_without_mail_the_inviter_is_shown_the_link_once(
    acme: Tenant, owner: User, mail: MailServer, trouble: str
) -> None:
    browser = a_browser(owner)
    changed: dict[str, Any] = {"no EMAIL_URL": {"EMAIL_URL": ""}, "no mail server": {"EMAIL_PORT": 1}}
    mail.refused = {"mia@"} if trouble == "refused" else set()

    with override_settings(**changed.get(trouble, {})):
        answer = browser.post("/portal/acme/team/", {"email": "mia@example.org", "role": "member"})

    found = LINK.search(answer.content.decode())
    assert found is not None
    assert answer.headers["Cache-Control"] == "no-store"
    assert not LINK.search(browser.get("/portal/acme/team/").content.decode())
    assert "mia@example.org" in browser.get("/portal/acme/team/").content.decode()
    assert Client().get(found[1]).status_code == 302


def test_sending_again_makes_another_link_and_ends_the_first(
    acme: Tenant, owner: User, mail: MailServer
) -> None:
    invitation, token = an_invitation(acme, owner)
    Invitation.objects.update(expires_at=now())

    a_browser(owner).post(f"/portal/acme/team/invitations/{invitation.pk}/")

    found = LINK.search(mail.mails[0].message.get_content())  # type: ignore[attr-defined]
    assert found is not None
    assert Client().get(found[1]).status_code == 302
    assert Client().get(f"/account/invitation/{token}/").status_code == 404


def test_an_invitation_is_in_the_language_of_whom_it_is_for(
    acme: Tenant, owner: User, mail: MailServer
) -> None:
    mia = services.create_user(username="mia", email="mia@example.org", actor="test")
    User.objects.filter(pk=mia.pk).update(language="de")

    a_browser(owner).post("/portal/acme/team/", {"email": "mia@example.org", "role": "member"})

    assert "Einladung" in mail.mails[0].message["Subject"]
    assert "Öffnen Sie" in mail.mails[0].message.get_content()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("email", "told"),
    [
        ("OWNER@example.org", "A member has this address already."),
        ("mia@example.org", "This address is invited already."),
        ("MIA@example.org", "This address is invited already."),
        ("nothing", "Enter a valid email address."),
        ("a@example.org\nBcc: eve@example.org", "Enter a valid email address."),
    ],
)
def test_addresses_that_cannot_be_invited(acme: Tenant, owner: User, email: str, told: str) -> None:
    User.objects.filter(pk=owner.pk).update(email="owner@example.org")
    an_invitation(acme, owner)

    answer = a_browser(owner).post("/portal/acme/team/", {"email": email, "role": "member"})

    assert answer.status_code == 400
    assert told in answer.content.decode()
    assert Invitation.objects.count() == 1


def test_a_team_of_another_tenant_is_refused(acme: Tenant, owner: User) -> None:
    other = services.create_tenant(slug="globex", name="Globex", actor="test")
    theirs = services.create_team(tenant=other, name="Skunkworks", actor="test")

    with pytest.raises(ValidationError, match="another tenant"):
        an_invitation(acme, owner, team=theirs)
    answer = a_browser(owner).post(
        "/portal/acme/team/", {"email": "mia@example.org", "role": "member", "team": theirs.pk}
    )

    assert answer.status_code == 400
    assert "Skunkworks" not in answer.content.decode()


def test_whoever_leaves_does_not_come_back_by_an_invitation_of_their_own(acme: Tenant, owner: User) -> None:
    admin = a_person("admin", acme)
    assert isinstance(admin, User)
    _, token = an_invitation(acme, admin)

    services.remove_member(member=Member.objects.get(user=admin), actor="owner")

    assert Client().get(f"/account/invitation/{token}/").status_code == 404


def test_guessing_is_throttled(acme: Tenant) -> None:
    browser = Client()

    statuses = [browser.get(f"/account/invitation/{'x' * 42}{n:x}/").status_code for n in range(22)]

    assert statuses == [404] * 20 + [429] * 2


def test_nobody_sends_mail_to_the_whole_world(acme: Tenant, owner: User, mail: MailServer) -> None:
    browser = a_browser(owner)

    for n in range(31):
        answer = browser.post("/portal/acme/team/", {"email": f"p{n}@example.org", "role": "member"})

    assert "These were many invitations." in answer.content.decode()
    assert len(mail.mails) == 30
