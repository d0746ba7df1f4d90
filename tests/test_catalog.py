"""What one process knows of the models that are installed, and when it may not know it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from keys.services import issue_key
from keys.verification import Caller, identify
from proxy import upstream
from proxy.catalog import Catalog, published_at
from proxy.exceptions import NoModels
from proxy.models import Upstream
from proxy.services import save_upstream
from proxy.simulator.server import SimulatorThread
from tenants.redis import redis_now
from tenants.services import create_tenant
from tests.conftest import furnish


@pytest.fixture
def headers(transactional_db: None, ollama: SimulatorThread) -> dict[str, str]:
    """Those of a key that may use every model; nobody has looked for models yet."""
    furnish(ollama)
    redis_now().delete(published_at("sim"))
    acme = create_tenant(slug="acme", name="ACME", actor="test", allow_all_models=True)
    _, secret = issue_key(tenant=acme, label="one", actor="test")
    return {"authorization": f"Bearer {secret}"}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def and_close() -> Any:
        try:
            return await work
        finally:
            await upstream.close()

    return asyncio.run(and_close())


async def offered(catalog: Catalog, caller: Caller) -> set[str]:
    await catalog.catch_up(caller)
    return {model.name for model in catalog.effective(caller)}


def test_a_process_that_has_not_polled_yet_offers_what_another_has_published(headers):
    async def work() -> None:
        caller, first, second = await identify(headers), Catalog(), Catalog()
        with pytest.raises(NoModels):
            await offered(first, caller)
        await first.refresh()

        assert "tiny:1b" in await offered(second, caller)
        assert second.resolve(caller, "tiny:1b").upstream == "sim"

    run(work())


class Clock:
    """A clock that can be put forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("proxy.catalog.time", clock)
    return clock


def test_what_redis_has_lost_is_offered_until_it_is_too_old(headers, settings, clock):
    async def work() -> None:
        caller, catalog = await identify(headers), Catalog()
        await catalog.refresh()
        # Redis was emptied, and another process has the turn and is still asking.
        redis_now().delete(published_at("sim"))
        await catalog.refresh()
        assert "tiny:1b" in await offered(catalog, caller)

        clock.ahead = settings.CATALOG_MAX_AGE_SECONDS
        with pytest.raises(NoModels):
            await offered(catalog, caller)

    run(work())


def test_a_list_that_is_too_old_takes_no_other_upstreams_models_with_it(headers, settings, clock):
    with SimulatorThread() as other:
        other.install("elsewhere:1b")
        save_upstream(upstream=Upstream(name="second", base_url=other.url), actor="test")

        async def work() -> None:
            caller, catalog = await identify(headers), Catalog()
            await catalog.refresh()
            assert {"tiny:1b", "elsewhere:1b"} <= await offered(catalog, caller)
            redis_now().pexpire("{p0}:catalog:second", int(settings.CATALOG_MAX_AGE_SECONDS * 500))
            await catalog.refresh()

            clock.ahead = settings.CATALOG_MAX_AGE_SECONDS / 2
            names = await offered(catalog, caller)
            assert "tiny:1b" in names
            assert "elsewhere:1b" not in names

        run(work())
