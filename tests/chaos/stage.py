"""Where a round is played: gateways with a line of their own to Redis, an Ollama, two tenants with keys."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from django.conf import settings
from django.db import connection
from django.test import override_settings

from budgets.models import Budget, RateLimit
from budgets.services import set_budget, set_price, set_rate_limit
from keys.models import ApiKey
from keys.services import issue_key
from proxy.simulator.server import SimulatorThread
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.chaos.plan import KEYS_AT_FIRST, TENANTS, KeyLimits, Plan
from tests.conftest import eventually, furnish
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway, database_url

# Long enough that a machine with other work takes no gateway for dead.
LEASE_SECONDS = 4
HEARTBEAT_SECONDS = 0.3
REDIS_TIMEOUT_SECONDS = 0.25
START_SECONDS = 60
MODEL, EMBEDDER = "tiny:1b", "emb:latest"


@dataclass(slots=True)
class Span:
    """A stretch of time on the wall clock; ``until`` is infinite while it lasts."""

    since: float
    until: float = float("inf")

    def covers(self, since: float, until: float) -> bool:
        return self.since <= since and until <= self.until

    def touches(self, since: float, until: float) -> bool:
        return since <= self.until and self.since <= until


@dataclass(frozen=True, slots=True)
class Lowered:
    """The limit that a budget has been given, when that began, and since when it is in force everywhere."""

    began: float
    since: float
    limit: int


@contextlib.contextmanager
def during(spans: list[Span]) -> Iterator[None]:
    """Note from when to when the body ran."""
    span = Span(time.time())
    spans.append(span)
    try:
        yield
    finally:
        span.until = time.time()


@dataclass(eq=False, slots=True)
class Keyed:
    """A key and its secret, when it must be refused (``off``), and when it may be (``doubtful``)."""

    key: ApiKey
    secret: str
    limits: KeyLimits
    off: list[Span] = field(default_factory=list)
    doubtful: list[Span] = field(default_factory=list)


class Door:
    """A gateway and its lines to Redis and PostgreSQL; after a crash another one stands at the same door.

    ``blind`` are the times without Redis, ``asleep`` those without the
    processor, ``gone`` those without a gateway, from the moment on at which it
    was told to end, and ``deaths`` the moments at which it was killed.
    """

    def __init__(
        self, number: int, line: tuple[FaultProxy, str], postgres: tuple[FaultProxy, str], spool: Path
    ) -> None:
        self.number = number
        self.line, redis_url = line
        self.postgres, database_url = postgres
        self.gateway: Gateway | None = None
        self.blind: list[Span] = []
        self.asleep: list[Span] = []
        self.gone: list[Span] = []
        self.deaths: list[float] = []
        self.log = ""
        self._settings = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "REDIS_TIMEOUT_SECONDS": str(REDIS_TIMEOUT_SECONDS),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "DRAIN_SECONDS": "3",
            "SPOOL_DIR": str(spool),
        }

    def start(self, secret: str) -> None:
        """Start a gateway here, and wait until it knows the models of the key with ``secret``."""
        gateway = Gateway(workers=1, **self._settings)
        gateway.__enter__()
        headers = {"Authorization": f"Bearer {secret}"}
        try:
            with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=10) as client:
                eventually(lambda: client.get("/v1/models").status_code == 200, START_SECONDS)
        except BaseException as exc:
            gateway.kill()
            exc.add_note(gateway.log())
            gateway.__exit__(None, None, None)
            raise
        self.gateway = gateway
        if self.gone:
            self.gone[-1].until = time.time()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the gateway, as a stop or as a crash would; return its exit status."""
        gateway, self.gateway = self.gateway, None
        assert gateway is not None
        self.gone.append(Span(time.time()))
        if number is signal.SIGKILL:
            gateway.send(number)
            self.deaths.append(time.time())
        else:
            gateway.process.send_signal(number)
        status = gateway.process.wait(timeout=30)
        self.log += gateway.log()
        gateway.__exit__(None, None, None)
        return status


