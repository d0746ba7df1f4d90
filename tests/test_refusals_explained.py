"""Why a call was refused: what is kept of it, what people are told, and who gets to read it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.utils.timezone import now

from audit.models import RequestEvent
from budgets import ledger, refused_calls, services
from budgets.models import RefusedCall
from budgets.refusal_explained import Answer, Explained, explain_refusal
from budgets.refusal_reasons import QUESTIONS, REASONS, Asked
from proxy.errors import ANSWERS, INTERNAL, UPSTREAM_REFUSED
from tenants.models import Member
from tests.conftest import House, eventually
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.test_usage_pages import text_of

YES, NO, NOT_ASKED, UNTOLD = Answer.YES, Answer.NO, Answer.NOT_ASKED, Answer.UNTOLD


def request_id_of(answer: Any) -> UUID:
    return UUID(answer.headers["x-request-id"])


def explained(answer: Any) -> Explained:
    """Why a call was refused, once that is written down."""

    def found() -> Explained | None:
        ledger.drain()
        refused_calls.drain()
        return explain_refusal(request_id_of(answer))

    explanation: Explained = eventually(found)
    return explanation


def said_no(explanation: Explained) -> Asked:
    (asked,) = (one.asked for one in explanation.questions if one.answer == NO)
    return asked


def test_every_code_of_the_gateway_has_a_reason_and_no_other_has() -> None:
    codes = {answer.code for answer in (*ANSWERS.values(), *UPSTREAM_REFUSED.values(), INTERNAL)}

    assert set(REASONS) == codes
    assert set(QUESTIONS) == set(Asked)


def test_each_limit_is_told_as_it_stood_when_the_call_came(house: House) -> None:
    platform = services.set_budget(scope="platform", unit="requests", period="month", limit=50, actor="test")
    services.set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=1000, actor="test")
    services.set_rate_limit(
        scope="tenant", tenant=house.acme, measure="requests_per_minute", limit=9, actor="test"
    )
    assert house.ada.chat("hi", options={"num_predict": 5}).status_code == 200
    (booked,) = house.booked()

    refused = explained(house.ada.chat("x" * 900))

    assert refused.event.refusal == "insufficient_quota"
    assert [one.scope for one in refused.limits] == ["platform", "tenant", "key"]
    first, rate, own = refused.limits
    assert (first.used, first.held, first.left, first.refused) == (1, 0, 49, False)
    assert first.row == platform
    assert (rate.kind, rate.used, rate.needed, rate.refused) == ("rate", 1, 1, False)
    assert own.used == booked.input_tokens + booked.output_tokens
    assert own.left == own.limit - own.used
    assert own.refused
    assert own.needed > own.left
    assert own.back_at is not None
    assert own.back_at > now()
    assert refused.may_be_raised == [own]
    assert [one.answer for one in refused.questions] == [YES] * 8 + [NO, NOT_ASKED]


def test_what_comes_later_does_not_change_what_was_told(house: House) -> None:
    budget = services.set_budget(
        scope="key", key=house.ada.key, unit="requests", period="day", limit=0, actor="test"
    )
    refused = house.ada.chat()
    before = explained(refused)

    services.set_budget(scope="key", key=house.ada.key, unit="requests", period="day", limit=7, actor="test")
    assert explained(refused).limits == before.limits
    services.remove_budget(budget=budget, actor="test")

    (limit,) = explained(refused).limits
    assert (limit.limit, limit.needed, limit.refused, limit.row) == (0, 1, True, None)


def test_a_shadow_limit_is_told_as_one_that_would_have_refused(house: House) -> None:
    whose: dict[str, Any] = {"scope": "key", "key": house.ada.key, "unit": "requests", "actor": "test"}
    services.set_budget(period="day", limit=0, **whose)
    services.set_budget(period="month", limit=0, shadow=True, **whose)

    found = explained(house.ada.chat())

    assert {(one.window, one.hard, one.refused) for one in found.limits} == {
        ("day", True, True), ("month", False, True),
    }  # fmt: skip
    assert [one.window for one in found.may_be_raised] == ["day"]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        pytest.param({"model": "nobody"}, Asked.MODEL, id="no such model"),
        pytest.param({"messages": "hello"}, Asked.REQUEST, id="a request that is none"),
        pytest.param({"options": {"num_ctx": "x"}}, Asked.REQUEST, id="a field that is wrong"),
    ],
)
def test_the_question_that_got_the_no_is_the_last_one_asked(
    house: House, body: dict[str, Any], asked: Asked
) -> None:
    found = explained(house.ada.chat(**body))

    assert said_no(found) == asked
    assert [one.answer for one in found.questions] == [
        YES if one < asked else NO if one == asked else NOT_ASKED for one in Asked
    ]
    assert found.limits == []
    assert found.told


def test_the_models_that_the_key_could_call_then_are_told(house: House) -> None:
    bob = house.caller(models=["tiny:1b"], allow_all_models=False)

    found = explained(bob.chat(model="small"))

    assert found.models == ["tiny:1b"]
    assert explained(house.ada.chat(model="nobody")).models is None


def test_what_the_key_could_be_used_for_and_from_then_is_told(house: House) -> None:
    narrow = house.caller(scopes=["embeddings"])
    elsewhere = house.caller(address_blocks=["192.0.2.0/24"])

    found = [explained(caller.chat()) for caller in (narrow, elsewhere)]

    assert [said_no(one) for one in found] == [Asked.PERMIT] * 2
    assert found[0].endpoints == ["embeddings"]
    assert found[1].networks == ["192.0.2.0/24"]
    assert [one.field for one in found] == ["", ""]


def test_a_kill_switch_is_told_as_it_was_after_it_was_lifted(house: House) -> None:
    switch = services.arm_kill_switch(
        scope="tenant", tenant=house.acme, actor="olga", reason="secret reason", message="Back at noon."
    )
    refused = house.ada.chat()
    services.lift_kill_switch(switch=switch, actor="olga", reason="over")
    services.arm_kill_switch(scope="tenant", tenant=house.acme, actor="olga", reason="another", message="?")

    found = explained(refused)

    assert said_no(found) == Asked.STOPPED
    assert [one.message for one in found.switches] == ["Back at noon."]


def test_a_call_that_failed_after_it_was_let_through_says_so(house: House) -> None:
    house.ollama.fault("status-500")

    found = explained(house.ada.chat())

    assert found.event.refusal == "upstream_failed"
    assert said_no(found) == Asked.ANSWER
    assert [one.answer for one in found.questions][:-1] == [YES] * 9


def test_nothing_that_a_client_said_is_kept_but_names_of_fields(house: House) -> None:
    house.ada.chat("a heron", **{"my secret": 1, "My Secret": 2})
    house.ada.chat("a heron", model="nobody")

    def kept() -> list[RefusedCall]:
        refused_calls.drain()
        return list(RefusedCall.objects.all())

    eventually(lambda: len(kept()) == 2)
    assert not [one for one in kept() if "heron" in str(one.facts) or "secret" in str(one.facts).lower()]


def test_notes_of_a_release_that_noted_no_values_are_read_all_the_same(house: House) -> None:
    found = explained(house.ada.chat(model="nobody"))
    RefusedCall.objects.all().delete()

    again = explain_refusal(found.event.request_id)

    assert again is not None
    assert not again.told
    assert said_no(again) == Asked.MODEL


def test_values_are_forgotten_after_their_time_and_the_refusal_is_not(house: House) -> None:
    found = explained(house.ada.chat(model="nobody"))
    day = timedelta(days=1)

    with time_machine.travel(now() + refused_calls.KEPT - day, tick=False):
        assert refused_calls.forget() == 0
    with time_machine.travel(now() + refused_calls.KEPT + day, tick=False):
        assert refused_calls.forget() == 1

    assert not RefusedCall.objects.exists()
    assert RequestEvent.objects.filter(pk=found.event.request_id).exists()


def test_calls_that_are_let_through_leave_no_such_row(house: House) -> None:
    assert house.ada.chat().status_code == 200
    house.booked()
    refused_calls.drain()

    assert not RefusedCall.objects.exists()


READERS = (ROLES | OPERATORS) - {"member"}


@pytest.mark.parametrize("who", EVERYBODY)
def test_each_page_opens_for_those_who_may_read_it(house: House, who: str) -> None:
    found = explained(house.ada.chat(model="nobody"))
    browser = a_browser(a_person(who, house.acme))

    listed = browser.get("/portal/acme/refusals/")
    page = browser.get(f"/portal/acme/refusals/{found.event.request_id}/")

    assert listed.status_code == (200 if who in ROLES | OPERATORS else 302 if who in UNKNOWN else 404)
    assert page.status_code == (200 if who in READERS else 302 if who in UNKNOWN else 404)
    assert (str(found.event.request_id) in listed.content.decode()) == (who in READERS)


def test_a_member_reads_of_their_own_keys_and_nothing_of_others(house: House) -> None:
    browser = a_browser(a_person("member", house.acme))
    mine = house.caller(member=Member.objects.get(tenant=house.acme))
    own, other = explained(mine.chat(model="nobody")), explained(house.ada.chat(model="nobody"))

    listed = browser.get("/portal/acme/refusals/").content.decode()

    assert str(own.event.request_id) in listed
    assert str(other.event.request_id) not in listed
    assert browser.get(f"/portal/acme/refusals/{own.event.request_id}/").status_code == 200
    foreign = browser.get(f"/portal/acme/refusals/{other.event.request_id}/")
    nobodys = browser.get(f"/portal/acme/refusals/{UUID(int=1)}/")
    assert foreign.status_code == nobodys.status_code == 404
    assert text_of(foreign.content.decode()).replace(str(other.event.request_id), "?") == text_of(
        nobodys.content.decode()
    ).replace(str(UUID(int=1)), "?")


def test_nothing_of_another_tenant_is_told(house: House) -> None:
    found = explained(house.ada.chat(model="nobody"))
    stranger = a_browser(a_person("foreign owner", house.acme))

    assert stranger.get(f"/portal/globex/refusals/{found.event.request_id}/").status_code == 404
    assert str(found.event.request_id) not in stranger.get("/portal/globex/refusals/").content.decode()


def test_the_page_says_which_limit_refused_and_leads_to_asking_for_more(house: House) -> None:
    budget = services.set_budget(
        scope="key", key=house.ada.key, unit="micro_usd", period="day", limit=500, actor="test"
    )
    services.set_price(model="tiny:1b", output_price=10**9, actor="test")
    found = explained(house.ada.chat())
    browser = a_browser(a_person("owner", house.acme))

    page = browser.get("/portal/acme/refusals/", {"request": str(found.event.request_id)}, follow=True)

    told = text_of(page.content.decode())
    assert "A budget had not enough left" in told
    assert "key-micro-usd-day US dollars, a day $0.00 $0.00 $0.000500 $0.000500 $0.001000" in told
    assert "✗ refused" in told
    ask = f"/portal/acme/raises/new/{budget.pk}/?request={found.event.request_id}"
    assert ask in page.content.decode()
    assert browser.get(ask).status_code == 200


def test_a_request_that_was_answered_is_said_not_to_be_refused(house: House) -> None:
    answer = house.ada.chat()
    house.booked()
    browser = a_browser(a_person("owner", house.acme))

    page = browser.get(f"/portal/acme/refusals/{request_id_of(answer)}/")

    assert "This request was not refused" in page.content.decode()


@pytest.mark.parametrize("wanted", ["nonsense", "<script>", str(UUID(int=7))])
def test_an_id_that_is_none_gets_the_answer_of_one_that_nobody_knows(house: House, wanted: str) -> None:
    browser = a_browser(a_person("owner", house.acme))

    page = browser.get("/portal/acme/refusals/", {"request": wanted}, follow=True)

    assert page.status_code == 404
    assert "No such request" in page.content.decode()
    assert "<script>" not in page.content.decode()


def test_the_pages_have_one_heading_landmarks_and_nothing_inline(house: House) -> None:
    services.set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=0, actor="test")
    found = explained(house.ada.chat())
    browser = a_browser(a_person("owner", house.acme))

    for page in ("", f"{found.event.request_id}/", f"{UUID(int=1)}/"):
        outline = Outline(browser.get(f"/portal/acme/refusals/{page}").content.decode())
        assert [outline.tags.count(tag) for tag in ("h1", "nav", "main", "footer")] == [1, 1, 1, 1]
        assert outline.inline == []
