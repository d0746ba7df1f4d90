"""The worked example of the page about internal prices, worked out again."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.management import call_command

from budgets.models import Price, PriceProposal
from budgets.services import set_price
from tests.measuring import LLAMA, NOMIC, an_entry, book

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "internal-prices.md"
HOUR_MS, HOUR_NS = 3_600_000, 3_600 * 10**9
OUR_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def book_the_october_of_the_page() -> None:
    """90 chats of 3.1 hours: a tenth of the time for the prompt, at 5,000 tokens a second, the rest at 50."""
    tenth_ns = 31 * HOUR_NS // 100
    chat: dict[str, Any] = {
        "input_tokens": 5000 * tenth_ns // 10**9 + 200_000,
        "cached_tokens": 200_000,
        "output_tokens": 50 * 9 * tenth_ns // 10**9,
        "prompt_ns": tenth_ns,
        "output_ns": 9 * tenth_ns,
        "gpu_ms": 31 * HOUR_MS // 10,
    }
    vectors: dict[str, Any] = {
        "input_tokens": 3_000_000,
        "output_tokens": 0,
        "prompt_ns": 31 * HOUR_NS // 10,
        "output_ns": None,
        "gpu_ms": 31 * HOUR_MS // 10,
        "operation": "embed",
    }
    book(*(an_entry(LLAMA, **chat) for _ in range(90)), *(an_entry(NOMIC, **vectors) for _ in range(30)))


def transcripts() -> list[tuple[list[str], str]]:
    """Each command of the page, and what it says there."""
    blocks = re.findall(
        r"^```console\n\$ python3 manage\.py (.+?)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(shlex.split(line), said) for line, said in blocks]


def test_the_commands_say_what_the_page_says() -> None:
    ids: dict[str, str] = {}
    with time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)):
        set_price(
            model=LLAMA, input_price=50_000, output_price=3_000_000, actor="test",
            starts_at=datetime(2026, 9, 1, tzinfo=UTC),
        )  # fmt: skip
        book_the_october_of_the_page()
        for (name, *arguments), expected in transcripts():
            said = StringIO()

            call_command(name, *(ids.get(argument, argument) for argument in arguments), stdout=said)

            ids |= dict(zip(OUR_ID.findall(expected), OUR_ID.findall(said.getvalue()), strict=False))
            assert OUR_ID.sub("ID", said.getvalue()).strip() == OUR_ID.sub("ID", expected).strip()

    accepted = PriceProposal.objects.get(state="accepted")
    assert accepted.price_id == Price.objects.latest("starts_at").pk
