"""PostgreSQL gone or hung: what is known goes on, what is not gets 503, and a good key never 401."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from django.db import connection

from budgets.services import set_budget
from proxy.models import ModelAlias
from proxy.services import save_alias
from tenants.redis import redis_now
from tests.conftest import Caller, House, eventually
from tests.counting import redis
from tests.fault_proxy import FaultProxy, line_to
from tests.gateway import Gateway, database_url
from tests.test_crashes import streams

# Each starts a gateway or two, and waits for what a database that hangs is given.
pytestmark = pytest.mark.slow

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "How is the weather?"}]}


@pytest.fixture
def line(house: House) -> Iterator[tuple[FaultProxy, str]]:
    """A line to PostgreSQL for gateways of one's own; what is spoilt is mended at the end."""
    with line_to(database_url()) as (line, url):
        yield line, url
        line.take_again()
        line.thaw()


def chat(gateway: Gateway, caller: Caller, **fields: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {caller.secret}"}
    return httpx.post(
        f"{gateway.url}/api/chat", json=CHAT | fields, headers=headers, trust_env=False, timeout=30
    )


@pytest.mark.parametrize("fault", ["refuse", "freeze"])
def test_known_keys_work_in_running_and_in_new_processes_and_others_get_503(
    house: House, line: tuple[FaultProxy, str], fault: str
) -> None:
    """F1, INV12."""
    to_postgres, url = line
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=10**6, actor="test")
    save_alias(alias=ModelAlias(alias="small:latest", model="tiny:1b", tenant=house.acme), actor="test")
    stranger = house.caller()

    with Gateway(DATABASE_URL=url) as running:
        eventually(lambda: chat(running, house.ada).status_code == 200)
        eventually(lambda: redis_now().exists("{p0}:snapshot:epoch:counters"))
        getattr(to_postgres, fault)()

        assert chat(running, house.ada).status_code == 200
        assert chat(running, stranger).status_code == 503
        with Gateway(DATABASE_URL=url) as new:
            eventually(lambda: chat(new, house.ada, model="small:latest").status_code == 200, 30)
            assert chat(new, stranger).status_code == 503

    assert len(house.booked(len(house.ollama.calls))) >= 3


def test_a_limit_is_kept_by_a_process_that_never_saw_postgres(
    house: House, line: tuple[FaultProxy, str]
) -> None:
    to_postgres, url = line
    limit = set_budget(
        scope="tenant", tenant=house.acme, unit="requests", period="day", limit=2, actor="test"
    )
    assert house.ada.chat().status_code == 200
    eventually(lambda: redis_now().exists("{p0}:snapshot:epoch:counters"))
    to_postgres.refuse()

    with Gateway(DATABASE_URL=url) as new:
        eventually(lambda: chat(new, house.ada).status_code == 200, 30)
        assert chat(new, house.ada).status_code == 429

    (counter,) = redis().keys(f"{{p0}}:budget:{limit.pk.hex}:*")
    assert int(redis().hget(counter, "used")) == 2


def test_a_changed_setting_makes_the_copies_of_before_worthless(
    house: House, line: tuple[FaultProxy, str]
) -> None:
    to_postgres, url = line
    assert house.ada.chat().status_code == 200
    with Gateway(DATABASE_URL=url) as running:
        eventually(lambda: chat(running, house.ada).status_code == 200)
        to_postgres.refuse()

        # Changed from elsewhere: this process cannot read what, so it can say neither yes nor no.
        set_budget(scope="tenant", tenant=house.acme, unit="requests", period="day", limit=0, actor="test")
        assert chat(running, house.ada).status_code == 503


def test_past_the_backlog_nothing_is_admitted_and_running_streams_end_well(
    house: House, line: tuple[FaultProxy, str]
) -> None:
    """F1, INV12: nothing drains while PostgreSQL is away, here because nobody does."""
    to_postgres, url = line
    house.ollama.settings.piece_delay = 0.5
    house.ollama.fault("pieces-300")

    with Gateway(DATABASE_URL=url, MAX_BACKLOG="2") as gateway:
        eventually(lambda: chat(gateway, house.ada, model="nobody").status_code == 403)
        headers = {"Authorization": f"Bearer {house.ada.secret}"}
        with (
            httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=30) as client,
            client.stream("POST", "/api/chat", json=CHAT) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            to_postgres.refuse()
            house.ollama.fault("pieces-1")
            answers = [chat(gateway, house.ada) for _ in range(4)]
            house.ollama.settings.piece_delay = 0
            assert '"done":true' in list(lines)[-1]

    assert [answer.status_code for answer in answers] == [200, 200, 503, 503]
    assert "catching up" in answers[-1].text or answers[-1].headers["retry-after"]


def test_streams_hold_no_connection(house: House) -> None:
    """F2, F3: they can neither use them up nor be slowed down by them."""
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-10000")

    def backends() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
            )
            (count,) = cursor.fetchone()
        return int(count)

    with streams(house, house.gateway.url, 30):
        # Ours, and now and then one of what runs in the background.
        eventually(lambda: backends() == 1)
