"""People who come and go, in a browser: invited, joined, gone again, and spoken to in German."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest
from django.core.cache import cache
from django.utils.timezone import now
from playwright.sync_api import Page

from keys.services import issue_key
from proxy.simulator.server import SimulatorThread
from tenants.invitations import invite
from tenants.models import Invitation, Member, User
from tenants.services import create_service_account
from tests.browser import PASSWORD, Browser, check_page, enter, shown_secret
from tests.browser_thread import expect
from tests.conftest import House, eventually, furnish
from tests.gateway import Gateway
from tests.people import a_person
from tests.receivers import MailServer

NEWCOMERS_SECONDS = 120


@pytest.fixture(scope="module")
def mail() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def posting(django_db_setup: None, mail: MailServer) -> Iterator[Gateway]:
    """A gateway that sends mail."""
    with Gateway(EMAIL_URL=f"smtp://127.0.0.1:{mail.port}") as gateway:
        yield gateway


@pytest.fixture
def house(transactional_db: None, ollama: SimulatorThread, posting: Gateway) -> Iterator[House]:
    furnish(ollama)
    cache.delete_pattern("*allauth*")  # type: ignore[attr-defined]  # what django-redis adds
    with House(posting, ollama).opened() as house:
        yield house


def link_in(mail: MailServer) -> str:
    """The path of the link in the newest mail."""
    text = eventually(lambda: mail.mails)[-1].message.get_content()
    found = re.search(r"http://[^/]+(/account/invitation/\S+)", text)
    assert found is not None, text
    return found[1]


def test_from_the_mail_with_an_invitation_to_the_first_answer(
    page: Page, browser: Browser, house: House, owner: User, mail: MailServer
) -> None:
    mail.mails.clear()
    enter(page, owner)
    page.goto("/portal/acme/team/")
    page.get_by_label("E-mail address").fill("mia@example.org")
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_text("An invitation was sent to mia@example.org.")).to_be_visible()
    expect(page.get_by_role("row", name="mia@example.org")).to_be_visible()

    mias = browser.open(house.gateway.url)
    mias.goto(link_in(mail))
    expect(mias).to_have_url(re.compile(r"/account/invitation/$"))
    check_page(mias, "invitation")
    mias.get_by_label("User name").fill("mia")
    mias.get_by_label("Password").fill(PASSWORD)
    mias.get_by_role("button", name="Create the account and join").click()

    expect(mias).to_have_url(re.compile(r"/portal/acme/$"))
    expect(mias.get_by_text("Welcome to ACME.")).to_be_visible()
    assert Member.objects.get(user__username="mia").role == "member"

    mias.goto("/portal/acme/keys/new/")
    mias.get_by_label("Name").fill("laptop")
    mias.get_by_role("button", name="Create and show the secret").click()
    answer = httpx.post(
        f"{house.gateway.url}/api/chat",
        json={"model": "tiny:1b", "stream": False, "messages": [{"role": "user", "content": "hello"}]},
        headers={"Authorization": f"Bearer {shown_secret(mias)}"},
        timeout=30,
        trust_env=False,
    )

    assert answer.status_code == 200
    assert answer.json()["message"]["content"]


def test_a_link_whose_time_is_over_says_what_to_do(page: Page, house: House, owner: User) -> None:
    _, token = invite(tenant=house.acme, email="mia@example.org", role="member", invited_by=owner)
    Invitation.objects.update(expires_at=now())

    page.goto(f"/account/invitation/{token}/")

    expect(page.get_by_role("heading", name="This link does not work")).to_be_visible()
    check_page(page, "invitation-gone")


def test_a_member_leaves_and_their_key_is_refused(page: Page, house: House, owner: User) -> None:
    mia = a_person("member", house.acme)
    assert isinstance(mia, User)
    member = Member.objects.get(user=mia)
    caller = house.caller(member=member)
    assert caller.chat().status_code == 200
    enter(page, mia)
    page.goto("/portal/acme/team/")
    page.get_by_role("link", name="Leave").click()
    expect(page.get_by_text(caller.key.label)).to_be_visible()
    check_page(page, "leave")

    page.get_by_role("button", name="Leave now").click()

    expect(page.get_by_text("You are no member of ACME any more. 1 key was revoked.")).to_be_visible()
    eventually(lambda: caller.chat().status_code == 401)


def test_a_team_is_created_filled_emptied_and_removed(page: Page, house: House, owner: User) -> None:
    mia = a_person("member", house.acme)
    assert isinstance(mia, User)
    create_service_account(tenant=house.acme, name="nightly-build", actor="test")
    enter(page, owner)
    page.goto("/portal/acme/team/")

    teams = page.get_by_role("form", name="Create a team")
    teams.get_by_label("Name").fill("Research")
    teams.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Team Research")
    expect(page.get_by_text("Nobody is in it yet.")).to_be_visible()
    page.get_by_role("checkbox", name="member").check()
    page.get_by_role("checkbox", name="nightly-build").check()
    page.get_by_role("button", name="Put in").click()
    expect(page.get_by_text("2 are in the team now.")).to_be_visible()
    assert Member.objects.get(user=mia).team is not None
    check_page(page, "one-team")
    page.get_by_role("form", name="Rename the team").get_by_label("Name").fill("Lab")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Team Lab")
    page.get_by_role("button", name="Take member out of the team").click()
    page.get_by_role("button", name="Take nightly-build out of the team").click()
    page.get_by_role("link", name="Remove the team").click()
    check_page(page, "remove-team")
    page.get_by_role("button", name="Remove now").click()

    expect(page.get_by_text("Team Lab is removed.")).to_be_visible()
    expect(page.get_by_text("There is no team yet.")).to_be_visible()
    assert Member.objects.get(user=mia).team is None


def test_the_pages_of_the_team_keep_nobody_out(page: Page, house: House, owner: User) -> None:
    member = a_person("member", house.acme)
    assert isinstance(member, User)
    invite(tenant=house.acme, email="new@example.org", role="admin", invited_by=owner)
    robot = create_service_account(tenant=house.acme, name="nightly-build", actor="test")
    issue_key(tenant=house.acme, label="nightly", service_account=robot, actor="test")
    enter(page, owner)
    theirs = Member.objects.get(user=member)
    for name, path in {
        "team": "/portal/acme/team/",
        "member": f"/portal/acme/team/members/{theirs.pk}/",
        "remove": f"/portal/acme/team/members/{theirs.pk}/remove/",
        "close": f"/portal/acme/team/service-accounts/{robot.pk}/close/",
        "account": "/account/",
        "email": "/account/email/",
        "sessions": "/account/sessions/",
    }.items():
        page.goto(path)
        check_page(page, name)


def test_whoever_reads_german_is_spoken_to_in_german(browser: Browser, house: House, owner: User) -> None:
    page = browser.open(house.gateway.url, locale="de-DE")
    enter(page, owner)

    page.goto("/portal/acme/team/")
    expect(page.get_by_role("heading", name="Mitglieder", exact=True)).to_be_visible()
    check_page(page, "team-german")
    page.get_by_role("link", name="owner", exact=True).click()
    expect(page.get_by_role("heading", name="Ihr Konto")).to_be_visible()
    check_page(page, "account-german")
    page.get_by_label("Sprache").select_option("English")
    page.get_by_role("button", name="Speichern").click()

    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    page.goto("/portal/acme/team/")
    expect(page.get_by_role("heading", name="Members", exact=True)).to_be_visible()


def test_a_newcomer_has_a_first_answer_within_two_minutes_of_the_mail(
    page: Page, browser: Browser, house: House, owner: User, mail: MailServer
) -> None:
    mail.mails.clear()
    enter(page, owner)
    page.goto("/portal/acme/team/")
    page.get_by_label("E-mail address").fill("mia@example.org")
    page.get_by_role("button", name="Invite").click()
    link, page, began = link_in(mail), browser.open(house.gateway.url), time.monotonic()

    page.goto(link)
    page.get_by_label("User name").fill("mia")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create the account and join").click()
    page.get_by_role("navigation").get_by_role("link", name="Keys").click()
    page.get_by_role("link", name="New key").first.click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Create and show the secret").click()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The answer is whole.")).to_be_visible()
    [entry] = house.booked()
    page.get_by_role("navigation").get_by_role("link", name="Usage").click()

    assert time.monotonic() - began < NEWCOMERS_SECONDS
    assert (entry.outcome, entry.member) == ("completed", "mia")
    expect(page.get_by_role("row", name="laptop")).to_be_visible()
