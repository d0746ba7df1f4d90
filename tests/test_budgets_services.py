"""Budgets, rate limits and prices: who may have which, how they take force, and the commands."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.test import Client
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets import ledger, services
from budgets.exceptions import BudgetExhausted, PriceMissing, StaleCaller
from budgets.limits import Limits, limits_for
from budgets.models import Budget, LedgerEntry, Price, RateLimit, Unit
from budgets.rebuild import ensure_epoch
from budgets.reservations import Reservation, reserve, settle
from budgets.settlements import Moments
from keys.models import ApiKey
from keys.services import issue_key
from keys.verification import Caller, identify, reload
from tenants import generations
from tenants.models import Member, Tenant, User
from tenants.services import add_member, create_team, create_tenant
from tests.counting import MODEL, UPSTREAM, a_demand, redis, some_usage

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def acme() -> Tenant:
    redis().flushdb()
    ensure_epoch()
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin", week_start=7)


@pytest.fixture
def key_and_secret(acme: Tenant) -> tuple[ApiKey, str]:
    return issue_key(tenant=acme, label="nightly", actor="test")


@pytest.fixture
def key(key_and_secret: tuple[ApiKey, str]) -> ApiKey:
    return key_and_secret[0]


@pytest.fixture
def secret(key_and_secret: tuple[ApiKey, str]) -> str:
    return key_and_secret[1]


def ada_at(acme: Tenant, **options: Any) -> Member:
    user = User.objects.create(username="ada", email="ada@acme.test")
    return add_member(tenant=acme, user=user, role="member", actor="test", **options)


async def caller(secret: str) -> Caller:
    return await identify({"authorization": f"Bearer {secret}"})


async def admit(secret: str, **demand: Any) -> Reservation:
    """As admission does it: a caller that is not the newest is loaded once more."""
    known = await caller(secret)
    try:
        return await reserve(known, a_demand(**demand))
    except StaleCaller:
        return await reserve(await reload(known.public_id), a_demand(**demand))


def names(limits: Limits, model: str = MODEL, upstream: str = UPSTREAM) -> list[str]:
    return sorted(limit.name for limit in limits.counting(model, upstream, time.time() * 1000).limits)


def test_a_caller_is_limited_by_all_that_stands_above_and_nothing_else(acme: Tenant) -> None:
    team = create_team(tenant=acme, name="research", actor="test")
    other_team = create_team(tenant=acme, name="sales", actor="test")
    member = ada_at(acme, team=team)
    key, secret = issue_key(tenant=acme, member=member, label="hers", actor="test")
    other_key, _ = issue_key(tenant=acme, label="another", actor="test")
    umbrella = create_tenant(slug="umbrella", name="Umbrella", actor="test")
    scopes: list[dict[str, Any]] = [
        {"scope": "platform"},
        {"scope": "tenant", "tenant": acme},
        {"scope": "tenant", "tenant": umbrella},
        {"scope": "team", "team": team},
        {"scope": "team", "team": other_team},
        {"scope": "member", "member": member},
        {"scope": "key", "key": key},
        {"scope": "key", "key": other_key},
        {"scope": "model", "model": MODEL},
        {"scope": "model", "model": MODEL, "tenant": umbrella},
        {"scope": "model", "model": "mistral:latest", "tenant": acme},
        {"scope": "upstream", "upstream": UPSTREAM, "tenant": acme},
        {"scope": "upstream", "upstream": "another"},
    ]
    for whose in scopes:
        services.set_budget(**whose, unit="tokens", period="day", limit=100, actor="test")
    services.set_rate_limit(scope="key", key=key, measure="concurrent_requests", limit=3, actor="test")
    services.set_rate_limit(scope="tenant", tenant=acme, measure="tokens_per_minute", limit=3, actor="test")

    async def limits() -> Limits:
        return await limits_for(await caller(secret))

    assert names(asyncio.run(limits())) == [
        "key-concurrent-requests",
        "key-tokens-day",
        "member-tokens-day",
        "model-tokens-day",
        "platform-tokens-day",
        "team-tokens-day",
        "tenant-tokens-day",
        "tenant-tokens-minute",
        "tenant-upstream-tokens-day",
    ]
    elsewhere = names(asyncio.run(limits()), model="mistral:latest", upstream="third")
    assert [name for name in elsewhere if "model" in name] == ["tenant-model-tokens-day"]


def test_a_change_is_in_force_for_the_next_call(acme: Tenant, key: ApiKey, secret: str) -> None:
    asyncio.run(admit(secret))

    budget = services.set_budget(scope="key", key=key, unit="requests", period="day", limit=0, actor="ada")
    with pytest.raises(BudgetExhausted):
        asyncio.run(admit(secret))
    services.set_budget(scope="key", key=key, unit="requests", period="day", limit=None, actor="ada")
    asyncio.run(admit(secret))
    known = asyncio.run(caller(secret))
    Budget.objects.filter(pk=budget.pk).update(limit=1)
    # Plain SQL raises the generation too; the projection puts it into Redis.
    generations.project()
    with pytest.raises(StaleCaller):
        asyncio.run(reserve(known, a_demand()))
    with pytest.raises(BudgetExhausted):
        asyncio.run(admit(secret))

    assert Budget.objects.count() == 1
    assert list(AuditEvent.objects.filter(action="budget.set").values_list("details__limit", flat=True)) == [
        None,
        0,
    ]


def test_a_warm_caller_costs_no_sql(acme: Tenant, secret: str) -> None:
    named: dict[str, Any] = {"scope": "tenant", "tenant": acme, "limit": 10**6, "actor": "test"}
    for row in (
        services.set_budget(unit="tokens", period="day", **named),
        services.set_rate_limit(measure="tokens_per_minute", **named),
    ):
        services.raise_limit(
            row=row, by=1, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="test"
        )

    async def twice() -> None:
        for _ in range(2):
            reservation = await admit(secret)
            await settle(reservation, some_usage(), "completed", Moments(), 200)
        known = await caller(secret)

        def no_sql(*_: Any) -> None:
            raise AssertionError("SQL on the path of a warm request")

        with connection.execute_wrapper(no_sql):
            reservation = await reserve(known, a_demand())
        assert {one.limit for one in reservation.standing} == {10**6 + 1}

    asyncio.run(twice())


def test_the_price_of_the_tenant_goes_first_and_the_latest_counts(acme: Tenant, secret: str) -> None:
    yesterday, tomorrow = now() - timedelta(days=1), now() + timedelta(days=1)
    services.set_price(model=MODEL, input_price=7, actor="test")
    services.set_price(model=MODEL, tenant=acme, input_price=3, starts_at=yesterday, actor="test")
    services.set_price(
        model=MODEL, tenant=acme, input_price=1, starts_at=yesterday - timedelta(1), actor="test"
    )
    services.set_price(model=MODEL, tenant=acme, input_price=9, starts_at=tomorrow, actor="test")

    async def price_at(moment: datetime) -> int:
        limits = await limits_for(await caller(secret))
        price = limits.price_of(MODEL, moment.timestamp() * 1000)
        assert price is not None
        return price.input

    assert asyncio.run(price_at(now())) == 3
    assert asyncio.run(price_at(tomorrow)) == 9


def test_a_free_model_needs_to_be_said_to_be_free(acme: Tenant, secret: str) -> None:
    services.set_budget(scope="tenant", tenant=acme, unit="micro_usd", period="day", limit=5, actor="test")
    with pytest.raises(PriceMissing):
        asyncio.run(admit(secret))
    with pytest.raises(ValidationError, match="has to be called free"):
        services.set_price(model=MODEL, actor="test")
    services.set_price(model=MODEL, free=True, actor="test")

    assert asyncio.run(admit(secret)).output_cap == 100


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"scope": "tenant"}, id="tenant without one"),
        pytest.param({"scope": "platform", "model": MODEL}, id="platform with a model"),
        pytest.param({"scope": "model"}, id="model without a name"),
        pytest.param({"limit": -1}, id="less than nothing"),
        pytest.param({"limit": 2**53}, id="more than can be counted"),
        pytest.param({"unit": "bananas"}, id="no such unit"),
        pytest.param({"period": "fortnight"}, id="no such period"),
        pytest.param({"period": "fixed"}, id="fixed without a length"),
        pytest.param({"period": "59s"}, id="shorter than a minute"),
    ],
)
def test_a_budget_states_what_makes_sense(values: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "scope": "platform",
        "unit": "tokens",
        "period": "day",
        "limit": 5,
        "actor": "test",
    }

    with pytest.raises(ValidationError):
        services.set_budget(**(usual | values))
    assert not Budget.objects.exists()
    assert not AuditEvent.objects.exists()


def test_the_database_keeps_a_row_within_its_tenant(acme: Tenant, key: ApiKey) -> None:
    umbrella = create_tenant(slug="umbrella", name="Umbrella", actor="test")

    with pytest.raises(IntegrityError):
        RateLimit.objects.create(scope="key", tenant=umbrella, key=key, measure="requests_per_minute")


def test_removing_is_told_to_the_audit_and_takes_force(acme: Tenant, secret: str) -> None:
    budget = services.set_budget(
        scope="tenant", tenant=acme, unit="tokens", period="day", limit=0, actor="test"
    )
    rate = services.set_rate_limit(
        scope="tenant", tenant=acme, measure="requests_per_minute", limit=0, actor="test"
    )
    price = services.set_price(model=MODEL, output_price=5, actor="test")

    services.remove_budget(budget=budget, actor="ada")
    services.remove_rate_limit(rate_limit=rate, actor="ada")
    services.remove_price(price=price, actor="ada")

    asyncio.run(admit(secret))
    removed = AuditEvent.objects.filter(action__endswith=".removed", actor="ada")
    assert {event.action for event in removed} == {"budget.removed", "rate_limit.removed", "price.removed"}


def told(command: str, *arguments: str) -> dict[str, Any]:
    output = StringIO()
    call_command(command, *arguments, "--json", stdout=output)
    described: dict[str, Any] = json.loads(output.getvalue())
    return described


def test_the_command_sets_a_budget(acme: Tenant, secret: str) -> None:
    public_id = secret[3:15]
    whose = ["--tenant", "acme", "--unit", "tokens", "--period", "day"]

    of_tenant = told("set_budget", *whose, "--limit", "1000")
    of_key = told("set_budget", *whose, "--key", public_id, "--limit", "none")

    assert (of_tenant["scope"], of_tenant["limit"], of_tenant["key"]) == ("tenant", 1000, None)
    assert (of_key["scope"], of_key["limit"], of_key["key"]) == ("key", None, "nightly")
    assert Budget.objects.count() == 2


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--tenant", "nobody", "--limit", "1"], id="no such tenant"),
        pytest.param(["--tenant", "acme", "--limit", "lots"], id="no number"),
        pytest.param(["--tenant", "acme", "--limit", "-5"], id="less than nothing"),
        pytest.param(["--tenant", "acme", "--limit", "1", "--key", "nosuchkey000"], id="no such key"),
    ],
)
def test_the_command_says_what_is_wrong(acme: Tenant, arguments: list[str]) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("set_budget", *arguments, "--unit", "tokens", "--period", "day")
    assert "Constraint" not in str(refused.value)


@pytest.mark.parametrize("limit", ["-1", str(2**53), str(2**64)])
@pytest.mark.parametrize(
    "command",
    [
        ["set_budget", "--unit", "tokens", "--period", "day"],
        ["set_rate_limit", "--measure", "requests_per_minute"],
    ],
)
def test_the_commands_say_what_a_limit_can_be(acme: Tenant, command: list[str], limit: str) -> None:
    with pytest.raises(CommandError, match=r"from 0 to 9007199254740991, or none\.$"):
        call_command(*command, "--tenant", "acme", "--limit", limit)


def test_usage_is_shown_from_the_ledger(acme: Tenant, secret: str) -> None:
    async def calls() -> None:
        for number, model in enumerate([MODEL, MODEL, "mistral:latest"]):
            reservation = await admit(secret, model=model)
            await settle(reservation, some_usage(output_tokens=number), "completed", Moments(), 200)

    asyncio.run(calls())
    ledger.drain()
    redis().flushdb()

    usage = told("show_usage", "--tenant", "acme", "--by", "model")
    of_key = told("show_usage", "--tenant", "acme", "--by", "key", "--key", secret[3:15])
    later = told("show_usage", "--tenant", "acme", "--since", "2999-01-01")
    by_day = told("show_usage", "--tenant", "acme", "--by", "day", "--until", "2999-01-01")

    assert [(row["model"], row["requests"], row["output_tokens"]) for row in usage["rows"]] == [
        (MODEL, 2, 1),
        ("mistral:latest", 1, 2),
    ]
    assert usage["total"]["input_tokens"] == 21
    assert [(row["key"], row["requests"]) for row in of_key["rows"]] == [("nightly", 3)]
    assert later["total"]["requests"] == 0
    assert [row["day"] for row in by_day["rows"]] == [str(LedgerEntry.objects.all()[0].day)]


def test_the_range_of_usage_is_half_open(acme: Tenant, secret: str) -> None:
    asyncio.run(_one_call(secret))
    ledger.drain()
    ended = LedgerEntry.objects.get().ended_at

    def requests(*bounds: str) -> int:
        return int(told("show_usage", "--tenant", "acme", *bounds)["total"]["requests"])

    assert requests("--since", ended.isoformat()) == 1
    assert requests("--until", ended.isoformat()) == 0
    assert requests("--since", (ended + timedelta(microseconds=1)).isoformat()) == 0


async def _one_call(secret: str) -> None:
    await settle(await admit(secret), some_usage(), "completed", Moments(), 200)


def test_usage_is_readable_without_json(acme: Tenant, secret: str) -> None:
    asyncio.run(_one_call(secret))
    ledger.drain()
    output = StringIO()

    call_command("show_usage", "--tenant", "acme", "--by", "key", stdout=output)

    head, row, total = output.getvalue().splitlines()
    assert head.split()[:2] == ["key", "requests"]
    assert (row.split()[0], total.split()[0]) == ("nightly", "total")


def test_the_command_rebuilds_the_counters(acme: Tenant) -> None:
    assert told("rebuild_counters") == {"rebuilt": False}
    redis().flushdb()
    assert told("rebuild_counters") == {"rebuilt": True}


def test_operators_set_limits_and_prices_in_the_admin(acme: Tenant, key: ApiKey) -> None:
    User.objects.create_superuser("operator", password="a long password")
    client = Client()
    client.force_login(User.objects.get(username="operator"))
    whose = {"scope": "key", "tenant": str(acme.pk), "key": str(key.pk), "model": "", "upstream": ""}
    starts = {"starts_at_0": "2026-01-01", "starts_at_1": "00:00"}
    added = {
        "budget": whose | {"unit": "tokens", "length": "day", "limit": "5"},
        "ratelimit": whose | {"measure": "tokens_per_minute", "limit": ""},
        "price": {
            "model": MODEL,
            "input_price": "5",
            "cached_price": "5",
            "output_price": "0",
            "gpu_price": "7",
        }
        | starts,
    }

    for page, values in added.items():
        response = client.post(f"/admin/budgets/{page}/add/", values)
        assert response.status_code == 302, response.content.decode()
    budget = Budget.objects.get()
    changed = client.post(
        f"/admin/budgets/budget/{budget.pk}/change/", {"limit": "9", "length": "day", "scope": "platform"}
    )

    budget.refresh_from_db()
    assert changed.status_code == 302
    assert (budget.limit, budget.scope) == (9, "key")
    assert RateLimit.objects.get().limit is None
    assert Price.objects.get().starts_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert AuditEvent.objects.filter(actor="operator").count() == 4


def test_the_admin_tells_none_nothing_and_a_number_apart(acme: Tenant, client: Client) -> None:
    client.force_login(User.objects.create_superuser("operator"))
    for unit, limit in ((Unit.TOKENS, None), (Unit.REQUESTS, 0), (Unit.MICRO_USD, 1500)):
        services.set_budget(scope="tenant", tenant=acme, unit=unit, period="day", limit=limit, actor="test")
    services.set_rate_limit(scope="tenant", tenant=acme, measure="tokens_per_minute", limit=0, actor="test")

    budgets = client.get("/admin/budgets/budget/").content.decode()
    rate_limits = client.get("/admin/budgets/ratelimit/").content.decode()

    for column in ("field-limit_told", "field-limit_now"):
        shown = re.findall(rf'<td class="[^"]*\b{column}\b[^"]*"[^>]*>\s*([^<]*?)\s*<', budgets)
        assert sorted(shown) == ["0, lets nothing through", "1500", "no limit"]
    assert "0, lets nothing through" in rate_limits


@pytest.mark.parametrize(
    "page",
    [
        "budget",
        "limitraise",
        "ratelimit",
        "price",
        "ledgerentry",
        "usagerollup",
        "budgetperiod",
        "parkedrecord",
    ],
)
def test_every_page_of_the_admin_opens(acme: Tenant, secret: str, page: str) -> None:
    services.set_budget(scope="tenant", tenant=acme, unit="tokens", period="day", limit=900, actor="test")
    asyncio.run(_one_call(secret))
    ledger.drain()
    User.objects.create_superuser("operator", password="a long password")
    client = Client()
    client.force_login(User.objects.get(username="operator"))

    response = client.get(f"/admin/budgets/{page}/", {"q": str(acme.pk)})

    assert response.status_code == 200
    if page in ("ledgerentry", "usagerollup", "budgetperiod", "parkedrecord"):
        assert client.get(f"/admin/budgets/{page}/add/").status_code == 403


@pytest.mark.parametrize(
    ("named", "scope", "described"),
    [
        (["--platform"], "platform", {"tenant": None}),
        (["--tenant", "acme"], "tenant", {"tenant": "acme", "key": None}),
        (["--tenant", "acme", "--team", "research"], "team", {"team": "research"}),
        (["--tenant", "acme", "--member", "ada@acme.test"], "member", {"member": "ada@acme.test"}),
        (["--tenant", "acme", "--key", "PUBLIC"], "key", {"key": "nightly"}),
        (["--model", "tiny:1b"], "model", {"model": "tiny:1b", "tenant": None}),
        (["--tenant", "acme", "--model", "tiny:1b"], "model", {"model": "tiny:1b", "tenant": "acme"}),
        (["--upstream", "gpu-1"], "upstream", {"upstream": "gpu-1", "tenant": None}),
        (["--tenant", "acme", "--each-run"], "run", {"tenant": "acme", "key": None}),
        (["--tenant", "acme", "--key", "PUBLIC", "--each-run"], "run", {"key": "nightly"}),
    ],
)
def test_the_commands_limit_every_scope(
    acme: Tenant, secret: str, named: list[str], scope: str, described: dict[str, Any]
) -> None:
    ada_at(acme, team=create_team(tenant=acme, name="research", actor="test"))
    named = [secret[3:15] if word == "PUBLIC" else word for word in named]

    budget = told("set_budget", *named, "--unit", "gpu_ms", "--period", "month", "--limit", "5000")
    rate = told("set_rate_limit", *named, "--measure", "concurrent_requests", "--limit", "none")
    again = told("set_rate_limit", *named, "--measure", "concurrent_requests", "--limit", "0")

    assert (budget["scope"], budget["unit"], budget["limit"]) == (scope, "gpu_ms", 5000)
    assert (rate["scope"], rate["measure"], rate["limit"]) == (scope, "concurrent_requests", None)
    assert (again["rate_limit_id"], again["limit"]) == (rate["rate_limit_id"], 0)
    for one in (budget, rate):
        assert described.items() <= one.items()


@pytest.mark.parametrize(
    "named",
    [
        pytest.param([], id="nobody"),
        pytest.param(["--platform", "--tenant", "acme"], id="everybody and somebody"),
        pytest.param(["--tenant", "acme", "--team", "sales"], id="no such team"),
        pytest.param(["--tenant", "acme", "--member", "eve@acme.test"], id="no such member"),
        pytest.param(["--tenant", "acme", "--model", "a:b", "--upstream", "c"], id="two parts"),
        pytest.param(["--team", "research"], id="a team of no tenant"),
        pytest.param(["--each-run"], id="runs of nobody"),
        pytest.param(["--tenant", "acme", "--model", "a:b", "--each-run"], id="runs of a model"),
        pytest.param(["--model", "ti ny"], id="no name of a model"),
    ],
)
def test_the_commands_say_whose_limit_cannot_be(acme: Tenant, named: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("set_rate_limit", *named, "--measure", "requests_per_minute", "--limit", "1")
    assert not RateLimit.objects.exists()


def test_the_command_sets_a_price_in_dollars(acme: Tenant) -> None:
    for_all = told(
        "set_price", "--model", MODEL, "--input", "0.25", "--output", "1", "--gpu-second", "0.0004"
    )
    ours = told("set_price", "--model", MODEL, "--tenant", "acme", "--free", "--from", "2027-01-01")

    assert for_all["input_micro_usd_per_million"] == for_all["cached_micro_usd_per_million"] == 250_000
    assert (for_all["output_micro_usd_per_million"], for_all["gpu_micro_usd_per_second"]) == (1_000_000, 400)
    assert (ours["tenant"], ours["free"], ours["starts_at"]) == (
        "acme",
        True,
        "2027-01-01T00:00:00+01:00",
    )
    output = StringIO()
    call_command("set_price", "--model", MODEL, "--gpu-second", "0.0004", stdout=output)
    assert "$0 in, $0 cached and $0 out for a million tokens, $0.0004 for a second" in output.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing, and not said to be free"),
        pytest.param(["--free", "--input", "1"], id="free and not free"),
        pytest.param(["--input", "lots"], id="no amount"),
        pytest.param(["--input", "nan"], id="no number"),
        pytest.param(["--input", "-1"], id="less than nothing"),
        pytest.param(["--input", "0.0000001"], id="less than a millionth"),
        pytest.param(["--input", "1", "--cached", "2"], id="cached dearer than new"),
        pytest.param(["--gpu-second", "2"], id="more than can be counted"),
        pytest.param(["--input", "1", "--from", "soon"], id="no moment"),
        pytest.param(["--input", "1", "--tenant", "nobody"], id="no such tenant"),
        pytest.param(["--input", "1", "--model", "ti ny"], id="no name of a model"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_price(acme: Tenant, arguments: list[str]) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("set_price", "--model", MODEL, *arguments)
    assert "Constraint" not in str(refused.value)
    assert not Price.objects.exists()


def test_usage_is_shown_by_run(acme: Tenant, secret: str) -> None:
    async def calls() -> None:
        for run in ("", "one", "one", "two"):
            reservation = await admit(secret, run=run)
            await settle(reservation, some_usage(), "completed", Moments(), 200)

    asyncio.run(calls())
    ledger.drain()

    by_run = told("show_usage", "--tenant", "acme", "--by", "run")
    one = told("show_usage", "--tenant", "acme", "--run", "one")

    assert [(row["run"], row["requests"], row["gpu_ms"]) for row in by_run["rows"]] == [
        ("", 1, 6),
        ("one", 2, 12),
        ("two", 1, 6),
    ]
    assert (one["run"], one["total"]["requests"]) == ("one", 2)
