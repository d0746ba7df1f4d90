"""``/metrics``: what an operator's Prometheus reads, in its text format.

Any web process answers for all of them: it reads the sums that each hands to
Redis, and what Redis and PostgreSQL know of calls, ledger and settings. Both are
asked at most once a second and for a bounded time. When one is away, what it
knows is left out, so that nobody takes it for nothing, and ``tollgate_up`` says
which. The text is made in a thread, because with many tenants it is long.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.utils.timezone import now
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis.exceptions import ResponseError

from audit.models import AuditCheck
from budgets import tallies
from budgets.counters import DRAINED, DRAINED_AT, EPOCH, HOLDS, REFUSALS, SETTLED, USAGE
from budgets.epochs import expected
from budgets.ledger import GROUP
from budgets.models import ParkedRecord, SpooledSettlement
from budgets.spool import files_waiting
from budgets.tallies import Sum
from config.asking import Asked
from keys.secrets import public_id_of
from proxy.catalog import catalog, published_at
from proxy.handler import Scope, Send
from proxy.nodes import is_late
from tenants.models import Generation
from tenants.redis import redis_async

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InRedis:
    """What Redis knows. Ages are in seconds, None where nothing waits or nobody has come yet."""

    sums: dict[Sum, int]
    running: int
    expired: int
    waiting: int
    oldest_age: float | None
    refusals: int
    drained_age: float | None
    believed: bool
    # By name of an upstream: seconds since its models were listed, None if it is too long ago.
    upstream_ages: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class InPostgres:
    """What PostgreSQL knows: how many of each there are, and what the last look at the audit found."""

    parked: int
    spooled: int
    pending: int
    audit: AuditCheck | None


async def _ask_redis() -> InRedis:
    call = redis_async().call
    seconds, microseconds = await call("TIME")
    now = int(seconds) + int(microseconds) / 1e6
    running, expired, (settled, drained, drained_at, epoch), refusals = await asyncio.gather(
        call("ZCARD", HOLDS),
        call("ZCOUNT", HOLDS, "-inf", int(now * 1000)),
        call("MGET", SETTLED, DRAINED, DRAINED_AT, EPOCH),
        call("XLEN", REFUSALS),
    )
    upstreams = catalog.upstreams()
    ages = await asyncio.gather(*map(_age_of_models, upstreams))
    waiting = int(settled or 0) - int(drained or 0)
    return InRedis(
        sums=await tallies.sums(),
        running=running,
        expired=expired,
        waiting=waiting,
        oldest_age=await _oldest_age(now) if waiting else None,
        refusals=refusals,
        drained_age=None if drained_at is None else max(0.0, now - int(drained_at)),
        believed=await expected.confirms((epoch or b"").decode()) if epoch else False,
        upstream_ages=dict(zip(upstreams, ages, strict=True)),
    )


async def _oldest_age(now: float) -> float | None:
    """Seconds for which the oldest usage record has waited for the ledger."""
    call = redis_async().call
    try:
        pending, groups = await asyncio.gather(call("XPENDING", USAGE, GROUP), call("XINFO", "GROUPS", USAGE))
        oldest = pending[1]
        taken = _by_name(groups[0])[b"last-delivered-id"]
    except ResponseError:  # nobody has drained yet
        oldest, taken = None, b"0"
    if oldest is None:
        entries = await call("XRANGE", USAGE, b"(" + taken, "+", "COUNT", 1)
        if not entries:
            return None
        oldest = entries[0][0]
    return max(0.0, now - int(oldest.split(b"-")[0]) / 1000)


def _by_name(reply: Any) -> dict[bytes, Any]:
    """A reply of names and values, in either of Redis' protocols."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


async def _age_of_models(upstream: str) -> float | None:
    left_ms: int = await redis_async().call("PTTL", published_at(upstream))
    return None if left_ms < 0 else max(0.0, settings.CATALOG_MAX_AGE_SECONDS - left_ms / 1000)


async def _ask_postgres() -> InPostgres:
    return await asyncio.to_thread(_count)


def _count() -> InPostgres:
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = '1s'")
            return InPostgres(
                parked=ParkedRecord.objects.count(),
                spooled=SpooledSettlement.objects.count(),
                pending=Generation.objects.filter(number__gt=F("projected")).count(),
                audit=AuditCheck.objects.first(),
            )
    finally:
        connection.close()


class Figures(Collector):
    """What is known at one moment, in Prometheus' words; None is a store that is away."""

    def __init__(self, redis: InRedis | None, postgres: InPostgres | None) -> None:
        self._redis = redis
        self._postgres = postgres

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tollgate_up", "Whether a store answers: 1, or 0.", labels=["store"])
        up.add_metric(["redis"], int(self._redis is not None))
        up.add_metric(["postgres"], int(self._postgres is not None))
        yield up
        yield _gauge("build_info", "The release; always 1.", 1, version=settings.VERSION)
        yield _gauge("spooled_files", "Settlements that wait as files on this machine.", files_waiting())
        if self._redis is not None:
            yield from _sums(self._redis.sums)
            yield from _of_redis(self._redis)
        if self._postgres is not None:
            yield _gauge("parked_records", "Usage records that could not be booked.", self._postgres.parked)
            yield _gauge(
                "spooled_settlements", "Settlements that wait in PostgreSQL.", self._postgres.spooled
            )
            yield _gauge(
                "pending_changes",
                "Tenants whose saved settings are not in force yet.",
                self._postgres.pending,
            )
            yield from _of_audit(self._postgres.audit)


