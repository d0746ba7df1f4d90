"""Months that are old and closed: into files, out of the database, with all sums kept."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import runpy
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, connection, transaction

from audit import months
from audit.models import AuditEvent, RequestEvent
from budgets import archives, ledger, tasks
from budgets.archives import ENTRIES, EVENTS, archive_months, archived_between, sha256_of
from budgets.corrections import correct_usage
from budgets.models import ArchivedMonth, LedgerEntry, ParkedRecord, Statement
from budgets.month_closing import (
    DetailArchived,
    close_month,
    confirm_reopening,
    request_reopening,
    same_as_closed,
)
from budgets.open_months import following
from budgets.usage import FIGURES, SUMS
from config.celery import app
from tenants.models import Tenant
from tests.accounts import (
    a_tenant,
    ago,
    of_ledger,
    of_rollups,
    on,
    quiet_counters,
    settled,
    used,
    without_old_months,
)
from tests.test_closed_months import another_transaction, in_a_thread
from tests.test_docs import ROOT

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _books(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"
    settings.ARCHIVE_DIR = tmp_path / "archive"
    settings.LEDGER_KEEP_MONTHS = 2
    quiet_counters()
    without_old_months()


@pytest.fixture
def acme() -> Tenant:
    return a_tenant()


@pytest.fixture
def old() -> date:
    return ago(4)


def called(tenant: Tenant, month: date, **what: Any) -> LedgerEntry:
    """A call that was made and booked in the middle of a month."""
    moment = on(month.replace(day=15))
    with time_machine.travel(moment):
        return used(tenant, moment, **what)


def close(tenant: Tenant, month: date) -> Statement:
    return close_month(tenant=tenant, month=month, actor="ada")


def rows_of(name: str, directory: Path) -> list[dict[str, str]]:
    with gzip.open(directory / name, "rt", newline="") as file:
        return list(csv.DictReader(io.StringIO(file.read())))


def test_an_old_closed_month_goes_into_files_and_leaves_its_sums(
    acme: Tenant, old: date, settings: Any
) -> None:
    entries = [called(acme, old, output_tokens=number) for number in range(5)]
    statement = close(acme, old)
    before = of_ledger(acme)

    archived = archive_months()

    assert archived == 2
    assert not LedgerEntry.objects.exists()
    assert not RequestEvent.objects.exists()
    assert old not in months.partitions(ENTRIES)
    assert of_rollups(acme) == before == {figure: getattr(statement, figure) for figure in FIGURES}
    of_entries, of_events = (ArchivedMonth.objects.get(table=table, month=old) for table in (ENTRIES, EVENTS))
    assert (of_entries.rows, of_events.rows) == (5, 5)
    assert of_entries.totals == {figure: before[figure] for figure in SUMS}
    assert of_entries.days == [old.replace(day=15)] * 2
    for one in (of_entries, of_events):
        content = (settings.ARCHIVE_DIR / one.file).read_bytes()
        assert one.sha256 == hashlib.sha256(content).hexdigest()
    found = rows_of(of_entries.file, settings.ARCHIVE_DIR)
    assert [row["request_id"] for row in found] == sorted(str(entry.request_id) for entry in entries)
    assert sum(int(row["output_tokens"]) for row in found) == before["output_tokens"]
    assert AuditEvent.objects.filter(action="month.archived").count() == 2


def test_what_is_in_a_file_can_be_read_back(acme: Tenant, old: date, settings: Any) -> None:
    called(acme, old, key='odd "name",\n\\N')
    close(acme, old)
    kept = LedgerEntry.objects.values().get()
    archive_months()

    file = ArchivedMonth.objects.get(table=ENTRIES).file
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE back (LIKE {ENTRIES})")
        with (
            gzip.open(settings.ARCHIVE_DIR / file) as content,
            cursor.cursor.copy("COPY back FROM STDIN (FORMAT csv, HEADER true)") as copy,
        ):
            copy.write(content.read())
        cursor.execute("SELECT * FROM back")
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        cursor.execute("DROP TABLE back")

    assert rows == [kept]


@pytest.mark.parametrize("months_kept", ["1", "0", "-2"])
def test_what_finance_still_needs_cannot_be_archived_by_a_setting(
    months_kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_KEEP_MONTHS", months_kept)

    with pytest.raises(ImproperlyConfigured, match="is 2 or more, or empty"):
        runpy.run_path(str(ROOT / "config" / "settings.py"))


def test_the_worker_archives_every_hour(acme: Tenant, old: date) -> None:
    called(acme, old)
    close(acme, old)

    tasks.archive_months()

    assert ArchivedMonth.objects.count() == 2
    assert app.conf.beat_schedule["budgets.tasks.archive_months"]["schedule"] == 3600


def test_a_repeat_archives_nothing_again(acme: Tenant, old: date) -> None:
    called(acme, old)
    close(acme, old)

    assert [archive_months(), archive_months()] == [2, 0]


def test_without_the_setting_everything_stays(acme: Tenant, old: date, settings: Any) -> None:
    settings.LEDGER_KEEP_MONTHS = None
    called(acme, old)
    close(acme, old)

    assert archive_months() == 0
    assert LedgerEntry.objects.exists()


@pytest.mark.parametrize(("age", "goes"), [(1, False), (2, False), (3, True)])
def test_only_months_older_than_those_kept_go(acme: Tenant, age: int, goes: bool) -> None:
    called(acme, ago(age))
    close(acme, ago(age))

    archive_months()

    assert LedgerEntry.objects.exists() is not goes


def test_what_one_tenant_has_not_closed_keeps_the_month(acme: Tenant, old: date) -> None:
    globex = a_tenant("globex")
    called(acme, old)
    called(globex, old)
    close(acme, old)

    assert archive_months() == 0
    assert LedgerEntry.objects.count() == RequestEvent.objects.count() == 2
    close(globex, old)
    assert archive_months() == 2


def test_late_usage_of_an_open_month_keeps_the_partition_of_its_request(acme: Tenant, old: date) -> None:
    """Its id is of the old month, its day is not."""
    called(acme, old)
    close(acme, old)
    late = called_late(acme, old)

    assert archive_months() == 0
    assert LedgerEntry.objects.filter(request_id=late.request_id, closed_month=old).exists()


def called_late(tenant: Tenant, month: date) -> LedgerEntry:
    moment = on(month.replace(day=20))
    with time_machine.travel(moment):
        request_id = settled(tenant, moment)
    ledger.drain()
    return LedgerEntry.objects.get(request_id=request_id)


def test_a_reopened_month_is_not_archived_and_an_archived_one_is_not_reopened(
    acme: Tenant, old: date
) -> None:
    called(acme, old)
    closing = close(acme, old).closing
    request_reopening(closing=closing, actor="ada", reason="a wrong price")
    confirm_reopening(closing=closing, actor="bob")
    assert archive_months() == 0

    again = close(acme, old).closing
    request_reopening(closing=again, actor="ada", reason="a wrong price")
    assert archive_months() == 2

    with pytest.raises(ValidationError, match="are archived; it stays closed"):
        confirm_reopening(closing=again, actor="bob")


def test_whoever_asks_for_detail_is_told_that_it_is_archived(acme: Tenant, old: date, settings: Any) -> None:
    entry = called(acme, old)
    closing = close(acme, old).closing
    archive_months()

    [archived] = archived_between(old, following(old))
    assert archived_between(following(old), ago(0)) == []
    with pytest.raises(DetailArchived, match=archived.file):
        same_as_closed(closing)
    with pytest.raises(CommandError, match="are archived"):
        call_command("show_statement", closing.statement.number, "--entries", str(settings.SPOOL_DIR))
    with pytest.raises(ValidationError, match=f"lie in {archived.file}"):
        correct_usage(request_id=entry.request_id, changes={"output_tokens": -1}, reason="twice", actor="ada")


def test_a_record_of_an_archived_month_is_parked_as_nobody_knows_whether_it_is_booked(
    acme: Tenant, old: date
) -> None:
    entry = called(acme, old)
    close(acme, old)
    archive_months()

    settled(acme, on(old.replace(day=15)), request_id=entry.request_id)
    settled(acme, on(ago(0)))
    ledger.drain()

    assert "is archived" in ParkedRecord.objects.get().reason
    assert LedgerEntry.objects.count() == 1
    assert old not in months.partitions(ENTRIES)


class Died(Exception):
    """The process ended here."""


@pytest.mark.parametrize("dies_at", ["_closed", "_write", "sha256_of", "_sums", "record", "the end"])
def test_wherever_it_dies_the_partition_or_a_complete_file_is_there(
    acme: Tenant, old: date, settings: Any, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    called(acme, old)
    close(acme, old)

    def die(*_: Any, **__: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        if dies_at == "the end":
            patch.setattr(transaction, "on_commit", die)
        else:
            patch.setattr(archives, dies_at, die)
        with pytest.raises(Died):
            archive_months()

    assert LedgerEntry.objects.count() == 1
    assert not ArchivedMonth.objects.exists()
    assert archive_months() == 2
    archived = ArchivedMonth.objects.get(table=ENTRIES)
    assert sha256_of(settings.ARCHIVE_DIR / archived.file) == archived.sha256
    assert len(rows_of(archived.file, settings.ARCHIVE_DIR)) == 1


def test_a_disk_that_is_full_leaves_the_partition(
    acme: Tenant, old: date, settings: Any, tmp_path: Path
) -> None:
    called(acme, old)
    close(acme, old)
    (tmp_path / "a file").touch()
    settings.ARCHIVE_DIR = tmp_path / "a file" / "below"

    with pytest.raises(OSError, match="Not a directory"):
        archive_months()

    assert LedgerEntry.objects.count() == 1


def test_who_reads_the_ledger_for_long_is_not_disturbed_and_the_month_goes_later(
    acme: Tenant, old: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    called(acme, old)
    close(acme, old)
    monkeypatch.setattr(archives, "LOCK_TIMEOUT", "200ms")

    with another_transaction(lambda: list(LedgerEntry.objects.all())):
        assert archive_months() == 0
    assert LedgerEntry.objects.count() == 1

    assert archive_months() == 2


def test_two_who_archive_at_once_archive_once(acme: Tenant, old: date) -> None:
    called(acme, old)
    close(acme, old)

    with ThreadPoolExecutor(2) as pool:
        done = [in_a_thread(pool, archive_months) for _ in range(2)]
        counts = [one.result(60) for one in done]

    assert sum(counts) + archive_months() == 2
    assert ArchivedMonth.objects.count() == 2


@pytest.mark.parametrize(
    "statement",
    ["UPDATE budgets_archivedmonth SET sha256 = ''", "DELETE FROM budgets_archivedmonth"],
)
def test_what_was_archived_stays_written_down(acme: Tenant, old: date, statement: str) -> None:
    called(acme, old)
    close(acme, old)
    archive_months()

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
