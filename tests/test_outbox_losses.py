"""What the outbox brings home after a flush, and after an outage of PostgreSQL, by a running gateway.

Apart from ``test_outbox_properties``: there no gateway may run beside, which
would send again what it has settled when a test sets Redis back.
"""

from __future__ import annotations

import httpx
import pytest

from budgets import ledger, services
from budgets.models import LedgerEntry
from budgets.rebuild import ensure_epoch
from tests.conftest import House, eventually
from tests.counting import redis
from tests.fault_proxy import line_to
from tests.gateway import Gateway, database_url
from tests.test_outbox_properties import agree, drain_elsewhere
from tests.test_without_postgres import chat

pytestmark = pytest.mark.django_db(transaction=True)


def test_after_a_flush_in_the_middle_of_everything_the_sums_are_exact(house: House) -> None:
    services.set_budget(
        scope="tenant", tenant=house.acme, unit="tokens", period="year", limit=10**9, actor="x"
    )
    answers = [house.ada.chat(stream=False) for _ in range(3)]
    house.booked(3)
    answers += [house.ada.chat(stream=False) for _ in range(3)]

    redis().flushdb()
    ensure_epoch()
    eventually(lambda: house.ada.chat(stream=False).status_code == 200)

    # A gateway sends again what it has settled in the last minute, for tests before this one too.
    entries = LedgerEntry.objects.filter(tenant_id=house.acme.pk)

    def settled() -> bool:
        ledger.drain()
        return entries.count() == len(house.ollama.calls)

    eventually(settled)
    said = [answer.json() for answer in answers]
    booked = entries.order_by("admitted_at")[: len(said)]
    assert [(row.input_tokens, row.output_tokens) for row in booked] == [
        (one["prompt_eval_count"], one["eval_count"]) for one in said
    ]
    assert agree()


def test_what_was_settled_while_postgres_was_away_is_booked_to_the_last_token(house: House) -> None:
    """INV12: until the backlog is full calls go on; then they are refused, and nothing is lost."""
    with line_to(database_url()) as (line, url), Gateway(DATABASE_URL=url, MAX_BACKLOG="5") as gateway:
        eventually(lambda: chat(gateway, house.ada).status_code == 200)
        house.booked(len(house.ollama.calls))
        before = len(house.ollama.calls)
        line.refuse()
        answers: list[httpx.Response] = []

        def full() -> bool:
            drain = drain_elsewhere("from budgets import ledger; ledger.drain()", DATABASE_URL=url)
            drain.communicate(timeout=60)
            assert drain.returncode != 0
            answers.extend(chat(gateway, house.ada) for _ in range(3))
            return answers[-1].status_code == 503

        eventually(full, 60)
        assert ledger.backlog() == 5
        assert len(house.ollama.calls) == before + 5
        line.take_again()
        house.booked(before + 5)

        eventually(lambda: chat(gateway, house.ada).status_code == 200)
    house.booked(len(house.ollama.calls))
    truth = [(call.prompt_tokens, call.output_tokens) for call in house.ollama.calls]
    assert sorted(LedgerEntry.objects.values_list("input_tokens", "output_tokens")) == sorted(truth)
    assert agree()
