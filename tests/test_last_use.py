"""When secrets were last used: what is written, how often, and what becomes of it when PostgreSQL is away."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest
from django.db import OperationalError, connection

from keys import last_use
from keys.callers import Caller, caller_of
from keys.last_use import BETWEEN_WRITES_SECONDS, STALE_SECONDS, TRY_AGAIN_SECONDS, Uses
from keys.lifetimes import Grace
from keys.models import KeySecret, SecretUse
from keys.networks import block_of
from keys.services import issue_key, rotate_key
from tenants.services import create_tenant
from tests.conftest import eventually

pytestmark = pytest.mark.django_db(transaction=True)

HERE = ip_address("192.0.2.77")


class Clocks:
    """The clocks that ``keys.last_use`` looks at, to be moved by hand; PostgreSQL's own goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr("keys.last_use.time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("keys.last_use.clock.now_ms", lambda: 1_800_000_000_000 + self.seconds * 1000)

    def pass_by(self, seconds: float) -> None:
        """Let time pass for the process, and age what PostgreSQL was told as much."""
        self.seconds += seconds
        for use in SecretUse.objects.all():
            SecretUse.objects.filter(pk=use.pk).update(noted_at=use.noted_at - timedelta(seconds=seconds))


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.fixture
def caller() -> Caller:
    tenant = create_tenant(slug="acme", name="ACME", actor="test")
    key, _ = issue_key(tenant=tenant, label="nightly", actor="test")
    return caller_of(key)


def hand_over(uses: Uses, **options: Any) -> None:
    asyncio.run(uses.hand_over(**options))


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("203.0.113.0", "203.0.113.0/24"),
    ],
)
def test_of_an_address_its_block_is_kept(address: str, block: str) -> None:
    assert block_of(ip_address(address)) == block


def test_many_calls_are_one_write(caller: Caller, clocks: Clocks) -> None:
    uses = Uses()
    noted = 0
    for _ in range(10_000):
        if uses.wanted(caller):
            noted += 1
            uses.note(caller, "tiny:1b", HERE)

    hand_over(uses)

    use = SecretUse.objects.get()
    assert noted == 1
    assert (use.secret_id, use.model, use.address_block) == (caller.public_id, "tiny:1b", "192.0.2.0/24")


def test_of_a_secret_in_use_all_processes_together_write_once_a_minute(
    caller: Caller, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [Uses() for _ in range(3)]
    written: list[tuple[float, str]] = []
    real = last_use._write

    def counted(batch: Any) -> set[str]:
        taken = real(batch)
        written.extend((clocks.seconds, one) for one in taken)
        return taken

    monkeypatch.setattr(last_use, "_write", counted)
    for _ in range(100):
        for uses in processes:
            uses.note(caller, "tiny:1b", HERE)
            hand_over(uses)
        clocks.pass_by(3)

    moments = [seconds for seconds, _ in written]
    assert 4 <= len(moments) <= 5
    assert all(b - a >= BETWEEN_WRITES_SECONDS for a, b in pairwise(moments))


def test_what_came_within_the_minute_is_written_after_it(caller: Caller, clocks: Clocks) -> None:
    uses = Uses()
    uses.note(caller, "tiny:1b", HERE)
    hand_over(uses)
    clocks.pass_by(10)
    uses.note(caller, "thinker:latest", HERE)
    hand_over(uses)
    first = SecretUse.objects.get()

    clocks.pass_by(BETWEEN_WRITES_SECONDS)
    hand_over(uses)

    last = SecretUse.objects.get()
    assert (first.model, last.model) == ("tiny:1b", "thinker:latest")
    assert last.used_at - first.used_at == timedelta(seconds=10)


def test_an_older_use_never_replaces_a_newer_one(caller: Caller, clocks: Clocks) -> None:
    slow, quick = Uses(), Uses()
    slow.note(caller, "tiny:1b", HERE)
    clocks.pass_by(1)
    quick.note(caller, "thinker:latest", HERE)
    hand_over(quick)

    clocks.pass_by(BETWEEN_WRITES_SECONDS + TRY_AGAIN_SECONDS)
    hand_over(slow)

    assert SecretUse.objects.get().model == "thinker:latest"
    clocks.pass_by(STALE_SECONDS)
    hand_over(slow)
    assert all(seen.use is None for seen in slow._seen.values())


def test_what_postgresql_does_not_take_is_sent_again(
    caller: Caller, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = Uses()
    uses.note(caller, "tiny:1b", HERE)
    with monkeypatch.context() as away:
        away.setattr(last_use, "_write", _fail)
        with pytest.raises(OperationalError):
            hand_over(uses)

    hand_over(uses)

    assert SecretUse.objects.count() == 1


def _fail(_: Any) -> set[str]:
    raise OperationalError("away")


def test_a_secret_that_is_gone_does_not_keep_the_others_from_being_written(
    caller: Caller, clocks: Clocks
) -> None:
    other, _ = issue_key(
        tenant=create_tenant(slug="globex", name="Globex", actor="test"), label="x", actor="test"
    )
    uses = Uses()
    uses.note(caller, "tiny:1b", HERE)
    uses.note(caller_of(other), "tiny:1b", HERE)
    KeySecret.objects.filter(pk=caller.public_id).delete()

    hand_over(uses)

    assert [use.secret.key for use in SecretUse.objects.all()] == [other]


def test_a_process_that_ends_writes_what_waits(caller: Caller, clocks: Clocks) -> None:
    uses = Uses()
    uses.note(caller, "tiny:1b", HERE)
    asyncio.run(uses.leave())

    assert SecretUse.objects.count() == 1


def test_the_first_use_of_a_new_secret_does_not_wait_for_the_next_hand_over(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KeySecret.objects.get(pk=caller.public_id).key
    rotate_key(key=key, actor="test", grace=Grace.FIRST_USE)
    newest = caller_of(key)
    # So that only being woken can be the reason.
    monkeypatch.setattr(last_use, "HAND_OVER_SECONDS", 3600)

    async def use_it() -> None:
        uses = Uses()
        working = asyncio.create_task(uses.keep_handing_over())
        await asyncio.sleep(0)
        uses.note(newest, "tiny:1b", HERE)
        await asyncio.to_thread(eventually, lambda: not _works(caller.public_id))
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    assert newest.succeeds
    asyncio.run(use_it())
    assert _works(newest.public_id)


def _works(public_id: str) -> bool:
    try:
        return KeySecret.objects.get(pk=public_id).retires_at is None
    finally:
        connection.close()
