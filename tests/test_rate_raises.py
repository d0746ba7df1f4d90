"""More of a rate limit for a while, as callers and people meet it: headers, refusals, asking, and the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import ledger, refused_calls, services
from budgets.models import LimitRaise, RaiseRequest, RateLimit
from budgets.refusal_explained import explain_refusal
from tenants import generations
from tenants.models import Generation, Member, User
from tests.conftest import Caller, House, eventually
from tests.people import a_browser, a_person
from tests.test_usage_pages import text_of


def limited(caller: Caller, measure: str, limit: int, **changes: Any) -> RateLimit:
    whose: dict[str, Any] = {"scope": "key", "key": caller.key} | changes
    return services.set_rate_limit(measure=measure, limit=limit, actor="test", **whose)


def raised(row: RateLimit, to: int, **changes: Any) -> LimitRaise:
    terms: dict[str, Any] = {"ends_at": now() + timedelta(hours=1), "reason": "a deadline", "actor": "test"}
    return services.raise_limit(row=row, to=to, **(terms | changes))


def limits_told(caller: Caller) -> str:
    """The limits of a caller, as every answer tells them."""
    return str(caller.http.get("/v1/models").headers.get("ratelimit-policy"))


def holds(caller: Caller, told: str) -> None:
    eventually(lambda: told in limits_told(caller))


def test_a_raise_of_a_rate_is_in_the_headers_and_gone_from_them_when_it_is_taken_back(house: House) -> None:
    row = limited(house.ada, "requests_per_minute", 1)
    holds(house.ada, '"key-requests-minute";q=1;')
    assert house.ada.chat().status_code == 200
    refused = house.ada.chat()
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-limit-requests"] == "1"

    granted = raised(row, 3)

    holds(house.ada, '"key-requests-minute";q=3;')
    let_through = house.ada.chat()
    assert let_through.status_code == 200
    # What came before the raise counts on.
    assert let_through.headers["x-ratelimit-remaining-requests"] == "1"
    services.take_back_raise(raised=granted, actor="test", reason="over")
    holds(house.ada, '"key-requests-minute";q=1;')
    assert house.ada.chat().status_code == 429


@pytest.mark.parametrize("measure", ["requests_per_minute", "tokens_per_minute", "concurrent_requests"])
def test_a_raise_ends_at_its_moment_without_anybody_doing_anything(house: House, measure: str) -> None:
    row = limited(house.ada, measure, 0)
    eventually(lambda: house.ada.chat().status_code == 429)
    raised(row, 100_000)
    eventually(lambda: house.ada.chat().status_code == 200)

    LimitRaise.objects.update(ends_at=now() + timedelta(seconds=3))
    generations.project()
    settled = Generation.objects.get(subject=house.acme.pk.hex).number

    eventually(lambda: house.ada.chat().status_code == 429)
    assert now() >= LimitRaise.objects.get().ends_at
    # Nothing has told the process: it knew the end beforehand.
    assert Generation.objects.get(subject=house.acme.pk.hex).number == settled


@pytest.fixture
def streams(house: House) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin_stream(house: House, streams: ExitStack, caller: Caller) -> None:
    """A call that runs until the test is over."""
    house.ollama.fault("silence-1-60000", times=1)
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello"}]}
    lines = streams.enter_context(caller.http.stream("POST", "/api/chat", json=body)).iter_lines()
    next(lines)
    # Kept: a generator that is thrown away ends its stream.
    streams.callback(lambda: lines)


def test_more_may_run_at_one_time_while_a_raise_holds(house: House, streams: ExitStack) -> None:
    row = limited(house.ada, "concurrent_requests", 1)
    eventually(lambda: house.ada.chat().headers.get("ratelimit-policy") is not None)
    begin_stream(house, streams, house.ada)
    assert house.ada.chat().status_code == 429

    granted = raised(row, 2)

    eventually(lambda: house.ada.chat().status_code == 200)
    services.take_back_raise(raised=granted, actor="test", reason="over")
    eventually(lambda: house.ada.chat().status_code == 429)


def explained(answer: Any) -> UUID:
    """The id of a refused call, once it can be read about."""
    request_id = UUID(answer.headers["x-request-id"])

    def found() -> object:
        ledger.drain()
        refused_calls.drain()
        return explain_refusal(request_id)

    eventually(found)
    return request_id


def local(days: float) -> str:
    return f"{now() + timedelta(days=days):%Y-%m-%dT%H:%M}"


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        pytest.param("requests_per_minute", "Ask for more requests a minute for member member", id="a rate"),
        pytest.param("concurrent_requests", "Ask for more requests at one time for member member", id="now"),
    ],
)
def test_who_was_refused_by_a_rate_asks_for_more_and_the_next_call_passes(
    house: House, streams: ExitStack, measure: str, words: str
) -> None:
    mia, owner = a_person("member", house.acme), a_person("owner", house.acme)
    assert isinstance(mia, User)
    member = Member.objects.get(user=mia)
    caller = house.caller(member=member)
    row = limited(caller, measure, 1, scope="member", key=None, member=member)
    eventually(lambda: "member" in limits_told(caller))
    begin_stream(house, streams, caller)
    refused = caller.chat()
    assert refused.status_code == 429
    request_id = explained(refused)
    browser, owners = a_browser(mia), a_browser(owner)

    page = browser.get(f"/portal/acme/refusals/{request_id}/").content.decode()
    there = f"/portal/acme/raises/new/{row.pk}/?request={request_id}"
    assert words in text_of(page)
    assert there in page
    form = browser.get(there).content.decode()
    # One more is what half as much again comes to, at least.
    assert 'value="2"' in form
    asked = browser.post(there, {"to": "9", "until": local(3), "reason": "the deadline"})
    request = RaiseRequest.objects.get()
    assert (asked.status_code, request.rate_limit, request.request_id) == (302, row, request_id)
    its_page = f"/portal/acme/raises/{request.pk}/"
    assert "1 request for more waits" in owners.get("/portal/acme/").content.decode()
    assert "Member member, requests" in text_of(owners.get(its_page).content.decode())
    # Less than was asked for, and for a shorter time.
    granting = {"act": "grant", "to": "5", "until": local(2), "answer": "Take it."}
    assert owners.post(its_page, granting).status_code == 302

    eventually(lambda: caller.chat().status_code == 200)
    standing = text_of(browser.get("/portal/acme/limits/").content.decode())
    assert "5 raised from 1 until" in standing
    assert "State granted, owner" in text_of(browser.get(its_page).content.decode())
    assert list(AuditEvent.objects.order_by("id").values_list("action", "actor"))[-3:] == [
        ("raise.requested", "member"), ("rate_limit.raised", "owner"), ("raise.request_granted", "owner"),
    ]  # fmt: skip


def test_a_refusal_offers_no_more_of_a_limit_that_is_gone_or_limits_nothing(house: House) -> None:
    row = limited(house.ada, "requests_per_minute", 0)
    other = limited(house.ada, "tokens_per_minute", 0)
    eventually(lambda: "tokens-minute" in limits_told(house.ada))
    request_id = explained(house.ada.chat())
    found = explain_refusal(request_id)
    assert found is not None
    assert {one.row for one in found.may_be_raised} == {row, other}

    services.remove_rate_limit(rate_limit=row, actor="test")
    limited(house.ada, "tokens_per_minute", None)  # type: ignore[arg-type]  # no limit, only counted

    found = explain_refusal(request_id)
    assert found is not None
    assert found.may_be_raised == []
