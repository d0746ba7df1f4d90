"""Calls without a key, as a browser, a curl and somebody who cheats make them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier
from typing import Any
from urllib.parse import parse_qs

import httpx
import orjson
import pytest
from django.db import connection

from audit.models import RequestEvent
from budgets import ledger
from budgets.counters import HOLDS
from budgets.models import BudgetPeriod, Measure, Unit
from budgets.services import set_budget, set_rate_limit
from budgets.visitors import FIRST_ID, UNTIL_CHECK
from keys.models import AnonymousAccess
from keys.services import revoke_key, set_anonymous_access
from proxy.simulator.server import SimulatorThread
from proxy.visitors import COOKIE
from tenants.redis import PARTITION, redis_now
from tenants.services import create_tenant, resume_tenant, suspend_tenant
from tests.conftest import House, eventually, furnish
from tests.gateway import Gateway

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello there"}], "stream": False}
HERE = "192.0.2.7"
# A gateway that was just started has models to find, on a machine that may be busy.
SLOW_START_SECONDS = 60
SECRET_OF_THE_SERVICE = "the secret of the service"


class Service(ThreadingHTTPServer):
    """A siteverify service on this machine, to which every token is good that begins with ``human-``.

    ``fault`` is ``broken`` or ``slow``, which answers when it is ``released``.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[dict[str, list[str]]] = []
        self.fault = ""
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/siteverify"


