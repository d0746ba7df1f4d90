"""What ``/metrics`` tells and to whom: right with several processes, and nothing of what clients wrote."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.test import override_settings
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.parser import text_string_to_metric_families

from budgets import ledger
from budgets.counters import HOLDS, TALLIES, TALLY, run, run_now
from budgets.models import ParkedRecord, SpooledSettlement
from budgets.tallies import BUCKET_NAMES, Sum, Tallies, sums
from config import metrics
from keys.services import issue_key
from proxy.models import Upstream
from proxy.services import save_upstream
from tenants.models import Tenant
from tenants.redis import RedisError, redis_now
from tenants.services import create_tenant
from tests.conftest import PATIENCE_SECONDS, Caller, House, eventually
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway, database_url
from tests.test_hostile import address, request

TOKEN = "a token of the operator's own"
CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "How is the weather?"}]}
CANARY = "canary-5c1e-of-a-client"

# Every family that there is, with the labels that its lines have.
LABELS = {
    "tollgate_requests": {"tenant", "route", "status"},
    "tollgate_refusals": {"tenant", "code"},
    "tollgate_tokens": {"tenant", "direction"},
    "tollgate_first_byte_seconds": {"upstream", "le"},
    "tollgate_upstream_up": {"upstream"},
    "tollgate_up": {"store"},
    "tollgate_build_info": {"version"},
    "tollgate_dropped_prompts": set(),
    "tollgate_running_calls": set(),
    "tollgate_expired_holds": set(),
    "tollgate_ledger_waiting_records": set(),
    "tollgate_ledger_oldest_waiting_seconds": set(),
    "tollgate_waiting_refusals": set(),
    "tollgate_drain_age_seconds": set(),
    "tollgate_counters_believed": set(),
    "tollgate_spooled_files": set(),
    "tollgate_spooled_settlements": set(),
    "tollgate_parked_records": set(),
    "tollgate_pending_changes": set(),
    "process_virtual_memory_bytes": set(),
    "process_resident_memory_bytes": set(),
    "process_start_time_seconds": set(),
    "process_cpu_seconds": set(),
    "process_open_fds": set(),
    "process_max_fds": set(),
}
ROUTES = {
    "/", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/version", "/api/tags",
    "/api/show", "/api/ps", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
    "/v1/messages", "/v1/usage", "/v1/models", "/v1/messages/count_tokens", "other",
}  # fmt: skip


class Scrape:
    """The lines of one answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the one line of this name with exactly these labels; None if there is none."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def labels(self, family: str) -> list[dict[str, str]]:
        return [sample.labels for sample in self.families[family].samples]


def get(gateway: Gateway, path: str = "/metrics", **headers: str) -> httpx.Response:
    return httpx.get(gateway.url + path, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS)


def scrape(gateway: Gateway) -> Scrape:
    response = get(gateway, Authorization=f"Bearer {TOKEN}")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(response.text)


def scrape_once(gateway: Gateway, value: float, name: str, **labels: str) -> Scrape:
    """The first answer in which a line has this value."""

    def told() -> Scrape | None:
        now = scrape(gateway)
        return now if now.value(name, **labels) == value else None

    found: Scrape = eventually(told)
    return found


@pytest.fixture(scope="module")
def watched(gateway: Gateway) -> Iterator[Gateway]:
    """A second process on the same stores, which may be asked for metrics."""
    with Gateway(METRICS_TOKEN=TOKEN) as running:
        yield running


_numbers = itertools.count(1)


@pytest.fixture
def lab(house: House) -> Tenant:
    """A tenant whose slug no other test has, for what a process counted for others may come in late."""
    return create_tenant(slug=f"lab-{next(_numbers)}", name="Lab", actor="test", allow_all_models=True)


