"""How the upstreams are: what each listed last, when, and how many calls run there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import httpx
import orjson
from django.conf import settings

from budgets.counters import redis_in_bytes
from budgets.running_calls import running_calls
from proxy.catalog import published_at
from proxy.models import Upstream

VERSION_SECONDS = 2


class Health(StrEnum):
    """``OFF``: nothing new is sent there. ``LATE``: it did not answer lately, its models still count."""

    UP = "up"
    LATE = "late"
    DOWN = "down"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Node:
    """One upstream. ``age``: seconds since it listed its models, None if it is too long ago to count."""

    upstream: Upstream
    age: float | None
    models: list[str]
    running: int

    @property
    def health(self) -> Health:
        if not self.upstream.enabled:
            return Health.OFF
        if self.age is None:
            return Health.DOWN
        return Health.LATE if is_late(self.age) else Health.UP


def is_late(age: float | None) -> bool:
    """Whether an upstream should have listed its models again by now."""
    return age is None or age > 3 * settings.CATALOG_REFRESH_SECONDS + settings.UPSTREAM_CONNECT_SECONDS


def nodes() -> list[Node]:
    """Every upstream, by name. Raises ``RedisError`` and Django's ``db.Error``."""
    upstreams = list(Upstream.objects.all())
    pipeline = redis_in_bytes().pipeline(transaction=False)
    for upstream in upstreams:
        pipeline.get(published_at(upstream.name))
        pipeline.pttl(published_at(upstream.name))
    answers = pipeline.execute()
    running = Counter(call.upstream for call in running_calls())
    return [
        Node(
            upstream=upstream,
            age=None if left < 0 else max(0.0, settings.CATALOG_MAX_AGE_SECONDS - left / 1000),
            models=sorted(item["entry"]["name"] for item in orjson.loads(listed or b"[]")),
            running=running[upstream.name],
        )
        for upstream, listed, left in zip(upstreams, answers[::2], answers[1::2], strict=True)
    ]


def version_of(upstream: Upstream) -> str:
    """What an upstream answers now when it is asked for its version, or that it does not."""
    try:
        answer = httpx.get(f"{upstream.base_url}/api/version", timeout=VERSION_SECONDS, trust_env=False)
        return str(answer.json()["version"])[:40]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return "no answer"
