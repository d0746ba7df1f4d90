"""Ledgers made up on the spot: entries as the drain books them, with their rollups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from django.db import transaction
from hypothesis import strategies as st

from budgets import booking
from budgets.models import LedgerEntry
from budgets.pricing import PinnedPrice
from budgets.records import Record
from tenants.ids import new_id
from tenants.models import Tenant

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
PRICE = PinnedPrice(str(uuid4()), 300_000, 30_000, 1_000_000, 55)


def an_entry(price: PinnedPrice | None = PRICE, time_zone: str = "UTC", **changes: Any) -> LedgerEntry:
    """An entry that is not saved; its day and its cost follow from the rest unless they are given."""
    fields: dict[str, Any] = {
        "request_id": new_id(),
        "kind": "usage",
        "tenant_id": UUID(int=1),
        "tenant": "acme",
        "key_id": UUID(int=2),
        "key": "nightly",
        "model": "tiny:1b",
        "upstream": "main",
        "route": "/api/chat",
        "operation": "chat",
        "dialect": "OLLAMA",
        "stream": True,
        "ended_at": NOON,
        "requests": 1,
        "input_tokens": 7,
        "cached_tokens": 2,
        "output_tokens": 20,
        "thinking_tokens": 0,
        "gpu_ms": 6,
        "exact": True,
        "late": False,
        "outcome": "completed",
        "status": 200,
    } | changes
    fields.setdefault("admitted_at", fields["ended_at"] - timedelta(seconds=2))
    fields.setdefault("day", fields["ended_at"].astimezone(ZoneInfo(time_zone)).date())
    if price is not None:
        rates = {
            "price_id": UUID(price.id),
            "input_price": price.input,
            "cached_price": price.cached,
            "output_price": price.output,
            "gpu_price": price.gpu_second,
        }
        fields = rates | fields
    used = [fields[name] for name in ("input_tokens", "cached_tokens", "output_tokens", "gpu_ms")]
    fields.setdefault("cost_micro_usd", price.cost(*used) if price else 0)
    return LedgerEntry(**fields)


@contextmanager
def taken_back() -> Iterator[None]:
    """An example of its own: what is written in the block is gone behind it."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def book(*entries: LedgerEntry) -> list[LedgerEntry]:
    """Write entries and their rollups as the drain does; return them as they stand in the ledger."""
    booking.write([Record(entry, (), ()) for entry in entries])
    found = LedgerEntry.objects.filter(request_id__in=[entry.request_id for entry in entries])
    return list(found.order_by("id"))


def of(tenant: Tenant, **changes: Any) -> LedgerEntry:
    """An entry of a tenant, not saved."""
    return an_entry(tenant_id=tenant.pk, tenant=tenant.slug, time_zone=tenant.time_zone, **changes)


_instants = st.integers(0, 33 * 24 * 3_600_000).map(
    lambda milliseconds: datetime(2026, 2, 27, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
)


def _things(part: str, some: Iterable[int]) -> st.SearchStrategy[dict[str, Any]]:
    """A thing of this sort, called differently from one entry to the next."""
    names = st.sampled_from(["Alpha", "beta", "Ωmega"])
    return st.builds(
        lambda number, name: {
            f"{part}_id": UUID(int=number) if number else None,
            part: name if number else "",
        },
        st.sampled_from(list(some)),
        names,
    )


@st.composite
def entries(draw: st.DrawFn, tenants: tuple[int, ...] = (1, 2)) -> LedgerEntry:
    """One entry of any sort: usage, an adjustment of it, or a correction."""
    kind = draw(st.sampled_from(["usage", "usage", "usage", "adjustment", "correction"]))
    tokens = st.integers(0, 5_000) if kind == "usage" else st.integers(-5_000, 5_000)
    fields: dict[str, Any] = {"kind": kind, "ended_at": draw(_instants), "exact": draw(st.booleans())}
    for name in ("input_tokens", "output_tokens", "gpu_ms"):
        fields[name] = draw(tokens)
    low, high = sorted((0, fields["input_tokens"]))
    fields["cached_tokens"] = draw(st.integers(low, high))
    if kind == "correction":
        fields |= {"corrects": UUID(int=draw(st.integers(10, 13))), "actor": "olga", "reason": "wrong rate"}
    for part, some in (("tenant", tenants), ("team", (0, 3)), ("member", (0, 4, 5)), ("key", (6, 7))):
        fields |= draw(_things(part, some))
    for name in ("model", "upstream", "operation", "route", "run"):
        fields[name] = draw(st.sampled_from(["", "one", "two"] if name == "run" else ["one", "two"]))
    price = draw(st.sampled_from([PRICE, None]))
    if kind != "usage":
        fields["cost_micro_usd"] = draw(tokens)
    zone = draw(st.sampled_from(["UTC", "America/St_Johns", "Asia/Kathmandu"]))
    return an_entry(price, zone, **fields)
