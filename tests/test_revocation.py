"""A revoked key is refused by every process at once; ``python -m tests.revocation`` measures it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests import revoking
from tests.conftest import House
from tests.gateway import Gateway
from tests.test_crashes import ready


@pytest.fixture(scope="module")
def others(django_db_setup: None) -> Iterator[list[Gateway]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Gateway(HEARTBEAT_SECONDS="0.5")) for _ in range(3)]


@pytest.fixture
def processes(house: House, others: list[Gateway]) -> list[Gateway]:
    for gateway in others:
        ready(gateway.url, house.ada.secret)
    return [house.gateway, *others]


def test_no_process_admits_a_call_once_the_service_has_returned(house, processes):
    trials = revoking.refusals(processes, house.acme, 20)

    assert len(trials) == 20
    assert {one.admitted for trial in trials for one in trial} == {0}


def test_a_key_revoked_by_plain_sql_is_soon_refused_everywhere(house, processes):
    trials = revoking.refusals(processes, house.acme, 3, revoking.by_sql)

    assert len(trials) == 3


def test_running_streams_of_a_revoked_key_end_at_every_process(house, processes):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")

    survived = revoking.survivals(processes, house.acme, 2)

    assert len(survived) == 2 * len(processes)
    assert {entry.outcome for entry in house.booked(len(survived))} == {"stopped"}
