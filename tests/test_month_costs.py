"""What a month cost: the costs entered for upstreams, held against what the ledger says they did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from io import StringIO
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TransactionTestCase

from audit.models import AuditEvent
from budgets.internal_prices import Use
from budgets.models import UpstreamCost
from budgets.month_costs import month_bounds, month_costs
from budgets.price_report import notes, report_of
from budgets.services import remove_upstream_cost
from tests.measuring import (
    HOURS_OF_OCTOBER,
    LLAMA,
    NOMIC,
    OCTOBER,
    a_dollar_an_hour,
    an_entry,
    book,
    calls,
    in_october,
)

pytestmark = pytest.mark.django_db(transaction=True)

USD = 1_000_000
START = datetime(2026, 10, 1, tzinfo=UTC)
END = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _november() -> Iterator[None]:
    with time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)):
        yield


def told(name: str, *arguments: str) -> Any:
    output = StringIO()
    call_command(name, *arguments, "--json", stdout=output)
    return json.loads(output.getvalue())


def test_the_hours_of_a_month_are_paid_for_by_those_who_worked_and_the_rest_is_idle() -> None:
    a_dollar_an_hour()
    book(an_entry(gpu_ms=60 * 3_600_000), an_entry(NOMIC, gpu_ms=33 * 3_600_000))

    costs = month_costs(OCTOBER)

    [upstream] = costs.upstreams
    assert upstream.capacity_ms == upstream.seconds * 1000 == HOURS_OF_OCTOBER * 3_600_000
    assert (upstream.busy_micro_usd, upstream.idle_micro_usd) == (93 * USD, 651 * USD)
    assert (upstream.idle_per_mille, upstream.total_micro_usd) == (875, HOURS_OF_OCTOBER * USD)
    assert [(one.model, one.cost, one.loaded) for one in costs.models] == [
        (LLAMA, Fraction(60 * USD), Fraction(HOURS_OF_OCTOBER * USD * 60, 93)),
        (NOMIC, Fraction(33 * USD), Fraction(HOURS_OF_OCTOBER * USD * 33, 93)),
    ]


@pytest.mark.parametrize(
    ("ended_at", "within"),
    [
        pytest.param(START, True, id="its first instant"),
        pytest.param(END - timedelta(microseconds=1), True, id="its last one"),
        pytest.param(START - timedelta(microseconds=1), False, id="the one before"),
        pytest.param(END, False, id="the one after"),
    ],
)
def test_a_call_belongs_to_the_month_of_utc_in_which_it_ended(ended_at: datetime, within: bool) -> None:
    a_dollar_an_hour()
    book(an_entry(ended_at=ended_at))

    assert bool(month_costs(OCTOBER).models) is within


def test_a_cost_holds_from_its_start_until_the_next_one_of_its_upstream() -> None:
    """The first ten days a dollar an hour, then two; another upstream changes at another time."""
    a_dollar_an_hour()
    a_dollar_an_hour(hardware_price=72 * HOURS_OF_OCTOBER * USD, starts_at=START + timedelta(days=10))
    a_dollar_an_hour("gpu-2", starts_at=START + timedelta(days=20))
    hour = 3_600_000
    book(
        an_entry(gpu_ms=24 * hour, ended_at=in_october(5)),
        an_entry(gpu_ms=24 * hour, ended_at=in_october(11, 0)),
        an_entry(gpu_ms=24 * hour, ended_at=in_october(25)),
        an_entry(gpu_ms=24 * hour, ended_at=in_october(25), upstream="gpu-2"),
    )

    costs = month_costs(OCTOBER)

    first, second = costs.upstreams
    assert first.total == (240 + 2 * 504) * USD
    assert first.busy == (24 + 48 + 48) * USD
    assert second.total == 264 * USD
    assert second.busy == 24 * USD
    [model] = costs.models
    assert model.cost == 144 * USD
    assert [(one.cost.upstream, one.since.day, one.before.day) for one in model.costs] == [
        ("gpu-1", 1, 11), ("gpu-1", 11, 21), ("gpu-1", 21, 1), ("gpu-2", 21, 1),
    ]  # fmt: skip


def test_what_was_used_before_there_was_a_cost_is_told_apart() -> None:
    a_dollar_an_hour(starts_at=in_october(20, 0))
    book(
        an_entry(ended_at=in_october(19)),
        an_entry(ended_at=in_october(20)),
        an_entry(NOMIC, upstream="gpu-old"),
    )

    report = report_of(OCTOBER)

    by_name = {one.upstream: one for one in report.costs.upstreams}
    assert by_name["gpu-1"].seconds == 12 * 24 * 3600
    assert (by_name["gpu-1"].gpu_ms, by_name["gpu-1"].without_cost.gpu_ms) == (1500, 1500)
    assert (by_name["gpu-old"].total_micro_usd, by_name["gpu-old"].without_cost.calls) == (0, 1)
    llama, nomic = report.costs.models
    assert (llama.use.calls, llama.without_cost.calls) == (1, 1)
    assert (nomic.use, nomic.cost_micro_usd, nomic.upstreams_without_cost) == (Use(), 0, {"gpu-old"})
    assert notes(report) == [
        "gpu-1: calls that ended while no cost was entered for it, and are in no figure: 1.",
        "gpu-old: calls that ended while no cost was entered for it, and are in no figure: 1.",
        f"{LLAMA}: no price follows. Calls that tell how long prompt and answer took: 1 of 1; 30 are needed.",
        f"{NOMIC}: no price follows. No cost was entered for gpu-old.",
    ]


def test_an_upstream_that_is_gone_and_costs_nothing_is_not_told_of() -> None:
    a_dollar_an_hour(hardware_price=0)

    assert month_costs(OCTOBER).upstreams == []


def test_an_upstream_that_nobody_used_is_idle_to_the_last_cent() -> None:
    a_dollar_an_hour()

    [upstream] = month_costs(OCTOBER).upstreams

    assert (upstream.busy_micro_usd, upstream.idle_micro_usd, upstream.idle_per_mille) == (
        0,
        HOURS_OF_OCTOBER * USD,
        1000,
    )


def test_calls_side_by_side_leave_nothing_idle_and_cost_no_more_than_the_hours() -> None:
    a_dollar_an_hour()
    book(
        an_entry(gpu_ms=2 * HOURS_OF_OCTOBER * 3_600_000),
        an_entry(NOMIC, gpu_ms=HOURS_OF_OCTOBER * 3_600_000),
    )

    report = report_of(OCTOBER)

    [upstream] = report.costs.upstreams
    assert (upstream.busy_micro_usd, upstream.idle_micro_usd) == (HOURS_OF_OCTOBER * USD, 0)
    assert [one.cost for one in report.costs.models] == [
        HOURS_OF_OCTOBER * USD * 2 / 3,
        HOURS_OF_OCTOBER * USD / 3,
    ]
    assert "add up to 2232.0 GPU hours, more than it has." in notes(report)[0]


def test_only_exact_calls_that_told_all_their_times_count_as_timed() -> None:
    a_dollar_an_hour()
    book(
        an_entry(),
        an_entry(cached_tokens=1000, prompt_ns=None),
        an_entry(output_tokens=0, output_ns=None),
        an_entry(cached_tokens=400),
        an_entry(exact=False),
        an_entry(prompt_ns=None),
        an_entry(output_ns=None),
        an_entry(requests=0, input_tokens=0, output_tokens=0, gpu_ms=0),
    )

    [model] = month_costs(OCTOBER).models

    assert (model.use.calls, model.use.timed_calls) == (7, 4)
    assert (model.use.timed_input_tokens, model.use.timed_output_tokens) == (1000 + 0 + 1000 + 600, 150)
    assert (model.use.prompt_ns, model.use.output_ns) == (1_500_000_000, 3_000_000_000)
    assert (model.use.fresh_tokens, model.use.gpu_ms) == (7000 - 1400, 10_500)


def test_adjustments_and_corrections_count_and_never_make_less_than_nothing() -> None:
    a_dollar_an_hour()
    minus: dict[str, Any] = {"requests": 0, "input_tokens": -300, "output_tokens": 0, "gpu_ms": -500}
    request = an_entry()
    book(
        request,
        an_entry(request_id=request.request_id, kind="adjustment", **minus),
        an_entry(NOMIC, kind="adjustment", **minus),
    )

    [model] = month_costs(OCTOBER).models

    assert (model.use.input_tokens, model.use.gpu_ms) == (700, 1000)


def test_the_present_month_is_told_as_far_as_it_is_over() -> None:
    a_dollar_an_hour()
    with time_machine.travel(START + timedelta(days=3), tick=False):
        report = report_of(OCTOBER)

    [upstream] = report.costs.upstreams
    assert upstream.total_micro_usd == upstream.seconds * USD / 3600 == 72 * USD
    assert notes(report)[0] == "October 2026 is not over: this is what it cost so far."


def test_a_month_ends_where_the_next_one_begins_over_the_end_of_a_year() -> None:
    assert month_bounds(datetime(2026, 12, 9, tzinfo=UTC).date()) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


class TestSums(TransactionTestCase):
    """What is in the database, whatever it is, adds up."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["gpu-1", "gpu-2", "gpu-3"]),
                st.integers(1, 31),
                st.integers(0, 10**10),
                st.integers(1, 100),
                st.integers(0, 900),
            ),
            max_size=5,
            unique_by=lambda cost: cost[:2],
        ),
        st.lists(
            st.tuples(
                st.sampled_from(["gpu-1", "gpu-2", "gpu-3", "gpu-4"]),
                st.sampled_from([LLAMA, NOMIC, "tiny:1b"]),
                st.integers(1, 31),
                st.integers(0, 2 * 10**9),
            ),
            max_size=12,
        ),
    )
    def test_models_and_idle_time_are_all_of_the_cost(
        self, entered: list[tuple[str, int, int, int, int]], worked: list[tuple[str, str, int, int]]
    ) -> None:
        for upstream, day, price, life, watts in entered:
            a_dollar_an_hour(
                upstream, starts_at=in_october(day), hardware_price=price, life_months=life,
                busy_watts=1000, idle_watts=watts, kwh_price=333_333,
            )  # fmt: skip
        book(
            *(
                an_entry(model, upstream=name, ended_at=in_october(day), gpu_ms=ms)
                for name, model, day, ms in worked
            )
        )

        costs = month_costs(OCTOBER)

        total = sum((one.total for one in costs.upstreams), Fraction())
        assert sum(one.cost for one in costs.models) + sum(one.idle for one in costs.upstreams) == total
        whole = sum(one.cost_micro_usd for one in costs.models)
        assert whole + sum(one.idle_micro_usd for one in costs.upstreams) == sum(
            one.total_micro_usd for one in costs.upstreams
        )
        assert all(abs(one.total - one.total_micro_usd) <= Fraction(1, 2) for one in costs.upstreams)
        priced = sum(one.use.gpu_ms + one.without_cost.gpu_ms for one in costs.models)
        assert priced == sum(ms for *_, ms in worked)