class Answers(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        self.server.asked.append(form)
        if self.server.fault == "slow":
            self.server.released.wait(10)
        known = form.get("secret") == [SECRET_OF_THE_SERVICE]
        good = known and form["response"][0].startswith("human-")
        answer: Any = {"success": good, "error-codes": [] if known else ["invalid-input-secret"]}
        body = b"<html>gone</html>" if self.server.fault == "broken" else orjson.dumps(answer)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def running_service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.asked.clear()
    running_service.fault = ""
    running_service.released.clear()
    return running_service


@pytest.fixture(scope="module")
def gateway(django_db_setup: None, running_service: Service) -> Iterator[Gateway]:
    """One behind a proxy, which here is every test itself."""
    with Gateway(
        TRUSTED_PROXIES="127.0.0.0/8,10.0.0.0/8",
        HUMAN_CHECK_SERVICE="turnstile",
        HUMAN_CHECK_SECRET=SECRET_OF_THE_SERVICE,
        HUMAN_CHECK_SITE_KEY="0x4AAA",
        HUMAN_CHECK_URL=running_service.url,
        HUMAN_CHECK_SECONDS="30",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def plain(django_db_setup: None) -> Iterator[Gateway]:
    """One that trusts no proxy and knows no service."""
    with Gateway() as running:
        yield running


@pytest.fixture
def house(transactional_db: None, ollama: SimulatorThread, gateway: Gateway) -> Iterator[House]:
    furnish(ollama)
    with House(gateway, ollama).opened() as house:
        allow(house)
        yield house


def allow(house: House, **changes: Any) -> AnonymousAccess:
    settings = {"enabled": True, "models": ["tiny:1b"], "visitor_tokens": None, "address_tokens": None}
    settings |= {"address_streams": None, "check_after": None}
    return set_anonymous_access(tenant=house.acme, actor="test", **(settings | changes))


class Browser:
    """Somebody without a key, who keeps cookies and comes from an address."""

    def __init__(
        self, house: House, address: str = HERE, tenant: str = "acme", url: str = "", **headers: str
    ) -> None:
        self.url = url or house.gateway.url
        self.headers = {"X-Tollgate-Tenant": tenant, "X-Forwarded-For": address, **headers}
        self.cookies: dict[str, str] = {}

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, json: Any = None
    ) -> httpx.Response:
        kept = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        answer = httpx.request(
            method,
            self.url + path,
            json=json,
            headers=self.headers | (kept if self.cookies else {}) | (headers or {}),
            timeout=30,
            trust_env=False,
        )
        self.cookies.update(answer.cookies)
        return answer

    def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.ask("POST", "/api/chat", headers, {**CHAT, **fields})

    def usage(self) -> Any:
        return self.ask("GET", "/v1/usage").json()


def counted() -> dict[str, tuple[int, int]]:
    """Used and held of each counter of visitors, by its name in Redis."""
    found = {}
    for key in redis_now().scan_iter(f"{PARTITION}:budget:ff*"):
        used, held = redis_now().hmget(key, "used", "held")
        found[key.decode()] = int(used or 0), int(held or 0)
    return found


def without_ids(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """What two answers have in common that are the same but for time and request."""
    headers = {
        name: value for name, value in response.headers.items() if name not in ("x-request-id", "date")
    }
    return response.status_code, response.content, headers


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_without_a_named_tenant_or_with_one_that_is_closed_it_is_the_401_of_always(house, path):
    create_tenant(slug="closed", name="Closed", actor="test")
    off = create_tenant(slug="off", name="Off", actor="test")
    set_anonymous_access(tenant=off, actor="test", enabled=False, models=["tiny:1b"])
    asleep = create_tenant(slug="asleep", name="Asleep", actor="test")
    set_anonymous_access(tenant=asleep, actor="test", enabled=True, models=["tiny:1b"])
    suspend_tenant(tenant=asleep, actor="test", reason="unpaid")

    def answer(**headers: str) -> tuple[int, bytes, dict[str, str]]:
        asked = house.gateway.url + path
        return without_ids(httpx.post(asked, json=CHAT, headers=headers, trust_env=False, timeout=30))

    usual = answer()
    others = [
        answer(**{"X-Tollgate-Tenant": name}) for name in ("nobody", "closed", "off", "asleep", "?", "")
    ]

    assert usual[0] == 401
    assert b"invalid_api_key" in usual[1] or path == "/api/chat"
    assert others == [usual] * 6
    assert house.ollama.calls == []


def test_a_secret_goes_before_the_tenant_and_a_bad_one_is_no_visitor(house):
    bad = Browser(house, Authorization="Bearer tg_nonsense").chat()
    good = Browser(house, Authorization=f"Bearer {house.ada.secret}", tenant="nobody").chat()

    assert bad.status_code == 401
    assert good.status_code == 200
    assert "set-cookie" not in good.headers
    assert house.booked()[0].key_id == house.ada.key.pk


def test_a_visitor_is_served_and_booked_on_the_tenants_key_for_visitors(house):
    response = Browser(house).chat()

    assert response.status_code == 200
    [entry] = house.booked()
    access = AnonymousAccess.objects.select_related("key").get()
    assert (entry.tenant_id, entry.key_id, entry.key) == (house.acme.pk, access.key_id, "anonymous visitors")
    assert (access.key.kind, access.key.secrets.count()) == ("anonymous", 0)


@pytest.mark.parametrize("door", ["/v1/chat/completions", "/v1/messages", "/api/generate"])
def test_every_door_lets_visitors_in(house, door):
    body = {"model": "tiny:1b", "prompt": "hi"} if door == "/api/generate" else {**CHAT, "max_tokens": 5}

    assert Browser(house).ask("POST", door, json=body | {"stream": False}).status_code == 200


def test_visitors_see_and_call_only_the_models_that_are_listed_for_them(house):
    visitor = Browser(house)

    seen = [model["name"] for model in visitor.ask("GET", "/api/tags").json()["models"]]
    refused = visitor.chat(model="big:70b")

    assert seen == ["tiny:1b"]
    assert refused.status_code == 403
    allow(house, models=[])
    assert visitor.chat().status_code == 403


def test_switching_it_off_is_in_force_on_the_next_request_and_ends_streams(house):
    visitor = Browser(house)
    assert visitor.chat().status_code == 200
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-10000")

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(visitor.chat, stream=True, options={"num_predict": 8000})
        eventually(lambda: len(house.ollama.calls) == 2 and house.ollama.calls[1].pieces)
        allow(house, enabled=False)
        assert Browser(house).chat().status_code == 401
        body = running.result().text

    assert '"done":true' not in body
    house.ollama.reset()
    allow(house)
    eventually(lambda: visitor.chat().status_code == 200)


def test_revoking_the_key_for_visitors_closes_the_door_until_it_is_opened_again(house):
    revoke_key(key=AnonymousAccess.objects.get().key, actor="test", reason="abuse")
    assert Browser(house).chat().status_code == 401

    allow(house)

    eventually(lambda: Browser(house).chat().status_code == 200)


def test_suspending_the_tenant_closes_the_door(house):
    assert Browser(house).chat().status_code == 200

    suspend_tenant(tenant=house.acme, actor="test", reason="unpaid")

    assert Browser(house).chat().status_code == 401
    resume_tenant(tenant=house.acme, actor="test", reason="paid")
    eventually(lambda: Browser(house).chat().status_code == 200)


def test_a_change_by_plain_sql_is_in_force_too(house):
    assert Browser(house).chat().status_code == 200

    with connection.cursor() as cursor:
        cursor.execute("UPDATE keys_anonymousaccess SET enabled = false")

    eventually(lambda: Browser(house).chat().status_code == 401)


def test_the_tenants_own_limits_hold_for_visitors_and_are_not_told_to_them(house):
    set_budget(scope="tenant", tenant=house.acme, unit=Unit.REQUESTS, period="day", limit=1, actor="test")
    set_rate_limit(
        scope="platform", measure=Measure.REQUESTS_PER_MINUTE, limit=900_000_007, actor="test"
    )  # fmt: skip
    visitor = Browser(house)

    good, refused = visitor.chat(), visitor.chat()

    assert (good.status_code, refused.status_code) == (200, 429)
    assert "tenant" not in good.headers.get("ratelimit", "") + refused.text
    assert "900000007" not in str(good.headers) + str(refused.headers)
    assert [one["scope"] for one in visitor.usage()["limits"]] == []


def test_a_visitors_allowance_ends_and_another_visitor_of_the_house_goes_on(house):
    allow(house, visitor_tokens=600)
    ada, eve = Browser(house), Browser(house)

    statuses = [ada.chat(options={"num_predict": 40}).status_code for _ in range(20)]

    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert 0 < ada.usage()["used"] <= 600
    assert eve.chat(options={"num_predict": 40}).status_code == 200


def test_without_a_cookie_everybody_of_an_address_is_bounded_by_the_address_alone(house):
    allow(house, visitor_tokens=10_000, address_tokens=1500)

    statuses = [Browser(house).chat(options={"num_predict": 40}).status_code for _ in range(20)]

    assert statuses[0] == 200
    assert statuses[-1] == 429
    used = sum(call.prompt_tokens + call.output_tokens for call in house.ollama.calls)
    assert used <= 1500
    assert Browser(house, "192.0.2.8").chat().status_code == 200


def test_forty_racing_visitors_of_one_address_never_overrun_it(house):
    allow(house, address_tokens=3000)
    barrier = Barrier(40)

    def race(number: int) -> int:
        barrier.wait()
        return Browser(house).chat(options={"num_predict": 20}).status_code

    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(race, range(40)))

    used = sum(call.prompt_tokens + call.output_tokens for call in house.ollama.calls)
    assert used <= 3000
    assert 200 in statuses
    assert 429 in statuses
    assert {held for _, held in counted().values()} == {0}
    assert max(used for used, _ in counted().values()) == used


def test_at_most_so_many_streams_of_one_address_run_and_slots_free_themselves(house):
    allow(house, address_streams=2)
    # They run until they are let go.
    house.ollama.settings.piece_delay = 1
    house.ollama.settings.pieces = 120

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(Browser(house).chat) for _ in range(2)]
        eventually(lambda: len(house.ollama.calls) == 2)
        refused = Browser(house).chat()
        house.ollama.settings.pieces = 1
        elsewhere = Browser(house, "192.0.2.8").chat()
        house.ollama.settings.piece_delay = 0
        assert [one.result().status_code for one in running] == [200, 200]

    assert refused.status_code == 429
    assert "retry-after" in refused.headers
    assert elsewhere.status_code == 200
    assert Browser(house).chat().status_code == 200


