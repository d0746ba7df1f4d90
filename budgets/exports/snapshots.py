"""One view of the books for a whole export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction


@contextmanager
def snapshot() -> Iterator[None]:
    """See the database as it is now, whatever is written meanwhile: rows, totals and count agree.

    Inside a transaction that is repeatable already its view is used; raises
    ``TransactionManagementError`` inside another one.
    """
    if connection.in_atomic_block:
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            if cursor.fetchone()[0] not in ("repeatable read", "serializable"):
                raise transaction.TransactionManagementError("an export needs a view that does not move")
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            # Before the view is taken: a month that is archived meanwhile would be gone from it unseen.
            cursor.execute("LOCK TABLE budgets_ledgerentry IN ACCESS SHARE MODE")
        yield