def test_a_cost_is_entered_by_a_command_with_its_audit_event_and_replaced_at_the_same_start() -> None:
    arguments = (
        "--upstream", "gpu-1", "--hardware", "24000", "--life", "48", "--busy-watts", "1400",
        "--idle-watts", "180", "--kwh", "0.30", "--gpus", "2", "--from", "2026-10-01",
    )  # fmt: skip

    first = told("set_upstream_cost", *arguments, "--other", "120")
    again = told("set_upstream_cost", *arguments, "--other", "130")

    cost = UpstreamCost.objects.get()
    assert first["upstream_cost_id"] == again["upstream_cost_id"] == str(cost.pk)
    assert (cost.hardware_price, cost.kwh_price, cost.other_per_month) == (24_000 * USD, 300_000, 130 * USD)
    assert (cost.busy_watts, cost.idle_watts, cost.gpus, cost.life_months) == (1400, 180, 2, 48)
    assert cost.starts_at == START
    event = AuditEvent.objects.filter(action="upstream_cost.set").latest("id")
    assert (event.subject, event.details["upstream"]) == (str(cost.pk), "gpu-1")
    assert event.details["other_per_month"] == 130 * USD
    assert event.details["before"]["other_per_month"] == 120 * USD


def test_a_cost_that_is_removed_leaves_the_one_before_it_and_a_trace() -> None:
    a_dollar_an_hour()
    removed = a_dollar_an_hour(hardware_price=0, starts_at=START)

    remove_upstream_cost(cost=removed, actor="olga")

    assert month_costs(OCTOBER).upstreams[0].total == HOURS_OF_OCTOBER * USD
    event = AuditEvent.objects.get(action="upstream_cost.removed")
    assert (event.actor, event.details["before"]["life_months"]) == ("olga", removed.life_months)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        pytest.param({"upstream": ""}, "names_its_upstream", id="of nothing"),
        pytest.param({"hardware_price": -1}, "in_range", id="less than nothing"),
        pytest.param({"hardware_price": 10**15 + 1}, "in_range", id="more than there is"),
        pytest.param({"life_months": 0}, "in_range", id="no life"),
        pytest.param({"gpus": 0}, "in_range", id="no GPU"),
        pytest.param({"kwh_price": -1}, "in_range", id="power for less than nothing"),
        pytest.param({"other_per_month": -1}, "in_range", id="other cost below nothing"),
        pytest.param({"busy_watts": 10**6 + 1}, "in_range", id="a power station"),
        pytest.param({"busy_watts": 5, "idle_watts": 6}, "idle_draws_no_more_than_busy", id="swapped watts"),
    ],
)
def test_a_cost_that_cannot_be_is_refused_by_the_service_and_by_the_database(
    changes: dict[str, Any], constraint: str
) -> None:
    with pytest.raises(ValidationError):
        a_dollar_an_hour(**changes)

    row = UpstreamCost(upstream="gpu-1", starts_at=now())
    for name, value in changes.items():
        setattr(row, name, value)
    with pytest.raises(IntegrityError, match=f"budgets_upstreamcost_{constraint}"), transaction.atomic():
        row.save(force_insert=True)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--life", "0"], id="no life"),
        pytest.param(["--life", "48", "--hardware", "lots"], id="no amount"),
        pytest.param(["--life", "48", "--kwh", "0.0000001"], id="less than a millionth"),
        pytest.param(["--life", "48", "--from", "soon"], id="no moment"),
        pytest.param(["--life", "48", "--upstream", "gpu 1"], id="no name of an upstream"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_dollar_an_hour(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("set_upstream_cost", "--upstream", "gpu-1", *arguments)
    assert not UpstreamCost.objects.exists()


@pytest.mark.parametrize("month", ["2026-13", "2026-1", "october", "0000-01", "9999-12", "2026-10-01"])
def test_the_report_says_what_is_no_month(month: str) -> None:
    with pytest.raises(CommandError):
        call_command("show_internal_prices", "--month", month)


def test_the_report_for_programs_adds_up() -> None:
    a_dollar_an_hour(busy_watts=999, kwh_price=333_333)
    book(*calls(40), *calls(7, NOMIC, output_tokens=0, output_ns=None, gpu_ms=501))

    report = told("show_internal_prices", "--month", "2026-10")

    [upstream] = report["upstreams"]
    assert upstream["cost_micro_usd"] == upstream["busy_micro_usd"] + upstream["idle_micro_usd"]
    assert upstream["busy_micro_usd"] == sum(upstream["busy_micro_usd_by_model"].values())
    assert upstream["measured_gpu_ms"] == 40 * 1500 + 7 * 501
    llama, nomic = report["models"]
    assert upstream["busy_micro_usd_by_model"] == {
        LLAMA: llama["cost_micro_usd"], NOMIC: nomic["cost_micro_usd"],
    }  # fmt: skip
    # 20 ms for a token of output, half of one for a token of input.
    cost = llama["cost"]
    assert round(cost["micro_usd_per_million_output"] / cost["micro_usd_per_million_input"]) == 40
    assert llama["cost_with_idle"]["nano_usd_per_gpu_second"] > llama["cost"]["nano_usd_per_gpu_second"]
    assert (nomic["cost"]["micro_usd_per_million_input"], nomic["present_price"]) == (None, None)
    assert "took: 7 of 7" in nomic["reason"]


def test_a_month_of_which_nothing_is_known_is_said_to_be_empty() -> None:
    output = StringIO()

    call_command("show_internal_prices", "--month", "2026-10", stdout=output)

    assert output.getvalue() == "No upstream has a cost, and none was used.\n"