def test_no_address_is_kept_anywhere_and_ids_are_others_for_other_tenants(house):
    other = create_tenant(slug="other", name="Other", actor="test")
    set_anonymous_access(tenant=other, actor="test", enabled=True, models=["tiny:1b"], address_streams=1)
    address = "203.0.113.77"

    assert Browser(house, address).chat().status_code == 200
    first = set(counted())
    eventually(lambda: Browser(house, address, tenant="other").chat().status_code == 200)
    house.booked(2)
    second = set(counted())

    redis: Any = redis_now()
    text = b"".join(redis.dump(key) + key for key in redis.scan_iter())
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')  # noqa: S608
            text += b"".join(row[0].encode() for row in cursor.fetchall())
    assert address.encode() not in text
    assert bytes(map(int, address.split("."))) not in text
    assert house.gateway.log().count(address) == 0
    assert len(first) == 3
    assert len(second) == 6
    assert BudgetPeriod.objects.filter(budget_id__gte=FIRST_ID).count() == 6


# Cookies


def test_the_cookie_is_for_the_server_alone_and_given_once(house):
    visitor = Browser(house)

    first, second = visitor.chat(), visitor.chat()

    assert re.fullmatch(
        rf"{COOKIE}=[0-9a-f.]+; Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax", first.headers["set-cookie"]
    )
    assert "set-cookie" not in second.headers


