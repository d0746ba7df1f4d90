"""What a release leaves in Redis that wrote a hold as a hash and a record as five fields."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from budgets import ledger
from budgets.counters import SETTLED, STOPS, USAGE, hold_key
from budgets.heartbeats import Heartbeats, Progress
from budgets.holds import holds_of
from budgets.models import LedgerEntry
from budgets.reservations import Reservation, reserve, settle
from budgets.running_calls import ask_to_end, running_call, running_calls
from budgets.settlements import Moments, Settlement, settlement
from budgets.sweeping import sweep
from tests.counting import (
    a_budget,
    a_demand,
    a_rate,
    ada,
    as_fields_of_the_release_before,
    change_hold,
    concurrency,
    empty_redis,
    expire_hold,
    figures,
    open_holds,
    records,
    redis,
    some_usage,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def admitted(*limits: Any, **demand: Any) -> Reservation:
    """A call that the release before has admitted."""
    reservation = asyncio.run(reserve(ada(*limits), a_demand(**demand)))
    make_old(reservation)
    return reservation


def make_old(reservation: Reservation) -> None:
    (hold,) = holds_of([reservation.request_id])
    assert hold is not None
    key = hold_key(reservation.request_id)
    redis().delete(key)
    redis().hset(
        key,
        mapping={
            "state": "held",
            "call": hold.call,
            "cap": hold.output_cap,
            "capped": 0,
            "amounts": " ".join(map(str, hold.amounts)),
            "gpu": hold.gpu_ms,
            "admitted": hold.admitted_ms,
            "output": hold.output_tokens,
            "phase": "" if hold.phase == "silent" else hold.phase,
        },
    )


def leave_mark(reservation: Reservation, **fields: Any) -> None:
    """What the release before put in the place of a hold whose call had ended."""
    key = hold_key(reservation.request_id)
    redis().delete(key)
    redis().hset(key, mapping=fields)
    redis().expire(key, 7200)


def ending(reservation: Reservation, *, held: bool = True) -> Settlement:
    """The end of a call by its owner, or without ``held`` as the spool kept it."""
    end = settlement(
        request_id=str(reservation.request_id),
        mode="settle",
        call=reservation.call,
        counters=reservation.counters,
        price=None,
        input_bound=reservation.demand.input_tokens,
        output_cap=reservation.output_cap,
        gpu_cap_ms=None,
        admitted_ms=reservation.admitted_at_ms,
        usage=some_usage(7, 20),
        outcome="completed",
        status=200,
        moments=Moments(),
        held=reservation.held(),
    )
    return end if held else Settlement.from_json(end.as_json())


@pytest.mark.parametrize("held", [True, False], ids=["by its owner", "by the spool"])
def test_a_call_that_it_admitted_is_booked_once(*, held: bool) -> None:
    limits = a_budget(1000), a_rate(1000, "tokens"), concurrency(1)
    end = ending(admitted(*limits), held=held)

    assert [end.book_now() for _ in range(3)] == ["usage", "ended", "ended"]

    assert [figures(limit) for limit in limits] == [(27, 0), (27, 0), (0, 0)]
    assert open_holds() == []
    assert [record["kind"] for record in records()] == ["usage"]


@pytest.mark.parametrize(
    ("told", "booked"),
    [
        pytest.param({}, 10, id="it told nothing"),
        pytest.param({"phase": "reserved"}, 0, id="it had not called its upstream"),
        pytest.param({"phase": "started", "output_tokens": 5}, 15, id="it had told of some output"),
    ],
)
def test_a_call_whose_process_died_with_it_is_swept_and_its_owner_adjusts_it(
    told: dict[str, Any], booked: int
) -> None:
    budget = a_budget(1000)
    reservation = asyncio.run(reserve(ada(budget), a_demand(10, 100)))
    change_hold(reservation.request_id, **told)
    make_old(reservation)
    expire_hold(reservation.request_id)

    assert (sweep(), sweep()) == (1, 0)
    swept = figures(budget)
    asyncio.run(settle(reservation, some_usage(7, 20), "completed", Moments(), 200))

    assert (swept, figures(budget)) == ((booked, 0), (27, 0))
    assert [record["kind"] for record in records()] == ["usage", "adjustment"]


def test_calls_that_it_ended_stay_ended() -> None:
    budget = a_budget(1000)
    for state in ("settled", "void"):
        reservation = asyncio.run(reserve(ada(budget), a_demand()))
        ending(reservation).book_now()
        leave_mark(reservation, state=state)

        assert ending(reservation).book_now() == "ended"
        assert running_call(reservation.request_id) is None

    assert figures(budget) == (54, 0)
    assert len(records()) == 2


def test_the_owner_of_a_call_that_it_swept_books_the_difference() -> None:
    budget = a_budget(1000)
    reservation = asyncio.run(reserve(ada(budget), a_demand(10, 100)))
    expire_hold(reservation.request_id)
    sweep()
    (record,) = records()
    leave_mark(reservation, state="swept", amounts="10", end=orjson.dumps(record["end"]))

    assert ending(reservation).book_now() == "adjustment"

    assert figures(budget) == (27, 0)
    assert records()[1]["first"] == record["end"]


def test_a_call_that_it_admitted_is_listed_and_can_be_ended() -> None:
    reservation = admitted(a_budget(1000), input_tokens=10, output_tokens=100)

    (call,) = running_calls()
    assert (call.request_id, call.held_tokens, call.started) == (reservation.request_id, 110, False)
    assert ask_to_end([reservation.request_id], "enough") == [reservation.request_id]
    assert redis().hkeys(STOPS) == [str(reservation.request_id).encode()]


def test_the_heartbeat_of_a_call_that_it_admitted_writes_it_anew() -> None:
    reservation = admitted(a_budget(1000))

    async def beat() -> None:
        heartbeats = Heartbeats()
        heartbeats.watch(reservation, lambda: Progress(42, "started"))
        await heartbeats.beat()
        await heartbeats.aclose()

    asyncio.run(beat())

    (hold,) = holds_of([reservation.request_id])
    assert redis().type(hold_key(reservation.request_id)) == b"string"
    assert hold is not None
    assert (hold.output_tokens, hold.phase, hold.amounts) == (42, "started", reservation.held())


def test_records_that_it_left_are_booked() -> None:
    budget = a_budget(1000)
    reservations = [asyncio.run(reserve(ada(budget), a_demand(10, 100))) for _ in range(3)]
    expire_hold(reservations[0].request_id)
    sweep()
    redis().delete(hold_key(reservations[1].request_id))
    for reservation in reservations:
        ending(reservation).book_now()
    left = records()
    redis().delete(USAGE)
    for told in left:
        redis().xadd(USAGE, as_fields_of_the_release_before(told))

    ledger.drain()
    ledger.drain()

    assert [record["kind"] for record in left] == ["usage", "adjustment", "late", "usage"]
    entries = {(one.kind, one.late, one.output_tokens) for one in LedgerEntry.objects.all()}
    assert entries == {
        ("usage", False, 0),
        ("adjustment", False, 20),
        ("usage", True, 20),
        ("usage", False, 20),
    }
    assert LedgerEntry.objects.count() == 4
    assert ledger.backlog() == 0
    assert int(redis().get(SETTLED)) == 4
