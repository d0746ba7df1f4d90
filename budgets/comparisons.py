"""Holding the books against each other: what must be the same, and what is not.

PostgreSQL does the adding up and answers with what differs, a row for each
tenant and accounting day, so the cost is that of reading the part of the books
that is asked about once for each comparison, and no row of it comes here.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from django.db import connection

from budgets import ledger, rollups
from budgets.counters import Counter
from budgets.models import Budget, ParkedRecord
from budgets.rebuild import counter_of, present_periods
from budgets.records import told_in
from budgets.rollups import Part
from budgets.schedules import schedules_of
from budgets.survey import Survey
from budgets.usage import FIGURES
from budgets.visitors import FIRST_ID
from budgets.words import amount
from tenants.models import Tenant
from tenants.redis import PARTITION

# So many of each comparison are told; how many there are is counted.
MOST_TOLD = 100
PARKED_LOOKED_AT = 1_000
# For as long after a budget was made calls may have been admitted that did not know of it.
UNTIL_IN_FORCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two books that do not say the same.

    ``name`` is the same for as long as the difference stays, whatever its amount.
    ``expected`` is what follows from the ledger (for ``events`` from the events too), ``found`` what
    the other book says. ``cause`` is empty if it cannot be told.
    """

    check: str
    name: str
    tenant: str
    what: str
    expected: int
    found: int
    cause: str
    remedy: str


# The differences, and how many there are in all.
Found = tuple[list[Difference], int]


class Slugs:
    """Names of tenants by their ids; of those that are gone, the id."""

    def __init__(self, ids: Iterable[UUID | None]) -> None:
        self._slugs = dict(
            Tenant.objects.filter(pk__in={one for one in ids if one is not None}).values_list("pk", "slug")
        )

    def of(self, tenant_id: UUID | None) -> str:
        return "" if tenant_id is None else self._slugs.get(tenant_id, str(tenant_id))


@dataclass(frozen=True, slots=True)
class Expectation:
    """A counter, and what PostgreSQL says was used on it when the snapshot was taken."""

    counter: Counter
    used: int
    budget: Budget | None


def expected_counters(tenant_id: UUID | None) -> list[Expectation]:
    """The counters of all present periods, of one tenant's budgets or of everybody's.

    Those of budgets are there though nothing was booked on them; those of runs
    and visitors only once something was.
    """
    rows = Budget.objects.select_related("tenant", "team", "member__user", "member__tenant", "key")
    budgets = {row.pk: row for row in (rows if tenant_id is None else rows.filter(tenant_id=tenant_id))}
    periods = present_periods()
    if tenant_id is not None:
        periods = periods.filter(budget_id__in=budgets)
    expected = {}
    for row in periods.iterator():
        counter = counter_of(row)
        expected[counter.key] = Expectation(counter, row.used, budgets.get(row.budget_id))
    of_one_counter = [row for row in budgets.values() if row.scope != "run"]
    schedules = schedules_of(of_one_counter)
    now = datetime.now(UTC).timestamp()
    for budget in of_one_counter:
        period = schedules[budget.pk].period(now)
        counter = Counter("budget", budget.pk.hex, budget.unit, period.start, period.end)
        expected.setdefault(counter.key, Expectation(counter, 0, budget))
    return list(expected.values())


def counters(expected: Sequence[Expectation], said: Survey) -> Found:
    """What ledger and waiting records say was used in each present period, against its counter."""
    waiting: Tally[str] = Tally()
    for amounts in ledger.not_in_ledger(list(said.waiting)).values():
        waiting.update(amounts)
    parked = _parked_amounts()
    found = []
    for one in expected:
        ends_at = one.counter.end
        if ends_at is not None and ends_at <= said.at.timestamp():
            # Over since we looked for it: after a rebuild such a counter is not set.
            continue
        booked = one.used + waiting[one.counter.key]
        counted = said.used[one.counter.key]
        if (counted or 0) != booked:
            found.append(_counter_differs(one, booked, counted, parked[one.counter.key], said))
    found.sort(key=lambda one: one.name)
    return found[:MOST_TOLD], len(found)


