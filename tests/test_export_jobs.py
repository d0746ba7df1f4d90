"""Exports that the worker makes: once, again after a death, and gone after a week."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import tasks
from budgets.exports import Order, jobs, workbooks
from budgets.exports.jobs import claim, expire_exports, file_of, linked, make, make_exports, order_export
from budgets.models import Export
from tenants.models import Tenant, User
from tenants.services import create_tenant
from tests.conftest import eventually
from tests.exporting import an_entry, an_order, written
from tests.gateway import ROOT, environment


@pytest.fixture
def acme(transactional_db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tenant:
    monkeypatch.setattr(settings, "EXPORT_DIR", tmp_path / "exports")
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin")


@pytest.fixture
def fay(transactional_db: None) -> User:
    return User.objects.create(username="fay")


def files() -> list[str]:
    return sorted(path.name for path in Path(settings.EXPORT_DIR).glob("*"))


def in_background(work: Callable[[], Any]) -> threading.Thread:
    def through() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=through)
    thread.start()
    return thread


@contextmanager
def ledger_locked() -> Iterator[None]:
    """Nobody reads the ledger until the block ends."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE budgets_ledgerentry IN ACCESS EXCLUSIVE MODE")
        yield


def seen_by_others(export: Export) -> dict[str, Any]:
    """The row as another connection sees it."""
    found: list[dict[str, Any]] = []
    in_background(lambda: found.append({**Export.objects.values().get(pk=export.pk)})).join()
    return found[0]


@pytest.mark.parametrize("layout", ["csv", "xlsx"])
def test_what_was_ordered_is_made_and_is_the_same_file(acme: Tenant, fay: User, layout: str) -> None:
    an_entry(acme)
    order = an_order(acme, layout=layout)
    export = order_export(order=order, user=fay)
    assert (export.state, export.rows_expected, export.user, export.tenant) == ("waiting", 1, "fay", "acme")

    tasks.make_exports()

    export.refresh_from_db()
    content, sidecar = written(order)
    path = file_of(export)
    assert path is not None
    assert path.read_bytes() == content
    assert (export.state, export.rows, export.bytes) == ("ready", 1, len(content))
    assert export.sha256 == sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert export.sidecar["totals"] == sidecar["totals"]
    assert export.finished_at is not None
    assert export.expires_at == export.finished_at + timedelta(days=7)
    assert (export.lease, export.attempts, files()) == (None, 1, [path.name])
    assert path.parent.stat().st_mode & 0o077 == 0
    assert make_exports() == 0


def test_an_order_is_audited(acme: Tenant, fay: User) -> None:
    order = an_order(acme, "focus")

    export = order_export(order=order, user=fay)

    event = AuditEvent.objects.get(action="export.ordered")
    assert (event.actor, event.subject, event.tenant_id) == ("fay", str(export.pk), acme.pk)
    assert Order.from_json(event.details["order"]) == order


def test_they_are_made_in_the_order_in_which_they_were_ordered(acme: Tenant, fay: User) -> None:
    exports = [order_export(order=an_order(acme, profile), user=fay) for profile in ("focus", "day", "key")]

    claimed = []
    while (export := claim()) is not None:
        claimed.append(export.pk)
        make(export)

    assert claimed == [export.pk for export in exports]


def test_only_one_is_made_at_a_time_whoever_asks(acme: Tenant, fay: User) -> None:
    for profile in ("focus", "day"):
        order_export(order=an_order(acme, profile), user=fay)
    claimed: list[Export | None] = []
    barrier = threading.Barrier(4)

    def race() -> None:
        barrier.wait()
        claimed.append(claim())

    for thread in [in_background(race) for _ in range(4)]:
        thread.join()

    assert len([export for export in claimed if export]) == 1
    assert Export.objects.filter(state="running").count() == 1


def test_a_worker_that_is_killed_loses_its_lease_and_the_next_begins_anew(acme: Tenant, fay: User) -> None:
    an_entry(acme)
    order = an_order(acme)
    export = order_export(order=order, user=fay)
    program = "import django; django.setup(); from budgets import tasks; tasks.make_exports()"
    variables = environment() | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "EXPORT_DIR": str(settings.EXPORT_DIR),
    }
    with (
        ledger_locked(),
        subprocess.Popen([sys.executable, "-c", program], env=variables, cwd=ROOT) as worker,
    ):
        eventually(lambda: seen_by_others(export)["state"] == "running")
        eventually(files)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    [left] = files()
    assert left.endswith(".part")
    assert claim() is None

    Export.objects.update(leased_until=now() - timedelta(seconds=1))
    assert make_exports() == 1

    export.refresh_from_db()
    assert (export.state, export.attempts) == ("ready", 2)
    assert export.sha256 == written(order)[1]["sha256"]
    os.utime(Path(settings.EXPORT_DIR) / left, (0, 0))
    expire_exports()
    assert files() == [export.file]


def test_the_lease_is_kept_while_the_database_takes_its_time(
    acme: Tenant, fay: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "TELLING_SECONDS", 0.02)
    export = order_export(order=an_order(acme), user=fay)
    with ledger_locked():
        working = in_background(make_exports)
        eventually(lambda: seen_by_others(export)["state"] == "running")
        first = seen_by_others(export)["leased_until"]

        eventually(lambda: seen_by_others(export)["leased_until"] > first)

    working.join()
    export.refresh_from_db()
    assert export.state == "ready"


