"""Runs: the calls that a client says belong together, and limits for each of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest
from django.core.exceptions import ValidationError

from audit.models import RequestEvent
from budgets import ledger, limits
from budgets.closing import close_periods
from budgets.counters import GRACE_SECONDS
from budgets.models import Budget, BudgetPeriod, Measure, PeriodClosing
from budgets.rebuild import ensure_epoch
from budgets.services import set_budget, set_rate_limit
from tenants.redis import PARTITION
from tenants.services import create_tenant
from tests.conftest import Caller, House, eventually
from tests.counting import a_budget, redis

HEADER = "X-Tollgate-Run"
BODY: dict[str, Any] = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello there"}]}


def ask(caller: Caller, run: str | None, **fields: Any) -> httpx.Response:
    headers = {} if run is None else {HEADER: run}
    return caller.http.post("/api/chat", json=BODY | fields, headers=headers)


def of_runs(house: House, limit: int | None, unit: str = "requests", **changes: Any) -> Budget:
    fields = {"scope": "run", "tenant": house.acme, "period": "lifetime", "actor": "test", **changes}
    return set_budget(unit=unit, limit=limit, **fields)


def test_each_run_has_a_counter_of_its_own(house: House) -> None:
    of_runs(house, 2)

    statuses = [ask(house.ada, run).status_code for run in ("a", "a", "a", "b", "b", "b", "c")]

    assert statuses == [200, 200, 429, 200, 200, 429, 200]


def test_a_call_without_the_header_belongs_to_no_run(house: House) -> None:
    of_runs(house, 0)

    assert ask(house.ada, None).status_code == 200
    assert ask(house.ada, "a").status_code == 429
    assert "run-requests" not in house.ada.http.get("/api/tags").headers.get("ratelimit", "")


def test_the_refusal_names_the_limit_of_the_run(house: House) -> None:
    of_runs(house, 1)
    ask(house.ada, "a")

    refused = ask(house.ada, "a")

    assert refused.json()["error"] == (
        "A budget has not enough left for this request. "
        "Limit run-requests-lifetime: 1 of 1 requests used or held."
    )
    assert refused.headers["ratelimit"] == '"run-requests-lifetime";r=0'
    assert refused.headers["x-should-retry"] == "false"


def test_a_run_of_a_tenant_is_shared_by_its_keys_and_by_nobody_else(house: House) -> None:
    globex = create_tenant(slug="globex", name="Globex", actor="test", allow_all_models=True)
    of_runs(house, 1)
    of_runs(house, 1, tenant=globex)
    bob, eve = house.caller(), house.caller(globex)

    assert ask(house.ada, "same").status_code == 200
    assert ask(bob, "same").status_code == 429
    assert ask(eve, "same").status_code == 200
    assert ask(eve, "same").status_code == 429


def test_the_runs_of_a_key_are_this_keys_alone(house: House) -> None:
    bob = house.caller()
    of_runs(house, 1, key=house.ada.key)
    of_runs(house, 1, key=bob.key)

    assert [ask(one, "same").status_code for one in (house.ada, bob, house.ada, bob)] == [200, 200, 429, 429]


def test_a_key_without_limits_for_runs_is_not_bound_by_those_of_another(house: House) -> None:
    of_runs(house, 0, key=house.caller().key)

    assert ask(house.ada, "a").status_code == 200


def test_rates_and_concurrency_are_limited_per_run(house: House) -> None:
    for measure, limit in ((Measure.REQUESTS_PER_MINUTE, 2), (Measure.CONCURRENT_REQUESTS, 1)):
        set_rate_limit(scope="run", tenant=house.acme, measure=measure, limit=limit, actor="test")
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-10000")

    # It runs until it is left.
    with house.ada.http.stream("POST", "/api/chat", json=BODY, headers={HEADER: "a"}) as running:
        lines = running.iter_lines()
        assert next(lines)
        beside = ask(house.ada, "a", options={"num_predict": 1})
        other = ask(house.ada, "b", options={"num_predict": 1})
    house.ollama.script.clear()
    house.ollama.settings.piece_delay = 0

    assert (beside.status_code, other.status_code) == (429, 200)
    assert "run-concurrent-requests" in beside.json()["error"]
    eventually(lambda: ask(house.ada, "a").status_code == 200)
    assert "run-requests-minute" in ask(house.ada, "a").json()["error"]


def test_racing_calls_of_a_run_never_pass_its_budget(house: House) -> None:
    of_runs(house, 5)
    barrier = Barrier(20)

    def race(number: int) -> tuple[str, int]:
        run = "ab"[number % 2]
        barrier.wait()
        return run, ask(house.ada, run).status_code

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(race, range(20)))

    assert answers.count(("a", 200)) == answers.count(("b", 200)) == 5


@pytest.mark.parametrize(
    "run", ["", "-a", "a b", "a,b", "ä", "{p0}", "a" * 65, "a\tb", "..", ":x", "a:b", "a/b"]
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_bad_name_of_a_run_is_refused_in_the_words_of_the_door(house: House, path: str, run: str) -> None:
    body = {"model": "tiny:1b", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}

    answer = house.ada.http.post(path, json=body, headers={HEADER.encode(): run.encode()})

    assert answer.status_code == 400
    error = answer.json()["error"]
    sentence = error if path == "/api/chat" else error["message"]
    assert sentence.startswith("X-Tollgate-Run must have 1 to 64 characters")
    if path == "/v1/chat/completions":
        assert (error["param"], error["code"]) == ("X-Tollgate-Run", "invalid_request")
    assert house.ollama.calls == []


@pytest.mark.parametrize("run", ["a", "7", "A.b_c-d", "a" * 64, "01890d8e-5c4b-7f2e-9d3c-1a2b3c4d5e6f"])
def test_a_good_name_of_a_run_stands_in_the_books(house: House, run: str) -> None:
    of_runs(house, 1)

    assert [ask(house.ada, run).status_code for _ in range(2)] == [200, 429]

    [entry] = house.booked()
    assert entry.run == run
    eventually(lambda: ledger.drain() or RequestEvent.objects.filter(run=run).count() == 2)


def test_two_headers_are_no_name(house: House) -> None:
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "x"}]}

    answer = house.ada.http.post("/api/chat", json=body, headers=[(HEADER, "a"), (HEADER, "b")])

    assert answer.status_code == 400


def test_the_counter_of_a_run_goes_when_nobody_has_used_it_for_long(house: House) -> None:
    budget, daily = of_runs(house, 5), of_runs(house, 5, period="day")
    key = f"{PARTITION}:budget:{budget.id.hex}:0:a"

    ask(house.ada, "a")
    house.booked()
    redis().expire(key, 60)
    ask(house.ada, "a")

    assert GRACE_SECONDS - 60 < redis().ttl(key) <= GRACE_SECONDS + 60
    [daily_key] = redis().keys(f"{PARTITION}:budget:{daily.id.hex}:*:a")
    assert 0 < redis().ttl(daily_key) <= GRACE_SECONDS + 2 * 86_400


def test_the_counters_of_runs_come_back_from_the_ledger(house: House) -> None:
    budget = of_runs(house, 3)
    for run in ("a", "a", "b"):
        ask(house.ada, run)
    house.booked(3)
    BudgetPeriod.objects.create(
        budget_id=budget.id, period_start="1970-01-01T00:00Z", run="old", used=3, last_at="2020-01-01T00:00Z"
    )
    names = {run: f"{PARTITION}:budget:{budget.id.hex}:0:{run}" for run in ("a", "b", "old")}
    for name in names.values():
        redis().delete(name)

    ensure_epoch(force=True)

    assert {run: redis().hget(name, "used") for run, name in names.items()} == {
        "a": b"2",
        "b": b"1",
        "old": None,
    }
    assert redis().ttl(names["a"]) > GRACE_SECONDS - 60
    assert [ask(house.ada, "a").status_code for _ in range(2)] == [200, 429]


def test_periods_of_single_runs_are_not_closed(house: House) -> None:
    past = {"period_start": "2026-01-01T00:00Z", "period_end": "2026-01-02T00:00Z", "used": 1}
    for run in ("", "a", "b"):
        BudgetPeriod.objects.create(budget_id=of_runs(house, 5, period="day").id, run=run, **past)

    close_periods()

    assert PeriodClosing.objects.count() == 1


def test_a_process_does_not_remember_runs_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED_COUNTINGS", 10)
    known = limits.Limits((a_budget(5, scope="run"),), {})

    for number in range(50):
        known.counting("tiny:1b", "sim", time.time() * 1000, f"run-{number}")

    assert len(known._countings) <= 10


@pytest.mark.django_db
@pytest.mark.parametrize("whose", [{}, {"model": "tiny:1b"}, {"upstream": "sim"}])
def test_only_a_tenant_or_a_key_limits_runs(whose: Any) -> None:
    with pytest.raises(ValidationError):
        set_budget(scope="run", unit="tokens", period="day", limit=5, actor="test", **whose)
