"""Settings that change while calls run: whatever is renamed, lowered or deleted, the books add up."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from budgets.models import LedgerEntry
from budgets.services import remove_budget, set_budget
from proxy.models import ModelAlias, Upstream
from proxy.services import remove_upstream, save_alias, save_upstream
from tenants import generations
from tenants.services import change_tenant, create_team, delete_team
from tests import books, racing
from tests.chaos.watcher import Watcher
from tests.conftest import Caller, House, eventually
from tests.deleting import delete_key
from tests.gateway import Gateway
from tests.test_crashes import ready

CALLERS = 6
# Answers between one change and the next, so that each change meets running calls.
MEANWHILE = 25


class Load:
    """Callers that ask two gateways without a pause; ``statuses`` counts what they got."""

    def __init__(self, urls: list[str], keys: list[Caller]) -> None:
        self.statuses: Counter[int] = Counter()
        self.errors: list[Exception] = []
        self._urls, self._keys = urls, keys
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Wait for some more good answers."""
        enough = self.statuses[200] + MEANWHILE
        eventually(lambda: self.errors or self.statuses[200] >= enough)

    def _ask(self, number: int) -> None:
        try:
            with httpx.Client(timeout=60, trust_env=False) as http:
                turn = number
                while not self._stopping.is_set():
                    turn += 1
                    body = {
                        "model": ("tiny:1b", "ours")[turn % 2],
                        "messages": [{"role": "user", "content": f"call {number} {turn}"}],
                        "stream": turn % 3 != 0,
                        "options": {"num_predict": 5 + turn % 20},
                    }
                    headers = {"Authorization": f"Bearer {self._keys[turn % len(self._keys)].secret}"}
                    url = self._urls[turn % len(self._urls)]
                    answer = http.post(f"{url}/api/chat", json=body, headers=headers)
                    self.statuses[answer.status_code] += 1
        except Exception as exc:  # noqa: BLE001, told by the test
            self.errors.append(exc)


@pytest.fixture(scope="module")
def other(django_db_setup: None) -> Iterator[Gateway]:
    with Gateway() as running:
        yield running


def lower_limits(house: House, _: list[Caller]) -> None:
    used = sum(entry.requests for entry in LedgerEntry.objects.all())
    for limit in (used + 40, 1, 10**6):
        set_budget(
            scope="tenant", tenant=house.acme, unit="requests", period="day", limit=limit, actor="test"
        )


def remove_and_set_a_budget(house: House, _: list[Caller]) -> None:
    budget = set_budget(
        scope="tenant", tenant=house.acme, unit="output_tokens", period="day", limit=10**7, actor="test"
    )
    remove_budget(budget=budget, actor="test")


def delete_a_key(house: House, keys: list[Caller]) -> None:
    delete_key(keys[-1].key)
    generations.project()


def rename_the_tenant(house: House, _: list[Caller]) -> None:
    for name in ("ACME & Sons", "Ajax"):
        change_tenant(tenant=house.acme, actor="test", name=name, slug=name[:4].lower())


def rename_the_upstream(house: House, _: list[Caller]) -> None:
    """As an operator does it: the name stays in the books, and another one takes over the address."""
    old = Upstream.objects.get()
    remove_upstream(upstream=old, actor="test")
    save_upstream(upstream=Upstream(name="gpu-1", base_url=old.base_url), actor="test")


def rename_the_model(house: House, _: list[Caller]) -> None:
    alias = ModelAlias.objects.get()
    for model in ("small:latest", "tiny:1b", "small:latest"):
        alias.model = model
        save_alias(alias=alias, actor="test")


def disband_the_team(house: House, keys: list[Caller]) -> None:
    team = create_team(tenant=house.acme, name="Lab", actor="test")
    delete_team(team=team, actor="test")


CHANGES: list[Callable[[House, list[Caller]], None]] = [
    lower_limits,
    remove_and_set_a_budget,
    delete_a_key,
    rename_the_tenant,
    rename_the_upstream,
    rename_the_model,
    disband_the_team,
]


@pytest.mark.parametrize("change", [*CHANGES, None], ids=lambda one: one.__name__ if one else "all of them")
def test_the_books_add_up_after_a_change_under_load(house, other, change):
    keys = [house.ada, house.caller(), house.caller()]
    save_alias(alias=ModelAlias(alias="ours:latest", model="tiny:1b", tenant=house.acme), actor="test")
    for scope, whose in (("tenant", {"tenant": house.acme}), ("key", {"key": keys[-1].key})):
        for unit in ("tokens", "requests"):
            set_budget(scope=scope, unit=unit, period="day", limit=10**6, actor="test", **whose)
    set_budget(scope="platform", unit="tokens", period="lifetime", limit=10**8, actor="test")
    ready(other.url, house.ada.secret)
    house.ollama.settings.piece_delay = 0.002
    watcher = Watcher()
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(Load([house.gateway.url, other.url], keys))
        watcher.start()
        stack.callback(watcher.stop)
        for one in [change] if change else CHANGES:
            one(house, keys)
            load.go_on()
    watcher.join()
    racing.come_to_rest()

    assert load.errors == []
    assert set(load.statuses) <= {200, 401, 403, 429, 503}
    assert list(books.disagreements([house.acme])) == []
    entries = LedgerEntry.objects.filter(requests=1)
    calls = house.ollama.calls
    assert entries.count() == len(calls) >= load.statuses[200]
    booked = sum(entry.input_tokens + entry.output_tokens for entry in entries)
    made = sum(call.prompt_tokens + call.output_tokens for call in calls)
    # A call of the deleted key that a heartbeat has cut is booked for what was delivered.
    cut = any(not entry.exact for entry in entries)
    assert booked == made or (cut and booked < made)
