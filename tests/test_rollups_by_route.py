"""Rollups of before, which had no route, told apart by the migration: in open, closed and archived months."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.migrations.loader import MigrationLoader

from budgets.archives import archive_months
from budgets.models import ClosedMonth, LedgerEntry, UsageRollup
from budgets.month_closing import close_month, same_as_closed
from budgets.rollups import Part, differences, rebuild
from budgets.usage import FIGURES, Selection, breakdown
from budgets.verification import verify
from tenants.models import Tenant
from tests.accounts import a_tenant, ago, of_rollups, on, quiet_counters, used, without_old_months

pytestmark = pytest.mark.django_db(transaction=True)

MIGRATION = ("budgets", "0033_rollups_by_route")
KEY, ANOTHER = UUID(int=1), UUID(int=2)


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


def migrate(*, back: bool = False) -> None:
    """Do the migration, whatever came after it, or take it back."""
    loader = MigrationLoader(connection)
    migration = loader.get_migration(*MIGRATION)
    state = loader.project_state(MIGRATION, at_end=False)
    with connection.schema_editor(atomic=migration.atomic) as editor:
        (migration.unapply if back else migration.apply)(state, editor)


def called(tenant: Tenant, at: datetime, **what: Any) -> LedgerEntry:
    """A call that was made and booked then, at the cost that its price gives."""
    with time_machine.travel(at):
        return used(tenant, at, cost_micro_usd=31, **what)


def on_two_routes(tenant: Tenant, day: date) -> None:
    """Three calls of a key within an hour, on two routes, and one of another key."""
    called(tenant, on(day), route="chat")
    called(tenant, on(day), route="chat", exact=False)
    called(tenant, on(day), route="openai.chat")
    called(tenant, on(day), route="openai.chat", key_id=ANOTHER, key="daily")


def routes_of(day: date) -> list[tuple[str, UUID, int]]:
    rows = UsageRollup.objects.filter(day=day).order_by("route", "key_id")
    return list(rows.values_list("route", "key_id", "requests"))


def sums() -> list[tuple[Any, ...]]:
    """Sums by tenant, day, hour and key, as it can be told before and after."""
    figures = ", ".join(f"sum({figure})" for figure in FIGURES)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT tenant_id, day, hour_start, key_id, operation, max(key), {figures} "  # noqa: S608
            "FROM budgets_usagerollup GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
        )
        return list(cursor.fetchall())


def test_what_the_ledger_still_has_is_told_apart_and_no_sum_changes(acme: Tenant) -> None:
    globex = a_tenant("globex")
    archived, closed, still_open = (month.replace(day=15) for month in (ago(4), ago(2), ago(1)))
    for day in (archived, closed, still_open):
        on_two_routes(acme, day)
    called(globex, on(closed), route="embed")
    for month in (archived, closed):
        for tenant in (acme, globex) if month == closed else (acme,):
            close_month(tenant=tenant, month=month.replace(day=1), actor="ada")
    assert archive_months() == 2
    as_they_were = sums()

    migrate(back=True)
    assert sums() == as_they_were
    with connection.cursor() as cursor:
        cursor.execute("SELECT day, count(*) FROM budgets_usagerollup GROUP BY day ORDER BY day")
        assert cursor.fetchall() == [(archived, 2), (closed, 3), (still_open, 2)]
    migrate()

    assert sums() == as_they_were
    assert routes_of(archived) == [("", KEY, 3), ("", ANOTHER, 1)]
    told_apart = [("chat", KEY, 2), ("openai.chat", KEY, 1), ("openai.chat", ANOTHER, 1)]
    assert routes_of(still_open) == told_apart
    of_acme = Selection(tenant_id=acme.pk, from_day=closed, before_day=closed + timedelta(days=1))
    by_route = breakdown(of_acme, ["route"])
    assert [(row["route"], row["requests"]) for row in by_route.rows] == [("chat", 2), ("openai.chat", 2)]
    assert by_route == breakdown(of_acme, ["route"], from_ledger=True)
    assert rebuild(part=Part(), actor="test", write=True).different == 0
    assert verify(Part()).found == 0
    in_all = breakdown(Selection(tenant_id=acme.pk), ["route"])
    assert [(row["route"], row["requests"]) for row in in_all.rows] == [
        ("", 4), ("chat", 4), ("openai.chat", 4),
    ]  # fmt: skip
    assert in_all.total == of_rollups(acme)
    assert all(same_as_closed(closing) for closing in ClosedMonth.objects.filter(month=closed.replace(day=1)))


def test_closed_months_are_closed_again_also_when_the_database_gives_up_in_one(acme: Tenant) -> None:
    day = ago(1).replace(day=15)
    on_two_routes(acme, day)
    close_month(tenant=acme, month=ago(1), actor="ada")
    migrate(back=True)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'the disk is full'; END $$; CREATE TRIGGER full_disk BEFORE INSERT "
            "ON budgets_usagerollup FOR EACH STATEMENT EXECUTE FUNCTION full_disk()"
        )
    try:
        with pytest.raises(DatabaseError, match="the disk is full"):
            migrate()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION full_disk CASCADE; DROP TABLE told_apart")
    assert routes_of(day) == [("", KEY, 3), ("", ANOTHER, 1)]
    _is_closed()

    migrate()

    assert len(routes_of(day)) == 3
    _is_closed()
    assert differences(Part(), 9) == ([], 0)


def _is_closed() -> None:
    with pytest.raises(IntegrityError, match="is closed"), transaction.atomic():
        UsageRollup.objects.update(requests=9)


def test_what_differs_from_the_ledger_stays_as_it_is_for_verify_to_find(acme: Tenant) -> None:
    """To put it right in passing would hide that something was wrong."""
    day = ago(1).replace(day=15)
    on_two_routes(acme, day)
    migrate(back=True)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE budgets_usagerollup SET requests = requests + 1 WHERE key_id = %s", [KEY])

    migrate()

    assert routes_of(day) == [("", KEY, 4), ("openai.chat", ANOTHER, 1)]
    [found], _ = differences(Part(), 9)
    assert (found.day, found.rollups["requests"] - found.ledger["requests"]) == (day, 1)
    assert rebuild(part=Part(), actor="test", write=True).different == 3
    assert rebuild(part=Part(), actor="test").different == 0


def test_it_goes_on_where_it_stopped_also_when_there_was_drained_meanwhile(acme: Tenant) -> None:
    day = ago(1).replace(day=15)
    on_two_routes(acme, day)
    UsageRollup.objects.filter(route="openai.chat").update(route="")
    called(acme, on(day), route="openai.chat")
    assert [route for route, *_ in routes_of(day)] == ["", "", "chat", "openai.chat"]
    as_they_were = sums()

    migrate()

    assert routes_of(day) == [("chat", KEY, 2), ("openai.chat", KEY, 2), ("openai.chat", ANOTHER, 1)]
    assert sums() == as_they_were
    assert differences(Part(), 9) == ([], 0)
