"""The entries of a month, one by one, in the one form whose digest is kept.

Columns, their order and how values are written never change: another form
would be another digest of the same month. Nothing depends on settings of the
connection or the language of the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import date
from typing import Any, cast
from uuid import UUID

from django.db import connection

from budgets.open_months import following

# As to_char wants it: microseconds, in UTC.
_INSTANT = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
_INSTANTS = ("admitted_at", "started_at", "first_byte_at", "ended_at", "recorded_at")
_COLUMNS = (
    "request_id", "kind", "tenant_id", "tenant", "team_id", "team", "member_id", "member", "key_id", "key",
    "model", "upstream", "route", "operation", "dialect", "stream", "run", "day", "closed_month",
    "admitted_at", "started_at", "first_byte_at", "ended_at", "recorded_at",
    "requests", "input_tokens", "cached_tokens", "output_tokens", "thinking_tokens",
    "input_bytes", "output_bytes", "load_ns", "prompt_ns", "output_ns", "gpu_ms", "cost_micro_usd",
    "price_id", "input_price", "cached_price", "output_price", "gpu_price",
    "exact", "estimator", "late", "on_credit", "outcome", "status", "corrects", "actor", "reason",
)  # fmt: skip


def lines(tenant_id: UUID, month: date) -> Iterator[bytes]:
    """CSV of what is booked on the days of a month, with a head, in pieces; ordered by request and kind."""
    columns = ", ".join(
        f"to_char({name} AT TIME ZONE 'UTC', '{_INSTANT}') AS {name}"
        if name in _INSTANTS
        else f"to_char({name}, 'YYYY-MM-DD') AS {name}"
        if name in ("day", "closed_month")
        else f'"{name}"'
        for name in _COLUMNS
    )
    query = (
        f"COPY (SELECT {columns} FROM budgets_ledgerentry "  # noqa: S608, the columns are those above
        "WHERE tenant_id = %s AND day >= %s AND day < %s "
        "ORDER BY request_id, kind COLLATE \"C\") TO STDOUT (FORMAT csv, HEADER true, ENCODING 'UTF8')"
    )
    values = [tenant_id, month, following(month)]
    # Django's own wrapper does not know COPY.
    with connection.cursor() as cursor, cast("Any", cursor).cursor.copy(query, values) as copied:
        for piece in copied:
            yield bytes(piece)


def sha256_of(tenant_id: UUID, month: date) -> str:
    """The digest of ``lines``, as hex digits."""
    digest = hashlib.sha256()
    for piece in lines(tenant_id, month):
        digest.update(piece)
    return digest.hexdigest()
