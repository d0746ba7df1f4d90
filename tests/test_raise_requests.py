"""Asking for more of a limit: who asks, who is told, who decides, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction
from django.test import Client, override_settings
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import deliveries, raise_requests, services
from budgets.limits import limit_now
from budgets.models import (
    Budget,
    Delivery,
    LimitRaise,
    RaiseRequest,
    RateLimit,
    Recipient,
    kind_of_limit,
)
from keys.services import issue_key
from tenants.access import Access, access_to
from tenants.models import Member, Tenant, User
from tenants.services import create_tenant
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.receivers import MailServer
from tests.test_usage_pages import text_of

pytestmark = pytest.mark.django_db(transaction=True)

ASKING = frozenset({"owner", "admin", "member"})
State = RaiseRequest.State


def person(who: str, acme: Tenant) -> User:
    user = a_person(who, acme)
    assert isinstance(user, User)
    user.email = f"{who.replace(' ', '-')}@example.org"
    user.save()
    return user


def at_acme(user: User) -> Access:
    access = access_to(user, "acme")
    assert access is not None
    return access


def own_budget(user: User, limit: int = 100) -> Budget:
    member = Member.objects.get(user=user)
    return services.set_budget(
        scope="member", member=member, unit="tokens", period="day", limit=limit, actor="test"
    )


def own_rate(user: User, limit: int = 100) -> RateLimit:
    member = Member.objects.get(user=user)
    return services.set_rate_limit(
        scope="member", member=member, measure="tokens_per_minute", limit=limit, actor="test"
    )


# What may be asked for is the same, whichever kind of limit it is.
OWN = [pytest.param(own_budget, id="a budget"), pytest.param(own_rate, id="a rate limit")]
OwnLimit = Callable[[User], Budget | RateLimit]


def ask(user: User, row: Budget | RateLimit, to: int = 500, **changes: Any) -> RaiseRequest:
    wish: dict[str, Any] = {"until": now() + timedelta(days=2), "reason": "the deadline"} | changes
    return raise_requests.ask_for_raise(access=at_acme(user), row=row, to=to, **wish)


def grant(user: User, request: RaiseRequest, to: int = 500) -> LimitRaise | None:
    return raise_requests.grant_request(
        request=request, access=at_acme(user), to=to, until=now() + timedelta(days=1), answer="Good luck."
    )


@pytest.mark.parametrize("own", OWN)
def test_a_raise_that_is_granted_holds_until_its_end(acme: Tenant, own: OwnLimit) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    row = own(mia)

    raised = grant(owner, ask(mia, row), to=400)

    assert raised is not None
    assert raised.row == row
    assert limit_now(type(row).objects.get(pk=row.pk)) == 400
    assert (raised.to, raised.granted_by) == (400, "owner")
    assert raised.ends_at < now() + timedelta(days=2)
    request = RaiseRequest.objects.get()
    assert (request.state, request.decided_by, request.answer, request.raised) == (
        State.GRANTED, "owner", "Good luck.", raised,
    )  # fmt: skip


def test_a_no_needs_a_reason_and_changes_nothing(acme: Tenant) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    request = ask(mia, own_budget(mia))

    with pytest.raises(ValidationError):
        raise_requests.decline_request(request=request, access=at_acme(owner), answer=" ")
    assert RaiseRequest.objects.get().state == State.OPEN
    assert raise_requests.decline_request(request=request, access=at_acme(owner), answer="Not this week.")

    assert not LimitRaise.objects.exists()
    assert RaiseRequest.objects.get().answer == "Not this week."


@pytest.mark.parametrize("own", OWN)
def test_each_step_is_in_the_audit_with_who_and_why(acme: Tenant, own: OwnLimit) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    row = own(mia)

    grant(owner, ask(mia, row))
    raise_requests.decline_request(request=ask(mia, row, to=900), access=at_acme(owner), answer="No.")
    raise_requests.withdraw_request(request=ask(mia, row, to=901), access=at_acme(mia))

    told = AuditEvent.objects.filter(tenant_id=acme.pk, action__startswith="raise.").order_by("id")
    assert list(told.values_list("action", "actor", "reason")) == [
        ("raise.requested", "member", "the deadline"),
        ("raise.request_granted", "owner", "Good luck."),
        ("raise.requested", "member", "the deadline"),
        ("raise.request_declined", "owner", "No."),
        ("raise.requested", "member", "the deadline"),
        ("raise.request_withdrawn", "member", ""),
    ]
    assert {event.details["what"] for event in told} == {str(row)}
    assert AuditEvent.objects.filter(action=f"{kind_of_limit(row)}.raised", actor="owner").count() == 1


def test_what_is_not_written_into_the_audit_does_not_happen(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    request = ask(mia, own_budget(mia))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(raise_requests, "record", fail)
    with pytest.raises(RuntimeError):
        grant(owner, request)

    assert not LimitRaise.objects.exists()
    assert RaiseRequest.objects.get().state == State.OPEN


@pytest.mark.parametrize("own", OWN)
def test_a_person_has_one_open_request_for_a_limit(acme: Tenant, own: OwnLimit) -> None:
    mia = person("member", acme)
    row = own(mia)
    first = ask(mia, row)

    with pytest.raises(ValidationError, match="asked for more of this limit already"):
        ask(mia, row, to=600)
    of_it: dict[str, Any] = {kind_of_limit(row): row}
    with pytest.raises(IntegrityError, match="one_open_per_person_and_limit"), transaction.atomic():
        RaiseRequest.objects.create(
            tenant=acme, **of_it, asked_by=mia, to=7, until=now() + timedelta(1), reason="?"
        )
    raise_requests.withdraw_request(request=first, access=at_acme(mia))

    assert ask(mia, row, to=600).state == State.OPEN


def test_a_person_may_wait_for_more_of_a_budget_and_of_a_rate_at_one_time(acme: Tenant) -> None:
    mia, owner = person("member", acme), person("owner", acme)

    asked = {ask(mia, own_budget(mia)), ask(mia, own_rate(mia))}

    assert set(raise_requests.open_requests(at_acme(owner))) == asked
    assert set(raise_requests.own_requests(at_acme(mia))) == asked


@pytest.mark.parametrize("named", [[], ["budget", "rate_limit"]], ids=["neither", "both"])
def test_a_request_is_for_a_budget_or_for_a_rate_limit(acme: Tenant, named: list[str]) -> None:
    mia = person("member", acme)
    rows: dict[str, Any] = {"budget": own_budget(mia), "rate_limit": own_rate(mia)}

    with pytest.raises(IntegrityError, match="budgets_raiserequest_of_one_limit"), transaction.atomic():
        RaiseRequest.objects.create(
            tenant=acme, asked_by=mia, to=7, until=now() + timedelta(1), reason="?",
            **{name: rows[name] for name in named},
        )  # fmt: skip


@pytest.mark.parametrize("own", OWN)
def test_a_request_whose_time_is_over_keeps_nobody_from_asking_again(acme: Tenant, own: OwnLimit) -> None:
    mia = person("member", acme)
    row = own(mia)
    first = ask(mia, row)
    RaiseRequest.objects.update(asked_at=now() - timedelta(3), until=now() - timedelta(1))

    ask(mia, row)

    first.refresh_from_db()
    assert first.state == State.LAPSED


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        pytest.param({"to": 100}, "that high already", id="what it is already"),
        pytest.param({"to": 2**53}, "counts|number", id="more than can be counted"),
        pytest.param({"until": now() - timedelta(days=1)}, "ends in the future", id="what is over"),
        pytest.param({"reason": ""}, "blank", id="for no reason"),
    ],
)
def test_what_cannot_be_granted_cannot_be_asked_for(
    acme: Tenant, changes: dict[str, Any], wrong: str
) -> None:
    mia = person("member", acme)

    for own in (own_budget, own_rate):
        with pytest.raises(ValidationError, match=wrong):
            ask(mia, own(mia), **changes)

    assert not RaiseRequest.objects.exists()


# Whose budget it is, and who may say yes to a member who asks for more of it.
DECIDING = {
    "member": {"owner", "admin", *OPERATORS},
    "key": {"owner", "admin", *OPERATORS},
    "tenant": OPERATORS,
    "platform": OPERATORS,
}


@pytest.mark.parametrize("kind", ["budget", "rate limit"])
@pytest.mark.parametrize("scope", DECIDING)
def test_who_decides_depends_on_whom_a_limit_protects(acme: Tenant, scope: str, kind: str) -> None:
    mia = person("member", acme)
    member = Member.objects.get(user=mia)
    key, _ = issue_key(tenant=acme, member=member, label="mine", actor="test")
    whose: dict[str, Any] = {"member": {"member": member}, "key": {"key": key}, "tenant": {"tenant": acme}}
    named: dict[str, Any] = {"scope": scope, "limit": 100, "actor": "test"} | whose.get(scope, {})
    row: Budget | RateLimit = (
        services.set_budget(unit="tokens", period="day", **named)
        if kind == "budget"
        else services.set_rate_limit(measure="concurrent_requests", **named)
    )
    request = ask(mia, row)

    for who in EVERYBODY:
        if who in UNKNOWN or who == "member":
            continue
        other = person(who, acme)
        if who == "operator":
            grant_permission(other, "add_limitraise")
        access = access_to(other, "acme")

        if access is None:
            assert who not in DECIDING[scope], who
            continue
        assert raise_requests.may_decide(access, request) == (who in DECIDING[scope]), who
        assert (request in raise_requests.open_requests(access)) == (who in DECIDING[scope]), who
        if who not in DECIDING[scope]:
            assert is_denied(grant, other, request), who
            assert is_denied(raise_requests.decline_request, request=request, access=access, answer="No."), (
                who
            )


def is_denied(does: Callable[..., object], *args: Any, **options: Any) -> bool:
    try:
        does(*args, **options)
    except PermissionDenied:
        return True
    return False


def grant_permission(user: User, codename: str) -> None:
    user.user_permissions.add(Permission.objects.get(codename=codename))


@pytest.mark.parametrize("who", ["owner", "admin", "member"])
def test_nobody_grants_what_they_asked_for_themselves(acme: Tenant, who: str) -> None:
    asking = person(who, acme)
    request = ask(asking, own_budget(asking))

    with pytest.raises(PermissionDenied):
        grant(asking, request)
    assert not raise_requests.open_requests(at_acme(asking)).exists()


def test_of_two_who_decide_the_first_is_heard(acme: Tenant) -> None:
    mia, owner, admin = (person(who, acme) for who in ("member", "owner", "admin"))
    request = ask(mia, own_budget(mia))

    assert raise_requests.decline_request(request=request, access=at_acme(owner), answer="No.")

    assert grant(admin, request) is None
    assert not LimitRaise.objects.exists()


def sent(mail: MailServer) -> list[tuple[str, str]]:
    deliveries.deliver()
    return sorted((one.recipients[0], str(one.message["Subject"])) for one in mail.mails)


def body_of(mail: MailServer, address: str) -> str:
    (found,) = (one for one in mail.mails if one.recipients == [address])
    payload = found.message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


@pytest.mark.parametrize(
    ("own", "counted"),
    [
        pytest.param(own_budget, "tokens per day", id="a budget"),
        pytest.param(own_rate, "tokens per minute", id="a rate limit"),
    ],
)
def test_those_who_may_grant_it_are_mailed_and_then_the_one_who_asked(
    acme: Tenant, mail: MailServer, own: OwnLimit, counted: str
) -> None:
    mia, owner, _, finance = (person(who, acme) for who in ("member", "owner", "admin", "finance"))
    page = "https://tollgate.example/portal/acme/raises/"

    request = ask(mia, own(mia), pages=page)

    assert [to for to, _ in sent(mail)] == ["admin@example.org", "owner@example.org"]
    assert finance.email not in str(mail.mails)
    text = body_of(mail, "owner@example.org")
    assert f"member of acme asks for more of member member of acme's {counted}: " in text
    assert "500 instead of 100" in text
    assert "the deadline" in text
    assert f"{page}{request.pk}/" in text
    mail.mails.clear()

    grant(owner, request)

    assert [to for to, _ in sent(mail)] == ["member@example.org"]
    assert f"owner has raised member member of acme's {counted}" in body_of(mail, mia.email)
    assert "Good luck." in body_of(mail, "member@example.org")


def test_a_limit_of_the_platform_is_asked_of_operators(acme: Tenant, mail: MailServer) -> None:
    mia, *_ = (person(who, acme) for who in ("member", "owner", "superuser", "staff"))
    budget = services.set_budget(scope="platform", unit="tokens", period="day", limit=5, actor="test")

    ask(mia, budget)

    assert [to for to, _ in sent(mail)] == ["superuser@example.org"]


def test_a_recipient_with_the_same_address_is_mailed_once(acme: Tenant, mail: MailServer) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    services.add_recipient(kind="email", address=owner.email, tenant=acme, actor="test")

    ask(mia, own_budget(mia))

    assert [to for to, _ in sent(mail)] == [owner.email]


def test_without_a_mail_server_it_is_asked_and_granted_all_the_same(acme: Tenant) -> None:
    mia, owner = person("member", acme), person("owner", acme)
    with override_settings(EMAIL_URL=""):
        request = ask(mia, own_budget(mia))
        deliveries.deliver()
        page = a_browser(owner).get("/portal/acme/raises/").content.decode()

    assert Delivery.objects.get().attempts[0]["error"] == "EMAIL_URL is not set"
    assert str(request.pk) in page
    assert Recipient.objects.count() == 0


@pytest.fixture
def mia(acme: Tenant) -> User:
    return person("member", acme)


def local(days: float) -> str:
    return f"{now() + timedelta(days=days):%Y-%m-%dT%H:%M}"


@pytest.mark.parametrize("own", OWN)
def test_the_way_through_the_pages_from_asking_to_more(acme: Tenant, mia: User, own: OwnLimit) -> None:
    row = own(mia)
    browser, owners = a_browser(mia), a_browser(person("owner", acme))
    form = {"to": "500", "until": local(3), "reason": "the <deadline>"}

    asked = browser.post(f"/portal/acme/raises/new/{row.pk}/", form, follow=True)
    request = RaiseRequest.objects.get()
    page = f"/portal/acme/raises/{request.pk}/"

    assert asked.redirect_chain == [(page, 302)]
    assert "the &lt;deadline&gt;" in asked.content.decode()
    assert "1 request for more waits" in owners.get("/portal/acme/").content.decode()
    assert page in owners.get("/portal/acme/raises/").content.decode()
    granting = {"act": "grant", "to": "450", "until": local(2), "answer": "Take it."}
    assert owners.post(page, granting).status_code == 302
    assert limit_now(row) == 450
    told = text_of(browser.get(page).content.decode())
    assert "State granted, owner" in told
    assert "Take it." in told
    # Pressed again: nothing is granted twice.
    assert owners.post(page, granting).status_code == 302
    assert LimitRaise.objects.count() == 1


@pytest.mark.parametrize("own", OWN[:1])
def test_an_answer_that_cannot_be_kept_is_refused_in_words(acme: Tenant, mia: User, own: OwnLimit) -> None:
    row = own(mia)
    form = {"to": "500", "until": local(3), "reason": "the deadline"}
    a_browser(mia).post(f"/portal/acme/raises/new/{row.pk}/", form)
    request = RaiseRequest.objects.get()
    owners = a_browser(person("owner", acme))
    page = f"/portal/acme/raises/{request.pk}/"

    refused = owners.post(page, {"act": "decline", "answer": "a\0b"})
    # Of a no the other fields do not matter.
    declined = owners.post(page, {"act": "decline", "answer": "No.", "to": ""})

    assert refused.status_code == 400
    assert "Null characters are not allowed" in refused.content.decode()
    assert declined.status_code == 302
    request.refresh_from_db()
    assert (request.state, request.answer) == ("declined", "No.")


def test_money_is_asked_for_in_dollars(acme: Tenant, mia: User) -> None:
    member = Member.objects.get(user=mia)
    budget = services.set_budget(
        scope="member", member=member, unit="micro_usd", period="day", limit=1_500_000, actor="test"
    )
    there = f"/portal/acme/raises/new/{budget.pk}/"
    browser = a_browser(mia)

    assert 'value="2.25' in browser.get(there).content.decode()
    assert browser.post(there, {"to": "2.5", "until": local(1), "reason": "x"}).status_code == 302

    assert RaiseRequest.objects.get().to == 2_500_000


def test_the_moment_is_one_of_the_tenants_zone(acme: Tenant, mia: User) -> None:
    budget, year = own_budget(mia), now().year + 1

    a_browser(mia).post(
        f"/portal/acme/raises/new/{budget.pk}/", {"to": "500", "until": f"{year}-07-01T12:00", "reason": "x"}
    )

    assert RaiseRequest.objects.get().until.isoformat() == f"{year}-07-01T10:00:00+00:00"


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ({"to": "50"}, "that high already"),
        ({"to": ""}, "This field is required"),
        ({"to": "many"}, "Enter a whole number"),
        ({"until": "tomorrow"}, "Enter a valid date/time"),
        ({"until": "2020-01-01T00:00"}, "ends in the future"),
        ({"until": "9999-12-31T23:59"}, "Name a year from 1970 to 9998"),
        ({"reason": " "}, "This field is required"),
    ],
)
def test_a_form_that_is_wrong_is_answered_in_words(
    acme: Tenant, mia: User, form: dict[str, str], wrong: str
) -> None:
    budget = own_budget(mia)
    filled_in = {"to": "500", "until": local(1), "reason": "x"} | form

    answer = a_browser(mia).post(f"/portal/acme/raises/new/{budget.pk}/", filled_in)

    assert answer.status_code == 400
    assert wrong in answer.content.decode()
    assert not RaiseRequest.objects.exists()


@pytest.mark.parametrize("who", EVERYBODY)
def test_each_page_opens_for_those_who_may(acme: Tenant, who: str) -> None:
    owner = person("owner", acme) if who != "owner" else None
    visitor = a_browser(a_person(who, acme))
    tenants = services.set_budget(
        scope="tenant", tenant=acme, unit="tokens", period="day", limit=9, actor="test"
    )
    statuses = [
        visitor.get(page).status_code
        for page in ("/portal/acme/raises/", f"/portal/acme/raises/new/{tenants.pk}/")
    ]

    refused = 302 if who in UNKNOWN else 403 if who in ROLES | OPERATORS else 404
    deciding = refused if who != "superuser" else 200
    assert statuses == ([200, 200] if who in ASKING else [deciding, refused])
    assert owner is None or a_browser(owner).get("/portal/acme/raises/").status_code == 200


def test_nobody_asks_for_more_of_what_they_do_not_see(acme: Tenant, mia: User) -> None:
    zoe = User.objects.create(username="zoe")
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    others = Member.objects.create(tenant=acme, user=zoe)
    hers = services.set_budget(
        scope="member", member=others, unit="tokens", period="day", limit=9, actor="test"
    )
    theirs = services.set_budget(
        scope="tenant",
        tenant=globex,
        unit="tokens",
        period="day",
        limit=9,
        actor="t",
    )
    her_rate = services.set_rate_limit(
        scope="member", member=others, measure="requests_per_minute", limit=9, actor="test"
    )
    their_rate = services.set_rate_limit(
        scope="tenant", tenant=globex, measure="requests_per_minute", limit=9, actor="test"
    )
    browser, owners = a_browser(mia), a_browser(person("owner", acme))

    for row in (hers, her_rate, theirs, their_rate):
        there = f"/portal/acme/raises/new/{row.pk}/"
        filled_in = {"to": "50", "until": local(1), "reason": "x"}
        assert [browser.get(there).status_code, browser.post(there, filled_in).status_code] == [404, 404]
        assert owners.get(there).status_code == (404 if row in (theirs, their_rate) else 200)
    assert not RaiseRequest.objects.exists()


def test_a_request_of_somebody_else_looks_like_none(acme: Tenant, mia: User) -> None:
    request = ask(mia, own_budget(mia))
    zoe = User.objects.create(username="zoe")
    Member.objects.create(tenant=acme, user=zoe)
    foreign = a_browser(a_person("foreign owner", acme))

    for browser, slug in ((a_browser(zoe), "acme"), (foreign, "globex"), (foreign, "acme")):
        assert browser.get(f"/portal/{slug}/raises/{request.pk}/").status_code == 404
        assert browser.post(f"/portal/{slug}/raises/{request.pk}/", {"act": "withdraw"}).status_code == 404
    assert RaiseRequest.objects.get().state == State.OPEN


def test_a_form_without_its_token_does_nothing(acme: Tenant, mia: User) -> None:
    budget = own_budget(mia)
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(mia)

    answer = browser.post(
        f"/portal/acme/raises/new/{budget.pk}/", {"to": "500", "until": local(1), "reason": "x"}
    )

    assert answer.status_code == 403
    assert not RaiseRequest.objects.exists()


def test_the_pages_have_one_heading_landmarks_and_nothing_inline(acme: Tenant, mia: User) -> None:
    budget = own_budget(mia)
    request = ask(mia, budget, reason='<b onclick="x">')
    browser = a_browser(person("owner", acme))

    for page in ("", f"new/{budget.pk}/", f"{request.pk}/"):
        outline = Outline(browser.get(f"/portal/acme/raises/{page}").content.decode())
        assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
        assert outline.inline == []
