"""How the tables become empty again after a test that committed what it wrote.

Django does it by ``TRUNCATE``, which gives some hundred tables and indexes new
files and makes every open connection look them up again: longer than most of
these tests take. There are a few rows at most, so ``DELETE`` is done at once.
"""

from __future__ import annotations

from functools import cache

from django.db import OperationalError, connection, transaction
from django.test import TransactionTestCase
from psycopg.errors import DeadlockDetected

# What migrations put in and every test may rely on; Django would have to write it again each time.
KEPT = {"django_content_type", "auth_permission"}


def empty_tables(_: TransactionTestCase) -> None:
    """Delete all rows, those that nobody may delete too; what triggers would make of it does not happen."""
    lock, filled = _questions()
    while True:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                # Nobody else writes from here on, so those that are empty stay so.
                cursor.execute(lock)
                cursor.execute(filled)
                [[with_rows]] = cursor.fetchall()
                cursor.execute(_statements(tuple(with_rows)))
        except OperationalError as exc:
            # A gateway still writes what a test has asked for, in another order of the tables.
            if not isinstance(exc.__cause__, DeadlockDetected):
                raise
        else:
            return


@cache
def _questions() -> tuple[str, str]:
    """How tables with triggers are locked, and how they are asked for those with rows.

    To disable triggers makes every open connection look the table up again, so it
    is done only where one would run.
    """
    watched = sorted(_watched())
    found = ", ".join(f"CASE WHEN EXISTS (SELECT FROM \"{table}\") THEN '{table}' END" for table in watched)
    locked = ", ".join(f'"{table}"' for table in watched)
    return f"LOCK TABLE {locked} IN SHARE ROW EXCLUSIVE MODE", f"SELECT array_remove(ARRAY[{found}], NULL)"


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
def _statements(with_rows: tuple[str, ...]) -> str:
    return ";".join(
        [
            *(f'ALTER TABLE "{table}" DISABLE TRIGGER USER' for table in with_rows),
            # Names of tables, which Django made.
            *(f'DELETE FROM "{table}"' for table in sorted(_tables())),  # noqa: S608
            # References are looked at only now, so the order of the tables did not matter.
            "SET CONSTRAINTS ALL IMMEDIATE",
            *(f'ALTER TABLE "{table}" ENABLE TRIGGER USER' for table in with_rows),
        ]
    )
