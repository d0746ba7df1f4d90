"""Estimates as they are made at the doors, from what was learned of a model."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.utils.timezone import now

from budgets.learning import ENOUGH_CALLS, publish
from budgets.models import Estimate, LedgerEntry
from budgets.usage import estimated_share
from proxy.simulator.truth import Record
from tests.conftest import House, eventually

# Nobody else's, so that nobody else's calls are estimated by what is learned here.
MODEL = "scholar:1b"
WORDS = "The river was quiet that morning, and the copper bridge hung over it like a lantern. "


def talk(house: House, words: int, path: str = "/api/chat", **fields: Any) -> Any:
    """One call with a prompt of so many times ``WORDS``."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": WORDS * words}], **fields}
    return house.ada.http.post(path, json=body)


def counted(house: House) -> int:
    """What ``count_tokens`` says of a prompt of four times ``WORDS``."""
    answer = talk(house, 4, "/v1/messages/count_tokens")
    assert answer.status_code == 200
    tokens: int = answer.json()["input_tokens"]
    return tokens


def last_call(house: House, count: int) -> tuple[LedgerEntry, Record]:
    """The newest of so many entries, and what really happened."""
    return house.booked(count)[-1], house.ollama.calls[-1]


def nearer(entry_tokens: int, text_bytes: int, true_tokens: int) -> bool:
    """Whether an estimate is nearer to the truth than four bytes to a token are."""
    return abs(entry_tokens - true_tokens) < abs(-(-text_bytes // 4) - true_tokens)


@pytest.mark.parametrize("stream", [True, False])
def test_the_ledger_knows_the_bytes_of_a_prompt_and_of_an_answer_that_came_whole(house, stream):
    house.ada.chat("Grüße, 漢字", stream=stream)

    [entry] = house.booked()
    [truth] = house.ollama.calls
    assert (entry.exact, entry.estimator) == (True, "")
    assert entry.input_bytes == len("user") + len("Grüße, 漢字".encode())
    assert entry.output_bytes == (None if stream else len(truth.text.encode()))


def test_before_anything_is_learned_the_default_is_named(house):
    house.ollama.fault("reset-3")

    house.ada.chat()

    [entry] = house.booked()
    assert (entry.exact, entry.estimator) == (False, "default")
    assert entry.input_tokens == (len("user") + len("hello there") + 3) // 4
    assert entry.output_tokens == 3


def test_what_was_learned_of_a_model_estimates_its_next_calls_nearer_to_the_truth(house):
    house.ollama.install(MODEL)
    eventually(lambda: MODEL in house.ada.http.get("/v1/models").text)
    by_default = counted(house)
    for number in range(ENOUGH_CALLS):
        # From 344 to 854 bytes: one size, which the default then does not estimate any more.
        assert talk(house, 4 + number % 7, stream=False).status_code == 200
    house.booked(ENOUGH_CALLS)

    published = publish(now())
    eventually(lambda: counted(house) != by_default)
    house.ollama.fault("reset-5", times=1)
    talk(house, 8)
    cut, truth_of_cut = last_call(house, ENOUGH_CALLS + 1)
    house.ollama.fault("counters-missing", times=1)
    talk(house, 8, stream=False)
    whole, truth_of_whole = last_call(house, ENOUGH_CALLS + 2)
    house.ollama.fault("reset-5", times=1)
    talk(house, 100)
    longer, _ = last_call(house, ENOUGH_CALLS + 3)

    assert published == 1
    assert (cut.outcome, cut.exact, cut.estimator) == ("upstream_failed", False, "learned:1")
    assert cut.input_bytes is not None
    assert nearer(cut.input_tokens, cut.input_bytes, truth_of_cut.prompt_tokens)
    bound = Estimate.objects.get(model=MODEL, side="input").error_per_mille
    # The bound, and the token up to which an estimate is rounded.
    assert (
        abs(cut.input_tokens - truth_of_cut.prompt_tokens) * 1000 <= bound * truth_of_cut.prompt_tokens + 1000
    )
    assert cut.output_tokens == truth_of_cut.output_tokens == 5
    assert (whole.outcome, whole.exact, whole.estimator) == ("completed", False, "learned:1")
    assert whole.output_bytes == len(truth_of_whole.text.encode())
    assert nearer(whole.output_tokens, whole.output_bytes, truth_of_whole.output_tokens)
    # Nobody has learned of prompts of that size.
    assert longer.input_bytes is not None
    assert longer.input_tokens == -(-longer.input_bytes // 4)


def test_the_share_of_estimated_tokens_stands_beside_the_totals(house):
    house.ada.chat()
    house.ollama.fault("reset-3")
    house.ada.chat()
    exact, estimated = house.booked(2)
    tokens = exact.input_tokens + exact.output_tokens
    guessed = estimated.input_tokens + estimated.output_tokens
    shown = StringIO()

    call_command("show_usage", "--tenant", "acme", stdout=shown)

    per_mille = -(-guessed * 1000 // (tokens + guessed))
    head, total = shown.getvalue().splitlines()
    assert head.endswith("  estimated")
    assert total.endswith(f"  {per_mille // 10}.{per_mille % 10} %")


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "estimated", "share"),
    [
        (0, 0, 0, 0),
        (100, 100, 0, 0),
        (100, 100, 50, 250),
        pytest.param(10**9, 0, 1, 1, id="a little is not nothing"),
        pytest.param(100, 100, 200, 1000, id="all"),
        pytest.param(-5, 3, 10, 1000, id="more than all, after an adjustment"),
        pytest.param(5, 3, -10, 0, id="less than nothing, after an adjustment"),
    ],
)
def test_the_share_is_told_in_per_mille(input_tokens, output_tokens, estimated, share):
    figures = {"input_tokens": input_tokens, "output_tokens": output_tokens, "estimated_tokens": estimated}

    assert estimated_share(figures) == share