def _of_redis(known: InRedis) -> Iterator[Metric]:
    yield _gauge("running_calls", "Calls that hold room.", known.running)
    yield _gauge("expired_holds", "Calls of dead processes that nobody has swept yet.", known.expired)
    yield _gauge("ledger_waiting_records", "Settled calls that the ledger does not have.", known.waiting)
    yield _gauge(
        "ledger_oldest_waiting_seconds", "Age of the oldest of them, 0 if none waits.", known.oldest_age or 0
    )
    yield _gauge("waiting_refusals", "Refused calls without their request event.", known.refusals)
    if known.drained_age is not None:
        yield _gauge("drain_age_seconds", "Since a worker last drained, as beat bids it.", known.drained_age)
    yield _gauge(
        "counters_believed", "Whether the counters are those of the ledger: 1, or 0.", int(known.believed)
    )
    up = GaugeMetricFamily(
        "tollgate_upstream_up",
        "Whether an upstream has listed its models lately: 1, or 0.",
        labels=["upstream"],
    )
    for name, age in known.upstream_ages.items():
        up.add_metric([name], int(not is_late(age)))
    yield up


def _of_audit(check: AuditCheck | None) -> Iterator[Metric]:
    if check is not None:
        yield _gauge("audit_troubles", "What the last look at the audit found wrong.", check.found)
        age = (now() - check.at).total_seconds()
        yield _gauge("audit_check_age_seconds", "Since the audit was last looked at.", max(0.0, age))


def _gauge(name: str, help_text: str, value: float, **labels: str) -> Metric:
    gauge = GaugeMetricFamily(f"tollgate_{name}", help_text, labels=list(labels))
    gauge.add_metric(list(labels.values()), value)
    return gauge


COUNTERS = {
    tallies.REQUESTS: ("Answers given at the doors for programs.", ["tenant", "route", "status"]),
    tallies.REFUSALS: ("Refusals told, those within a stream included.", ["tenant", "code"]),
    tallies.TOKENS: ("Tokens of settled calls.", ["tenant", "direction"]),
    tallies.DROPPED_PROMPTS: ("Calls that the prompt log should have kept and could not.", []),
}


def _sums(sums: dict[Sum, int]) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(f"tollgate_{name}", text, labels=labels)
        for name, (text, labels) in COUNTERS.items()
    }
    buckets: dict[str, dict[str, int]] = {}
    for (name, *labels), amount in sorted(sums.items()):
        if name in families:
            families[name].add_metric(labels, amount)
        elif name == tallies.FIRST_BYTES and labels[1] in tallies.BUCKET_NAMES:
            buckets.setdefault(labels[0], {})[labels[1]] = amount
    yield from families.values()
    yield _first_bytes(buckets, sums)


def _first_bytes(buckets: dict[str, dict[str, int]], sums: dict[Sum, int]) -> Metric:
    family = HistogramMetricFamily(
        "tollgate_first_byte_seconds", "From admission until the upstream answered.", labels=["upstream"]
    )
    for upstream, counts in buckets.items():
        total = 0
        cumulative = []
        for bound in tallies.BUCKET_NAMES:
            total += counts.get(bound, 0)
            cumulative.append((bound, float(total)))
        seconds = sums.get((tallies.FIRST_BYTE_MS, upstream), 0) / 1000
        family.add_metric([upstream], cumulative, seconds)
    return family


_redis, _postgres = Asked(_ask_redis), Asked(_ask_postgres)


async def answer(scope: Scope, send: Send) -> None:
    """Answer a scrape: 200 whatever is away, and 401 for whoever does not know ``METRICS_TOKEN``."""
    if not _may_read(scope):
        await _send(send, 401, b"", [(b"www-authenticate", b"Bearer")])
    elif scope["method"] not in ("GET", "HEAD"):
        await _send(send, 405, b"", [(b"allow", b"GET, HEAD")])
    else:
        redis, postgres = await asyncio.gather(_or_none("Redis", _redis), _or_none("PostgreSQL", _postgres))
        text = await asyncio.to_thread(_text, Figures(redis, postgres))
        await _send(send, 200, text, [(b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode())])


def _may_read(scope: Scope) -> bool:
    """Whether the request carries the token. What could be a key of a model's caller never does."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
    return (
        scheme.lower() == b"bearer"
        and hmac.compare_digest(token, settings.METRICS_TOKEN.encode())
        and public_id_of(token.decode("latin-1")) is None
    )


async def _or_none(name: str, asked: Asked[Any]) -> Any:
    try:
        return await asked.answer()
    except Exception as exc:  # noqa: BLE001, whatever keeps it from answering, the others are still told
        logger.warning("the metrics are without those of %s: %r", name, exc)
        return None


def _text(figures: Figures) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)
    # Of the process that answers; which of several that is, nobody chooses.
    ProcessCollector(registry=registry)
    return generate_latest(registry)


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", b"%d" % len(body))
    headers = [*headers, length, (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