def _counter_differs(
    one: Expectation, booked: int, counted: int | None, parked: int, said: Survey
) -> Difference:
    budget, counter = one.budget, one.counter
    whose = f"a budget that is gone ({UUID(counter.id)})"
    if UUID(counter.id) >= FIRST_ID:
        whose = f"a visitor ({UUID(counter.id)})"
    elif budget is not None:
        whose = str(budget)
    if counter.run:
        whose += f", run {counter.run}"
    start = datetime.fromtimestamp(counter.start or 0, UTC)
    remedy = "If the ledger is right: manage.py rebuild_counters --force sets the counters from it."
    if counted is None:
        cause = "Redis does not have this counter: it was deleted, or evicted."
    elif parked and counted - booked == parked:
        cause = "Redis has counted records that could not be booked and are parked."
        remedy = "See Parked records in the admin: book what they tell as a correction. " + remedy
    elif said.unreadable:
        cause = "Records wait that cannot be read; they will be parked."
        remedy = "Ask again when they are parked."
    elif counted < booked:
        cause = "Redis has forgotten settlements, or the counter was changed by hand."
    else:
        cause = "Redis has counted what PostgreSQL does not have: a record was lost, or a row was changed."
    unit = budget.unit if budget is not None else counter.unit
    return Difference(
        check="counters",
        name=counter.key.removeprefix(f"{PARTITION}:budget:"),
        tenant="" if budget is None else _slug_of(budget),
        what=f"The counter of {whose} from {start:%Y-%m-%d %H:%M} UTC says {amount(counted or 0, unit)}; "
        f"booked and waiting are {amount(booked, unit)}.",
        expected=booked,
        found=counted or 0,
        cause=cause,
        remedy=remedy,
    )


def _slug_of(budget: Budget) -> str:
    return "" if budget.tenant is None else budget.tenant.slug