def test_the_cookie_is_secure_where_the_client_speaks_tls(house):
    given = Browser(house).chat({"X-Forwarded-Proto": "http, https"}).headers["set-cookie"]

    assert given.endswith("; Secure")


def test_a_forged_cookie_is_no_cookie(house):
    allow(house, visitor_tokens=600)
    visitor = Browser(house)
    value = visitor.chat().cookies[COOKIE]
    while visitor.chat().status_code == 200:
        pass
    session, made, proof, seal = value.split(".")
    flipped = ("0" if session[0] != "0" else "1") + session[1:]

    for forged in (
        f"{flipped}.{made}.{proof}.{seal}",
        f"{session}.{int(made, 16) + 1:08x}.{proof}.{seal}",
        f"{session}.{made}.{'0' * 32}.{seal}",
        f"{session}.{made}.{proof}.{'0' * 32}",
        session,
        "",
        "x" * 10_000,
    ):
        answer = Browser(house).chat({"Cookie": f"{COOKIE}={forged}"})
        assert answer.status_code == 200
        assert answer.cookies[COOKIE].split(".")[0] not in (session, flipped)

    assert Browser(house).chat({"Cookie": f"a=b; {COOKIE}={value}"}).status_code == 429


# Human checks


def test_after_so_many_requests_of_an_address_a_human_check_is_demanded_and_passed(house, service):
    allow(house, check_after=2)
    visitor = Browser(house)

    free = [visitor.chat() for _ in range(2)]
    demanded, view = visitor.chat(), visitor.usage()
    passed = visitor.chat({"X-Tollgate-Human-Check": "human-1"})
    after = [visitor.chat() for _ in range(2)]

    assert [one.status_code for one in free] == [200, 200]
    assert demanded.status_code == 403
    assert demanded.headers["x-should-retry"] == "false"
    assert view["human_check"] == {"demanded": True, "service": "turnstile", "site_key": "0x4AAA"}
    assert passed.status_code == 200
    assert [one.status_code for one in after] == [200, 403]
    assert service.asked == [{"secret": [SECRET_OF_THE_SERVICE], "response": ["human-1"]}]


def test_a_token_is_good_once_even_if_the_service_says_yes_again(house, service):
    allow(house, check_after=0)

    statuses = [
        Browser(house).chat({"X-Tollgate-Human-Check": token}).status_code
        for token in ("human-1", "human-1", "human-2", "robot", "", "x" * 5000)
    ]

    assert statuses == [200, 403, 200, 403, 403, 403]
    assert len(service.asked) == 3


