"""A few rounds of random work and random faults; ``python -m tests.chaos`` plays more of them."""

from __future__ import annotations

import pytest

from tests.chaos.plan import draw
from tests.chaos.round import play

ROUNDS = {
    11: ("kill", "lose_reserve", "drain_dies", "revoke"),
    12: ("lose_settle", "flush", "suspend", "freeze", "cut"),
    13: ("sleep", "delete_key", "lower_limit", "terminate"),
}


def test_a_seed_always_draws_the_same_plan():
    assert draw(7, gateways=2, clients=4) == draw(7, gateways=2, clients=4)
    assert draw(7, gateways=2, clients=4) != draw(8, gateways=2, clients=4)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", ROUNDS)
def test_every_promise_holds_after_a_round_of_faults(transactional_db, ollama, tmp_path, seed):
    plan = draw(seed, gateways=2, clients=6, faults=ROUNDS[seed])

    report = play(plan, ollama, tmp_path)

    assert not report.problems, str(report)
    assert report.counts["200"] > 0
    assert report.counts["entries"] >= report.counts["upstream"] > 0