def _parked_amounts() -> Tally[str]:
    """What Redis counted of parked records, by counter, as far as they can be read."""
    amounts: Tally[str] = Tally()
    for text in ParkedRecord.objects.exclude(stream_id__startswith="spool:").values_list("record", flat=True)[
        :PARKED_LOOKED_AT
    ]:
        try:
            told = told_in(orjson.loads(text))
            first = told["first"]["amounts"] if told["kind"] == "adjustment" else None
            for at, (counter, used) in enumerate(
                zip(told["call"]["counters"], told["end"]["amounts"], strict=True)
            ):
                amounts[Counter(*counter).key] += int(used) - (int(first[at]) if first else 0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            continue
    return amounts


_EVENT_DIFFERS = (
    "event.request_id IS NULL OR (event.tenant_id, event.key_id, event.input_tokens, event.output_tokens, "
    "event.exact, event.at) IS DISTINCT FROM "
    "(entry.tenant_id, entry.key_id, entry.input_tokens, entry.output_tokens, entry.exact, entry.ended_at)"
)


def events(part: Part) -> tuple[Found, int]:
    """Entries of calls against request events, one to one by request id; and how many events have no entry.

    An event of a call that was admitted has an entry, and the entry an event
    with the same tokens. Refused calls have events alone.
    """
    where, values = part.where("entry")
    lacking = _rows(
        "SELECT entry.tenant_id, entry.day, count(*), count(event.request_id), min(entry.request_id::text), "  # noqa: S608
        "count(*) OVER () "
        "FROM budgets_ledgerentry AS entry "
        "LEFT JOIN audit_requestevent AS event ON event.request_id = entry.request_id "
        f"WHERE entry.kind = 'usage' AND {where} AND ({_EVENT_DIFFERS}) "
        "GROUP BY 1, 2 ORDER BY 2, 1 LIMIT %s",
        [*values, MOST_TOLD],
    )
    # An accounting day is at most so far from the day of UTC; what lies beyond the part has an entry too.
    begin, end = _instants(part)
    ended = {"event.at >=": begin, "event.at <": end, "event.tenant_id =": part.tenant_id}
    given = {f"{name} %s": value for name, value in ended.items() if value is not None}
    unbooked = _rows(
        "SELECT event.tenant_id, (event.at AT TIME ZONE 'UTC')::date, count(*), 0, "  # noqa: S608
        "min(event.request_id::text), count(*) OVER (), sum(count(*)) OVER () "
        "FROM audit_requestevent AS event LEFT JOIN budgets_ledgerentry AS entry "
        "ON entry.request_id = event.request_id AND entry.kind = 'usage' "
        f"WHERE {' AND '.join(['event.ended_at IS NOT NULL', 'entry.request_id IS NULL', *given])} "
        "GROUP BY 1, 2 ORDER BY 2, 1 LIMIT %s",
        [*given.values(), MOST_TOLD],
    )
    slugs = Slugs(row[0] for row in [*lacking, *unbooked])
    found = [
        Difference(
            check="events",
            name=f"entries:{tenant_id}:{day}",
            tenant=slugs.of(tenant_id),
            what=f"Of {slugs.of(tenant_id)}'s entries of {day}, {count - others} have no request event and "
            f"{others} have one that tells something else; the first is {first}.",
            expected=0,
            found=count,
            cause="",
            remedy="Compare the request's event and entry in the admin. The entry is what is billed.",
        )
        for tenant_id, day, count, others, first, _ in lacking
    ] + [
        Difference(
            check="events",
            name=f"events:{tenant_id}:{day}",
            tenant=slugs.of(tenant_id),
            what=f"{count} request events of {slugs.of(tenant_id) or 'nobody'} on {day} (UTC) tell of calls "
            f"that have no entry in the ledger; the first is {first}.",
            expected=0,
            found=count,
            cause="Entries were taken out of the ledger: both are written in one transaction.",
            remedy="Book what the events tell as corrections, and find out who can write to the database.",
        )
        for tenant_id, day, count, _, first, _, _ in unbooked
    ]
    days = sum(int(rows[0][5]) for rows in (lacking, unbooked) if rows)
    return (found, days), int(unbooked[0][6]) if unbooked else 0


def _instants(part: Part) -> tuple[datetime | None, datetime | None]:
    """Between which instants calls ended whose accounting days are in a part, or a day more."""

    def midnight(day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=UTC)

    day = timedelta(days=1)
    return (
        None if part.from_day is None else midnight(part.from_day - day),
        None if part.before_day is None else midnight(part.before_day + day),
    )


def of_rollups(part: Part) -> Found:
    """The sums of the ledger against the rollups, for each hour, key, model and all else they tell apart."""
    unlike, rows = rollups.differences(part, MOST_TOLD)
    slugs = Slugs(one.tenant_id for one in unlike)
    found = []
    for one in unlike:
        figures = [
            f"{name} {one.rollups[name]:,} instead of {one.ledger[name]:,}"
            for name in FIGURES
            if one.rollups[name] != one.ledger[name]
        ]
        told = ", ".join(figures) or "together they come to the same"
        first = next((name for name in FIGURES if one.rollups[name] != one.ledger[name]), "requests")
        found.append(
            Difference(
                check="rollups",
                name=f"{one.tenant_id}:{one.day}",
                tenant=slugs.of(one.tenant_id),
                what=f"{one.rows} rollups of {slugs.of(one.tenant_id)} on {one.day} are not what the ledger "
                f"says: {told}.",
                expected=one.ledger[first],
                found=one.rollups[first],
                cause="",
                remedy="manage.py rebuild_rollups shows it; with --write it sets them from the ledger.",
            )
        )
    return found, rows


def cost_of(row: str) -> str:
    """What a call cost by the rates in its row, in SQL: the one rounding is up, and all before it exact."""
    return (
        f"CASE WHEN {row}.input_price IS NULL THEN 0 ELSE ceil(("
        f"({row}.input_tokens - {row}.cached_tokens)::numeric * {row}.input_price"
        f" + {row}.cached_tokens::numeric * {row}.cached_price"
        f" + {row}.output_tokens::numeric * {row}.output_price"
        f" + {row}.gpu_ms::numeric * {row}.gpu_price * 1000) * 0.000001) END"
    )


# Of earlier releases, whose entries name a price and not its rates.
_RATES_KNOWN = "(entry.input_price IS NOT NULL OR entry.price_id IS NULL)"
_OF_BOTH = ", ".join(
    f"entry.{name} + first.{name} AS {name}"
    for name in ("input_tokens", "cached_tokens", "output_tokens", "gpu_ms", "cost_micro_usd")
)
_WHOLE_CALLS = (
    "SELECT entry.tenant_id, entry.day, entry.request_id, entry.input_price, entry.cached_price, "  # noqa: S608
    f"entry.output_price, entry.gpu_price, entry.price_id, {_OF_BOTH} "
    "FROM budgets_ledgerentry AS entry JOIN budgets_ledgerentry AS first "
    "ON first.request_id = entry.request_id AND first.kind = 'usage' WHERE entry.kind = 'adjustment'"
)


def costs(part: Part) -> Found:
    """The cost of each call, worked out anew from tokens, GPU time and the rates in its entry.

    Of a call with an adjustment, both entries together. What a person corrected
    is as the person said.
    """
    where, values = part.where("entry")
    found = _rows(
        "SELECT tenant_id, day, count(*), sum(cost_micro_usd), sum(anew), min(request_id::text), "  # noqa: S608
        "count(*) OVER () FROM ("
        f"SELECT tenant_id, day, request_id, cost_micro_usd, {cost_of('entry')} AS anew "
        f"FROM budgets_ledgerentry AS entry WHERE kind = 'usage' AND {_RATES_KNOWN} AND {where} "
        f"UNION ALL SELECT tenant_id, day, request_id, cost_micro_usd, {cost_of('entry')} "
        f"FROM ({_WHOLE_CALLS}) AS entry WHERE {_RATES_KNOWN} AND {where}) AS calls "
        "WHERE cost_micro_usd <> anew GROUP BY 1, 2 ORDER BY 2, 1 LIMIT %s",
        [*values, *values, MOST_TOLD],
    )
    slugs = Slugs(row[0] for row in found)
    return [
        Difference(
            check="costs",
            name=f"{tenant_id}:{day}",
            tenant=slugs.of(tenant_id),
            what=f"{count} entries of {slugs.of(tenant_id)} on {day} cost {amount(int(cost), 'micro_usd')} "
            f"and by the rates in them {amount(int(anew), 'micro_usd')}; the first is {first}.",
            expected=int(anew),
            found=int(cost),
            cause="Entries were changed after they were booked; the database lets only its owner do that.",
            remedy="Correct the cost of these calls, and find out who can write to the database.",
        )
        for tenant_id, day, count, cost, anew, first, _ in found
    ], int(found[0][6]) if found else 0


# Which entries a budget counts, by its scope; of runs only the counters are compared.
_OF_SCOPE = {
    "platform": "TRUE",
    "tenant": "entry.tenant_id = budget.tenant_id",
    "team": "entry.tenant_id = budget.tenant_id AND entry.team_id = budget.team_id",
    "member": "entry.tenant_id = budget.tenant_id AND entry.member_id = budget.member_id",
    "key": "entry.key_id = budget.key_id",
    "model": "entry.model = budget.model "
    "AND (budget.tenant_id IS NULL OR entry.tenant_id = budget.tenant_id)",
    "upstream": "entry.upstream = budget.upstream "
    "AND (budget.tenant_id IS NULL OR entry.tenant_id = budget.tenant_id)",
}
_UNITS = (
    "CASE budget.unit WHEN 'requests' THEN requests WHEN 'tokens' THEN input_tokens + output_tokens "
    "WHEN 'output_tokens' THEN output_tokens WHEN 'micro_usd' THEN cost_micro_usd "
    "WHEN 'gpu_ms' THEN gpu_ms END"
)


def budgets(part: Part) -> Found:
    """What the ledger has of the calls admitted in each present period, against what the period says.

    For periods that began within the part. A budget that was made during its
    period has counted no more than the ledger has; how much less cannot be said.
    """
    found = [row for scope in _OF_SCOPE for row in _rows(*_budgets_of(scope, part))]
    rows = Budget.objects.select_related("tenant", "team", "member__user", "member__tenant", "key")
    known = rows.in_bulk([row[0] for row in found[:MOST_TOLD]])
    return [
        Difference(
            check="budgets",
            name=f"{budget_id.hex}:{int(start.timestamp())}",
            tenant=_slug_of(known[budget_id]),
            what=f"{known[budget_id]} from {start:%Y-%m-%d %H:%M} UTC has used "
            f"{amount(used, known[budget_id].unit)}; of the calls it counts the ledger has "
            f"{amount(int(booked), known[budget_id].unit)}.",
            expected=int(booked),
            found=used,
            cause="Entries or the row of the period were changed: both are written in one transaction.",
            remedy="Correct what is wrong, and find out who can write to the database.",
        )
        for budget_id, start, used, booked in found[:MOST_TOLD]
    ], len(found)


def _budgets_of(scope: str, part: Part) -> tuple[str, list[Any]]:
    begin, _ = _instants(part)
    conditions = {"period.period_start >= %s": begin, "budget.tenant_id = %s": part.tenant_id}
    given = {condition: value for condition, value in conditions.items() if value is not None}
    query = (
        "SELECT period.budget_id, period.period_start, period.used, booked "  # noqa: S608
        "FROM budgets_budgetperiod AS period JOIN budgets_budget AS budget ON budget.id = period.budget_id "
        f"CROSS JOIN LATERAL (SELECT coalesce(sum({_UNITS}), 0) AS booked FROM budgets_ledgerentry AS entry "
        f"WHERE {_OF_SCOPE[scope]} AND entry.kind <> 'correction' AND entry.ended_at >= period.period_start "
        "AND entry.admitted_at >= period.period_start "
        "AND (period.period_end IS NULL OR entry.admitted_at < period.period_end)) AS entries "
        "WHERE budget.scope = %s AND period.run = '' "
        "AND (period.period_end IS NULL OR period.period_end > now()) "
        f"AND {' AND '.join(['TRUE', *given])} "
        "AND (period.used > booked OR period.used < booked AND budget.created_at < period.period_start - %s) "
        "ORDER BY 1, 2"
    )
    return query, [scope, *given.values(), UNTIL_IN_FORCE]


def _rows(query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())
