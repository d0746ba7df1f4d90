"""Prices are proposed from what a month cost, and nothing changes before somebody says yes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from threading import Barrier
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import tasks
from budgets.internal_prices import LEAST_TIMED_CALLS
from budgets.models import Price, PriceProposal
from budgets.money import price_told
from budgets.month_costs import month_costs
from budgets.price_proposals import (
    Answer,
    PriceFigures,
    accept_price,
    consider,
    decline_price,
    effect_in_words,
    effect_of,
    last_month,
    next_start,
    propose,
)
from budgets.services import set_price
from tenants.services import create_tenant
from tests.conftest import eventually
from tests.measuring import LLAMA, NOMIC, OCTOBER, a_dollar_an_hour, an_entry, book, calls, in_october
from tests.test_closed_months import somebody_waits

pytestmark = pytest.mark.django_db(transaction=True)

USD = 1_000_000
NOW = datetime(2026, 11, 3, 9, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
# Half a second for 1,000 tokens of prompt, a second for 50 of answer, at a dollar an hour.
AS_MEASURED = PriceFigures(input_price=138_889, output_price=5_555_556)


@pytest.fixture(autouse=True)
def _november() -> Iterator[None]:
    with time_machine.travel(NOW):
        yield


@pytest.fixture
def proposal() -> PriceProposal:
    """What is proposed for a model with enough calls on an upstream for a dollar an hour."""
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))
    propose(month=OCTOBER, actor="test")
    return PriceProposal.objects.get()


def figures_of(row: Price | PriceProposal) -> PriceFigures:
    return PriceFigures(row.input_price, row.cached_price, row.output_price, row.gpu_price)


def told(name: str, *arguments: str) -> Any:
    output = StringIO()
    call_command(name, *arguments, "--json", stdout=output)
    return json.loads(output.getvalue())


def test_a_proposal_tells_what_was_measured_and_what_it_cost(proposal: PriceProposal) -> None:
    assert figures_of(proposal) == AS_MEASURED
    assert (proposal.model, proposal.month, proposal.state) == (LLAMA, OCTOBER, "open")
    assert (proposal.calls, proposal.timed_calls) == (30, 30)
    assert (proposal.input_tokens, proposal.cached_tokens, proposal.output_tokens) == (30_000, 0, 1500)
    # 45 seconds at a dollar an hour.
    assert (proposal.gpu_ms, proposal.cost_micro_usd) == (45_000, 12_500)
    [cost] = proposal.costs
    assert (cost["upstream"], cost["since"], cost["before"]) == (
        "gpu-1",
        "2026-10-01T00:00:00+00:00",
        "2026-11-01T00:00:00+00:00",
    )
    assert (cost["hardware_price"], cost["life_months"]) == (36 * 744 * USD, 36)
    assert proposal.present is None
    event = AuditEvent.objects.get(action="price_proposal.made")
    assert (event.actor, event.subject, event.details["model"]) == ("test", str(proposal.pk), LLAMA)


def test_proposing_changes_no_price(proposal: PriceProposal) -> None:
    assert not Price.objects.exists()
    assert not AuditEvent.objects.filter(action="price.set").exists()


def test_a_repeat_changes_nothing(proposal: PriceProposal) -> None:
    [answer] = propose(month=OCTOBER, actor="test", again=True)

    assert (answer.proposal, answer.made) == (proposal, False)
    assert PriceProposal.objects.get().state == "open"
    assert AuditEvent.objects.filter(action__startswith="price_proposal").count() == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: book(an_entry()), id="usage that was booked late"),
        pytest.param(lambda: a_dollar_an_hour(other_per_month=USD), id="a cost that was corrected"),
        pytest.param(lambda: set_price(model=LLAMA, input_price=5, actor="test"), id="another present price"),
    ],
)
def test_what_is_worked_out_anew_makes_the_older_one_outdated(
    proposal: PriceProposal, change: Callable[[], object]
) -> None:
    change()

    [answer] = propose(month=OCTOBER, actor="olga")

    proposal.refresh_from_db()
    assert (proposal.state, proposal.decided_at is not None) == ("outdated", True)
    assert answer.made
    assert PriceProposal.objects.filter(state="open").get() == answer.proposal
    assert AuditEvent.objects.get(action="price_proposal.outdated").subject == str(proposal.pk)


def test_an_open_proposal_goes_when_no_price_follows_any_more(proposal: PriceProposal) -> None:
    set_price(model=LLAMA, free=True, actor="test")

    [answer] = propose(month=OCTOBER, actor="test")

    assert (answer.proposal, answer.reason) == (None, "It is free on purpose.")
    assert PriceProposal.objects.get().state == "outdated"


def test_a_later_month_takes_the_place_of_an_earlier_one_and_never_the_other_way(
    proposal: PriceProposal,
) -> None:
    book(*calls(LEAST_TIMED_CALLS, ended_at=datetime(2026, 11, 2, tzinfo=UTC)))
    with time_machine.travel(DECEMBER + timedelta(days=2)):
        propose(month=date(2026, 11, 1), actor="test")
        [answer] = propose(month=OCTOBER, actor="test", again=True)

    assert (answer.proposal, answer.reason) == (None, "November 2026 has been proposed already.")
    assert PriceProposal.objects.get(state="open").month == date(2026, 11, 1)
    proposal.refresh_from_db()
    assert proposal.state == "outdated"


def test_what_was_decided_is_proposed_anew_only_on_request_and_only_if_it_differs(
    proposal: PriceProposal,
) -> None:
    decline_price(proposal=proposal, actor="olga", reason="too dear")
    propose(month=OCTOBER, actor="test", again=True)
    assert PriceProposal.objects.get().state == "declined"
    book(an_entry())

    [left] = propose(month=OCTOBER, actor="test")
    [made] = propose(month=OCTOBER, actor="test", again=True)

    assert (left.proposal, left.made, left.reason) == (proposal, False, "It was declined already.")
    assert made.made
    assert {one.state for one in PriceProposal.objects.all()} == {"declined", "open"}


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        pytest.param({}, AS_MEASURED, id="none"),
        pytest.param({"input_price": 5, "output_price": 5}, AS_MEASURED, id="tokens"),
        pytest.param({"output_price": 5, "gpu_price": 5}, AS_MEASURED, id="tokens and time"),
        # A dollar for 3,600 seconds.
        pytest.param({"gpu_price": 5}, PriceFigures(gpu_price=278), id="time alone"),
    ],
)
def test_a_price_keeps_the_form_it_has(present: dict[str, Any], expected: PriceFigures) -> None:
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))
    if present:
        set_price(model=LLAMA, actor="test", starts_at=in_october(), **present)

    propose(month=OCTOBER, actor="test")

    proposal = PriceProposal.objects.get()
    assert figures_of(proposal) == expected
    assert (proposal.present is None) == (not present)
    if proposal.present is not None:
        assert {name: getattr(proposal.present, name) for name in present} == present


@pytest.mark.parametrize(
    ("booked", "cost", "reason"),
    [
        pytest.param(
            calls(3), {}, "Calls that tell how long prompt and answer took: 3 of 3; 30 are needed.", id="few"
        ),
        pytest.param(
            [*calls(100, prompt_ns=None, output_ns=None)],
            {},
            "Calls that tell how long prompt and answer took: 0 of 100; 30 are needed.",
            id="none that tells its times",
        ),
        pytest.param(calls(30), {"hardware_price": 0}, "It cost nothing.", id="an upstream for nothing"),
        pytest.param(calls(30, upstream="gpu-9"), {}, "No cost was entered for gpu-9.", id="no cost"),
        pytest.param(
            calls(30, input_tokens=1), {"hardware_price": 10**15, "life_months": 1},
            "It cost more than a price can be.", id="too dear",
        ),
        pytest.param(calls(30, model="Odd Name"), {}, "llama3.2:latest", id="a model nobody can price"),
    ],
)  # fmt: skip
def test_without_enough_to_go_by_nothing_is_proposed_and_the_reason_is_told(
    booked: list[Any], cost: dict[str, Any], reason: str
) -> None:
    a_dollar_an_hour(**cost)
    book(*booked)

    [answer] = propose(month=OCTOBER, actor="test")

    assert (answer.proposal, answer.made) == (None, False)
    assert reason in answer.reason
    assert not PriceProposal.objects.exists()


def test_a_month_that_is_not_over_is_not_proposed_from() -> None:
    with pytest.raises(ValidationError, match="November 2026 is not over"):
        propose(month=date(2026, 11, 1), actor="test")


def test_an_accepted_price_starts_with_the_next_month_once_and_with_its_audit(
    proposal: PriceProposal,
) -> None:
    price = accept_price(proposal=proposal, actor="olga", reason="as measured")
    again = accept_price(proposal=proposal, actor="eve", reason="me too")
    declined = decline_price(proposal=proposal, actor="eve", reason="no")

    assert price is not None
    assert (again, declined) == (None, False)
    assert Price.objects.get() == price
    assert (figures_of(price), price.model, price.tenant, price.starts_at) == (
        AS_MEASURED,
        LLAMA,
        None,
        DECEMBER,
    )
    proposal.refresh_from_db()
    assert (proposal.state, proposal.decided_by, proposal.reason) == ("accepted", "olga", "as measured")
    assert (proposal.price_id, proposal.starts_at) == (price.pk, DECEMBER)
    assert [event.action for event in AuditEvent.objects.filter(actor="olga").order_by("id")] == [
        "price_proposal.accepted",
        "price.set",
    ]
    assert not AuditEvent.objects.filter(actor="eve").exists()


def test_an_accepted_price_may_start_at_a_given_moment_that_has_not_passed(proposal: PriceProposal) -> None:
    with pytest.raises(ValidationError, match="starts now or later"):
        accept_price(proposal=proposal, actor="olga", reason="soon", starts_at=NOW - timedelta(days=1))
    assert PriceProposal.objects.get().state == "open"

    tomorrow = NOW + timedelta(days=1)
    price = accept_price(proposal=proposal, actor="olga", reason="soon", starts_at=tomorrow)

    assert price is not None
    assert price.starts_at == tomorrow


def test_a_declined_proposal_leaves_the_price_as_it_is(proposal: PriceProposal) -> None:
    assert decline_price(proposal=proposal, actor="olga", reason="too dear")

    assert accept_price(proposal=proposal, actor="eve", reason="yet") is None
    assert not Price.objects.exists()
    event = AuditEvent.objects.get(action="price_proposal.declined")
    assert (event.actor, event.reason) == ("olga", "too dear")


@pytest.mark.parametrize("decide", [accept_price, decline_price])
def test_a_decision_needs_a_reason(proposal: PriceProposal, decide: Callable[..., object]) -> None:
    with pytest.raises(ValidationError, match="Give a reason"):
        decide(proposal=proposal, actor="olga", reason=" ")
    assert PriceProposal.objects.get().state == "open"


def at_the_same_time(*doers: Callable[[], object]) -> list[object]:
    together = Barrier(len(doers))

    def do(doer: Callable[[], object]) -> object:
        try:
            together.wait(10)
            return doer()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(doers)) as threads:
        return [running.result() for running in [threads.submit(do, doer) for doer in doers]]


@pytest.mark.parametrize("number", range(5))
def test_of_those_who_accept_and_decline_at_once_one_wins(proposal: PriceProposal, number: int) -> None:
    done = at_the_same_time(
        *(lambda: accept_price(proposal=proposal, actor="olga", reason="yes") for _ in range(3)),
        *(lambda: decline_price(proposal=proposal, actor="eve", reason="no") for _ in range(3)),
    )

    assert sum(map(bool, done)) == 1
    proposal.refresh_from_db()
    assert Price.objects.count() == (proposal.state == "accepted")
    decisions = AuditEvent.objects.filter(action__in=["price_proposal.accepted", "price_proposal.declined"])
    assert decisions.get().action == f"price_proposal.{proposal.state}"


def test_two_who_propose_at_once_propose_once() -> None:
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))

    def propose_too() -> list[Answer]:
        try:
            return propose(month=OCTOBER, actor="test")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as other:
        with transaction.atomic():
            [first] = propose(month=OCTOBER, actor="test")
            proposing = other.submit(propose_too)
            eventually(somebody_waits)
        [second] = proposing.result()

    assert (first.made, second.made) == (True, False)
    assert first.proposal == second.proposal == PriceProposal.objects.get()


def test_the_effect_names_all_prices_that_meet(proposal: PriceProposal) -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    set_price(model=LLAMA, input_price=250_000, output_price=USD, actor="test", starts_at=in_october())
    set_price(model=LLAMA, input_price=1, actor="test", starts_at=DECEMBER)
    set_price(model=LLAMA, input_price=2, actor="test", starts_at=DECEMBER + timedelta(days=31))
    set_price(model=LLAMA, input_price=3, actor="test", tenant=acme)

    assert effect_in_words(proposal, effect_of(proposal)) == [
        f"From 2026-12-01 00:00 UTC on: {price_told(proposal)}.",
        "Until then: $0.25 in, $0.25 cached and $1 out for a million tokens, $0 for a second of GPU time.",
        "A price that was to start at that moment is replaced.",
        "Another price follows at 2027-01-01 00:00 UTC.",
        "Prices of their own stay: those of 1 tenants.",
    ]


def test_the_effect_of_a_first_price_and_after_a_free_one(proposal: PriceProposal) -> None:
    first = effect_in_words(proposal, effect_of(proposal))
    set_price(model=LLAMA, free=True, actor="test")
    after = effect_in_words(proposal, effect_of(proposal))

    assert (first[1:], after[1:]) == (["Until then there is no price."], ["Until then it is free."])


@pytest.mark.parametrize(
    ("moment", "proposed"),
    [
        pytest.param(datetime(2026, 11, 1, 23, tzinfo=UTC), False, id="the first day is left to late calls"),
        pytest.param(datetime(2026, 11, 2, tzinfo=UTC), True, id="the second"),
        pytest.param(datetime(2026, 11, 7, 23, tzinfo=UTC), True, id="the seventh"),
        pytest.param(datetime(2026, 11, 8, tzinfo=UTC), False, id="after that a person has to ask"),
    ],
)
def test_the_task_proposes_from_the_last_month_in_the_first_week(moment: datetime, proposed: bool) -> None:
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))

    with time_machine.travel(moment):
        tasks.propose_prices()

    assert PriceProposal.objects.filter(month=OCTOBER, proposed_by="tollgate").exists() is proposed


def test_the_task_proposes_once_and_leaves_what_people_propose_and_decide(proposal: PriceProposal) -> None:
    book(an_entry())

    tasks.propose_prices()

    assert PriceProposal.objects.get() == proposal


def test_the_task_has_nothing_to_say_where_no_cost_is_entered() -> None:
    book(*calls(LEAST_TIMED_CALLS))

    tasks.propose_prices()

    assert not PriceProposal.objects.exists()


def test_the_last_month_and_the_next_one_reach_over_the_end_of_a_year() -> None:
    with time_machine.travel(datetime(2027, 1, 1, tzinfo=UTC)):
        assert last_month() == date(2026, 12, 1)
    with time_machine.travel(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)):
        assert next_start() == datetime(2027, 1, 1, tzinfo=UTC)


UPDATES = [
    pytest.param({"input_price": 1}, "open", id="what is proposed"),
    pytest.param({"cost_micro_usd": 1}, "open", id="what was measured"),
    pytest.param(
        {"state": "open", "decided_at": None, "decided_by": "", "reason": ""}, "declined", id="taken back"
    ),
    pytest.param({"reason": "another"}, "declined", id="another reason"),
]


@pytest.mark.parametrize(("change", "state"), UPDATES)
def test_the_database_keeps_a_proposal_as_it_was(
    proposal: PriceProposal, change: dict[str, Any], state: str
) -> None:
    if state == "declined":
        decline_price(proposal=proposal, actor="olga", reason="no")

    with pytest.raises(IntegrityError), transaction.atomic():
        PriceProposal.objects.filter(pk=proposal.pk).update(**change)
    with pytest.raises(IntegrityError), transaction.atomic():
        PriceProposal.objects.filter(pk=proposal.pk).delete()


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        pytest.param({"state": "accepted"}, "decisions_say_who_and_why", id="accepted by nobody"),
        pytest.param({"state": "perhaps"}, "decisions_say_who_and_why", id="an unknown state"),
        pytest.param(
            {"state": "accepted", "decided_at": NOW, "decided_by": "a", "reason": "b"},
            "sets_a_price_when_accepted",
            id="accepted from never on",
        ),
        pytest.param({"starts_at": NOW}, "sets_a_price_when_accepted", id="open and in force"),
    ],
)
def test_the_database_keeps_decisions_whole(
    proposal: PriceProposal, change: dict[str, Any], constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=f"budgets_priceproposal_{constraint}"), transaction.atomic():
        PriceProposal.objects.filter(pk=proposal.pk).update(**change)


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        pytest.param({"month": date(2026, 10, 2)}, "month_is_its_first_day", id="a day"),
        pytest.param({"model": "Tiny"}, "model_is_canonical", id="another spelling"),
        pytest.param({"gpu_ms": 0}, "measured_something", id="nothing worked"),
        pytest.param({"timed_calls": 31}, "measured_something", id="more timed than there were"),
        pytest.param({"cached_price": 138_890}, "could_be_a_price", id="cached dearer than new"),
        pytest.param({"input_price": 0, "output_price": 0}, "could_be_a_price", id="for nothing"),
        pytest.param({"gpu_price": 10**6 + 1}, "could_be_a_price", id="more than can be counted"),
        pytest.param({}, "open_once_per_model", id="two open ones"),
    ],
)
def test_the_database_takes_no_proposal_that_cannot_be(
    proposal: PriceProposal, change: dict[str, Any], constraint: str
) -> None:
    values = {
        field.attname: getattr(proposal, field.attname) for field in PriceProposal._meta.concrete_fields
    }
    other = PriceProposal(**(values | {"id": None} | change))
    other.pk = PriceProposal().pk

    with pytest.raises(IntegrityError, match=f"budgets_priceproposal_{constraint}"), transaction.atomic():
        other.save(force_insert=True)


@given(
    watts=st.integers(0, 2000),
    sizes=st.lists(
        st.tuples(st.integers(1, 5000), st.integers(1, 5000), st.booleans()), min_size=30, max_size=40
    ),
)
def test_proposed_prices_bring_in_what_the_model_cost_and_less_than_a_micro_usd_a_million_more(
    watts: int, sizes: list[tuple[int, int, bool]]
) -> None:
    """Prices are rounded up, each once; a hypothesis of its own rolls back what it booked."""
    with transaction.atomic():
        a_dollar_an_hour(busy_watts=2000, idle_watts=watts, kwh_price=290_000)
        book(
            *calls(30),
            *(
                an_entry(input_tokens=tokens_in, output_tokens=tokens_out, prompt_ns=10**9 if timed else None)
                for tokens_in, tokens_out, timed in sizes
            ),
        )

        [considered] = consider(month_costs(OCTOBER))

        transaction.set_rollback(True)
    measured, figures = considered.measured, considered.figures
    assert figures is not None
    brought_in = (
        measured.use.input_tokens * figures.input_price + measured.use.output_tokens * figures.output_price
    )
    over = brought_in - measured.cost * USD
    assert 0 <= over < measured.use.input_tokens + measured.use.output_tokens


def test_the_commands_lead_from_a_month_to_a_price() -> None:
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS), an_entry(NOMIC))

    proposed = told("propose_prices", "--month", "2026-10")
    llama, nomic = proposed["models"]
    proposal_id = llama["proposal"]["proposal_id"]
    accepted = told("decide_price", proposal_id, "--accept", "--reason", "as measured")
    shown = told("show_internal_prices", "--month", "2026-10")

    assert (llama["made"], llama["reason"]) == (True, None)
    assert (nomic["made"], nomic["proposal"]) == (False, None)
    assert "1 of 1" in nomic["reason"]
    assert accepted["price_id"] == str(Price.objects.get().pk)
    assert (accepted["state"], accepted["starts_at"]) == ("accepted", "2026-12-01T00:00:00+00:00")
    assert accepted["input_micro_usd_per_million"] == 138_889
    assert [one["proposal_id"] for one in shown["proposals"]] == [proposal_id]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--accept", "--reason", "yes"], "no longer open: it was declined by olga", id="too late"
        ),
        pytest.param(["--decline", "--reason", "no"], "no longer open: it was declined by olga", id="twice"),
        pytest.param(
            ["--decline", "--reason", "no", "--from", "2027-01-01"], "goes with --accept", id="from when"
        ),
        pytest.param(
            ["--accept", "--reason", "yes", "--from", "2026-01-01"], "starts now or later", id="the past"
        ),
        pytest.param(["--accept", "--reason", ""], "Give a reason", id="for no reason"),
    ],
)
def test_the_command_says_why_a_decision_cannot_be_taken(
    proposal: PriceProposal, arguments: list[str], said: str
) -> None:
    decline_price(proposal=proposal, actor="olga", reason="no")

    with pytest.raises(CommandError, match=said):
        call_command("decide_price", str(proposal.pk), *arguments)
    assert not Price.objects.exists()


@pytest.mark.parametrize("name", ["no-id", "01a1fc8d-ff5d-7b1a-8660-9e23ad1d77cb"])
def test_the_command_says_that_there_is_no_such_proposal(name: str) -> None:
    with pytest.raises(CommandError, match="There is no proposal"):
        call_command("decide_price", name, "--accept", "--reason", "yes")
