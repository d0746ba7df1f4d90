"""Every scope with every unit and every measure, through the door that a client uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from budgets import booking
from budgets.models import Budget, LedgerEntry, Measure, RateLimit, Unit
from budgets.services import set_budget, set_price, set_rate_limit
from tenants.models import Team, Tenant, User
from tenants.redis import PARTITION
from tenants.services import add_member, create_team, create_tenant
from tests.conftest import Caller, House, eventually
from tests.counting import redis

RUN = "nightly"


@dataclass(frozen=True)
class Parties:
    """Ada, a member of acme's research, and those who share less and less with her."""

    house: House
    ada: Caller
    colleague: Caller
    stranger: Caller
    acme: Tenant

    def ask(self, caller: Caller, **fields: Any) -> httpx.Response:
        body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello"}], **fields}
        return caller.http.post("/api/chat", json=body, headers={"X-Tollgate-Run": RUN})


@pytest.fixture
def parties(house: House) -> Parties:
    set_price(model="tiny:1b", input_price=10**6, output_price=10**6, gpu_price=1000, actor="test")
    team = create_team(tenant=house.acme, name="research", actor="test")
    user = User.objects.create(username="ada", email="ada@acme.test")
    member = add_member(tenant=house.acme, user=user, role="member", team=team, actor="test")
    globex = create_tenant(slug="globex", name="Globex", actor="test", allow_all_models=True)
    return Parties(house, house.caller(member=member), house.caller(), house.caller(globex), house.acme)


def _of(part: str) -> Callable[[Parties], dict[str, Any]]:
    return lambda parties: {part: getattr(parties.ada.key, part)}


# The scope, what it names, and who besides ada is counted: a colleague of acme, a stranger elsewhere.
SCOPES: dict[str, tuple[str, Callable[[Parties], dict[str, Any]], bool, bool]] = {
    "platform": ("platform", lambda _: {}, True, True),
    "tenant": ("tenant", _of("tenant"), True, False),
    "team": ("team", lambda parties: {"team": Team.objects.get(name="research")}, False, False),
    "member": ("member", _of("member"), False, False),
    "key": ("key", lambda parties: {"key": parties.ada.key}, False, False),
    "model anywhere": ("model", lambda _: {"model": "tiny:1b"}, True, True),
    "model of a tenant": (
        "model", lambda parties: {"model": "tiny:1b", "tenant": parties.acme}, True, False,
    ),
    "upstream anywhere": ("upstream", lambda _: {"upstream": "sim"}, True, True),
    "upstream of a tenant": (
        "upstream", lambda parties: {"upstream": "sim", "tenant": parties.acme}, True, False,
    ),
    "run of a tenant": ("run", _of("tenant"), True, False),
    "run of a key": ("run", lambda parties: {"key": parties.ada.key}, False, False),
}  # fmt: skip
# Where a call may meet two limits of one scope, the name says whose they are.
SCOPE_NAMES = {
    "model of a tenant": "tenant-model",
    "upstream of a tenant": "tenant-upstream",
    "run of a key": "key-run",
}


def limit_to(parties: Parties, scope: str, what: str, limit: int | None) -> Budget | RateLimit:
    """Set a budget of a unit, or a rate limit of a measure, for one of ``SCOPES``."""
    name, whose, *_ = SCOPES[scope]
    if what in Unit.values:
        return set_budget(scope=name, unit=what, period="day", limit=limit, actor="test", **whose(parties))
    return set_rate_limit(scope=name, measure=what, limit=limit, actor="test", **whose(parties))


def name_of(scope: str, what: str) -> str:
    names: dict[str, str] = {
        Measure.REQUESTS_PER_MINUTE: "requests-minute",
        Measure.TOKENS_PER_MINUTE: "tokens-minute",
        Measure.CONCURRENT_REQUESTS: "concurrent-requests",
    }
    return f"{SCOPE_NAMES.get(scope, SCOPES[scope][0])}-{names.get(what, f'{what}-day')}".replace("_", "-")


def used_of(row: Budget | RateLimit) -> int:
    """What the counters of a row say was used, and that nothing is held."""
    kind = "budget" if isinstance(row, Budget) else "rate"
    used = 0
    for key in redis().keys(f"{PARTITION}:{kind}:{row.pk.hex}*"):
        figures = {name.decode(): int(value) for name, value in redis().hgetall(key).items()}
        assert figures.get("held", 0) == 0
        used += figures.get("used", figures.get("sum", 0))
    return used


def booked(what: str, entry: LedgerEntry) -> int:
    """What an entry means to a budget of a unit or a rate limit of a measure, when all calls have ended."""
    if what in Unit.values:
        return booking.amount_of(what, entry)
    amounts: dict[str, int] = {
        Measure.REQUESTS_PER_MINUTE: 1,
        Measure.TOKENS_PER_MINUTE: entry.input_tokens + entry.output_tokens,
        Measure.CONCURRENT_REQUESTS: 0,
    }
    return amounts[what]


