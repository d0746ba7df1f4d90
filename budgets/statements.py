"""Drawing up statements: what a closed month of a tenant came to, as lines, totals, CSV and PDF.

A line is a dict: ``part`` is ``usage`` (of the month itself), ``late`` (of a
month that was closed when it was booked) or ``correction``; then
``closed_month`` (``2026-09`` or empty), ``key_id``, ``key``, ``model``,
``request_id``, ``reason`` and ``actor`` (of corrections, else empty), and the
figures. Usage and late usage are summed up by key and model, corrections stand
one by one.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from datetime import UTC
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Case, F, Max, QuerySet, Sum, When

from budgets.models import ClosedMonth, LedgerEntry, Statement
from budgets.open_months import following
from budgets.pricing import usd_in_full
from budgets.usage import FIGURES, SUMS, Selection, totals
from tenants.spreadsheets import harmless

Line = dict[str, Any]

# Any number; only those who number statements take this advisory lock. The trigger takes it too.
NUMBERING = 0x544F4C4D01

RATES = ("input_price", "cached_price", "output_price", "gpu_price")
TEXTS = ("part", "closed_month", "key_id", "key", "model", "request_id", "reason", "actor")
HEAD = ("statement", "revision", "tenant", "month", *TEXTS, *FIGURES, "cost_usd")


def selection_of(closing: ClosedMonth) -> Selection:
    """The entries of a closed month."""
    return Selection(tenant_id=closing.tenant_id, from_day=closing.month, before_day=following(closing.month))


def draw_up(closing: ClosedMonth) -> Statement:
    """Number and save the statement of ``closing``, which nobody can book in any more.

    For the transaction that closes the month: if it fails, the number is free again.
    """
    replaced = (
        Statement.objects.filter(tenant_id=closing.tenant_id, month=closing.month)
        .defer("csv", "pdf")
        .order_by("-revision")
        .first()
    )
    selection = selection_of(closing)
    year = closing.closed_at.astimezone(UTC).year
    sequence = _next_number(year)
    statement = Statement(
        number=f"{year}-{sequence:06d}",
        year=year,
        sequence=sequence,
        closing=closing,
        replaces=replaced,
        revision=1 if replaced is None else replaced.revision + 1,
        issuer=settings.STATEMENT_ISSUER,
        tenant_id=closing.tenant_id,
        tenant=closing.tenant,
        tenant_name=closing.tenant_name,
        month=closing.month,
        time_zone=closing.time_zone,
        drawn_at=closing.closed_at,
        lines=lines_of(selection),
        prices=prices_of(selection),
        **totals(selection),
    )
    # What draws on paper is much to load, and no other command or process needs it.
    from budgets.statement_pdf import pdf_of

    for figure in FIGURES:
        if sum(line[figure] for line in statement.lines) != getattr(statement, figure):
            raise RuntimeError(f"the lines of statement {statement} do not add up to its {figure}")
    statement.csv = csv_of(statement)
    statement.csv_sha256 = hashlib.sha256(statement.csv).hexdigest()
    statement.pdf = pdf_of(statement)
    statement.pdf_sha256 = hashlib.sha256(statement.pdf).hexdigest()
    statement.save(force_insert=True)
    return statement


def lines_of(selection: Selection) -> list[Line]:
    """The lines of a statement about these entries: usage by key and model, late usage, corrections."""
    entries = selection.entries()
    calls, corrections = entries.exclude(kind="correction"), entries.filter(kind="correction")
    return [
        *_summed(calls.filter(closed_month=None), "usage"),
        *_summed(calls.exclude(closed_month=None), "late"),
        *(
            _line(
                "correction", row, request_id=str(row["corrects"]), reason=row["reason"], actor=row["actor"]
            )
            for row in corrections.annotate(estimated_tokens=_estimated())
            .order_by("request_id")
            .values("closed_month", "key_id", "key", "model", "corrects", "reason", "actor", *FIGURES)
        ),
    ]


def prices_of(selection: Selection) -> list[dict[str, Any]]:
    """The versions of prices that the entries were booked at, each with its model and rates."""
    rows = (
        selection.entries()
        .exclude(price_id=None)
        .values("model", "price_id", *RATES)
        .distinct()
        .order_by("model", "price_id")
    )
    return [{**row, "price_id": str(row["price_id"])} for row in rows]


def csv_of(statement: Statement) -> bytes:
    """The lines and the totals: UTF-8, RFC 4180, the last row has ``total`` as its part."""
    of_all = [statement.number, statement.revision, statement.tenant, f"{statement.month:%Y-%m}"]
    total = dict.fromkeys(TEXTS, "") | {figure: getattr(statement, figure) for figure in FIGURES}
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(HEAD)
    for line in [*statement.lines, total | {"part": "total"}]:
        texts = [harmless(line[name]) for name in TEXTS]
        writer.writerow(
            [*of_all, *texts, *(line[figure] for figure in FIGURES), usd_in_full(line["cost_micro_usd"])]
        )
    return written.getvalue().encode()


def _summed(entries: QuerySet[LedgerEntry], part: str) -> Iterable[Line]:
    names = ("closed_month", "key_id", "key", "model")
    sums = {f"sum_{figure}": Sum(figure) for figure in SUMS} | {"sum_estimated_tokens": Sum(_estimated())}
    rows = entries.values(*names).annotate(**sums).order_by("closed_month", "key", "key_id", "model")
    for row in rows:
        figures = {figure: int(row[f"sum_{figure}"]) for figure in FIGURES}
        yield _line(part, {name: row[name] for name in names} | figures)


def _line(part: str, row: dict[str, Any], **texts: str) -> Line:
    month = row["closed_month"]
    return {
        "part": part,
        "closed_month": "" if month is None else f"{month:%Y-%m}",
        "key_id": str(row["key_id"]),
        "key": row["key"],
        "model": row["model"],
        "request_id": "",
        "reason": "",
        "actor": "",
        **texts,
        **{figure: row[figure] for figure in FIGURES},
    }


def _estimated() -> Case:
    """Tokens of an entry that are estimated."""
    return Case(When(exact=False, then=F("input_tokens") + F("output_tokens")), default=0)


def _next_number(year: int) -> int:
    """The next number of a year, which nobody else takes before the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [NUMBERING])
    last: int | None = Statement.objects.filter(year=year).aggregate(last=Max("sequence"))["last"]
    return (last or 0) + 1
