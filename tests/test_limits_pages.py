"""The page about limits: how each stands, which one stops first, and who is told before."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from audit.models import AuditEvent
from budgets import alerts, deliveries, services, webhooks
from budgets.limits_seen import look_at_limits
from budgets.models import Budget, Delivery, Recipient
from keys.services import issue_key
from tenants.access import Access, access_to
from tenants.models import Member, Team, Tenant, User
from tests.conftest import House
from tests.counting import without_redis
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.receivers import HttpReceiver
from tests.test_usage_pages import text_of

MANAGING = frozenset({"owner", "admin"})
TOLD_OF = ["threshold", "exhausted"]


def access_of(user: Any) -> Access:
    access = access_to(user, "acme")
    assert access is not None
    return access


def page_of(browser: Client) -> str:
    answer = browser.get("/portal/acme/limits/")
    assert answer.status_code == 200
    return answer.content.decode()


def budget(scope: str, limit: int, unit: str = "tokens", **whose: Any) -> None:
    services.set_budget(scope=scope, unit=unit, period="day", limit=limit, actor="test", **whose)


def everything(house: House, member: Member) -> None:
    """A limit of each scope, two of which are on somebody else."""
    key, _ = issue_key(tenant=house.acme, member=member, label="mine", actor="test")
    zoe = Member.objects.create(tenant=house.acme, user=User.objects.create(username="zoe"))
    budget("platform", 10_000)
    budget("tenant", 9_000, tenant=house.acme)
    budget("member", 8_000, member=member)
    budget("key", 7_000, key=key)
    budget("model", 6_000, model="tiny:1b")
    budget("member", 5_000, member=zoe)
    budget("key", 4_000, key=house.ada.key)
    services.set_rate_limit(
        scope="tenant", tenant=house.acme, measure="requests_per_minute", limit=60, actor="test"
    )
    services.set_rate_limit(scope="key", key=key, measure="concurrent_requests", limit=3, actor="test")


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_page_opens_for_those_who_may_see_limits(house: House, who: str) -> None:
    answer = a_browser(a_person(who, house.acme)).get("/portal/acme/limits/")

    assert answer.status_code == (200 if who in ROLES | OPERATORS else 302 if who in UNKNOWN else 404)


def test_a_member_sees_what_is_on_them_from_the_platform_down_to_their_keys(house: House) -> None:
    mia = a_person("member", house.acme)
    everything(house, Member.objects.get(user=mia.pk))

    seeing = look_at_limits(access_of(mia))

    assert [(one.scope, one.limit, one.window) for one in seeing.own] == [
        ("platform", 10_000, "day"), ("tenant", 9_000, "day"), ("tenant", 60, "minute"),
        ("member", 8_000, "day"), ("key", 7_000, "day"), ("key", 3, "now"), ("model", 6_000, "day"),
    ]  # fmt: skip
    assert seeing.others == []
    assert seeing.tightest is not None
    assert seeing.tightest.limit == 7_000
    page = text_of(page_of(a_browser(mia)))
    assert "This one will stop you" in page
    assert "5,000" not in page
    assert "zoe" not in page


def test_an_owner_sees_those_of_the_others_too_and_none_of_another_tenant(house: House) -> None:
    owner, stranger = a_person("owner", house.acme), a_person("foreign owner", house.acme)
    everything(house, Member.objects.get(user=owner.pk))
    budget("tenant", 123_456, tenant=Tenant.objects.get(slug="globex"))

    seeing = look_at_limits(access_of(owner))

    assert [one.limit for one in seeing.others] == [5_000, 4_000]
    assert "123,456" not in page_of(a_browser(owner))
    assert "9,000" not in a_browser(stranger).get("/portal/globex/limits/").content.decode()


def test_limits_on_more_others_than_fit_have_pages_on_which_each_is_once(house: House) -> None:
    owner = a_person("owner", house.acme)
    teams = Team.objects.bulk_create(Team(tenant=house.acme, name=f"team {n:03}") for n in range(51))
    Budget.objects.bulk_create(
        Budget(scope="team", tenant=house.acme, team=team, unit="tokens", period="day", limit=9)
        for team in teams
    )
    browser = a_browser(owner)

    first, second = (
        browser.get(f"/portal/acme/limits/?page={number}").content.decode() for number in ("1", "2")
    )
    beyond = browser.get("/portal/acme/limits/?page=9").content.decode()

    named = [set(re.findall(r"\bteam \d{3}", page)) for page in (first, second)]
    assert [len(names) for names in named] == [50, 1]
    assert len(named[0] | named[1]) == 51
    assert "Page 1 of 2" in first
    assert "Page 2 of 2" in second
    assert "Page 2 of 2" in beyond


def test_figures_are_those_of_the_counters(house: House) -> None:
    mia = a_person("member", house.acme)
    everything(house, Member.objects.get(user=mia.pk))
    assert house.ada.chat().status_code == 200
    (entry,) = house.booked()
    tokens = entry.input_tokens + entry.output_tokens

    seeing = look_at_limits(access_of(mia))

    used = {(one.scope, one.window): one.used for one in seeing.own}
    assert used["tenant", "day"] == used["platform", "day"] == used["model", "day"] == tokens
    assert used["tenant", "minute"] == 1
    assert used["key", "day"] == used["key", "now"] == 0
    assert all(one.left == one.limit - (one.used or 0) for one in seeing.own)
    assert not seeing.blind


def test_what_runs_counts_against_how_many_may_run(house: House) -> None:
    owner = a_person("owner", house.acme)
    whose: dict[str, Any] = {"scope": "key", "key": house.ada.key, "actor": "test"}
    services.set_rate_limit(measure="concurrent_requests", limit=2, **whose)
    house.ollama.fault("silence-1-60000")
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello"}]}

    with house.ada.http.stream("POST", "/api/chat", json=body) as stream:
        # Kept: a generator that is thrown away ends its stream.
        lines = stream.iter_lines()
        next(lines)
        (seen,) = look_at_limits(access_of(owner)).others

        assert (seen.used, seen.left) == (1, 1)


def test_the_tightest_is_the_budget_that_ends_first_and_never_a_shadow(house: House) -> None:
    mia = a_person("member", house.acme)
    member = Member.objects.get(user=mia.pk)
    budget("tenant", 50_000, tenant=house.acme)
    budget("member", 20, "requests", member=member)
    budget("member", 1, shadow=True, member=member)
    budget("model", 2, "requests", model="tiny:1b")
    services.set_rate_limit(scope="platform", measure="requests_per_minute", limit=1, actor="test")
    house.caller(member=member).chat()

    found = look_at_limits(access_of(mia)).tightest

    assert found is not None
    assert (found.scope, found.unit, found.left) == ("member", "requests", 19)


def test_without_limits_it_says_that_there_are_none(house: House) -> None:
    assert "There is no limit on your calls" in page_of(a_browser(a_person("member", house.acme)))


def test_while_redis_is_away_the_books_are_told_with_their_age(house: House) -> None:
    owner = a_browser(a_person("owner", house.acme))
    budget("tenant", 5_000, tenant=house.acme)
    services.set_rate_limit(
        scope="tenant", tenant=house.acme, measure="requests_per_minute", limit=60, actor="test"
    )
    house.ada.chat()
    (entry,) = house.booked()

    with without_redis():
        told = text_of(page_of(owner))

    assert "The counters cannot be read at the moment." in told
    assert f"{entry.input_tokens + entry.output_tokens:,} booked until" in told
    assert "requests, a minute unknown unknown" in told


def form(address: str, kind: str = "email", **changes: Any) -> dict[str, Any]:
    return {"kind": kind, "address": address, "happenings": TOLD_OF} | changes


@pytest.mark.parametrize("who", EVERYBODY)
def test_only_those_who_manage_the_tenant_say_who_is_told(house: House, who: str) -> None:
    browser = a_browser(a_person(who, house.acme))
    there = services.add_recipient(kind="email", address="x@example.org", tenant=house.acme, actor="test")

    added = browser.post("/portal/acme/limits/recipients/", form("y@example.org"))
    removed = browser.post(f"/portal/acme/limits/recipients/{there.pk}/", {"act": "remove"})

    told = set(Recipient.objects.values_list("address", flat=True))
    assert told == ({"y@example.org"} if who in MANAGING else {"x@example.org"})
    refused = 302 if who in MANAGING | UNKNOWN else 403 if who in ROLES | OPERATORS else 404
    assert {added.status_code, removed.status_code} == {refused}


def test_the_recipients_of_others_cannot_be_touched(house: House) -> None:
    globex = Tenant.objects.create(slug="globex2", name="G")
    browser = a_browser(a_person("owner", house.acme))

    for tenant in (globex, None):
        theirs = services.add_recipient(kind="email", address="x@example.org", tenant=tenant, actor="test")
        answer = browser.post(f"/portal/acme/limits/recipients/{theirs.pk}/", {"act": "remove"})
        assert answer.status_code == 404
        assert "x@example.org" not in page_of(browser)
    assert Recipient.objects.count() == 2


def test_a_webhook_shows_its_secret_once(house: House) -> None:
    browser = a_browser(a_person("owner", house.acme))
    url = "https://hooks.example.org/secret-part"

    added = browser.post("/portal/acme/limits/recipients/", form(url, "webhook")).content.decode()
    recipient = Recipient.objects.get()

    assert webhooks.secret_of(recipient) in added
    for page in ("", f"recipients/{recipient.pk}/"):
        shown = browser.get(f"/portal/acme/limits/{page}").content.decode()
        assert "hooks.example.org" in shown
        assert "secret-part" not in shown
        assert "whsec_" not in shown
    again = browser.post(f"/portal/acme/limits/recipients/{recipient.pk}/", {"act": "secret"})
    assert "whsec_" in again.content.decode()
    assert webhooks.secret_of(recipient) not in again.content.decode()
    events = AuditEvent.objects.filter(action__startswith="recipient.")
    assert list(events.values_list("actor", flat=True)) == ["owner", "owner"]


def test_the_test_button_really_sends_and_says_what_came_of_it(house: House, http: HttpReceiver) -> None:
    browser = a_browser(a_person("owner", house.acme))
    recipient = services.add_recipient(kind="webhook", address=http.url, tenant=house.acme, actor="test")
    page = f"/portal/acme/limits/recipients/{recipient.pk}/"

    good = browser.post(page, {"act": "test"}, follow=True).content.decode()
    http.statuses = [503]
    bad = browser.post(page, {"act": "test"}, follow=True).content.decode()

    assert len(http.received) == 2
    assert b"owner tries whether notices" in http.received[0].body
    assert "The test was delivered" in good
    assert "the receiver answered 503" in bad
    assert "the receiver answered 503" in page_of(browser)
    assert "secret" not in bad.partition("<main")[2].replace('value="secret"', "").replace(
        "another secret", ""
    )


def test_nobody_is_sent_tests_without_end(house: House, http: HttpReceiver) -> None:
    browser = a_browser(a_person("owner", house.acme))
    recipient = services.add_recipient(kind="webhook", address=http.url, tenant=house.acme, actor="test")

    for _ in range(12):
        last = browser.post(f"/portal/acme/limits/recipients/{recipient.pk}/", {"act": "test"}, follow=True)

    assert len(http.received) == 10
    assert "tried often enough" in last.content.decode()


def test_what_is_told_can_be_changed_and_what_only_operators_chose_stays(house: House) -> None:
    browser = a_browser(a_person("owner", house.acme))
    recipient = services.add_recipient(
        kind="email", address="x@example.org", tenant=house.acme, actor="test",
        happenings=["threshold", "record_parked"],
    )  # fmt: skip
    page = f"/portal/acme/limits/recipients/{recipient.pk}/"

    browser.post(page, {"act": "change", "happenings": ["exhausted"]})

    recipient.refresh_from_db()
    assert (recipient.happenings, recipient.active) == (["exhausted", "record_parked"], False)
    assert browser.post(page, {"act": "change", "happenings": ["books_disagree"]}).status_code == 302
    recipient.refresh_from_db()
    assert "books_disagree" not in recipient.happenings

    change = AuditEvent.objects.filter(action="recipient.changed").order_by("id")[0].details
    assert change["happenings"] != change["before"]["happenings"]
    assert "exhausted" in change["happenings"]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (form("nobody"), "Enter a valid email address"),
        (form("ftp://x", "webhook"), "A webhook is an https:// address"),
        (form("x@example.org", "pigeon"), "Select a valid choice"),
        (form("x@example.org", happenings=["record_parked"]), "Select a valid choice"),
        (form("there@example.org"), "This address is told already"),
    ],
)
def test_a_form_that_is_wrong_is_answered_in_words(house: House, fields: dict[str, Any], wrong: str) -> None:
    services.add_recipient(kind="email", address="there@example.org", tenant=house.acme, actor="test")
    answer = a_browser(a_person("owner", house.acme)).post("/portal/acme/limits/recipients/", fields)

    assert answer.status_code == 400
    assert wrong in answer.content.decode()
    assert Recipient.objects.count() == 1


def test_failures_of_others_are_not_listed(house: House, http: HttpReceiver) -> None:
    browser = a_browser(a_person("owner", house.acme))
    http.statuses = [500]
    services.add_recipient(kind="webhook", address=http.url, actor="test")
    services.arm_kill_switch(scope="platform", actor="olga", reason="for operators alone")

    alerts.look()
    deliveries.deliver()

    assert Delivery.objects.get().attempts[0]["error"] == "the receiver answered 500"
    assert "the receiver answered 500" not in page_of(browser)


def test_the_pages_have_one_heading_landmarks_and_nothing_inline(house: House) -> None:
    browser = a_browser(a_person("owner", house.acme))
    everything(house, Member.objects.get(tenant=house.acme))
    recipient = services.add_recipient(kind="email", address="x@example.org", tenant=house.acme, actor="test")

    for page in ("", f"recipients/{recipient.pk}/"):
        outline = Outline(browser.get(f"/portal/acme/limits/{page}").content.decode())
        assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
        assert outline.inline == []
