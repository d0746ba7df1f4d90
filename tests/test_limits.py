"""Budgets, rate limits and concurrency, as a client meets them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from budgets.models import Measure, Unit
from budgets.services import set_budget, set_price, set_rate_limit
from keys.services import revoke_key
from tenants.redis import PARTITION, redis_now
from tenants.services import resume_tenant, suspend_tenant
from tests.conftest import House, eventually


def budget(house: House, unit: str, limit: int | None, **whose: Any) -> None:
    whose = whose or {"scope": "key", "key": house.ada.key}
    set_budget(unit=unit, period="day", limit=limit, actor="test", **whose)


def rate(house: House, measure: str, limit: int | None, **whose: Any) -> None:
    whose = whose or {"scope": "key", "key": house.ada.key}
    set_rate_limit(measure=measure, limit=limit, actor="test", **whose)


def counted(field: str) -> int:
    """The sum of one field over all budget counters."""
    redis = redis_now()
    return sum(int(redis.hget(key, field) or 0) for key in redis.keys(f"{PARTITION}:budget:*"))


@contextlib.contextmanager
def running_chats(house: House, count: int) -> Iterator[None]:
    """So many streams that run until the end of the block, where their client leaves."""
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-10000")
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "go on"}]}
    with contextlib.ExitStack() as streams:
        opened = [
            streams.enter_context(house.ada.http.stream("POST", "/api/chat", json=body)) for _ in range(count)
        ]
        # Kept, for one that is thrown away takes its stream with it.
        lines = [stream.iter_lines() for stream in opened]
        assert all(map(next, lines))
        yield
    house.ollama.script.clear()


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param(lambda house: {"scope": "key", "key": house.ada.key}, id="key"),
        pytest.param(lambda house: {"scope": "tenant", "tenant": house.acme}, id="tenant"),
    ],
)
def test_a_budget_of_requests_lets_through_exactly_as_many(house, whose):
    budget(house, Unit.REQUESTS, 3, **whose(house))

    statuses = [house.ada.chat().status_code for _ in range(5)]

    assert statuses == [200, 200, 200, 429, 429]
    assert len(house.ollama.calls) == 3
    assert counted("used") == 3
    assert counted("held") == 0


def test_forty_racing_calls_never_pass_a_budget_for_ten(house: House):
    budget(house, Unit.REQUESTS, 10)
    house.ollama.settings.piece_delay = 0.01
    barrier = Barrier(40)

    def race(_: int) -> int:
        barrier.wait()
        return house.ada.chat().status_code

    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(race, range(40)))

    assert statuses.count(200) == 10
    assert statuses.count(429) == 30
    assert len(house.ollama.calls) == 10
    assert (counted("used"), counted("held")) == (10, 0)


def test_racing_calls_never_pass_a_budget_of_tokens(house: House):
    budget(house, Unit.TOKENS, 3000)
    barrier = Barrier(20)

    def race(number: int) -> int:
        barrier.wait()
        return house.ada.chat(f"call {number}", options={"num_predict": 20}).status_code

    with ThreadPoolExecutor(20) as threads:
        statuses = list(threads.map(race, range(20)))

    used = sum(call.prompt_tokens + call.output_tokens for call in house.ollama.calls)
    assert used <= 3000
    assert 200 in statuses
    assert (counted("used"), counted("held")) == (used, 0)


def test_the_tightest_budget_becomes_the_cap_that_ollama_is_told(house):
    house.ada.chat()
    budget(house, Unit.OUTPUT_TOKENS, 7)

    response = house.ada.chat(options={"num_predict": 500}, stream=False)

    assert response.json()["eval_count"] == 7
    assert response.json()["done_reason"] == "length"
    assert response.headers["x-tollgate-output-cap"] == "7;by=key-output-tokens-day"
    assert house.ollama.calls[-1].fields["options"]["num_predict"] == 7
    assert house.ada.chat().status_code == 429


def test_no_limit_zero_and_a_number_are_three_things(house):
    budget(house, Unit.REQUESTS, None)
    assert house.ada.chat().status_code == 200

    budget(house, Unit.REQUESTS, 0)
    assert house.ada.chat().status_code == 429

    budget(house, Unit.REQUESTS, 2)
    assert [house.ada.chat().status_code for _ in range(2)] == [200, 429]


def test_a_free_local_model_is_bounded_like_any_other(house):
    set_price(model="tiny:1b", free=True, actor="test")
    budget(house, Unit.MICRO_USD, 1, scope="model", model="tiny:1b")
    budget(house, Unit.OUTPUT_TOKENS, 5, scope="model", model="tiny:1b")

    answers = [house.ada.chat(stream=False, options={"num_predict": 5}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert len(house.ollama.calls) == 1
    assert house.booked()[0].cost_micro_usd == 0


def test_a_refused_call_eats_nothing(house):
    budget(house, Unit.REQUESTS, 2)
    rate(house, Measure.CONCURRENT_REQUESTS, 1)

    with running_chats(house, 1):
        assert house.ada.chat().status_code == 429

    eventually(lambda: house.ada.chat().status_code == 200)
    assert house.ada.chat().json()["error"].startswith("A budget has not enough left")


def test_requests_per_minute_slide(house):
    rate(house, Measure.REQUESTS_PER_MINUTE, 2)

    answers = [house.ada.chat() for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 76
    assert answers[2].headers.get("x-should-retry") != "false"


def test_tokens_per_minute_count_what_was_used_and_not_what_was_held(house):
    rate(house, Measure.TOKENS_PER_MINUTE, 100_000)

    answers = [house.ada.chat(options={"num_predict": 8000}) for _ in range(12)]

    assert {answer.status_code for answer in answers} == {200}


def test_concurrency_is_bounded_and_frees_itself(house):
    rate(house, Measure.CONCURRENT_REQUESTS, 2)

    with running_chats(house, 2):
        refused = house.ada.chat()

    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    eventually(lambda: house.ada.chat().status_code == 200)


def test_limit_headers_stand_on_good_answers_and_on_refusals(house):
    budget(house, Unit.REQUESTS, 2)
    rate(house, Measure.REQUESTS_PER_MINUTE, 10)
    rate(house, Measure.TOKENS_PER_MINUTE, 100_000)

    good = house.ada.http.post(
        "/v1/chat/completions",
        json={"model": "tiny:1b", "messages": [{"role": "user", "content": "x"}], "stream": True},
    )
    house.ada.chat()
    refused = house.ada.chat()

    for response in (good, refused):
        assert response.headers["x-ratelimit-limit-requests"] in ("2", "10")
        assert response.headers["x-ratelimit-limit-tokens"] == "100000"
        assert "ratelimit" in response.headers
        assert "ratelimit-policy" in response.headers
        assert "x-request-id" in response.headers
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models", "/api/show"])
def test_listings_tell_the_limits_too(house, path):
    budget(house, Unit.REQUESTS, 2)

    response = (
        house.ada.http.post(path, json={"model": "tiny:1b"})
        if path == "/api/show"
        else house.ada.http.get(path)
    )

    assert response.status_code == 200
    assert response.headers["x-ratelimit-remaining-requests"] == "2"


def test_a_revoked_key_is_refused_on_the_next_request(house):
    assert house.ada.chat().status_code == 200

    revoke_key(key=house.ada.key, actor="test", reason="lost")

    assert house.ada.chat().status_code == 401
    assert house.ada.http.get("/api/tags").status_code == 401


def test_a_suspended_tenant_is_refused_until_it_is_resumed(house):
    suspend_tenant(tenant=house.acme, actor="test", reason="unpaid")
    assert house.ada.chat().status_code == 401

    resume_tenant(tenant=house.acme, actor="test", reason="paid")
    assert house.ada.chat().status_code == 200


def test_a_revoked_key_ends_its_running_streams(house):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-10000")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(house.ada.chat, options={"num_predict": 8000})
        eventually(lambda: house.ollama.calls and house.ollama.calls[0].pieces)
        revoke_key(key=house.ada.key, actor="test", reason="lost")
        body = running.result().text

    assert '"done":true' not in body
    assert "error" in body.splitlines()[-1]
    eventually(lambda: house.ollama.calls[0].state == "aborted")
    [entry] = house.booked()
    assert (entry.outcome, entry.exact) == ("stopped", False)
    assert entry.output_tokens > 0
