"""How the tables become empty again after a test that committed what it wrote.

Django does it by ``TRUNCATE``, which gives some hundred tables and indexes new
files and makes every open connection look them up again: longer than most of
these tests take. There are a few rows at most, so ``DELETE`` is done at once.
"""

from __future__ import annotations

from functools import cache

from django.db import OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.test import TransactionTestCase
from psycopg.errors import DeadlockDetected

# What migrations put in and every test may rely on; Django would have to write it again each time.
KEPT = {"django_content_type", "auth_permission"}


def empty_tables(_: TransactionTestCase) -> None:
    """Delete all rows, those that nobody may delete too; what triggers would make of it does not happen."""
    delete = _without_triggers if _may_switch_triggers_off() else _with_triggers_disabled
    while True:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                # Nobody else writes from here on, so those that are empty stay so.
                cursor.execute(_lock())
                delete(cursor)
        except OperationalError as exc:
            # A gateway still writes what a test has asked for, in another order of the tables.
            if not isinstance(exc.__cause__, DeadlockDetected):
                raise
        else:
            return


def _without_triggers(cursor: CursorWrapper) -> None:
    """As a replica does what it is told: neither triggers nor references are looked at."""
    cursor.execute(f"SET LOCAL session_replication_role = replica;{_deletions()}")


def _with_triggers_disabled(cursor: CursorWrapper) -> None:
    """Where the role of the tests may not do that, which takes less than half the time.

    To disable triggers makes every open connection look the table up again, so it
    is done only where one would run.
    """
    cursor.execute(_which_have_rows())
    [[with_rows]] = cursor.fetchall()
    cursor.execute(_disabled_and_deleted(tuple(with_rows)))


@cache
def _may_switch_triggers_off() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_parameter_privilege('session_replication_role', 'SET')")
        [[may]] = cursor.fetchall()
    return bool(may)


@cache
def _lock() -> str:
    locked = ", ".join(f'"{table}"' for table in sorted(_watched()))
    return f"LOCK TABLE {locked} IN SHARE ROW EXCLUSIVE MODE"


@cache
def _which_have_rows() -> str:
    """How tables with triggers are asked for those with rows."""
    found = ", ".join(
        f"CASE WHEN EXISTS (SELECT FROM \"{table}\") THEN '{table}' END" for table in sorted(_watched())
    )
    return f"SELECT array_remove(ARRAY[{found}], NULL)"


@cache
def _tables() -> frozenset[str]:
    return (
        frozenset(connection.introspection.django_table_names(only_existing=True, include_views=False)) - KEPT
    )


@cache
def _watched() -> frozenset[str]:
    """The tables of which triggers look at rows."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
        return _tables() & {name for (name,) in cursor.fetchall()}


@cache
def _deletions() -> str:
    """Those that are locked come first: what others refer to. Who is just adding a row to one that is not
    is waited for there, and the row goes with the rest.
    """
    ordered = sorted(_tables(), key=lambda table: (table not in _watched(), table))
    # Names of tables, which Django made.
    return ";".join(f'DELETE FROM "{table}"' for table in ordered)  # noqa: S608


@cache
def _disabled_and_deleted(with_rows: tuple[str, ...]) -> str:
    return ";".join(
        [
            *(f'ALTER TABLE "{table}" DISABLE TRIGGER USER' for table in with_rows),
            _deletions(),
            # References are looked at only now, so the order of the tables did not matter.
            "SET CONSTRAINTS ALL IMMEDIATE",
            *(f'ALTER TABLE "{table}" ENABLE TRIGGER USER' for table in with_rows),
        ]
    )
