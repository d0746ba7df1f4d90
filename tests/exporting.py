"""What the tests of exports share: entries made up on the spot, and files read back."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from budgets.booking import ensure_months
from budgets.exports import Order, Writing
from budgets.models import LedgerEntry
from budgets.pricing import PinnedPrice
from budgets.usage import Selection
from tenants.ids import new_id
from tenants.models import Tenant

OCTOBER = (date(2026, 10, 1), date(2026, 11, 1))
KEY = UUID("00000000-0000-4000-8000-00000000000a")
PRICE = PinnedPrice("00000000-0000-4000-8000-0000000000aa", 300_000, 30_000, 1_000_000, 25)


def an_entry(tenant: Tenant, *, price: PinnedPrice | None = PRICE, **changes: Any) -> LedgerEntry:
    """An entry of the ledger, of a call on 15 October; its cost follows from ``price`` and what it used."""
    fields: dict[str, Any] = {
        "request_id": new_id(),
        "kind": "usage",
        "tenant_id": tenant.pk,
        "tenant": tenant.slug,
        "key_id": KEY,
        "key": "ada's key",
        "model": "llama3.2:latest",
        "upstream": "main",
        "route": "chat",
        "operation": "chat",
        "dialect": "OLLAMA",
        "stream": True,
        "day": date(2026, 10, 15),
        "ended_at": datetime(2026, 10, 15, 12, tzinfo=UTC),
        "requests": 1,
        "input_tokens": 100,
        "cached_tokens": 0,
        "output_tokens": 50,
        "thinking_tokens": 0,
        "gpu_ms": 900,
        "exact": True,
        "late": False,
        "outcome": "completed",
        "status": 200,
    } | changes
    fields.setdefault("admitted_at", fields["ended_at"] - timedelta(seconds=2))
    if price is not None:
        fields |= {"price_id": UUID(price.id), "input_price": price.input, "cached_price": price.cached}
        fields |= {"output_price": price.output, "gpu_price": price.gpu_second}
        used = [fields[name] for name in ("input_tokens", "cached_tokens", "output_tokens", "gpu_ms")]
        fields.setdefault("cost_micro_usd", price.cost(*used))
    fields.setdefault("cost_micro_usd", 0)
    ensure_months([fields["request_id"]])
    entry = LedgerEntry(**fields)
    entry.save(force_insert=True)
    return entry


def an_order(tenant: Tenant | None, profile: str = "requests", **options: Any) -> Order:
    """October of a tenant, or of all."""
    selection = Selection(
        tenant_id=None if tenant is None else tenant.pk,
        from_day=options.pop("from_day", OCTOBER[0]),
        before_day=options.pop("before_day", OCTOBER[1]),
    )
    return Order(selection, profile, **options)


def written(order: Order) -> tuple[bytes, dict[str, Any]]:
    """The file of an order and its sidecar."""
    writing = Writing(order)
    return b"".join(writing), writing.sidecar


def rows_of(order: Order) -> list[dict[str, str]]:
    """The rows of CSV by the names of their columns."""
    content, _ = written(order)
    separator = {"comma": ",", "semicolon": ";", "tab": "\t"}[order.separator]
    text = content.decode().removeprefix("\ufeff")
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
