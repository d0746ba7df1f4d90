"""``manage.py verify``: silent while the books agree, under traffic too, and loud about each fault."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import alerts, booking, counters, ledger, services, statement_pdf, survey, tasks, verification
from budgets.comparisons import Difference
from budgets.counters import EPOCH, SETTLED, USAGE
from budgets.exports.profiles import PROFILES
from budgets.models import (
    ArchivedMonth,
    Budget,
    CounterEpoch,
    Delivery,
    LedgerEntry,
    Notice,
    ParkedRecord,
    SpooledSettlement,
    UsageRollup,
    Verification,
)
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, reserve, settle
from budgets.rollups import Part
from budgets.settlements import Moments
from budgets.survey import between_two_drains
from budgets.sweeping import sweep
from budgets.usage import Selection, totals
from config.celery import EVERY
from keys.services import issue_key
from keys.verification import identify, reload
from tenants.ids import new_id
from tenants.models import Tenant, User
from tenants.services import create_tenant
from tests.conftest import eventually
from tests.counting import (
    a_demand,
    admit,
    as_fields,
    as_fields_of_the_release_before,
    change_record,
    drain_and_die,
    end,
    expire_hold,
    redis,
    some_usage,
    told_by,
)
from tests.gateway import ROOT, environment
from tests.people import a_browser

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _spool(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"


@pytest.fixture
def acme() -> Tenant:
    redis().flushdb()
    ensure_epoch()
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Asia/Kathmandu")


@pytest.fixture
def budgets(acme: Tenant) -> list[Budget]:
    """Three budgets of the tenant and one of everybody, as if they had been there before their periods."""
    services.set_price(
        model="llama3.2:latest", input_price=300_000, cached_price=30_000, output_price=1_000_000,
        gpu_price=7, actor="test",
    )  # fmt: skip
    made = [
        services.set_budget(scope="tenant", tenant=acme, unit=unit, period="month", limit=10**9, actor="test")
        for unit in ("tokens", "micro_usd", "requests")
    ]
    made.append(services.set_budget(scope="platform", unit="gpu_ms", period="year", limit=None, actor="test"))
    Budget.objects.update(created_at="2020-01-01T00:00:00Z")
    return made


@pytest.fixture
def secret(acme: Tenant, budgets: list[Budget]) -> str:
    return issue_key(tenant=acme, label="nightly", actor="test")[1]


def call(secret: str, **used: Any) -> Reservation:
    reservation = admit(secret)
    end(reservation, **used)
    return reservation


def differences() -> list[Difference]:
    result = verification.verify(verification.open_part())
    assert result.unasked == {}
    assert len(result.differences) == result.found
    return list(result.differences)


def counter_of(budget: Budget) -> str:
    [key] = redis().keys(f"{{p0}}:budget:{budget.pk.hex}:*")
    return str(key.decode())


def tamper(statement: str, *values: Any) -> None:
    """Change what the database lets nobody but its owner change."""
    [table] = re.findall(r"(?:UPDATE|DELETE FROM) (\w+)", statement)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(statement, values)
        assert cursor.rowcount > 0
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def test_the_books_agree_whatever_waits_and_however_calls_ended(secret: str) -> None:
    for number in range(5):
        call(secret, output_tokens=number)
    ledger.drain()
    call(secret, estimator="default")
    running, orphan = admit(secret), admit(secret)
    expire_hold(orphan.request_id)
    sweep()

    assert differences() == []
    ledger.drain()
    assert differences() == []
    end(orphan, output_tokens=30)
    assert differences() == []
    ledger.drain()
    end(running)

    assert differences() == []


def test_what_is_committed_and_not_acknowledged_counts_once(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(secret)

    drain_and_die(monkeypatch)
    call(secret)

    assert LedgerEntry.objects.count() == 1
    assert ledger.backlog() == 2
    assert differences() == []


def test_a_settlement_that_redis_counted_twice_is_expected_there_until_the_drain_takes_it_off(
    secret: str,
) -> None:
    reservation = call(secret)
    ledger.drain()
    redis().delete(f"{{p0}}:hold:{reservation.request_id}")
    reservation.ended = False
    end(reservation)

    assert differences() == []
    ledger.drain()

    assert LedgerEntry.objects.count() == 1
    assert differences() == []


def test_no_difference_is_seen_while_calls_drains_sweeps_and_dying_drains_go_on(
    acme: Tenant, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.set_budget(scope="tenant", tenant=acme, unit="tokens", period="1m", limit=None, actor="test")
    services.set_budget(scope="run", tenant=acme, unit="tokens", period="day", limit=None, actor="test")
    done, troubles = threading.Event(), list[BaseException]()
    acknowledge, chance = counters.run_now, random.Random(7)

    def acknowledge_or_die(*arguments: Any) -> Any:
        if chance.random() < 0.3:
            raise ConnectionError("killed after the commit")
        return acknowledge(*arguments)

    monkeypatch.setattr(ledger, "run_now", acknowledge_or_die)
    monkeypatch.setattr(ledger, "BATCH", 7)

    async def one(number: int) -> None:
        caller = await identify({"authorization": f"Bearer {secret}"})
        run = f"run-{number % 3}" if number % 2 else ""
        reservation = await reserve(await reload(caller.public_id), a_demand(10, 100, run=run))
        if number % 10 == 0:
            # Its process is gone; now and then the owner turns up when it was swept.
            expire_hold(reservation.request_id)
            await asyncio.sleep(0.02)
        if number % 20:
            await settle(reservation, some_usage(output_tokens=number % 50), "completed", Moments(), 200)

    async def traffic() -> None:
        number = 0
        while not done.is_set():
            await asyncio.gather(*(one(number + more) for more in range(8)))
            number += 8

    def drain() -> None:
        while not done.is_set():
            with contextlib.suppress(ConnectionError):
                ledger.drain()
            sweep()

    def until_done(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001, told in the test's own thread
            troubles.append(exc)
        finally:
            connection.close()

    working = [
        threading.Thread(target=until_done, args=(work,)) for work in (lambda: asyncio.run(traffic()), drain)
    ]
    for thread in working:
        thread.start()
    seen: list[verification.Result] = []

    def seen_enough() -> bool:
        seen.append(verification.verify(verification.open_part()))
        # Calls came and were booked meanwhile, and some were waiting when it was looked.
        return (
            len(seen) >= 50
            and len({result.position for result in seen}) > 25
            and any(result.figures["waiting"] for result in seen)
            and seen[-1].figures["captured"] > seen[0].figures["captured"]
        )

    try:
        eventually(seen_enough, 90)
    finally:
        done.set()
        for thread in working:
            thread.join()

    assert troubles == []
    assert [(result.differences, result.unasked) for result in seen if result.outcome != "agrees"] == []


def drain_aside() -> int:
    """``drain`` for a thread of its own."""
    try:
        return ledger.drain()
    finally:
        connection.close()


def test_the_drain_waits_only_while_redis_is_asked(secret: str) -> None:
    call(secret)

    with between_two_drains() as let_drains_go_on, ThreadPoolExecutor(1) as other:
        kept_out = other.submit(drain_aside).result()
        let_drains_go_on()
        let_in = other.submit(drain_aside).result()
        seen_here = LedgerEntry.objects.count()

    assert (kept_out, let_in, seen_here) == (0, 1, 0)
    assert LedgerEntry.objects.count() == 1


def test_whatever_goes_wrong_in_between_the_drain_goes_on(secret: str) -> None:
    call(secret)

    with pytest.raises(ZeroDivisionError), between_two_drains():
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as other:
        assert other.submit(drain_aside).result() == 1


def test_a_drain_that_never_ends_is_not_waited_for_for_ever(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "PATIENCE", "100ms")
    stuck, done = threading.Event(), threading.Event()

    def drain_for_ever() -> None:
        with transaction.atomic():
            assert booking.nobody_else_drains()
            stuck.set()
            done.wait(30)
        connection.close()

    with ThreadPoolExecutor(1) as other:
        other.submit(drain_for_ever)
        assert stuck.wait(30)
        try:
            with pytest.raises(OperationalError, match="lock timeout"):
                verification.verify(verification.open_part())
        finally:
            done.set()


# Each: what is done to the books, the comparisons that find it, and what is said of the cause of the first.
FAULTS: dict[str, tuple[Callable[[Budget], object], set[str], str]] = {
    "a counter has more": (
        lambda budget: redis().hincrby(counter_of(budget), "used", 5),
        {"counters"},
        "Redis has counted what PostgreSQL does not have",
    ),
    "a counter has less": (
        lambda budget: redis().hincrby(counter_of(budget), "used", -1),
        {"counters"},
        "Redis has forgotten settlements",
    ),
    "a counter is gone": (
        lambda budget: redis().delete(counter_of(budget)),
        {"counters"},
        "deleted, or evicted",
    ),
    "a record is lost on its way": (
        lambda _: redis().xdel(USAGE, redis().xrange(USAGE)[-1][0]),
        {"counters"},
        "Redis has counted what PostgreSQL does not have",
    ),
    "a period says less": (
        lambda budget: tamper(
            "UPDATE budgets_budgetperiod SET used = used - 1 WHERE budget_id = %s", budget.pk
        ),
        {"counters", "budgets"},
        "a row was changed",
    ),
    "a period is gone": (
        lambda budget: tamper("DELETE FROM budgets_budgetperiod WHERE budget_id = %s", budget.pk),
        {"counters"},
        "a row was changed",
    ),
    "an event is gone": (
        lambda _: tamper("DELETE FROM audit_requestevent WHERE request_id = %s", first_entry()),
        {"events"},
        "",
    ),
    "an event tells other tokens": (
        lambda _: tamper(
            "UPDATE audit_requestevent SET output_tokens = 1 WHERE request_id = %s", first_entry()
        ),
        {"events"},
        "",
    ),
    "an entry is gone": (
        lambda _: tamper("DELETE FROM budgets_ledgerentry WHERE request_id = %s", first_entry()),
        {"events", "rollups", "budgets"},
        "Entries were taken out of the ledger",
    ),
    "an entry has another cost": (
        lambda _: tamper(
            "UPDATE budgets_ledgerentry SET cost_micro_usd = cost_micro_usd - 1 WHERE request_id = %s",
            first_entry(),
        ),
        {"rollups", "costs", "budgets"},
        "",
    ),
    "an entry names other rates": (
        lambda _: tamper(
            "UPDATE budgets_ledgerentry SET output_price = output_price * 2 WHERE request_id = %s",
            first_entry(),
        ),
        {"costs"},
        "Entries were changed after they were booked",
    ),
    "an adjustment has another cost": (
        lambda _: tamper(
            "UPDATE budgets_ledgerentry SET cost_micro_usd = cost_micro_usd + 1 WHERE kind = 'adjustment'"
        ),
        {"rollups", "costs", "budgets"},
        "",
    ),
    "a rollup has more": (
        lambda _: tamper("UPDATE budgets_usagerollup SET cached_tokens = cached_tokens + 1"),
        {"rollups"},
        "",
    ),
    "a rollup is gone": (
        lambda _: tamper("DELETE FROM budgets_usagerollup"),
        {"rollups"},
        "",
    ),
    "a rollup has another model": (
        lambda _: tamper("UPDATE budgets_usagerollup SET model = 'other:1b'"),
        {"rollups"},
        "",
    ),
}


def first_entry() -> UUID:
    request_id: UUID = LedgerEntry.objects.order_by("id").values_list("request_id", flat=True)[0]
    return request_id


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_told(secret: str, budgets: list[Budget], fault: str) -> None:
    spoil, finding, cause = FAULTS[fault]
    for _ in range(3):
        call(secret)
    orphan = admit(secret)
    expire_hold(orphan.request_id)
    sweep()
    end(orphan, output_tokens=30)
    ledger.drain()
    call(secret)
    assert differences() == []

    spoil(budgets[0])
    found = differences()

    assert {one.check for one in found} == finding
    assert cause in found[0].cause
    assert all(one.expected != one.found or "the same" in one.what for one in found)
    assert all(one.what and one.remedy for one in found)
    assert {one.tenant for one in found} <= {"acme", ""}
    said = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify", stdout=said)
    assert ended.value.code == 1
    assert found[0].what in said.getvalue()


@pytest.mark.parametrize("profile", ["day", "requests", "focus"])
def test_an_export_that_leaves_something_out_is_found(
    secret: str, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    for _ in range(3):
        call(secret)
    ledger.drain()
    assert differences() == []
    whole = PROFILES[profile]

    def without_one(selection: Selection, days: Any) -> Any:
        return whole.query(replace(selection, model="no such model"), days)

    monkeypatch.setitem(PROFILES, profile, replace(whole, query=without_one))
    found = differences()

    assert {one.check for one in found} == {"exports"}
    assert all(one.name.startswith(f"{profile}:") for one in found)
    assert f"The export {profile} of all tenants adds up to 0 of input_tokens" in " ".join(
        one.what for one in found
    )


@pytest.mark.parametrize("written", [as_fields, as_fields_of_the_release_before])
def test_a_parked_record_is_told_as_the_cause(
    secret: str, written: Callable[[dict[str, Any]], dict[bytes, bytes]]
) -> None:
    call(secret)
    call(secret)
    ((_, fields), (spoilt_id, _)) = redis().xrange(USAGE)
    redis().xdel(USAGE, spoilt_id)
    told = told_by(fields)
    told["call"] |= {"model": "a\x00b", "request_id": str(new_id())}
    redis().xadd(USAGE, written(told))

    ledger.drain()
    found = differences()

    assert ParkedRecord.objects.count() == 1
    assert {one.check for one in found} == {"counters"}
    assert {one.cause for one in found} == {
        "Redis has counted records that could not be booked and are parked."
    }


def test_figures_say_what_is_underway_and_how_much_is_estimated_and_captured(secret: str) -> None:
    for estimator in ("", "", "default"):
        call(secret, estimator=estimator)
    ledger.drain()
    call(secret)
    admit(secret)
    ParkedRecord.objects.create(stream_id="1-1", record="{}", reason="test")
    SpooledSettlement.objects.create(request_id=new_id(), settlement={})

    result = verification.verify(verification.open_part())

    figures = result.figures
    assert result.position == redis().xrevrange(USAGE, count=1)[0][0].decode()
    assert (figures["captured"], figures["ended"], figures["capture_rate"]) == (3, 6, "0.500000")
    assert (figures["waiting"], figures["spooled"], figures["parked"]) == (1, 1, 1)
    assert (figures["holds"], figures["overdue_holds"]) == (1, 0)
    assert 0 <= figures["oldest_hold_seconds"] < 60
    assert figures["tenants"] == [
        {
            "tenant": "acme",
            "requests": 3,
            "tokens": 81,
            "estimated_tokens": 27,
            "estimated_share_per_mille": 334,
        }
    ]


def test_the_estimated_share_is_the_same_wherever_it_is_told(secret: str) -> None:
    for estimator in ("", "", "default"):
        call(secret, estimator=estimator)
    ledger.drain()

    commands = {}
    for command, *whose in (("verify",), ("show_usage", "--all"), ("explain_usage", "--tenant", "acme")):
        output = StringIO()
        call_command(command, *whose, stdout=output)
        commands[command] = output.getvalue()
    row = verification.verify_and_keep(part=verification.open_part(), asked_by="test")
    page = reverse("admin:budgets_verification_change", args=[row.pk])
    told = {
        **commands,
        "admin": a_browser(User.objects.create_superuser("olga")).get(page).content.decode(),
        "statement": statement_pdf.share(totals(Selection())),
    }

    assert {door for door, text in told.items() if "33.4 %" in text} == set(told)


@pytest.mark.parametrize(
    ("some", "of", "expected"),
    [
        pytest.param(0, 0, None, id="of nothing"),
        pytest.param(0, 5, "0.000000", id="nothing"),
        pytest.param(7, 7, "1.000000", id="all"),
        pytest.param(9_999_999, 10_000_000, "0.999999", id="one of ten million is missing"),
    ],
)
def test_a_share_of_one_means_all(some: int, of: int, expected: str | None) -> None:
    assert verification.share(some, of) == expected


def test_a_part_of_the_books_can_be_asked_about(acme: Tenant, secret: str) -> None:
    call(secret)
    ledger.drain()
    create_tenant(slug="other", name="Other", actor="test")
    tamper("UPDATE budgets_usagerollup SET requests = requests + 1")
    month = f"{LedgerEntry.objects.get().day:%Y-%m}"

    statuses = {}
    for arguments in [
        ("--tenant", "acme"),
        ("--tenant", "other"),
        ("--month", month),
        ("--month", "2024-02"),
    ]:
        said = StringIO()
        try:
            call_command("verify", *arguments, "--json", stdout=said)
            statuses[arguments[1]] = 0
        except SystemExit as ended:
            statuses[arguments[1]] = int(ended.code or 0)
        assert json.loads(said.getvalue())["found"] == statuses[arguments[1]]

    assert statuses == {"acme": 1, "other": 0, month: 1, "2024-02": 0}
    with pytest.raises(SystemExit):
        call_command("verify", "--all", stdout=StringIO())
    with pytest.raises(CommandError) as refused:
        call_command("verify", "--tenant", "nobody", stdout=StringIO())
    assert refused.value.returncode == 2


def test_days_whose_entries_were_archived_are_left_out_and_their_rollups_stay(secret: str) -> None:
    end(admit(secret))
    change_record(lambda told: told.update(at=told["at"] - 70 * 86_400_000))
    ledger.drain()
    entry = LedgerEntry.objects.get()
    for table in booking.BY_MONTH:
        tamper(f"DELETE FROM {table} WHERE request_id = %s", entry.request_id)  # noqa: S608
    assert {one.check for one in verification.verify(Part()).differences} == {"rollups", "budgets"}

    ArchivedMonth.objects.create(
        table=booking.BY_MONTH[0],
        month=entry.day.replace(day=1),
        file="x",
        sha256="x",
        rows=1,
        days=[entry.day],
    )

    assert "rollups" not in {one.check for one in verification.verify(Part()).differences}
    assert rebuilt("--write")["different"] == 0
    assert UsageRollup.objects.count() == 1


def test_counters_that_cannot_be_believed_are_not_compared(secret: str, budgets: list[Budget]) -> None:
    call(secret)
    redis().hincrby(counter_of(budgets[0]), "used", 1)
    epoch = redis().getdel(EPOCH)

    result = verification.verify(verification.open_part())

    assert (result.outcome, result.found, set(result.unasked)) == ("unasked", 0, {"counters"})
    redis().set(EPOCH, epoch)
    CounterEpoch.objects.update(epoch="another")
    with pytest.raises(SystemExit) as ended:
        call_command("verify", stdout=StringIO())
    assert ended.value.code == 2


def test_more_than_can_be_read_at_once_is_said_and_not_read(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MOST_WAITING", 2)
    for _ in range(2):
        call(secret)
    assert differences() == []
    call(secret)

    result = verification.verify(verification.open_part())

    assert result.outcome == "unasked"
    assert "Too many records wait" in result.unasked["counters"]


@pytest.mark.parametrize("gone", ["DATABASE_URL", "REDIS_URL"])
def test_without_a_server_the_status_says_that_nobody_could_be_asked(secret: str, gone: str) -> None:
    away = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}

    ran = subprocess.run(
        [sys.executable, ROOT / "manage.py", "verify"],
        env={**environment(), gone: away[gone]},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 2
    assert "cannot be asked" in ran.stdout + ran.stderr


def tell_the_platform() -> None:
    services.add_recipient(tenant=None, kind="email", address="olga@example.org", actor="test")


def verified() -> Verification:
    return verification.verify_and_keep(part=verification.open_part(), asked_by="test")


def notices() -> list[str]:
    return list(Notice.objects.filter(happening="books_disagree").values_list("text", flat=True))


def test_a_difference_is_told_once_until_it_is_gone(secret: str, budgets: list[Budget]) -> None:
    tell_the_platform()
    call(secret)
    ledger.drain()
    verified()
    assert notices() == []

    redis().hincrby(counter_of(budgets[0]), "used", 1)
    verified()
    redis().hincrby(counter_of(budgets[0]), "used", 1)
    verified()
    epoch = redis().getdel(EPOCH)
    verified()
    redis().set(EPOCH, epoch)
    verified()
    assert len(notices()) == 1
    tamper("UPDATE budgets_usagerollup SET requests = requests + 1")
    verified()
    assert len(notices()) == 2
    redis().hincrby(counter_of(budgets[0]), "used", -2)
    verified()
    redis().hincrby(counter_of(budgets[0]), "used", 1)
    verified()

    assert len(notices()) == 3
    assert Delivery.objects.count() == 3
    notice = Notice.objects.filter(happening="books_disagree").latest("at")
    assert notice.facts["verification"]["new"] == 1
    assert notice.facts["verification"]["differences"][0]["check"] == "counters"


def test_who_asks_about_a_part_alarms_nobody(acme: Tenant, secret: str, budgets: list[Budget]) -> None:
    call(secret)
    redis().hincrby(counter_of(budgets[0]), "used", 1)

    verification.verify_and_keep(part=verification.open_part(acme), asked_by="test")

    assert notices() == []
    assert verified().found == 1
    assert len(notices()) == 1


def test_what_came_of_it_is_kept_for_a_while(secret: str) -> None:
    verified()
    Verification.objects.update(at=now() - timedelta(days=verification.KEPT_DAYS, hours=1))

    kept = verified()

    assert list(Verification.objects.all()) == [kept]
    assert (kept.outcome, kept.asked_by, kept.whole) == ("agrees", "test", True)


def test_the_worker_asks_every_hour(secret: str) -> None:
    tasks.verify()

    assert Verification.objects.get().asked_by == "tollgate"
    assert EVERY["budgets.tasks.verify"] == 3600


def test_a_record_that_is_parked_raises_an_alarm_and_its_neighbours_land(secret: str) -> None:
    tell_the_platform()
    call(secret)
    for _ in range(2):
        redis().xadd(USAGE, {"kind": "poison"})
        redis().incr(SETTLED)
    call(secret)
    ledger.drain()

    alerts.look()
    alerts.look()

    assert LedgerEntry.objects.count() == 2
    notice = Notice.objects.get(happening="record_parked")
    assert notice.facts["count"] == 2
    assert [one["stream_id"] for one in notice.facts["parked"]] == list(
        ParkedRecord.objects.order_by("id").values_list("stream_id", flat=True)
    )
    assert Delivery.objects.count() == 1
    redis().xadd(USAGE, {"kind": "poison"})
    ledger.drain()
    alerts.look()
    assert Notice.objects.filter(happening="record_parked").count() == 2


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    return client


def test_operators_see_figures_and_differences_and_can_ask_again(
    operator: Client, secret: str, budgets: list[Budget]
) -> None:
    call(secret)
    ledger.drain()
    page = reverse("admin:budgets_verification_changelist")

    answer = operator.post(page, {"verify": "now"}, follow=True)
    assert "The books agree" in answer.content.decode()
    redis().hincrby(counter_of(budgets[0]), "used", 1)
    answer = operator.post(page, {"verify": "now"}, follow=True)

    shown = answer.content.decode()
    assert "The books do not agree" in shown
    assert "rebuild_counters --force" in shown
    assert "capture rate" in shown
    assert "Compare the books now" in operator.get(page).content.decode()
    assert Verification.objects.filter(asked_by="olga").count() == 2


def test_who_may_only_look_cannot_ask_again(secret: str) -> None:
    verified()
    viewer = User.objects.create_user("vic", "vic@example.org", "a long enough password", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_verification"))
    client = Client()
    client.force_login(viewer)
    page = reverse("admin:budgets_verification_changelist")

    assert client.get(page).status_code == 200
    assert "Compare the books now" not in client.get(page).content.decode()
    assert client.post(page, {"verify": "now"}).status_code == 403
    assert Verification.objects.count() == 1


def rollups_as_they_are() -> list[dict[str, Any]]:
    columns = [field.attname for field in UsageRollup._meta.concrete_fields if field.attname != "id"]
    return sorted(UsageRollup.objects.values(*columns), key=str)


def rebuilt(*arguments: str) -> dict[str, Any]:
    said = StringIO()
    call_command("rebuild_rollups", *arguments, "--json", stdout=said)
    found: dict[str, Any] = json.loads(said.getvalue())
    return found


def test_rollups_made_anew_are_those_there_are(secret: str) -> None:
    call(secret)
    call(secret, estimator="default")
    ledger.drain()
    before = rollups_as_they_are()

    assert rebuilt() == {"rows": 1, "differences": [], "different": 0, "written": 0}
    tamper("DELETE FROM budgets_usagerollup")
    shown = rebuilt()
    assert (shown["different"], shown["written"], UsageRollup.objects.count()) == (1, 0, 0)
    assert rebuilt("--write")["written"] == 1

    assert rollups_as_they_are() == before
    assert rebuilt("--write") == {"rows": 1, "differences": [], "different": 0, "written": 0}
    event = AuditEvent.objects.get(action="rollups.rebuilt")
    assert (event.subject, event.details["rows"]) == ("all tenants", 1)


def test_sums_of_names_that_look_the_same_when_they_are_joined_stay_apart(secret: str) -> None:
    """G33: ``a:1.b`` and ``c``, or ``a:1`` and ``b.c``."""
    for model, upstream in [("a:1.b", "c"), ("a:1", "b.c")]:
        services.set_price(model=model, input_price=1, output_price=1, actor="test")
        end(admit(secret, model=model, upstream=upstream))
    ledger.drain()

    found = UsageRollup.objects.order_by("model").values_list("model", "upstream", "requests")
    assert list(found) == [("a:1", "b.c", 1), ("a:1.b", "c", 1)]
    assert differences() == []


def test_only_what_differs_is_written_and_only_in_the_part_that_was_named(acme: Tenant, secret: str) -> None:
    call(secret)
    ledger.drain()
    tamper("UPDATE budgets_usagerollup SET output_tokens = 1, model = 'other:1b'")
    month = f"{LedgerEntry.objects.get().day:%Y-%m}"

    assert rebuilt("--month", "2024-02", "--write")["written"] == 0
    said = StringIO()
    call_command("rebuild_rollups", "--tenant", "acme", stdout=said)
    assert "output_tokens 1, must be 20" in said.getvalue()
    assert rebuilt("--tenant", "acme", "--month", month, "--write")["different"] == 2

    assert UsageRollup.objects.get().output_tokens == 20
    assert AuditEvent.objects.get(action="rollups.rebuilt").tenant_id == acme.pk
    assert differences() == []
