"""Costs and calls, made up for the reports of a month."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import time_machine

from budgets.models import LedgerEntry, UpstreamCost
from budgets.services import set_upstream_cost
from tenants.ids import new_id

OCTOBER = date(2026, 10, 1)
HOURS_OF_OCTOBER = 744
LLAMA, NOMIC = "llama3.2:latest", "nomic-embed-text:latest"


def id_of(when: datetime) -> UUID:
    with time_machine.travel(when, tick=False):
        return new_id()


def in_october(day: int = 15, hour: int = 12) -> datetime:
    return datetime(2026, 10, day, hour, tzinfo=UTC)


def an_entry(model: str = LLAMA, *, ended_at: datetime | None = None, **changes: Any) -> LedgerEntry:
    """A call that is not saved yet: half a second for 1,000 tokens of prompt, a second for 50 of answer."""
    ended_at = ended_at or in_october()
    fields: dict[str, Any] = {
        "request_id": id_of(ended_at),
        "kind": "usage",
        "tenant_id": UUID(int=1),
        "tenant": "acme",
        "key_id": UUID(int=2),
        "key": "nightly",
        "model": model,
        "upstream": "gpu-1",
        "route": "chat",
        "operation": "chat",
        "dialect": "OLLAMA",
        "stream": True,
        "day": ended_at.date(),
        "admitted_at": ended_at,
        "ended_at": ended_at,
        "requests": 1,
        "input_tokens": 1000,
        "cached_tokens": 0,
        "output_tokens": 50,
        "thinking_tokens": 0,
        "load_ns": None,
        "prompt_ns": 500_000_000,
        "output_ns": 1_000_000_000,
        "gpu_ms": 1500,
        "cost_micro_usd": 0,
        "exact": True,
        "late": False,
        "outcome": "completed",
        "status": 200,
    }
    return LedgerEntry(**(fields | changes))


def book(*entries: LedgerEntry) -> None:
    """Put entries into the ledger."""
    LedgerEntry.objects.bulk_create(entries)


def calls(number: int, model: str = LLAMA, **changes: Any) -> list[LedgerEntry]:
    """So many calls that are the same."""
    return [an_entry(model, **changes) for _ in range(number)]


def a_dollar_an_hour(upstream: str = "gpu-1", **changes: Any) -> UpstreamCost:
    """A dollar for each hour of October, for one GPU, whether it works or not."""
    figures: dict[str, Any] = {
        "hardware_price": 36 * HOURS_OF_OCTOBER * 1_000_000,
        "life_months": 36,
        "starts_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return set_upstream_cost(upstream=upstream, actor="test", **(figures | changes))