def chat(gateway: Gateway, caller: Caller, path: str = "/api/chat", **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {caller.secret}"}
    return httpx.post(
        gateway.url + path, json=CHAT | fields, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS
    )


def test_without_a_token_there_is_no_such_page(house: House) -> None:
    for headers in ({}, {"Authorization": f"Bearer {house.ada.secret}"}, {"Authorization": "Bearer"}):
        unknown = get(house.gateway, "/no-such-page", **headers)
        found = get(house.gateway, **headers)

        assert (found.status_code, found.content) == (404, unknown.content)


def test_only_the_token_opens_it(house: House, watched: Gateway) -> None:
    wrong = (
        "",
        f"Bearer {house.ada.secret}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
    )
    for authorization in wrong:
        refused = get(watched, Authorization=authorization)
        assert (refused.status_code, refused.content) == (401, b""), authorization
    assert httpx.post(f"{watched.url}/metrics", trust_env=False, timeout=PATIENCE_SECONDS).status_code == 401
    with_token = {"Authorization": f"bearer {TOKEN}"}
    assert (
        httpx.post(
            f"{watched.url}/metrics", headers=with_token, trust_env=False, timeout=PATIENCE_SECONDS
        ).status_code
        == 405
    )

    assert get(watched, **with_token).status_code == 200
    # And it opens nothing else.
    assert get(watched, "/api/tags", **with_token).status_code == 401


def test_a_key_does_not_open_it_even_where_it_was_set_as_the_token(house: House) -> None:
    with override_settings(METRICS_TOKEN=house.ada.secret):
        assert asked_here(house.ada.secret)[0] == 401
    with override_settings(METRICS_TOKEN=TOKEN):
        assert asked_here(TOKEN)[0] == 200


def asked_here(token: str) -> tuple[int, str]:
    """Status and text of an answer of this process."""
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
    }
    asyncio.run(metrics.answer(scope, send))
    return sent[0]["status"], sent[1]["body"].decode()


def test_what_two_processes_did_is_summed_whichever_is_asked_and_stays_when_one_ends(
    house: House, watched: Gateway, lab: Tenant
) -> None:
    caller = house.caller(lab)
    of_chats = {"tenant": lab.slug, "route": "/api/chat", "status": "2xx"}

    with Gateway(METRICS_TOKEN=TOKEN) as second:
        eventually(lambda: listed(second, caller))
        for gateway, calls in ((watched, 3), (second, 2), (house.gateway, 1)):
            for _ in range(calls):
                assert chat(gateway, caller).status_code == 200
        for gateway in (watched, second):
            scrape_once(gateway, 6, "tollgate_requests_total", **of_chats)
        assert chat(second, caller).status_code == 200

    entries = house.booked(7)
    # What it had counted in its last second it handed over before it ended.
    told = scrape_once(watched, 7, "tollgate_requests_total", **of_chats)
    for direction in ("input", "output"):
        tokens = told.value("tollgate_tokens_total", tenant=lab.slug, direction=direction)
        assert tokens == sum(getattr(entry, f"{direction}_tokens") for entry in entries) > 0


def listed(gateway: Gateway, caller: Caller) -> bool:
    return get(gateway, "/v1/models", Authorization=f"Bearer {caller.secret}").status_code == 200


def test_every_answer_is_counted_once_with_its_route_class_and_code(
    house: House, watched: Gateway, lab: Tenant
) -> None:
    caller = house.caller(lab)
    authorization = {"Authorization": f"Bearer {caller.secret}"}
    eventually(lambda: listed(watched, caller))

    assert chat(watched, caller, model="nobody").status_code == 403
    assert chat(watched, caller, model=7).status_code == 400
    assert chat(watched, caller, "/v1/chat/completions", stream=True).status_code == 200
    house.ollama.fault("status-500")
    assert chat(watched, caller, stream=False).status_code == 502
    house.ollama.script.clear()
    house.ollama.fault("reset-3")
    broken = chat(watched, caller, stream=True)
    assert broken.status_code == 200
    assert '"error"' in broken.text
    house.ollama.script.clear()
    assert get(watched, "/api/tags", **authorization).status_code == 200
    assert get(watched, "/v1/models").status_code == 401
    assert get(watched, "/api/pull", **authorization).status_code == 403
    shown = httpx.post(
        f"{watched.url}/api/show",
        json={"model": "nobody"},
        headers=authorization,
        trust_env=False,
        timeout=PATIENCE_SECONDS,
    )
    assert shown.status_code == 403

    # The last answer. A process may hand over between any two of them.
    told = scrape_once(
        watched, 1, "tollgate_requests_total", tenant=lab.slug, route="/api/show", status="4xx"
    )
    for route, status, count in (
        ("/api/chat", "2xx", 1),
        ("/api/chat", "4xx", 2),
        ("/api/chat", "5xx", 1),
        ("/v1/chat/completions", "2xx", 1),
        ("/api/tags", "2xx", 1),
    ):
        labels = {"tenant": lab.slug, "route": route, "status": status}
        assert told.value("tollgate_requests_total", **labels) == count, labels
    for code, count in (("model_not_allowed", 2), ("invalid_request", 1), ("upstream_failed", 2)):
        assert told.value("tollgate_refusals_total", tenant=lab.slug, code=code) == count, code
    assert told.value("tollgate_requests_total", tenant="", route="/v1/models", status="4xx")
    assert told.value("tollgate_requests_total", tenant="", route="other", status="4xx")
    assert told.value("tollgate_refusals_total", tenant="", code="invalid_api_key")
    assert told.value("tollgate_refusals_total", tenant="", code="route_not_allowed")


