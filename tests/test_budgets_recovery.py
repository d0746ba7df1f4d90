"""What is left when Redis, PostgreSQL or a process is not: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction

from budgets import epochs, ledger, spool
from budgets.counters import CLOCK, EPOCH, GENERATIONS, STOPS, hold_key
from budgets.exceptions import (
    BudgetExhausted,
    ClockDoubtful,
    CountersUnavailable,
    HoldLost,
    KeyEnded,
    StoppedByOperator,
)
from budgets.heartbeats import Heartbeats, Progress
from budgets.holds import holds_of
from budgets.models import CounterEpoch, LedgerEntry, ParkedRecord, SpooledSettlement
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, ending, release, reserve, settle
from budgets.running_calls import ask_to_end
from budgets.settlements import Moments
from budgets.sweeping import sweep
from keys.services import issue_key, revoke_key
from keys.verification import Caller, identify
from tenants.services import create_tenant
from tests.counting import (
    NOWHERE,
    TEST_EPOCH,
    a_budget,
    a_demand,
    a_rate,
    ada,
    believed_by_postgres,
    concurrency,
    counter_of,
    empty_redis,
    expire_hold,
    figures,
    open_holds,
    put_back,
    records,
    redis,
    some_usage,
    take_backup,
)
from tests.fault_proxy import line_to

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _house(settings: Any, tmp_path: Path) -> None:
    empty_redis()
    believed_by_postgres()
    ending._recent.clear()
    settings.SPOOL_DIR = tmp_path / "spool"
    settings.HEARTBEAT_SECONDS = 0.05


def admit(caller: Caller, **demand: Any) -> Reservation:
    return asyncio.run(reserve(caller, a_demand(**demand)))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def nobody_listens() -> str:
    """The address of a Redis that is not there."""
    return NOWHERE["default"]["LOCATION"]


@pytest.fixture
def hanging(settings: Any) -> Iterator[Callable[[], None]]:
    """Make the path of a request meet a Redis that does not answer; blocking code has the real one."""
    settings.REDIS_TIMEOUT_SECONDS = 0.25
    with line_to(settings.REDIS_URL) as (line, url):
        line.freeze()
        yield lambda: setattr(settings, "REDIS_URL", url)


def spooled_files() -> list[Path]:
    return sorted(Path(settings.SPOOL_DIR).glob("*"))


def test_a_settlement_redis_cannot_take_waits_in_postgres_and_is_booked_once(settings: Any) -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget), input_tokens=10, output_tokens=100)
    real, settings.REDIS_URL = settings.REDIS_URL, nobody_listens()

    end(reservation, input_tokens=7, output_tokens=20)
    assert SpooledSettlement.objects.get().request_id == reservation.request_id
    assert figures(budget) == (0, 110)

    settings.REDIS_URL = real
    assert spool.replay() == 1
    assert spool.replay() == 0
    ledger.drain()
    assert LedgerEntry.objects.get().output_tokens == 20
    assert figures(budget) == (27, 0)


def test_a_hanging_redis_costs_a_settlement_less_than_two_seconds(hanging: Callable[[], None]) -> None:
    reservations = [admit(caller := ada()), *(admit(caller) for _ in range(4))]
    hanging()

    def seconds(reservation: Reservation) -> float:
        began = time.monotonic()
        end(reservation)
        return time.monotonic() - began

    # The quickest: the machine of the tests has other work.
    assert min(map(seconds, reservations)) < 2
    assert SpooledSettlement.objects.count() + len(spooled_files()) == 5


def test_with_postgres_hanging_too_a_settlement_waits_on_disk(hanging: Callable[[], None]) -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget))
    hanging()

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE budgets_spooledsettlement IN ACCESS EXCLUSIVE MODE")
        end(reservation, input_tokens=7, output_tokens=20)

    assert [path.name for path in spooled_files()] == [f"{reservation.request_id}.json"]
    assert spool.replay() == 1
    assert spooled_files() == []
    assert figures(budget) == (27, 0)


def test_a_settlement_that_fits_nowhere_is_in_the_log(
    hanging: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    reservation = admit(ada())
    hanging()
    Path(settings.SPOOL_DIR).write_text("a file where the directory should be")

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE budgets_spooledsettlement IN ACCESS EXCLUSIVE MODE")
        end(reservation)

    (told,) = [one.getMessage() for one in caplog.records if one.levelname == "CRITICAL"]
    assert str(reservation.request_id) in told


def test_a_cancelled_settlement_is_booked_all_the_same() -> None:
    budget = a_budget(1000)
    caller = ada(budget)

    async def leave() -> None:
        reservation = await reserve(caller, a_demand())
        task = asyncio.create_task(settle(reservation, some_usage(), "client_gone", Moments(), 200))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ending.finish()

    asyncio.run(leave())

    assert figures(budget) == (27, 0)
    assert len(records()) == 1


def test_a_hanging_redis_soon_refuses(hanging: Callable[[], None]) -> None:
    caller = ada(a_budget(1000))
    hanging()

    async def refused_after() -> float:
        began = time.monotonic()
        with pytest.raises(CountersUnavailable):
            await reserve(caller, a_demand())
        return time.monotonic() - began

    # The quickest: the machine of the tests has other work.
    assert min(asyncio.run(refused_after()) for _ in range(4)) < 0.5


def test_a_reserve_whose_answer_was_lost_is_taken_back(settings: Any) -> None:
    budget, running = a_budget(1000), concurrency(1)
    caller = ada(budget, running)
    give_back = admit(caller)
    asyncio.run(release(give_back, "warming up", 200))

    async def ask() -> None:
        demand = a_demand()
        with pytest.raises(CountersUnavailable):
            await reserve(caller, demand)
        assert open_holds() == [str(demand.request_id)]
        async with asyncio.timeout(30):
            while open_holds():  # noqa: ASYNC110, what is waited for happens in Redis
                await asyncio.sleep(0.01)

    with line_to(settings.REDIS_URL) as (line, url):
        settings.REDIS_URL = url
        line.lose_reply(b"EVALSHA")
        asyncio.run(ask())

    assert (figures(budget), figures(running)) == ((0, 0), (0, 0))
    assert len(records()) == 1


def test_a_spooled_settlement_nobody_can_read_is_parked_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    reservation = admit(ada())
    SpooledSettlement.objects.create(request_id=reservation.request_id, settlement={"mode": "settle"})
    Path(settings.SPOOL_DIR).mkdir()
    (Path(settings.SPOOL_DIR) / "half.json").write_text('{"mode": "set')

    assert spool.replay() == 0

    assert not SpooledSettlement.objects.exists()
    assert ParkedRecord.objects.get().stream_id == f"spool:{reservation.request_id}"
    assert [path.name for path in spooled_files()] == ["half.spoilt"]


def test_the_sweep_leaves_to_the_spool_what_waits_there(settings: Any) -> None:
    budget = a_budget(1000)
    reservation = admit(ada(budget), input_tokens=10)
    real, settings.REDIS_URL = settings.REDIS_URL, nobody_listens()
    end(reservation, input_tokens=7, output_tokens=20)
    settings.REDIS_URL = real
    expire_hold(reservation.request_id)

    assert sweep() == 0
    spool.replay()
    assert sweep() == 0

    assert [record["kind"] for record in records()] == ["usage"]
    assert figures(budget) == (27, 0)


def beat(*running: Reservation, output_tokens: int = 3) -> None:
    async def once() -> None:
        heartbeats = Heartbeats()
        for reservation in running:
            heartbeats.watch(reservation, lambda: Progress(output_tokens, "started"))
        await heartbeats.beat()
        await heartbeats.aclose()

    asyncio.run(once())


def test_a_heartbeat_makes_hold_and_leases_last() -> None:
    running = concurrency(1)
    reservation = admit(ada(running))
    lease = running.counter(0).key
    expire_hold(reservation.request_id)
    redis().zadd(lease, {str(reservation.request_id): 1})

    now_ms = time.time() * 1000
    beat(reservation, output_tokens=42)
    beat(reservation, output_tokens=40)

    assert redis().zscore("{p0}:holds", str(reservation.request_id)) > now_ms + 25_000
    assert redis().zscore(lease, str(reservation.request_id)) > now_ms + 25_000
    (hold,) = holds_of([reservation.request_id])
    assert hold is not None
    assert (hold.output_tokens, hold.phase) == (42, "started")
    assert sweep() == 0
    assert reservation.stopped_by is None


def test_a_call_is_told_to_stop() -> None:
    reservation, other = admit(caller := ada()), admit(caller)
    ask_to_end([reservation.request_id], "Too slow.")

    beat(reservation, other)

    assert isinstance(reservation.stopped_by, StoppedByOperator)
    assert reservation.stopped_by.message == "Too slow."
    assert other.stopped_by is None
    end(reservation)
    assert redis().hlen(STOPS) == 0


def test_a_call_whose_hold_was_swept_is_told_to_stop() -> None:
    reservation = admit(ada())
    expire_hold(reservation.request_id)
    sweep()

    beat(reservation)

    assert isinstance(reservation.stopped_by, HoldLost)


def test_calls_of_a_revoked_key_are_told_to_stop_and_others_are_not() -> None:
    tenant = create_tenant(slug="acme", name="ACME", actor="test")
    key, secret = issue_key(tenant=tenant, label="one", actor="test")
    _, other_secret = issue_key(tenant=tenant, label="other", actor="test")

    async def admitted(secret: str) -> Reservation:
        return await reserve(await identify({"authorization": f"Bearer {secret}"}), a_demand())

    reservation, other = asyncio.run(admitted(secret)), asyncio.run(admitted(other_secret))
    beat(reservation, other)
    before = reservation.stopped_by

    revoke_key(key=key, actor="test", reason="lost")
    beat(reservation, other)

    assert before is None
    assert isinstance(reservation.stopped_by, KeyEnded)
    assert other.stopped_by is None


def rebuild_elsewhere(*, force: bool = False) -> threading.Thread:
    """Begin to rebuild, as the worker would."""

    def rebuild() -> None:
        try:
            ensure_epoch(force=force)
        finally:
            connection.close()

    thread = threading.Thread(target=rebuild)
    thread.start()
    return thread


def rebuild_while(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """Rebuild, and do ``work`` where the rebuild waits for what the processes have to tell."""
    with monkeypatch.context() as patch:
        patch.setattr("budgets.rebuild.time", SimpleNamespace(sleep=lambda _: work()))
        assert ensure_epoch()


def test_a_new_database_gets_its_first_epoch_at_once(settings: Any) -> None:
    settings.HEARTBEAT_SECONDS = 3600
    CounterEpoch.objects.all().delete()
    redis().flushdb()

    assert ensure_epoch()
    assert not ensure_epoch()

    assert redis().get(EPOCH).decode() == CounterEpoch.objects.get().epoch


def test_a_lost_hold_that_is_put_back_counts_in_the_rate_others_went_on_with() -> None:
    rate = a_rate(1000)
    caller = ada(rate)
    running = admit(caller)
    redis().delete(hold_key(running.request_id), counter_of(rate).key)
    admit(caller)

    beat(running)
    put_back = figures(rate)
    admit(caller)

    assert put_back == (2, 0)
    assert figures(rate) == (3, 0)


def test_after_a_flush_nothing_is_admitted_until_the_counters_are_those_of_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget, rate = a_budget(200), a_rate(1000)
    caller = ada(budget, rate)
    tenant_generation = {caller.tenant_id.hex: 1, "platform": 1}
    end(admit(caller), input_tokens=10, output_tokens=90)
    ledger.drain()
    running = admit(caller, input_tokens=10, output_tokens=40)
    redis().flushdb()

    with pytest.raises(CountersUnavailable):
        admit(caller)
    rebuild_while(monkeypatch, lambda: beat(running))
    redis().zadd(GENERATIONS, tenant_generation)

    assert figures(budget) == (100, 50)
    with pytest.raises(BudgetExhausted):
        admit(caller, input_tokens=51, output_tokens=0)
    admit(caller, input_tokens=50, output_tokens=0)
    end(running, input_tokens=10, output_tokens=20)
    ledger.drain()
    assert figures(budget) == (130, 50)
    assert sum(LedgerEntry.objects.values_list("output_tokens", flat=True)) == 110


def test_what_was_settled_but_not_drained_before_a_flush_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    drained, undrained = admit(caller), admit(caller)
    end(drained, input_tokens=10, output_tokens=1)
    ledger.drain()
    end(undrained, input_tokens=10, output_tokens=2)
    redis().flushdb()

    rebuild_while(monkeypatch, beat)
    ledger.drain()

    assert figures(budget) == (23, 0)
    assert sorted(LedgerEntry.objects.values_list("output_tokens", flat=True)) == [1, 2]
    assert [entry.late for entry in LedgerEntry.objects.order_by("id")] == [False, True]


def test_a_process_that_saw_only_the_rebuilt_counters_sends_again_and_counts_nothing_twice(
    settings: Any,
) -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    drained, undrained, running = admit(caller), admit(caller), admit(caller)
    end(drained, input_tokens=10, output_tokens=1)
    ledger.drain()
    end(undrained, input_tokens=10, output_tokens=2)

    async def beat_before_and_after() -> None:
        heartbeats = Heartbeats()
        settings.HEARTBEAT_SECONDS = 3600
        heartbeats.watch(running, lambda: Progress(0, "started"))
        await heartbeats.beat()
        await asyncio.to_thread(lose_and_rebuild)
        await heartbeats.beat()
        await heartbeats.aclose()

    def lose_and_rebuild() -> None:
        settings.HEARTBEAT_SECONDS = 0
        redis().flushdb()
        rebuild_elsewhere().join()

    asyncio.run(beat_before_and_after())

    assert figures(budget) == (11 + 11 + 12, 110)
    ledger.drain()
    assert figures(budget) == (23, 110)
    assert sorted(LedgerEntry.objects.values_list("output_tokens", flat=True)) == [1, 2]


def test_what_the_ledger_had_already_and_was_sent_again_is_not_counted_twice() -> None:
    """Sent by a process that learned of the loss only after the rebuild: the mark of its end is gone."""
    budget = a_budget(1000)
    caller = ada(budget)
    end(admit(caller), input_tokens=10, output_tokens=1)
    ledger.drain()
    redis().flushdb()
    ensure_epoch()

    async def twice() -> None:
        await ending.book_recent_again()
        await ending.book_recent_again()

    asyncio.run(twice())
    assert figures(budget) == (22, 0)
    ledger.drain()
    ledger.drain()

    assert figures(budget) == (11, 0)
    assert LedgerEntry.objects.count() == 1


def test_an_orphan_whose_mark_was_lost_and_whose_owner_turns_up_is_counted_once() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    reservation = admit(caller, input_tokens=10)
    expire_hold(reservation.request_id)
    sweep()
    ledger.drain()
    redis().delete(hold_key(reservation.request_id))

    end(reservation, input_tokens=7, output_tokens=20)
    ledger.drain()

    booked = LedgerEntry.objects.values_list("input_tokens", "output_tokens")
    assert [sum(tokens) for tokens in zip(*booked, strict=True)] == [7, 20]
    assert figures(budget) == (27, 0)


def test_a_drain_that_died_before_it_told_the_stream_corrects_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = a_budget(1000)
    end(admit(ada(budget)), input_tokens=10, output_tokens=1)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_acknowledge", lambda *_: None)
        patch.setattr(ledger, "MOST_BATCHES", 1)
        ledger.drain()
    assert LedgerEntry.objects.count() == 1

    ledger.drain()

    assert figures(budget) == (11, 0)


def test_a_rebuild_counts_what_the_stream_still_holds() -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    end(admit(caller), input_tokens=10, output_tokens=5)
    redis().hset(counter_of(budget).key, "used", 999_999)

    assert ensure_epoch(force=True)

    assert figures(budget) == (15, 0)
    assert LedgerEntry.objects.count() == 1


def test_counters_the_ledger_knows_nothing_of_are_set_to_nothing() -> None:
    budget = a_budget(1000)
    redis().hset(counter_of(budget).key, mapping={"used": 700, "held": 0})

    ensure_epoch(force=True)

    assert figures(budget) == (0, 0)


def test_an_old_backup_of_redis_is_not_believed() -> None:
    redis().set(EPOCH, "the epoch before the last rebuild")

    with pytest.raises(CountersUnavailable):
        admit(ada())
    assert ensure_epoch()


def test_a_backup_of_redis_from_before_what_the_ledger_has_is_rebuilt() -> None:
    """E14: it has the right epoch, and nobody who saw more is left."""
    budget = a_budget(1000)
    caller = ada(budget)
    backup = take_backup()
    end(admit(caller), input_tokens=10, output_tokens=1)
    ledger.drain()
    assert not ensure_epoch()
    put_back(backup)
    assert redis().get(EPOCH).decode() == TEST_EPOCH

    assert ensure_epoch()

    assert figures(budget) == (11, 0)


def test_a_rebuild_makes_the_present_time_the_one_that_counts() -> None:
    """For a clock that was far ahead and has been put right."""
    caller = ada()
    redis().set(CLOCK, int(time.time() * 1000) + 3_600_000)
    with pytest.raises(ClockDoubtful):
        admit(caller)

    ensure_epoch(force=True)
    redis().zadd(GENERATIONS, {caller.tenant_id.hex: 1, "platform": 1})

    admit(caller)


def test_processes_learn_a_new_epoch_by_themselves() -> None:
    caller = ada()
    ensure_epoch(force=True)
    redis().zadd(GENERATIONS, {caller.tenant_id.hex: 1, "platform": 1})

    assert epochs.expected.epoch == TEST_EPOCH
    admit(caller)
    assert epochs.expected.epoch == CounterEpoch.objects.get().epoch != TEST_EPOCH


def test_two_rebuilds_at_once_leave_one_epoch() -> None:
    redis().delete(EPOCH)

    rebuilds = [rebuild_elsewhere() for _ in range(3)]
    for rebuild in rebuilds:
        rebuild.join()

    assert redis().get(EPOCH).decode() == CounterEpoch.objects.get().epoch


def test_settlements_during_a_rebuild_are_in_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = a_budget(1000)
    caller = ada(budget)
    late = admit(caller, input_tokens=10)
    before = ledger.last_taken

    def settle_meanwhile() -> str | None:
        position = before()
        if not late.ended:
            end(late, input_tokens=10, output_tokens=5)
        return position

    monkeypatch.setattr(ledger, "last_taken", settle_meanwhile)
    ensure_epoch(force=True)

    assert figures(budget) == (15, 0)
    assert LedgerEntry.objects.get().output_tokens == 5


def test_the_process_that_dies_while_it_runs_a_call_loses_no_booking(tmp_path: Path) -> None:
    budget = a_budget(10_000)
    caller = ada(budget)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            admit(caller, input_tokens=10, output_tokens=100)
            os.kill(os.getpid(), signal.SIGKILL)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    for request_id in open_holds():
        redis().zadd("{p0}:holds", {request_id: 1})

    assert sweep() == 3
    ledger.drain()

    assert LedgerEntry.objects.filter(outcome="orphaned", input_tokens=10).count() == 3
    assert figures(budget) == (30, 0)
