"""How much of the usage is estimated, and by what."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command

from budgets.usage import estimated_share


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