def test_the_lines_have_these_labels_and_no_others_whatever_clients_send(
    house: House, watched: Gateway, lab: Tenant
) -> None:
    key, secret = issue_key(tenant=lab, label=f'{CANARY}"}} 1 evil{{tenant="x', actor="test")
    caller = Caller(key, secret, house.ada.http)
    authorization = {"Authorization": f"Bearer {secret}"}
    eventually(lambda: listed(watched, caller))

    def misbehave(number: int) -> Scrape:
        """Everything a client has a say in, another one each time; what is told once it is counted."""
        mark = f"{CANARY}-{number}"
        ways: dict[str, Any] = {
            "headers": authorization | {"X-Tollgate-Run": mark},
            "json": CHAT,
            "trust_env": False,
            "timeout": PATIENCE_SECONDS,
        }
        assert httpx.post(f"{watched.url}/api/chat", **ways).status_code == 200
        assert chat(watched, caller, model=f'{mark}"}} 1\nevil{{a="').status_code == 400
        assert chat(watched, caller, model=mark).status_code == 403
        assert (
            httpx.request(
                mark, f"{watched.url}/api/chat", trust_env=False, timeout=PATIENCE_SECONDS
            ).status_code
            == 403
        )
        evil = f"%22%7D%201%0Aevil%7Ba%3D%22{mark}"
        for path in (f"/api/{mark}", f"/v1/{evil}", f"/v1/{mark}/x", f"/v1/models/{mark}"):
            assert get(watched, path, Authorization=f"Bearer tg_{mark}").status_code in (401, 403)
            assert get(watched, path, **authorization).status_code == 403
        ledger.drain()
        # The last answer. A process may hand over between any two of them.
        of_models = {"tenant": lab.slug, "route": "other", "status": "4xx"}
        return scrape_once(watched, number, "tollgate_requests_total", **of_models)

    # The gateway beside tells of its calls up to a second late, and an answer may have been
    # read for the test before; it knows nothing of this one's tenant.
    def begun() -> bool:
        now = scrape(watched)
        of_models = {"route": "/v1/models", "status": "2xx"}
        return all(
            now.value("tollgate_requests_total", tenant=tenant, **of_models) for tenant in ("acme", lab.slug)
        )

    eventually(begun)
    first = misbehave(1)
    last = [misbehave(number) for number in range(2, 6)][-1]

    assert CANARY not in last.text
    assert "evil" not in last.text
    assert secret[3:15] not in last.text
    assert lines(last) == lines(first)
    assert {name: labels_of(family) for name, family in last.families.items()} == LABELS
    assert {labels["route"] for labels in last.labels("tollgate_requests")} <= ROUTES
    assert {labels["tenant"] for labels in last.labels("tollgate_requests")} <= {"", "acme", lab.slug}
    assert {labels["status"] for labels in last.labels("tollgate_requests")} <= {"2xx", "4xx", "5xx"}
    assert {labels["upstream"] for labels in last.labels("tollgate_upstream_up")} == {"sim"}


def labels_of(family: PrometheusFamily) -> set[str]:
    return {label for sample in family.samples for label in sample.labels}


def lines(told: Scrape) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in told.families.values()
        for sample in family.samples
    }


def sums_of(*tenants: str) -> dict[Sum, int]:
    """What was counted for tenants that no gateway of ours knows; what those count comes in at any time."""
    ours = set(tenants)
    return {name: amount for name, amount in asyncio.run(sums()).items() if ours.intersection(name)}


