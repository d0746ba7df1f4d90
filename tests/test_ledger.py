"""The drain: from the stream in Redis into the ledger, each record once."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, IntegrityError, connection
from django.db.models import Sum

from audit.models import RequestEvent
from budgets import booking, ledger, refusals
from budgets.counters import DRAINED, REFUSALS, SETTLED, USAGE
from budgets.limits import Limit
from budgets.models import BudgetPeriod, LedgerEntry, ParkedRecord, UsageRollup
from budgets.pricing import PinnedPrice
from budgets.reservations import Reservation, release, reserve, settle
from budgets.settlements import Moments
from budgets.sweeping import sweep
from budgets.usage import SUMS
from keys.verification import Caller
from tenants.ids import new_id
from tests.counting import (
    MODEL,
    a_budget,
    a_demand,
    a_rate,
    ada,
    as_fields,
    change_hold,
    change_record,
    drain_and_die,
    empty_redis,
    expire_hold,
    figures,
    open_holds,
    records,
    redis,
    some_usage,
)

pytestmark = pytest.mark.django_db(transaction=True)

PRICE = PinnedPrice(uuid4().hex, 300_000, 30_000, 1_000_000)


@pytest.fixture(autouse=True)
def _counters() -> None:
    empty_redis()


def call(caller: Caller, *, input_tokens: int = 7, output_tokens: int = 20, **demand: Any) -> Reservation:
    """One call from beginning to end."""

    async def through() -> Reservation:
        reservation = await reserve(caller, a_demand(**demand))
        usage = some_usage(input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=2)
        await settle(reservation, usage, "completed", Moments(1_000, 2_500), 200)
        return reservation

    return asyncio.run(through())


def used_in_ledger(budget: Limit) -> int:
    found = BudgetPeriod.objects.filter(budget_id=UUID(budget.id)).aggregate(used=Sum("used"))
    return int(found["used"] or 0)


def books() -> tuple[dict[str, Any], dict[str, Any], int]:
    """What ledger, rollups and request events add up to."""
    sums = {figure: Sum(figure) for figure in SUMS}
    return (
        LedgerEntry.objects.aggregate(**sums),
        UsageRollup.objects.aggregate(**sums),
        RequestEvent.objects.count(),
    )


def test_a_settled_call_is_one_entry_with_all_that_is_known() -> None:
    budget, money = a_budget(1000), a_budget(10**6, "micro_usd")
    caller = ada(budget, money, prices={MODEL: PRICE}, team="research", team_id=uuid4())
    reservation = call(caller)

    taken = ledger.drain()

    (entry,) = LedgerEntry.objects.all()
    assert taken == 1
    assert (entry.request_id, entry.kind) == (reservation.request_id, "usage")
    assert (entry.tenant, entry.key, entry.team, entry.team_id) == (
        "acme",
        "ada's key",
        "research",
        caller.team_id,
    )
    assert (entry.model, entry.upstream, entry.route, entry.stream) == (MODEL, "main", "chat", True)
    assert (entry.requests, entry.input_tokens, entry.cached_tokens, entry.output_tokens) == (1, 7, 2, 20)
    assert (entry.load_ns, entry.prompt_ns, entry.output_ns, entry.gpu_ms) == (10**6, 2 * 10**6, 3_500_000, 6)
    # 5 x 0.3 + 2 x 0.03 + 20 x 1 micro-USD, rounded up once.
    assert (entry.cost_micro_usd, entry.price_id) == (22, UUID(PRICE.id))
    pinned = (entry.input_price, entry.cached_price, entry.output_price, entry.gpu_price)
    assert pinned == (300_000, 30_000, 1_000_000, 0)
    assert (entry.exact, entry.late, entry.outcome, entry.status) == (True, False, "completed", 200)
    assert entry.admitted_at.timestamp() * 1000 == pytest.approx(reservation.admitted_at_ms)
    assert entry.started_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert entry.first_byte_at == datetime(1970, 1, 1, 0, 0, 2, 500_000, tzinfo=UTC)
    assert entry.ended_at >= entry.admitted_at
    assert (used_in_ledger(budget), used_in_ledger(money)) == (27, 22)
    assert (figures(budget), figures(money)) == ((27, 0), (22, 0))
    event = RequestEvent.objects.get()
    assert (event.request_id, event.output_tokens, event.status) == (reservation.request_id, 20, 200)


def test_the_books_agree_whatever_is_drained_how_often() -> None:
    budget = a_budget(10_000)
    caller = ada(budget)
    for number in range(30):
        call(caller, output_tokens=number)
    entries = redis().xrange(USAGE)
    ledger.drain()
    once = books()

    random.Random(5).shuffle(entries)
    for start in range(0, 30, 7):
        for _ in range(2):
            for _, fields in entries[start : start + 7]:
                redis().xadd(USAGE, fields)
            ledger.drain()

    assert books() == once
    ledger_sums, rollup_sums, events = once
    assert ledger_sums == rollup_sums
    assert (events, ledger_sums["requests"]) == (30, 30)
    assert used_in_ledger(budget) == figures(budget)[0] == 30 * 7 + sum(range(30))


def test_a_drain_that_died_after_its_commit_changes_nothing_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = a_budget(10_000)
    caller = ada(budget)
    call(caller)
    call(caller)

    drain_and_die(monkeypatch)
    assert LedgerEntry.objects.count() == 2
    assert ledger.backlog() == 2
    call(caller)

    ledger.drain()

    assert LedgerEntry.objects.count() == 3
    assert used_in_ledger(budget) == figures(budget)[0] == 81
    assert ledger.backlog() == 0


def test_a_drain_that_died_before_its_commit_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call(ada(a_budget(1000)))

    def die(*_: Any) -> None:
        raise DatabaseError("the server went away")

    with monkeypatch.context() as patched:
        patched.setattr(booking, "_add_to_periods", die)
        with pytest.raises(DatabaseError):
            ledger.drain()
    assert LedgerEntry.objects.count() == 0

    ledger.drain()

    assert LedgerEntry.objects.count() == RequestEvent.objects.count() == 1


def test_two_drains_at_once_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BATCH", 7)
    budget = a_budget(100_000)
    caller = ada(budget)

    def drain_until(done: threading.Event, troubles: list[BaseException]) -> None:
        try:
            while not done.is_set() or ledger.backlog():
                ledger.drain()
        except BaseException as exc:  # noqa: BLE001, told in the test's own thread
            troubles.append(exc)
        finally:
            connection.close()

    done, troubles = threading.Event(), list[BaseException]()
    drains = [threading.Thread(target=drain_until, args=(done, troubles)) for _ in range(2)]
    for drain in drains:
        drain.start()

    async def calls() -> None:
        for number in range(100):
            reservation = await reserve(caller, a_demand())
            await settle(reservation, some_usage(output_tokens=number), "completed", Moments(), 200)

    asyncio.run(calls())
    done.set()
    for drain in drains:
        drain.join()

    assert troubles == []
    ledger_sums, rollup_sums, events = books()
    assert ledger_sums == rollup_sums
    assert (ledger_sums["requests"], events) == (100, 100)
    assert used_in_ledger(budget) == figures(budget)[0]
    assert int(redis().get(DRAINED)) == int(redis().get(SETTLED)) == 100


def spoilt(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Put a record into the stream that is like the last one but for ``change``."""
    told = records()[-1]
    told["call"]["request_id"] = str(uuid4())
    change(told["call"], told["end"])
    redis().xadd(
        USAGE, {"usage": told["at"], "call": json.dumps(told["call"]), "end": json.dumps(told["end"])}
    )
    redis().incr(SETTLED)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda told, _: told.update(model="a\x00b"), id="a NUL byte"),
        pytest.param(lambda told, _: told.pop("tenant_id"), id="no tenant"),
        pytest.param(lambda told, _: told.update(time_zone="Mars/Olympus"), id="no such zone"),
        pytest.param(lambda _, end: end.update(output_tokens=-1), id="negative"),
        pytest.param(lambda _, end: end.update(output_tokens=2**70), id="beyond the column"),
        pytest.param(lambda _, end: end.update(cost_micro_usd="free"), id="no number"),
        pytest.param(lambda _, end: end.update(admitted_ms=10**18), id="no such year"),
    ],
)
def test_a_poisoned_record_is_parked_and_its_neighbours_land(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    caller = ada(a_budget(1000))
    call(caller)
    spoilt(change)
    call(caller)

    ledger.drain()
    ledger.drain()

    assert LedgerEntry.objects.count() == 2
    parked = ParkedRecord.objects.get()
    assert parked.reason
    assert "ada's key" in parked.record
    assert ledger.backlog() == 0


def test_a_record_of_bytes_that_are_no_record_is_parked() -> None:
    redis().xadd(USAGE, {b"\xff": b"\x00\xff", b"kind": b"usage"})

    ledger.drain()

    assert ParkedRecord.objects.get().record == '{"\\\\xff":"\\\\x00\\\\xff","kind":"usage"}'


def test_the_ledger_cannot_be_changed() -> None:
    call(ada())
    ledger.drain()

    with pytest.raises(IntegrityError):
        LedgerEntry.objects.update(output_tokens=0)
    with pytest.raises(IntegrityError):
        LedgerEntry.objects.all().delete()


def test_a_call_nobody_worked_on_has_an_entry_of_nothing() -> None:
    budget = a_budget(3, "requests")

    async def refused_by_ollama() -> None:
        await release(await reserve(ada(budget), a_demand()), "upstream_failed", 502)

    asyncio.run(refused_by_ollama())
    ledger.drain()

    entry = LedgerEntry.objects.get()
    assert (entry.requests, entry.input_tokens, entry.cost_micro_usd) == (0, 0, 0)
    assert (entry.outcome, entry.status) == ("upstream_failed", 502)
    assert used_in_ledger(budget) == figures(budget)[0] == 0
    assert RequestEvent.objects.get().status == 502


def test_an_orphan_is_booked_by_its_last_word_and_its_owner_adjusts_it() -> None:
    budget, money = a_budget(1000), a_budget(10**6, "micro_usd")
    caller = ada(budget, money, prices={MODEL: PRICE})

    reservation = asyncio.run(reserve(caller, a_demand(input_tokens=10, output_tokens=100)))
    change_hold(reservation.request_id, output_tokens=5, phase="started")
    expire_hold(reservation.request_id)

    assert sweep() == 1
    ledger.drain()
    assert LedgerEntry.objects.get().output_tokens == 5
    usage = some_usage(input_tokens=7, output_tokens=20)
    asyncio.run(settle(reservation, usage, "completed", Moments(), 200))
    ledger.drain()

    orphan, adjustment = LedgerEntry.objects.order_by("id")
    assert (orphan.kind, orphan.outcome, orphan.exact, orphan.input_tokens) == (
        "usage",
        "orphaned",
        False,
        10,
    )
    assert (adjustment.kind, adjustment.outcome, adjustment.exact) == ("adjustment", "completed", True)
    assert (adjustment.requests, adjustment.input_tokens, adjustment.output_tokens) == (0, -3, 15)
    assert used_in_ledger(budget) == figures(budget)[0] == 27
    assert used_in_ledger(money) == figures(money)[0] == orphan.cost_micro_usd + adjustment.cost_micro_usd
    ledger_sums, rollup_sums, events = books()
    assert ledger_sums == rollup_sums
    assert (ledger_sums["requests"], events) == (1, 1)


def test_an_orphan_and_its_owner_who_end_it_in_the_same_millisecond_are_each_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = a_budget(1000)
    reservation = asyncio.run(reserve(ada(budget), a_demand(input_tokens=10, output_tokens=100)))
    expire_hold(reservation.request_id)
    sweep()
    asyncio.run(settle(reservation, some_usage(output_tokens=20), "completed", Moments(), 200))
    of_sweep, of_owner = records()
    redis().xtrim(USAGE, maxlen=0)
    for told in (of_sweep, of_owner | {"at": of_sweep["at"]}):
        redis().xadd(USAGE, as_fields(told))

    drain_and_die(monkeypatch)
    ledger.drain()

    assert LedgerEntry.objects.count() == 2
    assert used_in_ledger(budget) == figures(budget)[0] == 27


def test_an_orphan_that_never_called_its_upstream_costs_nothing() -> None:
    budget = a_budget(1000)
    reservation = asyncio.run(reserve(ada(budget), a_demand()))
    change_hold(reservation.request_id, phase="reserved")
    expire_hold(reservation.request_id)

    sweep()
    ledger.drain()

    entry = LedgerEntry.objects.get()
    assert (entry.outcome, entry.requests, entry.input_tokens) == ("orphaned", 0, 0)
    assert figures(budget) == (0, 0)
    assert open_holds() == []


def test_a_final_that_comes_when_the_mark_of_the_sweep_is_lost_is_an_adjustment_too() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    reservation = asyncio.run(reserve(caller, a_demand(input_tokens=10)))
    expire_hold(reservation.request_id)
    sweep()
    ledger.drain()
    redis().delete(f"{{p0}}:hold:{reservation.request_id}")

    asyncio.run(settle(reservation, some_usage(output_tokens=20), "completed", Moments(), 200))
    ledger.drain()

    assert [entry.kind for entry in LedgerEntry.objects.order_by("id")] == ["usage", "adjustment"]
    assert used_in_ledger(budget) == 27
    assert books()[0] == books()[1]


def test_a_final_that_is_drained_together_with_its_orphan_is_an_adjustment_too() -> None:
    budget = a_budget(1000)
    reservation = asyncio.run(reserve(ada(budget), a_demand(input_tokens=10)))
    expire_hold(reservation.request_id)
    sweep()
    redis().delete(f"{{p0}}:hold:{reservation.request_id}")
    asyncio.run(settle(reservation, some_usage(output_tokens=20), "completed", Moments(), 200))

    ledger.drain()

    assert [entry.kind for entry in LedgerEntry.objects.order_by("id")] == ["usage", "adjustment"]
    assert used_in_ledger(budget) == figures(budget)[0] == 27
    assert books()[0] == books()[1]


def test_the_day_is_the_one_on_which_the_call_ended_at_the_tenants() -> None:
    call(ada(time_zone="Pacific/Kiritimati"))
    # A quarter past ten in the evening of UTC, fourteen hours behind Kiritimati.
    ended = datetime(2026, 3, 1, 22, 15, tzinfo=UTC)
    change_record(lambda told: told.update(at=int(ended.timestamp() * 1000)))

    ledger.drain()

    assert LedgerEntry.objects.get().day == date(2026, 3, 2)
    rollup = UsageRollup.objects.get()
    assert (rollup.day, rollup.hour_start) == (date(2026, 3, 2), datetime(2026, 3, 1, 22, tzinfo=UTC))


def test_refused_calls_become_request_events() -> None:
    refused = new_id()

    async def refuse() -> None:
        refusals.note(
            {
                "request_id": refused,
                "status": 429,
                "refusal": "budget_exhausted",
                "model": "bad\x00name",
                "route": "chat",
            }
        )
        refusals.note({"request_id": new_id(), "status": 403, "model": "\ud800"})
        await refusals.notes.flush()

    dropped = refusals.notes.dropped
    asyncio.run(refuse())
    redis().xadd(REFUSALS, {"event": "no JSON"})
    ledger.drain()
    ledger.drain()

    event = RequestEvent.objects.get()
    assert (event.request_id, event.status, event.refusal) == (refused, 429, "budget_exhausted")
    assert (event.model, event.outcome) == ("badname", "refused")
    assert refusals.notes.dropped == dropped + 1
    assert redis().xlen(REFUSALS) == 0


def test_trimming_forgets_what_the_ledger_has_had_for_a_day_and_nothing_else() -> None:
    caller = ada()
    call(caller)
    ((_, fields),) = redis().xrange(USAGE)
    redis().delete(USAGE)
    redis().xadd(USAGE, fields, id="1-1")
    call(caller)
    ledger.drain()
    call(caller)

    assert ledger.trim() == 1
    assert ledger.trim() == 0

    assert redis().xlen(USAGE) == 2
    assert ledger.drain() == 1


def test_trimming_keeps_what_the_ledger_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEEP_ENTRIES", 0)
    redis().xadd(USAGE, {"kind": "old and never drained"}, id="1-1")
    redis().set(SETTLED, 1)

    assert ledger.trim() == 0

    assert redis().xlen(USAGE) == 1


def test_a_rate_limit_leaves_no_trace_in_the_budget_periods() -> None:
    call(ada(a_rate(100)))
    ledger.drain()

    assert not BudgetPeriod.objects.exists()
