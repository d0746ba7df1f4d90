"""No budget is ever passed, however many callers of however many processes ask at one moment.

``python -m tests.overspend`` holds more and larger races.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from budgets.models import Budget, LedgerEntry, Unit
from budgets.services import set_budget
from tests import books, racing
from tests.chaos.watcher import Watcher
from tests.conftest import House, eventually, furnish
from tests.crowd import Question, ask_at_once
from tests.gateway import Gateway
from tests.test_crashes import ready

PROCESSES = 3
CALLERS = 500
ROOM_FOR = 10
# Goes on until its caller leaves.
LONG: dict[str, Any] = {
    "model": "tiny:1b",
    "messages": [{"role": "user", "content": "How is the weather?"}],
    "options": {"num_predict": 5000},
}


@pytest.fixture(scope="module")
def gateways(django_db_setup: None) -> Iterator[list[Gateway]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Gateway()) for _ in range(PROCESSES)]


def room_for(house: House, unit: str) -> Budget:
    """A budget of the key that has room for exactly ``ROOM_FOR`` of the long calls."""
    set_limit: dict[str, Any] = {
        "scope": "key",
        "key": house.ada.key,
        "unit": unit,
        "period": "lifetime",
        "actor": "test",
    }
    if unit == Unit.REQUESTS:
        return set_budget(limit=ROOM_FOR, **set_limit)
    set_budget(limit=None, **set_limit)
    with house.ada.http.stream("POST", "/api/chat", json=LONG) as stream:
        assert stream.status_code == 200
        one = racing.held_by_one()
    racing.come_to_rest()
    used = sum(entry.input_tokens + entry.output_tokens for entry in LedgerEntry.objects.all())
    return set_budget(limit=used + ROOM_FOR * one, **set_limit)


@pytest.mark.parametrize("unit", [Unit.REQUESTS, Unit.TOKENS])
def test_of_five_hundred_callers_at_a_barrier_exactly_ten_reach_ollama(house, gateways, unit):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")
    for gateway in gateways:
        ready(gateway.url, house.ada.secret)
    budget = room_for(house, unit)
    before = len(house.ollama.calls)
    asked = [
        Question(f"{gateways[number % PROCESSES].url}/api/chat", house.ada.secret, LONG)
        for number in range(CALLERS)
    ]
    watcher = Watcher()
    watcher.start()

    answers = ask_at_once(asked, leave_good=True)
    racing.come_to_rest()
    watcher.stop()
    watcher.join()

    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (ROOM_FOR, CALLERS - ROOM_FOR)
    assert len(house.ollama.calls) - before == ROOM_FOR
    totals = [sample.total for sample in watcher.samples if sample.id == budget.id.hex]
    assert max(totals) == budget.limit
    assert list(books.disagreements([house.acme])) == []


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_race_with_limits_and_sizes_of_any_kind_passes_no_budget(transactional_db, ollama, gateways, seed):
    furnish(ollama)

    counts, broken = racing.run(racing.draw(seed, callers=60), ollama, gateways)

    assert not broken, broken
    assert sum(counts.values()) == 60


def test_an_upstream_that_takes_no_notice_of_the_cap_is_cut_at_it(house, gateways):
    house.ollama.fault("endless")
    set_budget(scope="key", key=house.ada.key, unit=Unit.OUTPUT_TOKENS, period="day", limit=30, actor="test")
    answers: list[httpx.Response] = []

    def used_up() -> bool:
        answers.append(house.ada.chat())
        return answers[-1].status_code == 429

    eventually(used_up)

    good = [answer for answer in answers if answer.status_code == 200]
    assert sum(answer.text.count('"done":false') for answer in good) <= 30
    assert sum(entry.output_tokens for entry in house.booked(len(good))) == 30
    assert [call.fields["options"]["num_predict"] for call in house.ollama.calls] == [30]
    eventually(lambda: all(call.state == "aborted" for call in house.ollama.calls))