class Stage:
    """All that a round needs, on an empty database and an empty Redis; see ``on_stage``.

    ``limits`` is what no counter may pass: by the hex id of the budget, or of
    the limit of calls at one time, the first it had.
    """

    def __init__(self, plan: Plan, ollama: SimulatorThread, doors: list[Door]) -> None:
        self.plan = plan
        self.ollama = ollama
        self.doors = doors
        self.flushed: list[Span] = []
        # From when on a gateway may have had holds that the rebuilt counters knew nothing of.
        self.unheld_since = float("inf")
        self.keys: list[Keyed] = []
        self.limits: dict[str, int] = {}
        self.lowered: dict[str, Lowered] = {}
        ollama.settings.piece_delay = plan.piece_seconds
        # Longer than any wish, so that every answer ends at its cap.
        ollama.fault("pieces-1000")
        set_price(model=MODEL, input_price=400_000, output_price=1_600_000, actor="chaos")
        set_price(model=EMBEDDER, input_price=100_000, actor="chaos")
        self.tenants = [self._tenant(number) for number in range(TENANTS)]
        of_all = functools.partial(set_budget, scope="platform", unit="tokens", actor="chaos")
        of_all(period="lifetime", limit=plan.platform_tokens)
        of_all(period="day", limit=10, shadow=True)
        of_all(period="60s", limit=plan.platform_tokens // 2)
        self.issue_keys(KEYS_AT_FIRST)
        _, self.usher = issue_key(tenant=self.tenants[0], label="usher", actor="chaos")

    def _tenant(self, number: int) -> Tenant:
        plan = self.plan
        name = f"tenant-{number}"
        tenant = create_tenant(slug=name, name=name, actor="chaos", allow_all_models=True)
        of_tenant = functools.partial(set_budget, scope="tenant", tenant=tenant, actor="chaos")
        of_tenant(unit="tokens", period="day", limit=plan.tenant_tokens[number])
        of_tenant(unit="requests", period="month", limit=plan.tenant_requests[number])
        of_tenant(unit="micro_usd", period="lifetime", limit=plan.tenant_tokens[number])
        return tenant

    def issue_keys(self, count: int) -> None:
        """Give out the next keys of the plan, whose budgets nobody has used yet."""
        for _ in range(count):
            number = len(self.keys)
            tenant = self.tenants[number % TENANTS]
            self.keys.append(_key(tenant, f"key-{number}", self.plan.keys[number]))
        running = RateLimit.objects.filter(measure="concurrent_requests")
        for row in (*Budget.objects.filter(shadow=False), *running):
            if row.limit is not None:
                self.limits.setdefault(row.id.hex, row.limit)

    def start(self, *doors: Door) -> None:
        """Start gateways, all at the same time."""
        with ThreadPoolExecutor(len(doors)) as threads:
            list(threads.map(lambda door: door.start(self.usher), doors))


def _key(tenant: Tenant, label: str, limits: KeyLimits) -> Keyed:
    key, secret = issue_key(tenant=tenant, label=label, actor="chaos")
    budget = functools.partial(set_budget, scope="key", key=key, actor="chaos")
    budget(unit="tokens", period="day", limit=limits.tokens)
    budget(unit="requests", period="lifetime", limit=limits.requests)
    rate = functools.partial(set_rate_limit, scope="key", key=key, actor="chaos")
    rate(measure="tokens_per_minute", limit=limits.tokens_per_minute)
    rate(measure="requests_per_minute", limit=limits.requests_per_minute)
    rate(measure="concurrent_requests", limit=limits.concurrent)
    return Keyed(key, secret, limits)


@contextlib.contextmanager
def on_stage(plan: Plan, ollama: SimulatorThread, directory: Path) -> Iterator[Stage]:
    """A stage whose gateways run; they are gone when the round is over, whatever happened."""
    spool = directory / f"spool-{plan.seed}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            override_settings(
                LEASE_SECONDS=LEASE_SECONDS, HEARTBEAT_SECONDS=HEARTBEAT_SECONDS, SPOOL_DIR=spool
            )
        )
        doors = []
        for number in range(plan.gateways):
            to_redis = stack.enter_context(line_to(settings.REDIS_URL))
            to_postgres = stack.enter_context(line_to(database_url()))
            doors.append(Door(number, to_redis, to_postgres, spool))
        furnish(ollama)
        stage = Stage(plan, ollama, doors)
        try:
            stage.start(*doors)
            yield stage
        finally:
            for door in doors:
                if door.gateway is not None:
                    door.end(signal.SIGKILL)
            connection.close()