def test_racing_with_one_token_lets_one_through(house, service):
    allow(house, check_after=0)
    barrier = Barrier(8)

    def race(_: int) -> int:
        barrier.wait()
        return Browser(house).chat({"X-Tollgate-Human-Check": "human-1"}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(race, range(8)))

    assert sorted(statuses) == [200] + [403] * 7


def test_when_the_service_talks_nonsense_nobody_passes_and_the_token_may_be_tried_again(house, service):
    allow(house, check_after=0)
    service.fault = "broken"

    blind = Browser(house).chat({"X-Tollgate-Human-Check": "human-1"})
    service.fault = ""
    seeing = Browser(house).chat({"X-Tollgate-Human-Check": "human-1"})

    assert (blind.status_code, seeing.status_code) == (503, 200)
    assert len(house.ollama.calls) == 1


def test_a_service_that_does_not_answer_in_time_lets_nobody_in(house, service):
    allow(house, check_after=0)
    service.fault = "slow"

    with Gateway(
        HUMAN_CHECK_SERVICE="hcaptcha",
        HUMAN_CHECK_SECRET=SECRET_OF_THE_SERVICE,
        HUMAN_CHECK_URL=service.url,
        HUMAN_CHECK_SECONDS="0.2",
    ) as impatient:
        asking = Browser(house, url=impatient.url)
        # It has to look for models first.
        eventually(lambda: asking.ask("GET", "/api/tags").status_code == 200, SLOW_START_SECONDS)
        blind = asking.chat({"X-Tollgate-Human-Check": "human-1"})
    service.released.set()

    assert blind.status_code == 503
    assert house.ollama.calls == []


def test_without_a_service_a_check_that_is_demanded_cannot_be_passed(house, plain):
    allow(house, check_after=0)

    asking = Browser(house, url=plain.url)
    eventually(lambda: asking.ask("GET", "/api/tags").status_code == 200, SLOW_START_SECONDS)
    answers = [asking.chat(), asking.chat({"X-Tollgate-Human-Check": "human-1"})]

    assert [one.status_code for one in answers] == [403, 503]


def test_a_proof_is_of_no_use_at_another_address(house, service):
    allow(house, check_after=1)
    visitor = Browser(house)
    visitor.chat()
    proof = visitor.chat({"X-Tollgate-Human-Check": "human-1"}).cookies[COOKIE]
    elsewhere = Browser(house, "192.0.2.8")
    elsewhere.chat()

    assert elsewhere.chat({"Cookie": f"{COOKIE}={proof}"}).status_code == 403


def test_a_check_is_not_asked_for_where_it_would_not_help(house, service):
    allow(house, check_after=1, address_tokens=400)
    visitor = Browser(house)
    while (answer := visitor.chat({"X-Tollgate-Human-Check": "human-1"})).status_code == 200:
        pass

    assert answer.status_code == 429


def test_callers_with_a_key_are_never_checked(house, service):
    allow(house, check_after=0)

    assert (
        house.ada.http.post("/api/chat", json=CHAT, headers={"X-Tollgate-Human-Check": "x"}).status_code
        == 200
    )
    assert service.asked == []


# Addresses


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("192.0.2.7", "192.0.2.8", False, id="two addresses"),
        pytest.param("192.0.2.7", "192.0.2.7:4711", True, id="a port"),
        pytest.param("192.0.2.7", "::ffff:192.0.2.7", True, id="IPv4 in IPv6"),
        pytest.param("192.0.2.7", "[::ffff:c000:207]:443", True, id="IPv4 in IPv6 in hex with a port"),
        pytest.param("2001:db8:1:2::7", "[2001:db8:1:2:ffff::1]:443", True, id="one network of IPv6"),
        pytest.param("2001:db8:1:2::7", "2001:db8:1:3::7", False, id="two networks of IPv6"),
        pytest.param("192.0.2.7", "198.51.100.1, 192.0.2.7", True, id="spoofed on the left"),
        pytest.param("192.0.2.7", "192.0.2.7, 10.1.2.3", True, id="through another trusted proxy"),
        pytest.param("192.0.2.7", "10.9.9.9, 192.0.2.7, 10.1.2.3", True, id="a trusted name spoofed"),
        pytest.param("192.0.2.7", "garbage, 192.0.2.7", True, id="garbage on the left"),
        pytest.param("garbage", "more garbage", True, id="garbage is the proxy itself"),
        pytest.param("192.0.2.7, garbage", "192.0.2.8, rubbish", True, id="garbage on the right"),
        pytest.param("192.0.2.7,", "192.0.2.8,,", True, id="empty on the right"),
        pytest.param("unknown", "", True, id="unknown"),
        pytest.param("999.0.2.7", "1.2.3.4.5", True, id="numbers that are no address"),
    ],
)
def test_whose_address_it_is(house, one, other, same):
    allow(house, check_after=1)
    assert Browser(house, one).chat().status_code == 200

    assert Browser(house, other).chat().status_code == (403 if same else 200)


