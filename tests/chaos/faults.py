"""Each fault of a plan: what is done to the stage while clients go on asking."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from django.db import connection

from budgets.counters import DRAINED, EPOCH, RESERVE, SETTLE, SETTLED, redis_in_bytes
from budgets.models import Budget
from budgets.services import arm_kill_switch, lift_kill_switch, set_budget
from keys.services import revoke_key
from tenants import generations
from tenants.services import resume_tenant, suspend_tenant
from tests.chaos.stage import LEASE_SECONDS, Door, Keyed, Lowered, Span, Stage, during
from tests.chaos.workers import Worker
from tests.conftest import eventually
from tests.deleting import delete_key
from tests.gateway import ROOT, environment

PATIENCE_SECONDS = 30
# What a dead gateway held is swept by then. Redis must not lose its data before that: what both of
# them lose nobody else has.
MOURNING_SECONDS = LEASE_SECONDS + 1


class Faults:
    """Does faults to a stage, one at a time."""

    def __init__(self, stage: Stage, workers: list[Worker]) -> None:
        self._stage = stage
        self._workers = workers
        self._random = Random(f"{stage.plan.seed} faults")

    def do(self, name: str) -> None:
        """Do the fault called ``name`` and wait until it is over."""
        deed: Callable[[], None] = getattr(self, name)
        deed()

    def _door(self) -> Door:
        return self._random.choice(self._stage.doors)

    def _key(self) -> Keyed:
        return self._random.choice([keyed for keyed in self._stage.keys if not keyed.off])

    def _wait(self, least: float, most: float) -> None:
        time.sleep(self._random.uniform(least, most))

    def kill(self) -> None:
        """A gateway crashes with whatever it has open, and another one takes its place."""
        door = self._door()
        door.end(signal.SIGKILL)
        self._stage.start(door)

    def terminate(self) -> None:
        """A gateway is told to stop, drains for a while, and another one takes its place."""
        door = self._door()
        assert door.end() == 0
        self._stage.start(door)

    def sleep(self) -> None:
        """A gateway gets no processor until its leases have run out and its calls are swept."""
        door = self._door()
        assert door.gateway is not None
        with during(door.asleep):
            door.gateway.send(signal.SIGSTOP)
            time.sleep(MOURNING_SECONDS)
            door.gateway.send(signal.SIGCONT)

    def freeze(self) -> None:
        """Redis does not answer one gateway for a moment."""
        self._frozen(self._random.uniform(0.3, 2))

    def freeze_past_the_lease(self) -> None:
        """Redis does not answer one gateway until its calls are swept."""
        self._frozen(MOURNING_SECONDS)

    def _frozen(self, seconds: float) -> None:
        door = self._door()
        door.line.freeze()
        with during(door.blind):
            time.sleep(seconds)
        door.line.thaw()

    def cut(self) -> None:
        """The connections of one gateway to Redis break, again and again."""
        door = self._door()
        for _ in range(10):
            door.line.cut()
            self._wait(0, 0.1)

    def _lose_replies(self, mark: str) -> None:
        door = self._door()
        for _ in range(5):
            door.line.lose_reply(mark.encode())
            self._wait(0.05, 0.3)

    def lose_reserve(self) -> None:
        """A call is admitted and its gateway does not learn of it."""
        self._lose_replies(RESERVE.sha)

    def lose_settle(self) -> None:
        """A call is booked and its gateway does not learn of it."""
        self._lose_replies(SETTLE.sha)

    @contextlib.contextmanager
    def _without_workers(self) -> Iterator[None]:
        for worker in self._workers:
            worker.rest()
        try:
            yield
        finally:
            for worker in self._workers:
                worker.go_on()

    def drain_dies(self) -> None:
        """A drain is killed between its commit and the acknowledgement."""
        with self._without_workers():
            drain = subprocess.run(
                [sys.executable, "-m", "tests.chaos.dying_drain"], cwd=ROOT, env=environment(), check=False
            )
        assert drain.returncode in (0, -signal.SIGKILL), drain

    def flush(self) -> None:
        """Redis loses everything, with calls running and records waiting, and the workers bring it back."""
        with self._flushed():
            pass

    def flush_unseen(self) -> None:
        """The same, while Redis does not answer one gateway."""
        door = self._door()
        with contextlib.ExitStack() as blind, self._flushed():
            door.line.freeze()
            blind.enter_context(during(door.blind))
            self._stage.unheld_since = min(self._stage.unheld_since, time.time())
        door.line.thaw()

    @contextlib.contextmanager
    def _flushed(self) -> Iterator[None]:
        """The body runs just before everything is lost; at the end it is back."""
        last_death = max((at for door in self._stage.doors for at in door.deaths), default=0.0)
        time.sleep(max(0.0, last_death + MOURNING_SECONDS - time.time()))
        redis = redis_in_bytes()
        owed = int(redis.get(SETTLED) or 0)
        eventually(lambda: int(redis.get(DRAINED) or 0) >= owed, PATIENCE_SECONDS)
        with self._without_workers():
            self._wait(0.1, 0.5)
            yield
            redis.flushdb()
            lost_at = time.time()
            span = Span(lost_at, lost_at)

        def is_back() -> bool:
            # It lasted until it was last seen gone; when it came back after that nobody knows.
            asked_at = time.time()
            if redis.exists(EPOCH):
                return True
            span.until = asked_at
            return False

        eventually(is_back, PATIENCE_SECONDS)
        self._stage.flushed.append(span)

    def fill(self) -> None:
        """Redis has no room for anything more."""
        redis = redis_in_bytes()
        before = redis.config_get("maxmemory")["maxmemory"]
        redis.config_set("maxmemory", 1)
        with contextlib.ExitStack() as blind:
            for door in self._stage.doors:
                blind.enter_context(during(door.blind))
            self._wait(0.3, 2)
        redis.config_set("maxmemory", before)

    def postgres_restarts(self) -> None:
        """Every connection to PostgreSQL breaks, and gateways get no new ones for a while."""
        for worker in self._workers:
            worker.postgres_breaks = True
        for door in self._stage.doors:
            door.postgres.refuse()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
            )
        self._wait(1, 3)
        for door in self._stage.doors:
            door.postgres.take_again()

    def minute_ends(self) -> None:
        """The period of a budget of sixty seconds ends with calls running."""
        time.sleep(60 - time.time() % 60)
        self._wait(0.2, 1)

    def revoke(self) -> None:
        """A key is revoked while its calls run."""
        keyed = self._key()
        keyed.doubtful.append(Span(time.time()))
        revoke_key(key=keyed.key, actor="chaos", reason="")
        self._is_off(keyed)

    def delete_key(self) -> None:
        """The row of a key is deleted while its calls run, its budgets with it."""
        keyed = self._key()
        keyed.doubtful.append(Span(time.time()))
        delete_key(keyed.key)
        generations.project()
        self._is_off(keyed)

    def suspend(self) -> None:
        """A tenant is suspended for a while."""
        tenant = self._key().key.tenant
        keys = [keyed for keyed in self._stage.keys if keyed.key.tenant_id == tenant.pk]
        with contextlib.ExitStack() as doubt:
            for keyed in keys:
                doubt.enter_context(during(keyed.doubtful))
            suspend_tenant(tenant=tenant, actor="chaos", reason="")
            spans = [self._is_off(keyed) for keyed in keys]
            self._wait(0.5, 1.5)
            until = time.time()
            resume_tenant(tenant=tenant, actor="chaos", reason="")
            eventually(lambda: generations.in_force(tenant.pk), PATIENCE_SECONDS)
        for span in spans:
            span.until = until

    def kill_switch(self) -> None:
        """All calls of everybody, of a tenant or of a key are stopped for a while."""
        keyed = self._key()
        tenant = keyed.key.tenant
        scope = self._random.choice(("platform", "tenant", "key"))
        of_tenant = [one for one in self._stage.keys if one.key.tenant_id == tenant.pk]
        keys = {"platform": list(self._stage.keys), "tenant": of_tenant, "key": [keyed]}[scope]
        subjects: dict[str, dict[str, Any]] = {
            "platform": {},
            "tenant": {"tenant": tenant},
            "key": {"key": keyed.key},
        }
        with contextlib.ExitStack() as doubt:
            for one in keys:
                doubt.enter_context(during(one.doubtful))
            switch = arm_kill_switch(scope=scope, actor="chaos", reason="chaos", **subjects[scope])
            eventually(lambda: generations.in_force(switch.tenant_id), PATIENCE_SECONDS)
            spans = [self._is_off(one) for one in keys]
            self._wait(0.5, 1.5)
            until = time.time()
            lift_kill_switch(switch=switch, actor="chaos", reason="chaos")
            eventually(lambda: generations.in_force(switch.tenant_id), PATIENCE_SECONDS)
        for span in spans:
            span.until = until

    def _is_off(self, keyed: Keyed) -> Span:
        eventually(lambda: generations.in_force(keyed.key.tenant_id), PATIENCE_SECONDS)
        span = Span(time.time())
        keyed.off.append(span)
        return span

    def lower_limit(self) -> None:
        """A budget gets less than it has given already, perhaps."""
        # What one of sixty seconds counted last is not of the period that it counts now.
        hard = Budget.objects.filter(shadow=False, limit__gt=0).exclude(period="fixed").order_by("id")
        budget = self._random.choice(list(hard))
        assert budget.limit is not None
        limit = int(budget.limit * self._random.uniform(0.1, 0.8))
        began = time.time()
        set_budget(
            scope=budget.scope, tenant=budget.tenant, key=budget.key, unit=budget.unit,
            period=budget.period, limit=limit, actor="chaos",
        )  # fmt: skip
        eventually(lambda: not generations.pending(), PATIENCE_SECONDS)
        self._stage.lowered[budget.id.hex] = Lowered(began, time.time(), limit)
