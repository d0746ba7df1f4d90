"""What operators see first: the figures of the dashboard, part by part.

Each part is read for itself, and one that cannot be read says so and takes no
other with it. None looks at a table that grows but by an index and for today,
and what is dear is good for some seconds, however many people look.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.db.models import Sum
from django.utils.timezone import now

from audit.models import AuditCheck
from budgets import pace
from budgets.backlog import backlog
from budgets.counters import EPOCH, HOLDS, redis_in_bytes
from budgets.models import Budget, CounterEpoch, Scope, UsageRollup, Verification
from budgets.money import usd_total
from budgets.standing import Standing, standings
from budgets.words import amount
from proxy.nodes import Health, nodes
from tenants.charts import REQUESTS, SECONDS, TOKENS, USD, Chart, Kind, Point, Series
from tenants.redis import RedisError

STATEMENT_SECONDS = 2
# Of more budgets than these the dashboard tells nothing: the list of budgets does.
MOST_BUDGETS = 5_000
MOST_TENANTS = 8
MOST_RUNNING_OUT = 12
SOON = timedelta(hours=24)
MINUTES_SHOWN = 60
FIRST_BYTES_OF = 15 * 60
# What is written every second, or every five minutes, and has not been for so long.
WORKER_LATE_SECONDS = 10
AUDIT_LATE_SECONDS = 1200

AWAY = "It cannot be asked."
# Where Celery keeps its tasks in a Redis, with the prefix that ``config.celery`` gives it.
QUEUE = "celery:celery"

Figures = dict[str, Any]


@dataclass
class Part:
    """A part of the page: who may see it, how it is read, and for how many seconds that is good.

    ``permission`` is one of Django's, empty for all who see the admin.
    """

    name: str
    title: str
    permission: str
    good_for: float
    read: Callable[[], Figures]
    needs_redis: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _read_at: float = -1e9
    _figures: Figures = field(default_factory=dict, repr=False)

    def figures(self) -> Figures | None:
        """What it tells; None when nobody knows, because what it asks is away, or too slow."""
        with self._lock:
            if time.monotonic() - self._read_at > self.good_for:
                try:
                    with transaction.atomic():
                        with connection.cursor() as cursor:
                            cursor.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
                        self._figures = self.read()
                except (DatabaseError, RedisError):
                    return None
                self._read_at = time.monotonic()
            return self._figures

    def forget(self) -> None:
        """Read it anew when it is asked for next."""
        self._read_at = -1e9


def _health() -> Figures:
    """What the gateway stands on: stores, worker and beat, ledger, audit and books, a line for each."""
    first = _told("Redis", _redis)
    lines = [
        Line(name, "unknown", AWAY) if ask in OF_REDIS and first.state == "unknown" else _told(name, ask)
        for name, ask in ASKED
    ]
    return {"lines": [first, *lines]}


@dataclass(frozen=True, slots=True)
class Line:
    """How one thing is: ``good``, ``warning``, ``bad`` or ``unknown``, and a sentence."""

    name: str
    state: str
    told: str


def _told(name: str, ask: Callable[[], tuple[str, str]]) -> Line:
    try:
        with transaction.atomic():
            return Line(name, *ask())
    except (DatabaseError, RedisError):
        return Line(name, "unknown", AWAY)


def _redis() -> tuple[str, str]:
    redis = redis_in_bytes()
    began = time.monotonic()
    told = redis.info("memory") | redis.info("persistence")
    took = (time.monotonic() - began) * 1000
    used = f"{told['used_memory'] / 2**20:,.0f} MiB used, answered in {took:.0f} ms"
    mark, expected = redis.get(EPOCH), CounterEpoch.objects.values_list("epoch", flat=True).first()
    if mark is None or mark.decode() != expected:
        return "bad", f"Its counters are not those of the ledger: nothing is admitted. {used}."
    if told.get("maxmemory") and told.get("maxmemory_policy") != "noeviction":
        return "bad", f"It may evict counters: set maxmemory-policy to noeviction. {used}."
    if not told.get("aof_enabled"):
        return "warning", f"It keeps no journal: set appendonly to yes. {used}."
    return "good", f"{used}."


def _database() -> tuple[str, str]:
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), current_setting('max_connections')::int, current_setting('server_version') "
            "FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
        used, most, version = cursor.fetchone()
    took = (time.monotonic() - began) * 1000
    text = f"PostgreSQL {version.split()[0]}, {used} of {most} connections, answered in {took:.0f} ms."
    return ("warning" if used > 0.9 * most else "good"), text


def _worker() -> tuple[str, str]:
    age, waiting = backlog().drained_age, _tasks_waiting()
    if age is not None and age <= WORKER_LATE_SECONDS:
        return "good", f"It drained {age:.0f} s ago."
    since = "never" if age is None else f"{_duration(age)} ago"
    if waiting:
        return "bad", f"It drained {since}, and {waiting:,} tasks wait for it."
    return "warning", f"It drained {since}; no task waits, so nobody bids it."


def _tasks_waiting() -> int | None:
    """How many tasks nobody has taken; None if they lie in another broker than our Redis."""
    if settings.CELERY_BROKER_URL != settings.REDIS_URL:
        return None
    return int(redis_in_bytes().llen(QUEUE))


def _beat() -> tuple[str, str]:
    written = pace.notes()
    age, waiting = (time.time() - written[0].at if written else None), _tasks_waiting()
    if age is not None and age <= 3 * pace.EVERY_SECONDS:
        return "good", f"It bade the worker {age:.0f} s ago."
    if waiting:
        return "unknown", "Nobody can tell while the worker does nothing."
    return "bad", f"It has bidden nothing for {_duration(age)}." if age else "It has bidden nothing yet."


def _ledger() -> tuple[str, str]:
    found = backlog()
    texts = [_so_many(found.waiting, "record waits", "records wait") if found.waiting else "Nothing waits"]
    if found.oldest_age is not None:
        texts.append(f"the oldest for {_duration(found.oldest_age)}")
    if found.spooled:
        texts.append(_so_many(found.spooled, "settlement lies", "settlements lie") + " in PostgreSQL")
    if found.parked:
        texts.append(_so_many(found.parked, "parked record needs", "parked records need") + " a person")
    late = (found.oldest_age or 0) > WORKER_LATE_SECONDS or found.parked
    if found.waiting > settings.MAX_BACKLOG / 2:
        return "bad", f"{', '.join(texts)}; above {settings.MAX_BACKLOG:,} calls are refused."
    return ("warning" if late else "good"), f"{', '.join(texts)}."


def _audit() -> tuple[str, str]:
    check = AuditCheck.objects.first()
    if check is None:
        return "unknown", "The worker has not looked at it yet."
    age = (now() - check.at).total_seconds()
    if check.found:
        return (
            "bad",
            f"Not as it was written: {check.troubles[0]} ({check.found:,} in all, {_duration(age)} ago).",
        )
    text = f"As it was written, {check.events:,} events looked at {_duration(age)} ago."
    return ("warning" if age > AUDIT_LATE_SECONDS else "good"), text


def _books() -> tuple[str, str]:
    row = Verification.objects.filter(whole=True).first()
    if row is None:
        return "unknown", "They have not been compared yet."
    age = _duration((now() - row.at).total_seconds())
    state = {Verification.Outcome.AGREES: "good"}.get(Verification.Outcome(row.outcome), "bad")
    return state, f"{row.get_outcome_display().capitalize()}, compared {age} ago."


ASKED: list[tuple[str, Callable[[], tuple[str, str]]]] = [
    ("Database", _database),
    ("Worker", _worker),
    ("Beat", _beat),
    ("Ledger", _ledger),
    ("Audit", _audit),
    ("Books", _books),
]
# One that hangs is not waited for again and again.
OF_REDIS = {_worker, _beat, _ledger}


def _traffic() -> Figures:
    """What comes in a minute, how long first bytes take, what runs now; and the last hour by the minute."""
    written = pace.notes()
    fresh = written if written and time.time() - written[0].at < 60 + pace.LATE_SECONDS else []
    minute = pace.of_the_last(60, fresh)
    quarter = pace.of_the_last(FIRST_BYTES_OF, fresh) or pace.of_the_last(60, fresh)
    present = int(time.time()) // 60
    minutes = range(present - MINUTES_SHOWN, present)
    paces = pace.by_minute(minutes, written)
    points = [_minute(number) for number in minutes]
    requests = [None if one is None else round(one.a_minute(one.requests)) for one in paces]
    refusals = [None if one is None else round(one.a_minute(one.refusals)) for one in paces]
    return {
        "running": redis_in_bytes().zcard(HOLDS),
        "requests": minute and round(minute.a_minute(minute.requests)),
        "refusals": minute and round(minute.a_minute(minute.refusals)),
        "tokens": minute and round(minute.a_minute(minute.input_tokens + minute.output_tokens)),
        "median": _seconds(quarter, 0.5),
        "slow": _seconds(quarter, 0.95),
        "of_minutes": round(quarter.seconds / 60) if quarter else None,
        "charts": [
            Chart(
                "requests",
                "Requests and refusals of the last hour, a minute",
                points,
                [
                    Series("requests", "requests", requests),
                    Series("refusals", "refusals among them", refusals),
                ],
                REQUESTS,
                Kind.LINES,
            ),
            Chart(
                "first-byte",
                "Time to the first byte in the last hour",
                points,
                [
                    Series("p50", "half of the calls", [_milliseconds(one, 0.5) for one in paces]),
                    Series("p95", "95 of 100 calls", [_milliseconds(one, 0.95) for one in paces]),
                ],
                SECONDS,
                Kind.LINES,
            ),
        ],
    }


def _minute(number: int) -> Point:
    at = datetime.fromtimestamp(number * 60, UTC)
    return Point(f"{at:%H:%M} UTC", f"{at:%H:%M}", at.isoformat(), at)


def _milliseconds(one: pace.Pace | None, share: float) -> int | None:
    seconds = None if one is None else pace.quantile(share, one.first_bytes)
    return None if seconds is None else round(seconds * 1000)


def _seconds(one: pace.Pace | None, share: float) -> str | None:
    seconds = None if one is None else pace.quantile(share, one.first_bytes)
    return None if seconds is None else f"{seconds:.2f} s"


def _spend() -> Figures:
    """What was used today (UTC): by hour, and by tenant with the budgets that hold for all of it."""
    today = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = UsageRollup.objects.filter(hour_start__gte=today)
    sums: Any = {
        "cost": Sum("cost_micro_usd"),
        "tokens_in": Sum("input_tokens"),
        "tokens_out": Sum("output_tokens"),
    }
    by_hour: dict[datetime, Figures] = {
        row["hour_start"]: dict(row) for row in rows.order_by().values("hour_start").annotate(**sums)
    }
    used: Any = rows.order_by().values("tenant_id").annotate(calls=Sum("requests"), **sums)
    tenants: list[Figures] = [dict(row) for row in used.order_by("-cost", "-tokens_out")[:MOST_TENANTS]]
    hours = [today + timedelta(hours=hour) for hour in range(now().astimezone(UTC).hour + 1)]
    points = [Point(f"{at:%H}:00 UTC", f"{at:%H}:00", at.isoformat(), at) for at in hours]

    def column(name: str) -> list[int | None]:
        return [by_hour[at][name] if at in by_hour else 0 for at in hours]

    return {
        "cost": usd_total(sum(row["cost"] for row in by_hour.values())),
        "tokens": sum(row["tokens_in"] + row["tokens_out"] for row in by_hour.values()),
        "tenants": _against_budgets(tenants),
        "charts": [
            Chart(
                "spend", "Cost of today, by the hour", points, [Series("cost", "cost", column("cost"))], USD
            ),
            Chart(
                "tokens",
                "Tokens of today, by the hour",
                points,
                [
                    Series("input", "input", column("tokens_in")),
                    Series("output", "output", column("tokens_out")),
                ],
                TOKENS,
            ),
        ],
    }


def _against_budgets(tenants: list[dict[str, Any]]) -> list[Figures]:
    """Tenants with what they used today, and how the tightest of their own budgets stands."""
    whose = Budget.objects.filter(scope=Scope.TENANT, tenant_id__in=[row["tenant_id"] for row in tenants])
    rows = whose.exclude(limit=None).select_related("tenant").prefetch_related("raises")
    tightest: dict[Any, Standing] = {}
    # Without Redis it is still told what was used.
    with contextlib.suppress(RedisError):
        for stand in sorted(standings(list(rows)), key=_share):
            tightest[stand.budget.tenant_id] = stand
    names = dict(
        UsageRollup.objects.filter(tenant_id__in=[row["tenant_id"] for row in tenants])
        .order_by("tenant_id", "-day")
        .distinct("tenant_id")
        .values_list("tenant_id", "tenant")
    )
    return [
        row
        | {
            "tenant": names.get(row["tenant_id"], row["tenant_id"]),
            "cost": usd_total(row["cost"]),
            "tokens": row["tokens_in"] + row["tokens_out"],
            "budget": _bar(tightest[row["tenant_id"]]) if row["tenant_id"] in tightest else None,
        }
        for row in tenants
    ]


def _share(stand: Standing) -> float:
    return (stand.used + stand.held) / stand.limit if stand.limit else math.inf


def _bar(stand: Standing) -> Figures:
    """A budget as a bar: per cent used and held, and the same in words."""
    unit = stand.budget.unit
    return {
        "id": stand.budget.pk,
        "whose": stand.budget.whose,
        "percent": stand.percent,
        "told": f"{amount(stand.used + stand.held, unit)} of {amount(stand.limit or 0, unit)}",
        "unit": f"{stand.budget.get_unit_display().lower()} per {stand.length}",
        "ends_at": stand.ends_at,
        "empty_at": stand.empty_at,
        "shadow": stand.budget.shadow,
    }


def _running_out() -> Figures:
    """Budgets that are empty, and those that will be within a day if it goes on like this."""
    rows = (
        Budget.objects.exclude(limit=None)
        .exclude(limit=0)
        .exclude(scope=Scope.RUN)
        .select_related("tenant", "team", "member__user", "member__tenant", "key")
        .prefetch_related("raises")[: MOST_BUDGETS + 1]
    )
    budgets = list(rows)
    if len(budgets) > MOST_BUDGETS:
        return {"too_many": MOST_BUDGETS, "budgets": [], "more": 0}
    until = now() + SOON
    found = [
        stand
        for stand in standings(budgets)
        if (stand.left is not None and stand.left <= 0) or (stand.empty_at and stand.empty_at <= until)
    ]
    found.sort(key=lambda stand: (stand.empty_at or now(), -_share(stand)))
    return {
        "budgets": [_bar(stand) for stand in found[:MOST_RUNNING_OUT]],
        "more": max(0, len(found) - MOST_RUNNING_OUT),
    }


def _upstreams() -> Figures:
    """Every upstream with its health, models, running calls and when it was asked last."""
    found = nodes()
    words = {Health.UP: "good", Health.LATE: "warning", Health.DOWN: "bad", Health.OFF: "unknown"}
    return {
        "nodes": [
            {
                "upstream": node.upstream,
                "state": words[node.health],
                "health": node.health,
                "age": None if node.age is None else _duration(node.age),
                "models": len(node.models),
                "running": node.running,
            }
            for node in found
        ]
    }


def _so_many(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _duration(seconds: float) -> str:
    """A time in the largest units that tell it: ``4 s``, ``3 min``, ``2.5 h``, ``3 d``."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


PARTS = [
    Part("traffic", "Now", "", 2, _traffic),
    Part("health", "How it stands", "", 2, _health, needs_redis=False),
    Part("upstreams", "Upstreams", "proxy.view_upstream", 2, _upstreams),
    Part("running-out", "Runs out within 24 hours", "budgets.view_budget", 15, _running_out),
    Part("spend", "Today", "budgets.view_ledgerentry", 10, _spend, needs_redis=False),
]


def figures(parts: Collection[str]) -> Mapping[str, Figures | None]:
    """The figures of these parts by name, in the order of the page; None is a part nobody knows of now.

    Raises nothing for a store that is away.
    """
    away = not _redis_answers()
    return {
        part.name: None if away and part.needs_redis else part.figures()
        for part in PARTS
        if part.name in parts
    }


def _redis_answers() -> bool:
    try:
        return bool(redis_in_bytes().ping())
    except RedisError:
        return False