def test_what_nobody_of_ours_wrote_into_the_sums_is_not_told(house: House) -> None:
    redis: Any = redis_now()
    good = b'["requests","mine","/api/chat","2xx"]'
    for field, amount in (
        (good, 5),
        (b'["requests","mine","/api/chat"]', 1),
        (b'["evil","mine"]', 1),
        (b'["requests","mine",7,"2xx"]', 1),
        (b"{not json", 1),
        (b"7", 1),
        (b'["tokens","mine","input"]', "1.5"),
    ):
        redis.hset(TALLIES, field, amount)

    assert sums_of("mine") == {("requests", "mine", "/api/chat", "2xx"): 5}


def test_a_batch_whose_answer_was_lost_is_added_once(house: House) -> None:
    mine = Tallies()

    async def lose_the_answer_once() -> None:
        mine.answered("mine", "/api/chat", 200)
        mine.used("mine", 10, 20)
        lost = [True]

        async def losing(*arguments: Any) -> Any:
            reply = await run(*arguments)
            if lost.pop() if lost else False:
                raise RedisError("the answer was lost")
            return reply

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("budgets.tallies.run", losing)
            with pytest.raises(RedisError):
                await mine.hand_over()
            mine.answered("mine", "/api/chat", 200)
            await mine.hand_over()
        await mine.hand_over()

    asyncio.run(lose_the_answer_once())

    assert sums_of("mine") == {
        ("requests", "mine", "/api/chat", "2xx"): 2,
        ("tokens", "mine", "input"): 10,
        ("tokens", "mine", "output"): 20,
    }
    assert (
        run_now(TALLY, [TALLIES, f"{TALLIES}:{mine._process}"], 1, 60, b'["tokens","mine","input"]', 9) == 0
    )


def test_more_than_one_batch_is_handed_over_whole(house: House) -> None:
    mine = Tallies()
    tenants = [f"tenant-{number}" for number in range(1201)]
    for tenant in tenants:
        mine.refused(tenant, "invalid_request")

    asyncio.run(mine.hand_over())

    assert sums_of(*tenants) == {("refusals", tenant, "invalid_request"): 1 for tenant in tenants}


def test_the_time_to_the_first_byte_is_told_in_fixed_buckets(
    house: House, watched: Gateway, lab: Tenant
) -> None:
    caller = house.caller(lab)
    of_chats = {"tenant": lab.slug, "route": "/api/chat", "status": "2xx"}
    eventually(lambda: listed(watched, caller))
    assert chat(watched, caller).status_code == 200
    before = scrape_once(watched, 1, "tollgate_requests_total", **of_chats)
    house.ollama.fault("load-400")
    assert chat(watched, caller).status_code == 200

    after = scrape_once(watched, 2, "tollgate_requests_total", **of_chats)

    bucket, count = "tollgate_first_byte_seconds_bucket", "tollgate_first_byte_seconds_count"
    for bound, grown in (("0.25", 0), ("+Inf", 1)):
        labels = {"upstream": "sim", "le": bound}
        assert (after.value(bucket, **labels) or 0) - (before.value(bucket, **labels) or 0) == grown
    assert after.value(count, upstream="sim") == after.value(bucket, upstream="sim", le="+Inf")
    assert (after.value("tollgate_first_byte_seconds_sum", upstream="sim") or 0) >= 0.4
    bounds = [labels["le"] for labels in after.labels("tollgate_first_byte_seconds") if "le" in labels]
    assert bounds == list(BUCKET_NAMES)


def test_how_far_the_ledger_is_behind_and_what_could_not_be_booked(house: House, watched: Gateway) -> None:
    ledger.drain()
    for _ in range(3):
        assert house.ada.chat().status_code == 200
    oldest = "tollgate_ledger_oldest_waiting_seconds"
    age = scrape_once(watched, 3, "tollgate_ledger_waiting_records").value(oldest) or 0
    assert age > 0
    eventually(lambda: (scrape(watched).value(oldest) or 0) > age)

    entry = house.booked(3)[0]
    ParkedRecord.objects.create(stream_id="1-1", record="{}", reason="a test")
    SpooledSettlement.objects.create(request_id=entry.request_id, settlement={})
    redis: Any = redis_now()
    redis.zadd(HOLDS, {"nobody": 1})
    try:
        # What Redis knows and what PostgreSQL knows may be a second apart.
        for name, value in (
            ("tollgate_parked_records", 1),
            ("tollgate_spooled_settlements", 1),
            ("tollgate_ledger_waiting_records", 0),
            (oldest, 0),
            ("tollgate_expired_holds", 1),
        ):
            told = scrape_once(watched, value, name)
    finally:
        redis.zrem(HOLDS, "nobody")

    assert told.value("tollgate_counters_believed") == 1
    assert (told.value("tollgate_drain_age_seconds") or 0) >= 0