def test_who_lost_the_lease_leaves_nothing_behind(
    acme: Tenant, fay: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "TELLING_SECONDS", 0.02)
    export = order_export(order=an_order(acme), user=fay)
    with ledger_locked():
        slow = in_background(make_exports)
        eventually(lambda: seen_by_others(export)["state"] == "running")
        eventually(files)

        in_background(lambda: Export.objects.update(lease=uuid4())).join()
        slow.join()

    export.refresh_from_db()
    assert (export.state, files()) == ("running", [])


def test_of_two_that_end_together_one_says_it_is_ready(acme: Tenant, fay: User) -> None:
    """The first was thought dead and was only slow."""
    an_entry(acme)
    order_export(order=an_order(acme), user=fay)
    slow = claim()
    assert slow is not None
    Export.objects.update(leased_until=now() - timedelta(seconds=1))
    second = claim()
    assert second is not None

    make(second)
    make(slow)

    export = Export.objects.get()
    assert (export.state, export.attempts, files()) == ("ready", 2, [export.file])


def test_what_kills_every_worker_is_given_up(acme: Tenant, fay: User) -> None:
    order_export(order=an_order(acme), user=fay)
    for _ in range(jobs.MOST_ATTEMPTS):
        assert claim() is not None
        Export.objects.update(leased_until=now() - timedelta(seconds=1))

    assert claim() is None

    export = Export.objects.get()
    assert (export.state, export.error) == (
        "failed",
        "It could not be made: each worker that tried has died.",
    )


def test_a_failure_is_told_with_an_id_and_keeps_nothing_else_from_being_made(
    acme: Tenant, fay: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = order_export(order=an_order(acme), user=fay)
    order_export(order=an_order(acme, "day"), user=fay)
    Export.objects.filter(pk=first.pk).update(order={"nonsense": 1})

    assert make_exports() == 2

    first.refresh_from_db()
    assert (first.state, first.lease) == ("failed", None)
    assert "reason that is in the gateway's log" in first.error
    assert first.error_id in caplog.text
    assert len(first.error_id) == 12
    assert Export.objects.exclude(pk=first.pk).get().state == "ready"


def test_a_workbook_that_would_be_too_long_is_not_taken_and_if_it_grew_not_cut(
    acme: Tenant, fay: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        an_entry(acme)
    order = an_order(acme, layout="xlsx")
    export = order_export(order=order, user=fay)
    monkeypatch.setattr(workbooks, "MOST_ROWS", 2)
    monkeypatch.setattr(jobs, "MOST_ROWS", 2)

    with pytest.raises(ValidationError, match="Take CSV"):
        order_export(order=order, user=fay)
    make_exports()

    export.refresh_from_db()
    assert export.state == "failed"
    assert "Take CSV, fewer days" in export.error
    assert files() == []


def test_nobody_has_more_than_a_few_that_wait(acme: Tenant, fay: User) -> None:
    for _ in range(jobs.MOST_WAITING):
        order_export(order=an_order(acme), user=fay)

    with pytest.raises(ValidationError, match="5 of your exports are not made yet"):
        order_export(order=an_order(acme), user=fay)
    order_export(order=an_order(acme), user=User.objects.create(username="gus"))

    assert Export.objects.count() == jobs.MOST_WAITING + 1


def test_after_a_week_the_file_is_gone_and_the_row_says_so(acme: Tenant, fay: User) -> None:
    for profile in ("day", "key"):
        order_export(order=an_order(acme, profile), user=fay)
    make_exports()
    old, kept = Export.objects.order_by("created_at")
    week_ago = now() - timedelta(days=8)
    Export.objects.filter(pk=old.pk).update(created_at=week_ago, expires_at=week_ago + timedelta(days=7))

    old.refresh_from_db()
    assert file_of(old) is None
    assert linked(user_id=fay.pk, link=old.link) is None
    tasks.expire_exports()
    assert expire_exports() == 0

    old.refresh_from_db()
    assert (old.state, files()) == ("expired", [kept.file])


def test_a_link_is_good_for_whoever_ordered_it_and_nobody_else(acme: Tenant, fay: User) -> None:
    export = order_export(order=an_order(acme), user=fay)
    make_exports()

    assert linked(user_id=fay.pk, link=export.link) == Export.objects.get()
    assert linked(user_id=uuid4(), link=export.link) is None
    assert linked(user_id=fay.pk, link=str(export.pk)) is None
    assert len(export.link) >= 43


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"state": "lost"}, "state_is_known"),
        ({"state": "running"}, "is_leased_while_it_runs"),
        ({"state": "waiting", "lease": uuid4()}, "is_leased_while_it_runs"),
        ({"state": "ready"}, "that_is_ready_has_a_file_that_expires"),
    ],
)
def test_the_database_keeps_a_state_and_what_belongs_to_it_together(
    acme: Tenant, fay: User, changes: dict[str, Any], constraint: str
) -> None:
    export = order_export(order=an_order(acme), user=fay)

    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Export.objects.filter(pk=export.pk).update(**changes)
