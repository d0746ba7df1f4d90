"""GPU time: what is held of it, how it is prolonged, and where it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings

from budgets.counters import HOLDS, hold_key
from budgets.exceptions import BudgetExhausted
from budgets.gpu_time import prolong
from budgets.heartbeats import Heartbeats, Progress
from budgets.limits import Limit
from budgets.models import Price
from budgets.pricing import PinnedPrice
from budgets.reservations import LEAST_GPU_MS, Reservation, reserve, settle
from budgets.services import set_budget, set_price
from budgets.settlements import Moments
from budgets.sweeping import sweep
from config.embedded import Valkey
from tests.conftest import House, eventually
from tests.counting import (
    MODEL,
    a_budget,
    a_demand,
    ada,
    change_hold,
    empty_redis,
    everything,
    figures,
    records,
    redis,
    some_usage,
    with_redis_at,
)

LEASE_MS = settings.LEASE_SECONDS * 1000
# A millionth of a dollar for each millisecond, and nothing else.
GPU_ONLY = PinnedPrice(uuid4().hex, 0, 0, 0, 1000)


@pytest.fixture
def counters(valkey: Valkey) -> Iterator[None]:
    """Counters of our own: a gateway that runs meanwhile makes those that it misses anew."""
    with with_redis_at(valkey.url):
        empty_redis()
        yield


def admit(*limits: Limit, prices: dict[str, PinnedPrice] | None = None, **demand: Any) -> Reservation:
    return asyncio.run(reserve(ada(*limits, prices=prices), a_demand(**demand)))


def run_for(reservation: Reservation, milliseconds: int) -> None:
    """Let a call have been running for so long, and be heard of."""
    reservation._admitted -= milliseconds / 1000
    asyncio.run(prolong(reservation))


def end(reservation: Reservation, **used: Any) -> None:
    asyncio.run(settle(reservation, some_usage(**used), "completed", Moments(), 200))


@pytest.mark.parametrize(
    ("limit", "granted"),
    [
        pytest.param(None, None, id="no limit, so no bound either"),
        pytest.param(100 * LEASE_MS, LEASE_MS, id="one lease of much"),
        pytest.param(LEASE_MS, LEASE_MS, id="just a lease"),
        pytest.param(7000, 7000, id="all there is"),
        pytest.param(LEAST_GPU_MS, LEAST_GPU_MS, id="just enough to begin"),
    ],
)
def test_a_call_begins_with_a_lease_of_time_or_what_is_left(
    counters: None, limit: int | None, granted: int | None
) -> None:
    budget = a_budget(limit, "gpu_ms")

    reservation = admit(budget)

    assert reservation.gpu_cap_ms == granted
    assert reservation.output_cap == 100
    assert figures(budget) == (0, granted or 0)


@pytest.mark.parametrize("limit", [0, 1, LEAST_GPU_MS - 1])
def test_a_call_that_would_be_stopped_at_once_is_refused(counters: None, limit: int) -> None:
    caller = ada(a_budget(limit, "gpu_ms"))
    before = everything()

    with pytest.raises(BudgetExhausted) as refused:
        asyncio.run(reserve(caller, a_demand()))

    assert (refused.value.standing[0].unit, refused.value.retry_after) == ("gpu_ms", None)
    assert everything() == before


def test_an_embedding_is_bounded_too(counters: None) -> None:
    reservation = admit(a_budget(4000, "gpu_ms"), output_tokens=0)

    assert (reservation.gpu_cap_ms, reservation.output_cap) == (4000, 0)


def test_a_shadow_budget_counts_and_bounds_nothing(counters: None) -> None:
    budget = a_budget(1, "gpu_ms", hard=False)

    reservation = admit(budget)
    end(reservation)

    assert reservation.gpu_cap_ms is None
    assert figures(budget) == (6, 0)


def test_calls_side_by_side_share_what_is_left(counters: None) -> None:
    budget = a_budget(3 * LEASE_MS, "gpu_ms")
    caller = ada(budget)

    running = [asyncio.run(reserve(caller, a_demand())) for _ in range(3)]
    with pytest.raises(BudgetExhausted):
        asyncio.run(reserve(caller, a_demand()))
    end(running[0])

    assert figures(budget) == (6, 2 * LEASE_MS)
    assert asyncio.run(reserve(caller, a_demand())).gpu_cap_ms == LEASE_MS - 6


def test_a_running_call_is_granted_more_before_its_time_is_over(counters: None) -> None:
    budget = a_budget(10 * LEASE_MS, "gpu_ms")
    reservation = admit(budget)

    run_for(reservation, LEASE_MS // 4)
    early = reservation.gpu_cap_ms
    run_for(reservation, LEASE_MS // 2)

    assert early == LEASE_MS
    assert reservation.gpu_cap_ms is not None
    assert 2 * LEASE_MS > reservation.gpu_cap_ms >= LEASE_MS * 7 // 4
    assert figures(budget) == (0, reservation.gpu_cap_ms)


def test_the_last_of_a_budget_is_granted_too_and_no_more(counters: None) -> None:
    budget, other = a_budget(LEASE_MS + 500, "gpu_ms"), a_budget(None, "gpu_ms")
    reservation = admit(budget, other)

    run_for(reservation, LEASE_MS - 100)
    granted = reservation.gpu_cap_ms
    run_for(reservation, 100)

    assert granted == reservation.gpu_cap_ms == LEASE_MS + 500
    assert figures(budget) == figures(other) == (0, LEASE_MS + 500)


def test_what_another_call_holds_is_not_granted(counters: None) -> None:
    budget = a_budget(2 * LEASE_MS, "gpu_ms")
    caller = ada(budget)
    first, _ = (asyncio.run(reserve(caller, a_demand())) for _ in range(2))

    run_for(first, LEASE_MS)

    assert first.gpu_cap_ms == LEASE_MS
    assert figures(budget) == (0, 2 * LEASE_MS)


def test_a_price_for_time_holds_money_as_it_goes(counters: None) -> None:
    money = a_budget(LEASE_MS + 20_000, "micro_usd")

    reservation = admit(money, prices={MODEL: GPU_ONLY})
    run_for(reservation, LEASE_MS - 1000)

    assert (reservation.gpu_cap_ms, reservation.output_cap) == (LEASE_MS + 20_000, 100)
    end(reservation, prompt_ns=3_000_000_000, output_ns=4_000_000_000)
    assert figures(money) == (7000, 0)


def test_output_gives_way_to_time_and_only_then_time_to_money(counters: None) -> None:
    both = PinnedPrice(uuid4().hex, 0, 0, 1_000_000, 1000)

    roomy = admit(a_budget(LEASE_MS + 40, "micro_usd"), prices={MODEL: both})
    tight = admit(a_budget(5000, "micro_usd"), prices={MODEL: both})

    assert (roomy.output_cap, roomy.gpu_cap_ms, roomy.capped_by) == (40, LEASE_MS, "key-micro_usd-day")
    assert (tight.output_cap, tight.gpu_cap_ms) == (1, 4999)


def test_time_that_cannot_have_been_is_booked_as_what_was_held(counters: None) -> None:
    budget = a_budget(5000, "gpu_ms")
    reservation = admit(budget)

    end(reservation, output_ns=3600 * 10**9)

    assert figures(budget) == (5000, 0)
    assert records()[0]["end"]["exact"] is False


def test_a_prolonged_hold_comes_back_as_it_was_when_redis_has_lost_it(counters: None) -> None:
    budget = a_budget(10 * LEASE_MS, "gpu_ms")
    reservation = admit(budget)
    run_for(reservation, LEASE_MS)
    held = figures(budget)

    redis().delete(hold_key(reservation.request_id), HOLDS, budget.counter(0).key)
    for key in redis().keys("*:budget:*"):
        redis().delete(key)

    async def beat() -> None:
        heartbeats = Heartbeats()
        heartbeats.watch(reservation, lambda: Progress(3, "started"))
        await heartbeats.beat()
        await heartbeats.aclose()

    asyncio.run(beat())

    assert figures(budget) == held
    run_for(reservation, LEASE_MS)
    assert figures(budget) == (0, reservation.gpu_cap_ms)


@pytest.mark.django_db
def test_the_sweep_books_the_time_until_a_dead_process_was_last_heard_of(counters: None) -> None:
    budget = a_budget(10 * LEASE_MS, "gpu_ms")
    reservation = admit(budget)
    request_id = str(reservation.request_id)

    change_hold(reservation.request_id, admitted_ms=reservation.admitted_at_ms - 2 * LEASE_MS)
    redis().zadd(HOLDS, {request_id: reservation.admitted_at_ms - LEASE_MS // 2})
    sweep()

    assert figures(budget) == (LEASE_MS // 2, 0)


def gpu_budget(house: House, limit: int | None) -> None:
    set_budget(scope="tenant", tenant=house.acme, unit="gpu_ms", period="day", limit=limit, actor="test")


def test_a_budget_of_gpu_time_counts_what_ollama_tells(house: House) -> None:
    gpu_budget(house, 60_000)

    answers = [house.ada.chat(stream=stream) for stream in (True, False)]
    embedded = house.ada.http.post("/api/embed", json={"model": "emb", "input": ["rain", "sun"]})

    assert [answer.status_code for answer in answers] == [200, 200]
    assert embedded.status_code == 200
    entries = house.booked(3)
    truths = house.ollama.calls
    for entry, truth in zip(entries[:2], truths[:2], strict=True):
        # The simulated models need 0.1 ms for a token of the prompt and 1 ms for one of the answer.
        assert entry.gpu_ms == -(-(truth.prompt_tokens * 100 + truth.output_tokens * 1000) // 1000)
    assert entries[2].prompt_ns is not None
    assert (
        house.ada.http.get("/api/tags")
        .headers["ratelimit"]
        .startswith(f'"tenant-gpu-ms-day";r={60_000 - sum(entry.gpu_ms for entry in entries)}')
    )


def test_where_ollama_tells_no_time_the_clock_counts(house: House) -> None:
    gpu_budget(house, 60_000)
    house.ollama.settings.first_byte_delay = 0.2

    house.ada.http.post(
        "/v1/chat/completions",
        json={"model": "tiny:1b", "messages": [{"role": "user", "content": "x"}]},
    )

    [entry] = house.booked()
    assert (entry.prompt_ns, entry.exact) == (None, True)
    assert 200 <= entry.gpu_ms < 30_000


@pytest.mark.parametrize(
    ("path", "body", "mark"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}]}, '"done":true'),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "[DONE]"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8000},
            "message_stop",
        ),
    ],
)
def test_a_stream_is_cut_when_its_gpu_time_is_over(
    house: House, path: str, body: dict[str, Any], mark: str
) -> None:
    gpu_budget(house, 4000)
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-10000")

    answer = house.ada.http.post(path, json={"model": "tiny:1b", "stream": True, **body})

    assert answer.status_code == 200
    assert mark not in answer.text
    assert "no more GPU time" in answer.text
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.exact) == ("cut", False)
    assert entry.output_tokens > 0
    assert 500 <= entry.gpu_ms <= 4000
    assert house.ada.chat().status_code == 429


def test_an_answer_that_is_not_streamed_is_refused_when_its_gpu_time_is_over(house: House) -> None:
    gpu_budget(house, 1000)
    house.ollama.settings.first_byte_delay = 20

    answer = house.ada.chat(stream=False)

    assert answer.status_code == 429
    assert answer.json()["error"] == "A budget has no more GPU time for this request, so it was cut."
    [entry] = house.booked()
    assert (entry.outcome, entry.requests) == ("cut", 1)
    assert 0 < entry.gpu_ms <= 1000


def test_a_price_for_gpu_seconds_is_charged_with_the_others(house: House) -> None:
    set_budget(scope="tenant", tenant=house.acme, unit="micro_usd", period="day", limit=10**6, actor="test")
    set_price(model="tiny:1b", gpu_price=1000, output_price=10**6, actor="test")

    assert house.ada.chat().status_code == 200

    [entry] = house.booked()
    assert entry.price_id == Price.objects.get().pk
    assert entry.cost_micro_usd == entry.gpu_ms + entry.output_tokens