def test_running_calls_of_all_processes_and_upstreams_that_are_gone_are_told(
    house: House, watched: Gateway
) -> None:
    save_upstream(upstream=Upstream(name="gone", base_url="http://127.0.0.1:1"), actor="test")
    house.ollama.fault("load-60000")

    with socket.create_connection(address(house), timeout=30) as client:
        client.sendall(request("/api/chat", house.ada.secret, CHAT))
        # What was told before may be told for a second more.
        eventually(lambda: redis_now().zcard(HOLDS) == 1)
        scrape_once(watched, 1, "tollgate_running_calls")
    scrape_once(watched, 0, "tollgate_running_calls")

    # Its client had left before there was a status to give it.
    left = {"tenant": "acme", "route": "/api/chat", "status": "4xx"}
    eventually(lambda: scrape(watched).value("tollgate_requests_total", **left))
    eventually(lambda: scrape(watched).value("tollgate_upstream_up", upstream="gone") == 0)
    assert scrape(watched).value("tollgate_upstream_up", upstream="sim") == 1


Fault = Callable[[FaultProxy], object]
FAULTS: dict[str, tuple[Fault, Fault]] = {
    "gone": (FaultProxy.refuse, FaultProxy.take_again),
    "hung": (FaultProxy.freeze, FaultProxy.thaw),
}


@dataclass(frozen=True)
class Fragile:
    """A gateway, and the lines between it and its stores."""

    gateway: Gateway
    redis: FaultProxy
    postgres: FaultProxy

    def told_without(self, store: str, fault: str, caller: Caller) -> Scrape:
        """What it says while ``store`` is away; it is back at the end."""
        spoil, mend = FAULTS[fault]
        line: FaultProxy = getattr(self, store)
        eventually(lambda: listed(self.gateway, caller))
        for other in ("redis", "postgres"):
            scrape_once(self.gateway, 1, "tollgate_up", store=other)
        scrape_once(self.gateway, 1, "tollgate_counters_believed")
        spoil(line)
        try:
            return scrape_once(self.gateway, 0, "tollgate_up", store=store)
        finally:
            mend(line)


@pytest.fixture(scope="module")
def fragile(gateway: Gateway) -> Iterator[Fragile]:
    with (
        line_to(settings.REDIS_URL) as (to_redis, redis_url),
        line_to(database_url()) as (to_postgres, postgres_url),
        Gateway(REDIS_URL=redis_url, DATABASE_URL=postgres_url, METRICS_TOKEN=TOKEN) as running,
    ):
        yield Fragile(running, to_redis, to_postgres)


@pytest.mark.parametrize("fault", FAULTS)
def test_without_redis_it_says_so_and_leaves_out_what_it_does_not_know(
    house: House, fragile: Fragile, fault: str
) -> None:
    told = fragile.told_without("redis", fault, house.ada)
    scrape_once(fragile.gateway, 1, "tollgate_up", store="redis")

    assert told.value("tollgate_up", store="postgres") == 1
    assert told.value("tollgate_parked_records") == 0
    assert told.value("tollgate_spooled_files") == 0
    left_out = {"tollgate_requests", "tollgate_running_calls", "tollgate_counters_believed"}
    assert not left_out & set(told.families)


@pytest.mark.parametrize("fault", FAULTS)
def test_without_postgres_it_says_so_and_tells_the_rest(house: House, fragile: Fragile, fault: str) -> None:
    told = fragile.told_without("postgres", fault, house.ada)
    scrape_once(fragile.gateway, 1, "tollgate_up", store="postgres")

    assert told.value("tollgate_up", store="redis") == 1
    assert told.value("tollgate_counters_believed") == 1
    assert "tollgate_parked_records" not in told.families
