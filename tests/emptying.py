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
    while True:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_statements())
        except OperationalError as exc:
            # A gateway still writes what a test has asked for, in another order of the tables.
            if not isinstance(exc.__cause__, DeadlockDetected):
                raise
        else:
            return


@cache
def _statements() -> str:
    tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - KEPT
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
        watched = tables & {name for (name,) in cursor.fetchall()}
    return ";".join(
        [
            *(f'ALTER TABLE "{table}" DISABLE TRIGGER USER' for table in sorted(watched)),
            # Names of tables, which Django made.
            *(f'DELETE FROM "{table}"' for table in sorted(tables)),  # noqa: S608
            # References are looked at only now, so the order of the tables did not matter.
            "SET CONSTRAINTS ALL IMMEDIATE",
            *(f'ALTER TABLE "{table}" ENABLE TRIGGER USER' for table in sorted(watched)),
        ]
    )
