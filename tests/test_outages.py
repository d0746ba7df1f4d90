"""Redis away from several gateways at once, for a tenant that has credit."""

from __future__ import annotations

import functools
from contextlib import ExitStack

import httpx
from django.conf import settings

from budgets import ledger, spool
from budgets.models import LedgerEntry, Unit
from budgets.services import set_budget, set_outage_credit
from keys.services import revoke_key
from tests.conftest import House, eventually
from tests.counting import redis
from tests.fault_proxy import line_to
from tests.gateway import Gateway

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "How is the weather?"}]}
OF_A_PROCESS = 800


def test_no_outage_lets_more_through_than_the_credit_of_all_processes(house: House) -> None:
    """Three gateways, one of which is replaced meanwhile; then the books have what Ollama did, once."""
    set_outage_credit(tenant=house.acme, tokens=OF_A_PROCESS, actor="test")
    budget = set_budget(
        scope="tenant", tenant=house.acme, unit=Unit.TOKENS, period="day", limit=10**6, actor="test"
    )
    other = house.caller()

    def chat(gateway: Gateway, secret: str = house.ada.secret) -> httpx.Response:
        body = CHAT | {"options": {"num_predict": 40}}
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(f"{gateway.url}/api/chat", json=body, headers=headers, trust_env=False, timeout=30)

    def good(gateway: Gateway) -> httpx.Response | None:
        answer = chat(gateway)
        return answer if answer.status_code == 200 else None

    with ExitStack() as stack:
        line, url = stack.enter_context(line_to(settings.REDIS_URL))
        gateways = [
            stack.enter_context(Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS="0.25")) for _ in range(3)
        ]
        for gateway in gateways:
            eventually(functools.partial(good, gateway))
        before = len(house.ollama.calls)
        line.freeze()

        lent = []
        for gateway in gateways:
            # The first try may find PostgreSQL slow, which is a no as well.
            lent.append(eventually(functools.partial(good, gateway)))
            answers = [chat(gateway) for _ in range(15)]
            assert 503 in {answer.status_code for answer in answers}
            lent += [answer for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in (chat(gateways[0], other.secret),)} == {503}
        gateways[0].kill()
        with Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS="0.25") as new:
            assert chat(new).status_code == 503

        on_credit = house.ollama.calls[before:]
        assert len(on_credit) == len(lent) >= 6
        assert all("x-tollgate-credit" in answer.headers for answer in lent)
        assert sum(call.prompt_tokens + call.output_tokens for call in on_credit) <= 3 * OF_A_PROCESS
        line.thaw()
        again = eventually(functools.partial(good, gateways[1]))
        assert "x-tollgate-credit" not in again.headers

    def all_booked() -> bool:
        spool.replay()
        ledger.drain()
        return LedgerEntry.objects.exclude(outcome="void").count() == len(house.ollama.calls)

    eventually(all_booked)
    marked = LedgerEntry.objects.filter(on_credit=True)
    assert marked.count() == len(on_credit)
    assert sum(entry.output_tokens for entry in marked) == sum(call.output_tokens for call in on_credit)
    (counter,) = redis().keys(f"{{p0}}:budget:{budget.pk.hex}:*")
    used = sum(entry.input_tokens + entry.output_tokens for entry in LedgerEntry.objects.all())
    assert int(redis().hget(counter, "used")) == used
    assert int(redis().hget(counter, "held")) == 0


def test_a_key_revoked_during_the_outage_gets_no_credit(house: House) -> None:
    set_outage_credit(tenant=house.acme, tokens=10_000, actor="test")
    headers = {"Authorization": f"Bearer {house.ada.secret}"}

    with (
        line_to(settings.REDIS_URL) as (line, url),
        Gateway(REDIS_URL=url, REDIS_TIMEOUT_SECONDS="0.25") as gateway,
        httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=30) as client,
    ):
        eventually(lambda: client.post("/api/chat", json=CHAT).status_code == 200)
        line.refuse()
        eventually(lambda: client.post("/api/chat", json=CHAT).status_code == 200)
        revoke_key(key=house.ada.key, actor="test", reason="")
        assert client.post("/api/chat", json=CHAT).status_code == 503
        line.take_again()
        eventually(lambda: client.post("/api/chat", json=CHAT).status_code == 401)