def test_without_a_trusted_proxy_what_is_forwarded_is_not_believed(house, plain):
    allow(house, check_after=1)

    one, other = (Browser(house, address, url=plain.url) for address in ("192.0.2.7", "192.0.2.8"))
    eventually(lambda: one.ask("GET", "/api/tags").status_code == 200, SLOW_START_SECONDS)
    answers = [browser.chat({"X-Forwarded-Proto": "https"}) for browser in (one, other)]

    assert [one.status_code for one in answers] == [200, 403]
    assert "Secure" not in answers[0].headers["set-cookie"]


def test_several_headers_are_one_list(house):
    allow(house, check_after=1)
    assert Browser(house, HERE).chat().status_code == 200
    headers = [("X-Tollgate-Tenant", "acme"), ("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", HERE)]

    answer = httpx.post(
        house.gateway.url + "/api/chat", json=CHAT, headers=headers, trust_env=False, timeout=30
    )

    assert answer.status_code == 403


def test_the_usage_view_shows_the_stricter_of_visitor_and_address(house):
    allow(house, visitor_tokens=1000, address_tokens=5000, check_after=9, address_streams=3)
    visitor = Browser(house)
    assert visitor.chat().status_code == 200
    view = visitor.usage()
    assert (view["name"], view["limit"], view["status"]) == ("visitor-tokens-day", 1000, "ok")
    assert view["used"] == 1000 - view["remaining"] > 0
    assert view["reserved"] == 0
    assert {one["name"] for one in view["limits"]} == {
        "visitor-tokens-day", "address-tokens-day", "address-concurrent-requests", UNTIL_CHECK,
    }  # fmt: skip

    allow(house, visitor_tokens=100_000, address_tokens=view["used"])

    assert visitor.usage()["name"] == "address-tokens-day"
    assert visitor.usage()["allowed"] is False


def test_those_who_have_a_key_are_told_in_the_same_words(house):
    set_budget(scope="key", key=house.ada.key, unit=Unit.REQUESTS, period="day", limit=5, actor="test")
    assert house.ada.chat().status_code == 200

    view = house.ada.http.get("/v1/usage").json()

    figures = {name: view[name] for name in ("allowed", "status", "used", "limit", "reserved", "remaining")}
    assert figures == {
        "allowed": True, "status": "ok", "used": 1, "limit": 5, "reserved": 0, "remaining": 4,
    }  # fmt: skip
    assert "human_check" not in view


def test_refused_visitors_leave_a_note_without_an_address(house):
    allow(house, visitor_tokens=0)

    assert Browser(house).chat().status_code == 429

    def noted() -> Any:
        ledger.drain()
        return RequestEvent.objects.filter(refusal="insufficient_quota").first()

    assert eventually(noted).key == "anonymous visitors"


def test_nothing_is_held_when_a_visitor_leaves(house):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-10000")
    with httpx.stream(
        "POST",
        house.gateway.url + "/api/chat",
        json={**CHAT, "stream": True},
        headers={"X-Tollgate-Tenant": "acme"},
        trust_env=False,
        timeout=30,
    ) as answer:
        next(answer.iter_raw())

    eventually(lambda: not redis_now().zcard(HOLDS))
    assert {held for _, held in counted().values()} == {0}
    assert any(used for used, _ in counted().values())
