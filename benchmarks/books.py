"""What the books cost: ``python3 benchmarks/books.py --rows 10000000``.

Measures how fast the drain books records that the real scripts made; then, with
so many entries in the ledger, how long reports take from rollups and from the
ledger itself, how long making all rollups anew, and how long ``verify``.

Starts PostgreSQL and Valkey of its own and throws them away. Ten million entries
with their events take some 12 GB of disk meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from config.embedded import Postgres, Valkey, remove_directory

TENANTS, KEYS, MODELS, DAYS = 20, 20, 3, 30
AT_ONE_TIME = 500_000
AT_ONCE = 64
REPEATS = 3
TABLES = ("budgets_ledgerentry", "audit_requestevent")

# Of a call by its number: a moment in the last days, from which its id is made, tenant, key, model, tokens.
CALLS = f"""
SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(random, 1, 3)
    || '8' || substr(random, 4, 15) AS id, call.*,
    ceil((input * 100000::bigint + output * 400000::bigint) * 0.000001)::bigint AS cost
FROM (
    SELECT number, md5(number::text) AS random,
        date_trunc(
            'milliseconds', %(until)s - interval '{DAYS} days' * (1 - (number + 0.5) / %(rows)s)
        ) AS at,
        md5('tenant' || tenant)::uuid AS tenant_id, 'tenant-' || tenant AS tenant,
        md5('key' || tenant || ' ' || key)::uuid AS key_id, 'key-' || key AS key,
        'model-' || model || ':1b' AS model, 100 + number %% 1900 AS input, 10 + number %% 490 AS output,
        number %% 50 <> 0 AS exact
    FROM (
        SELECT number, hashint8(number) & 2147483647 AS drawn,
            (hashint8(number) & 2147483647) %% {TENANTS} AS tenant,
            (hashint8(number) & 2147483647) / {TENANTS} %% {KEYS} AS key,
            (hashint8(number) & 2147483647) / {TENANTS * KEYS} %% {MODELS} AS model
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
    ) AS drawn
) AS call
"""  # noqa: S608

ENTRIES = f"""
INSERT INTO budgets_ledgerentry (
    request_id, kind, tenant_id, tenant, team, member, key_id, key, model, upstream, route, operation,
    dialect, stream, day, admitted_at, ended_at, requests, input_tokens, cached_tokens, output_tokens,
    thinking_tokens, gpu_ms, cost_micro_usd, run, price_id, input_price, cached_price, output_price,
    gpu_price, exact, late, outcome, status, recorded_at)
SELECT id::uuid, 'usage', tenant_id, tenant, '', '', key_id, key, model, 'main', 'chat', 'chat', 'OLLAMA',
    TRUE, (at AT TIME ZONE 'UTC')::date, at, at, 1, input, 0, output, 0, output * 20, cost, '',
    tenant_id, 100000, 50000, 400000, 0, exact, FALSE, 'completed', 200, at
FROM ({CALLS}) AS call
"""  # noqa: S608, constants of this file

EVENTS = f"""
INSERT INTO audit_requestevent (
    request_id, at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, run, status,
    outcome, refusal, refused_by, input_tokens, output_tokens, exact, admitted_at, ended_at)
SELECT id::uuid, at, tenant_id, tenant, key_id, key, 'chat', 'OLLAMA', model, 'main', TRUE, '', 200,
    'completed', '', '{{}}', input, output, exact, at, at
