"""``manage.py verify``: silent while the books agree, under traffic too, and loud about each fault."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from budgets import ledger, services, verification
from budgets.comparisons import Difference
from budgets.models import (
    Budget,
)
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, reserve, settle
from budgets.settlements import Moments
from budgets.sweeping import sweep
from keys.services import issue_key
from keys.verification import identify, reload
from tenants.models import Tenant
from tenants.services import create_tenant
from tests.counting import a_demand, expire_hold, redis, some_usage

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _spool(settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR = tmp_path / "spool"


@pytest.fixture
def acme() -> Tenant:
    redis().flushdb()
    ensure_epoch()
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Asia/Kathmandu")


@pytest.fixture
def budgets(acme: Tenant) -> list[Budget]:
    """Three budgets of the tenant and one of everybody, as if they had been there before their periods."""
    services.set_price(
        model="llama3.2:latest", input_price=300_000, cached_price=30_000, output_price=1_000_000,
        gpu_price=7, actor="test",
    )  # fmt: skip
    made = [
        services.set_budget(scope="tenant", tenant=acme, unit=unit, period="month", limit=10**9, actor="test")
        for unit in ("tokens", "micro_usd", "requests")
    ]
    made.append(services.set_budget(scope="platform", unit="gpu_ms", period="year", limit=None, actor="test"))
    Budget.objects.update(created_at="2020-01-01T00:00:00Z")
    return made


@pytest.fixture
def secret(acme: Tenant, budgets: list[Budget]) -> str:
    return issue_key(tenant=acme, label="nightly", actor="test")[1]


def admit(secret: str, **demand: Any) -> Reservation:
    async def ask() -> Reservation:
        caller = await identify({"authorization": f"Bearer {secret}"})
        return await reserve(await reload(caller.public_id), a_demand(10, 100, **demand))

    return asyncio.run(ask())


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


def call(secret: str, **used: Any) -> Reservation:
    reservation = admit(secret)
    end(reservation, **used)
    return reservation


def differences() -> list[Difference]:
    result = verification.verify(verification.open_part())
    assert result.unasked == {}
    assert len(result.differences) == result.found
    return list(result.differences)


def tamper(statement: str, *values: Any) -> None:
    """Change what the database lets nobody change."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(statement, values)
        assert cursor.rowcount > 0


def test_the_books_agree_whatever_waits_and_however_calls_ended(secret: str) -> None:
    for number in range(5):
        call(secret, output_tokens=number)
    ledger.drain()
    call(secret, exact=False)
    running, orphan = admit(secret), admit(secret)
    expire_hold(orphan.request_id)
    sweep()

    assert differences() == []
    ledger.drain()
    assert differences() == []
    end(orphan, output_tokens=30)
    assert differences() == []
    ledger.drain()
    end(running)

    assert differences() == []