EVERYTHING = [*Unit.values, *Measure.values]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_counts_in_every_unit(parties: Parties, scope: str) -> None:
    rows = {what: limit_to(parties, scope, what, 10**9) for what in EVERYTHING}

    answer = parties.ask(parties.ada)

    assert answer.status_code == 200
    [entry] = parties.house.booked()
    assert {what: used_of(row) for what, row in rows.items()} == {
        what: booked(what, entry) for what in EVERYTHING
    }
    for what in EVERYTHING:
        assert f'"{name_of(scope, what)}";r=' in answer.headers["ratelimit"]
        assert f'"{name_of(scope, what)}";q={10**9};qu=' in answer.headers["ratelimit-policy"]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_refuses_in_every_unit_and_nobody_outside_it(parties: Parties, scope: str) -> None:
    _, _, with_colleague, with_stranger = SCOPES[scope]
    for what in EVERYTHING:
        limit_to(parties, scope, what, 0)
        refused = parties.ask(parties.ada)
        limit_to(parties, scope, what, None)

        assert refused.status_code == 429, what
        assert f"Limit {name_of(scope, what)}: 0 of 0 " in refused.json()["error"]
        assert f'"{name_of(scope, what)}";r=0' in refused.headers["ratelimit"]

    assert parties.ask(parties.ada).status_code == 200
    limit_to(parties, scope, Unit.REQUESTS, 0)
    statuses = [parties.ask(one).status_code for one in (parties.colleague, parties.stranger)]
    assert statuses == [429 if counted else 200 for counted in (with_colleague, with_stranger)]


def test_one_call_is_charged_to_all_that_apply_or_to_none(parties: Parties) -> None:
    rows = {(scope, what): limit_to(parties, scope, what, 10**9) for scope in SCOPES for what in EVERYTHING}

    answer = parties.ask(parties.ada)
    assert answer.status_code == 200
    names = [one.partition(";")[0].strip('"') for one in answer.headers["ratelimit"].split(", ")]
    assert sorted(names) == sorted(name_of(scope, what) for scope, what in rows)
    assert len(set(names)) == len(names)
    [entry] = parties.house.booked()
    limit_to(parties, "run of a key", Unit.OUTPUT_TOKENS, 0)
    assert parties.ask(parties.ada).status_code == 429

    assert entry.cost_micro_usd == entry.input_tokens + entry.output_tokens + entry.gpu_ms
    assert {name: used_of(row) for name, row in rows.items()} == {
        (scope, what): booked(what, entry) for scope, what in rows
    }
    assert len(parties.house.ollama.calls) == 1


@pytest.mark.parametrize("strict", SCOPES)
def test_the_stricter_limit_wins_wherever_it_stands(parties: Parties, strict: str) -> None:
    for scope in {strict, "platform", "key"}:
        limit_to(parties, scope, Unit.OUTPUT_TOKENS, 7 if scope == strict else 100)

    answer = parties.ask(parties.ada, stream=False, options={"num_predict": 400})

    assert answer.json()["eval_count"] == 7
    assert answer.headers["x-tollgate-output-cap"] == f"7;by={name_of(strict, Unit.OUTPUT_TOKENS)}"


@pytest.mark.parametrize(
    ("path", "sentence_of", "limit_header"),
    [
        ("/api/chat", lambda body: body["error"], "x-ratelimit-limit-tokens"),
        ("/v1/chat/completions", lambda body: body["error"]["message"], "x-ratelimit-limit-tokens"),
        ("/v1/messages", lambda body: body["error"]["message"], "anthropic-ratelimit-tokens-limit"),
    ],
)
def test_a_refusal_names_its_limit_its_reset_and_what_is_left(
    parties: Parties, path: str, sentence_of: Callable[[Any], str], limit_header: str
) -> None:
    limit_to(parties, "team", Unit.TOKENS, 20)
    limit_to(parties, "platform", Unit.TOKENS, 10**6)

    answer = parties.ada.http.post(
        path,
        json={
            "model": "tiny:1b",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "a prompt of more than twenty bytes"}],
        },
    )

    assert answer.status_code == 429
    assert "Limit team-tokens-day: 0 of 20 tokens used or held, back in " in sentence_of(answer.json())
    first, second = answer.headers["ratelimit"].split(", ")
    assert first.startswith('"team-tokens-day";r=20;t=')
    assert second.startswith('"platform-tokens-day";r=1000000;t=')
    assert answer.headers[limit_header] == "20"


def test_who_was_refused_for_want_of_a_price_is_let_in_once_there_is_one(parties: Parties) -> None:
    """Nothing else happens in between that would make the gateway look for changes."""
    budget = set_budget(
        scope="tenant", tenant=parties.acme, unit="micro_usd", period="day", limit=10**6, actor="test"
    )
    refused = [parties.ask(parties.ada, model=model).status_code for model in ("small", "small")]
    set_price(model="small:latest", output_price=1, actor="test")
    priced = parties.ask(parties.ada, model="small").status_code
    still_refused = parties.ask(parties.ada, model="thinker").status_code
    Budget.objects.filter(pk=budget.pk).delete()
    free_of_money = eventually(lambda: parties.ask(parties.ada, model="thinker").status_code == 200)

    assert (refused, priced, still_refused, free_of_money) == ([403, 403], 200, 403, True)