FROM ({CALLS}) AS call
"""  # noqa: S608


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="entries in the ledger")
    parser.add_argument("--records", type=int, default=20_000, help="records to be drained")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with servers():
        import django

        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        figures = drained(given.records) | reported(given.rows)
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name.ljust(width)}  {figure:,}")  # noqa: T201
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))
    return 0


@contextlib.contextmanager
def servers() -> Iterator[None]:
    """PostgreSQL and Valkey as ``quickstart`` starts them, and the settings of a process beside them."""
    directory = Path(tempfile.mkdtemp(prefix="tollgate-books-"))
    directory.chmod(0o711)
    try:
        with (
            Postgres(directory / "postgres", log=directory / "postgres.log", durable=True) as postgres,
            Valkey(directory / "valkey", log=directory / "valkey.log", durable=True) as valkey,
        ):
            os.environ |= {
                "DATABASE_URL": postgres.url,
                "REDIS_URL": valkey.url,
                "SPOOL_DIR": str(directory / "spool"),
                "EXPORT_DIR": str(directory / "exports"),
                "SECRET_KEY": secrets.token_hex(32),
                "KEY_PEPPER": secrets.token_hex(32),
                "MAX_BACKLOG": str(10**9),
            }
            yield
    finally:
        remove_directory(directory / "postgres")
        shutil.rmtree(directory, ignore_errors=True)


def drained(records: int) -> dict[str, float]:
    """Calls reserved and settled by the real scripts under ten limits, then a drain of all their records."""
    from benchmarks import tenant
    from budgets import ledger
    from budgets.models import LedgerEntry

    made = tenant.make(1)
    asyncio.run(_settle(made["secret"], records))
    ledger.drain()
    asyncio.run(_settle(made["secret"], records))
    taken, seconds = 0, time.perf_counter()
    while some := ledger.drain():
        taken += some
    seconds = time.perf_counter() - seconds
    if (taken, LedgerEntry.objects.count()) != (records, 2 * records):
        raise RuntimeError(f"{taken} of {records} records were drained")
    return {"records drained": taken, "records a second, one worker": round(taken / seconds)}


async def _settle(secret: str, calls: int) -> None:
    from budgets.charges import Usage
    from budgets.reservations import Demand, reserve, settle
    from budgets.settlements import Moments
    from keys.verification import identify
    from tenants.ids import new_id

    caller = await identify({"authorization": f"Bearer {secret}"})
    usage = Usage(120, 0, 80, 0, None, 10**7, 10**8, "")

    async def one() -> None:
        demand = Demand(
            request_id=new_id(), route="chat", dialect="OLLAMA", operation="chat", stream=True,
            model="bench:1b", upstream="main", input_tokens=200, output_tokens=100, least_output=1,
        )  # fmt: skip
        await settle(await reserve(caller, demand), usage, "completed", Moments(), 200)

    for first in range(0, calls, AT_ONCE):
        await asyncio.gather(*(one() for _ in range(min(AT_ONCE, calls - first))))


def reported(rows: int) -> dict[str, float]:
    """Reports, rollups made anew and verifications over ``rows`` entries that PostgreSQL makes up."""
    from django.db.models import Sum

    from budgets import rollups, verification
    from budgets.models import LedgerEntry, UsageRollup
    from budgets.rollups import Part
    from budgets.usage import SUMS, Selection, by_part

    figures = {"entries": rows, "seconds to make them up": fill(rows)}
    figures["seconds, all rollups anew and written"] = _seconds(
        lambda: rollups.rebuild(part=Part(), actor="benchmark", write=True)
    )
    _run("VACUUM ANALYZE")
    figures["rollups"] = UsageRollup.objects.count()
    tenant_id = LedgerEntry.objects.filter(tenant="tenant-7").values_list("tenant_id", flat=True)[0]
    part = verification.open_part()
    sums = {f"sum_{name}": Sum(name) for name in SUMS}
    for column in ("day", "key", "model"):
        whole = UsageRollup.objects.filter(day__gte=part.from_day, day__lt=part.before_day).order_by()
        for whose, of in (("all", None), ("one tenant", tenant_id)):
            found = whole if of is None else whole.filter(tenant_id=of)
            by_rollups = found.values(column).annotate(**sums)
            selection = Selection(of, part.from_day, part.before_day)
            # A queryset keeps what it has read; its copy asks again.
            figures[f"ms, {whose} by {column}, rollups"] = _best_ms(lambda: list(by_rollups.all()))  # noqa: B023
            figures[f"ms, {whose} by {column}, ledger"] = _best_ms(lambda: by_part(selection, column))  # noqa: B023
    figures["seconds, verify, all"] = _seconds(lambda: _agrees(verification.verify(part)))
    of_tenant = Part(tenant_id, part.from_day, part.before_day)
    figures["seconds, verify, one tenant"] = _seconds(lambda: _agrees(verification.verify(of_tenant)))
    figures["seconds, rollups proven equal"] = _seconds(
        lambda: rollups.rebuild(part=Part(), actor="benchmark")
    )
    return figures


def _agrees(result: Any) -> None:
    if result.outcome != "agrees":
        raise RuntimeError(f"{result.outcome}: {result.differences[:3]} {result.unasked}")


def fill(rows: int) -> float:
    """Entries and events, without the indexes that are made faster afterwards; seconds."""
    from django.db import connection

    from audit import months
    from budgets.booking import BY_MONTH

    started = time.perf_counter()
    with connection.cursor() as cursor:
        until = datetime.now(UTC)
        for table in BY_MONTH:
            months.ensure(table, months.months_from(until.date() - timedelta(days=DAYS + 1), 2))
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY(%s) "
            "AND indexdef NOT LIKE 'CREATE UNIQUE%%'",
            [list(TABLES)],
        )
        indexes = cursor.fetchall()
        for name, _ in indexes:
            cursor.execute(f'DROP INDEX "{name}"')
        for first in range(0, rows, AT_ONE_TIME):
            last = min(first + AT_ONE_TIME, rows) - 1
            span: dict[str, Any] = {"rows": rows, "until": until, "first": first, "last": last}
            cursor.execute(ENTRIES, span)
            cursor.execute(EVENTS, span)
            print(f"{last + 1:,} entries", file=sys.stderr)  # noqa: T201
        for _, definition in indexes:
            # Of the table and not only of what it inherits from: then its partitions get theirs too.
            cursor.execute(definition.replace(" ON ONLY ", " ON "))
    _run("VACUUM ANALYZE")
    return round(time.perf_counter() - started, 1)


def _run(statement: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def _best_ms(work: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return round(1000 * min(once() for _ in range(REPEATS)), 1)


if __name__ == "__main__":
    sys.exit(main())
