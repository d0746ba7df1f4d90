"""The list of running calls, asking some of them to end, and which of them a lowered budget ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from audit.models import AuditEvent
from budgets.counters import HOLDS, STOPS, hold_key
from budgets.exceptions import BudgetCut, CallStopped
from budgets.heartbeats import Heartbeats, Progress
from budgets.limits import Limits, _cache
from budgets.reservations import Reservation, reserve
from budgets.running_calls import ask_to_end, running_calls
from budgets.sweeping import sweep
from tests.counting import (
    NOWHERE,
    a_budget,
    a_demand,
    ada,
    believed_by_postgres,
    empty_redis,
    expire_hold,
    redis,
)


def run(name: str, *arguments: str) -> str:
    said = StringIO()
    call_command(name, *arguments, stdout=said)
    return said.getvalue()


def beat_once(*running: Reservation, delivered: int = 0) -> None:
    async def once() -> None:
        heartbeats = Heartbeats()
        for reservation in running:
            heartbeats.watch(reservation, lambda: Progress(delivered, "started"))
        await heartbeats.beat()
        await heartbeats.aclose()

    asyncio.run(once())


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[CallStopped | None]]:
    """Admit calls of 110 tokens under a budget, lower it, beat once; what each call was told."""

    def do(calls: int, before: int | None, after: int | None) -> list[CallStopped | None]:
        empty_redis()
        budget = a_budget(before)
        caller = ada(budget)
        reservations = [
            asyncio.run(reserve(caller, a_demand(input_tokens=10, output_tokens=100))) for _ in range(calls)
        ]
        for number, reservation in enumerate(reservations):
            reservation.admitted_at_ms = number
        later = type(caller)(
            **{name: getattr(caller, name) for name in caller.__slots__} | {"tenant_generation": 2}
        )
        redis().zadd("{p0}:generations", {caller.tenant_id.hex: 2})

        async def reloaded(_: str) -> Any:
            return later

        monkeypatch.setattr("keys.verification.reload_running", reloaded)
        _cache.put(later, Limits((a_budget(after, id=budget.id),), {}))
        beat_once(*reservations)
        return [reservation.stopped_by for reservation in reservations]

    return do


@pytest.mark.parametrize(
    ("calls", "before", "after", "stopped"),
    [
        pytest.param(3, 1000, 330, [False, False, False], id="just fits"),
        pytest.param(3, 1000, 329, [False, False, True], id="one too many, the newest"),
        pytest.param(3, 1000, 230, [False, False, True], id="it frees what it has not used"),
        pytest.param(3, 1000, 229, [False, True, True], id="and keeps the bound of its input"),
        pytest.param(3, 1000, 100, [True, True, True], id="nearly all"),
        pytest.param(3, 1000, 0, [True, True, True], id="nothing is let through"),
        pytest.param(3, None, 100, [True, True, True], id="there was no limit"),
        pytest.param(3, 1000, None, [False, False, False], id="the limit is gone"),
        pytest.param(3, 1000, 2000, [False, False, False], id="raised"),
    ],
)
def test_which_calls_a_lowered_budget_ends(cut, calls, before, after, stopped):
    told = cut(calls, before, after)

    assert [isinstance(one, BudgetCut) for one in told] == stopped


def test_what_does_not_run_cannot_be_stopped(transactional_db):
    empty_redis()

    with pytest.raises(CommandError, match="is running"):
        run("stop_call", str(uuid.uuid4()), "--reason", "loop")
    with pytest.raises(CommandError, match="no request id"):
        run("stop_call", "everything", "--reason", "loop")
    assert run("stop_call", "--all", "--reason", "loop") == "No such call is running.\n"
    assert ask_to_end([uuid.uuid4()], "") == []
    assert redis().hlen(STOPS) == 0


def test_without_redis_nobody_says_that_nothing_runs(transactional_db, settings):
    settings.CACHES = NOWHERE

    with pytest.raises(CommandError, match="Nobody knows"):
        run("running_calls")
    with pytest.raises(CommandError, match="Nobody knows"):
        run("stop_call", "--all", "--reason", "loop")
    assert not AuditEvent.objects.exists()


def test_a_long_list_is_read_in_parts_and_each_call_is_there_once():
    empty_redis()
    caller = ada()

    async def admit_many() -> list[Reservation]:
        return [await reserve(caller, a_demand()) for _ in range(450)]

    reservations = asyncio.run(admit_many())
    ended = reservations.pop()
    redis().delete(hold_key(ended.request_id))

    found = [call.request_id for call in running_calls()]

    assert sorted(found) == sorted(reservation.request_id for reservation in reservations)
    assert redis().zcard(HOLDS) == 450
    assert list(running_calls(tenant_id=uuid.uuid4())) == []
    assert len(list(running_calls(key_id=caller.key_id))) == 449


def test_stopping_a_call_whose_process_died_leaves_nothing_behind(transactional_db):
    empty_redis()
    believed_by_postgres()
    reservation = asyncio.run(reserve(ada(), a_demand()))
    ask_to_end([reservation.request_id], "")
    expire_hold(reservation.request_id)

    sweep()

    assert redis().hlen(STOPS) == 0
