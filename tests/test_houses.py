"""That each house begins with nothing of the one before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from django.test import TransactionTestCase

from budgets.counters import EPOCH, USAGE
from tests.conftest import House, eventually, furnish
from tests.counting import redis
from tests.emptying import empty_tables


def refurnish(house: House) -> House:
    empty_tables(TransactionTestCase())
    furnish(house.ollama)
    return House(house.gateway, house.ollama).opened()


def test_the_gateway_is_another_one_where_the_counters_have_another_mark(house: House) -> None:
    first = house.gateway.process.pid
    house.ada.chat()
    with refurnish(house):
        assert house.gateway.process.pid == first
    redis().set(EPOCH, "another")

    with refurnish(house) as new:
        assert house.gateway.process.pid != first
        new.ada.chat()
        assert new.booked()[0].tenant_id == new.acme.pk


def test_what_still_runs_is_booked_before_redis_is_emptied(house: House) -> None:
    house.ollama.fault("load-300")
    with ThreadPoolExecutor() as threads:
        threads.submit(house.ada.chat)
        eventually(lambda: house.ollama.calls)

        refurnish(house)

        assert house.ollama.calls[0].state == "finished"
    assert redis().xlen(USAGE) == 0
