"""The pace of calls out of notes of what was counted: rates, gaps, and times to a first byte."""

from __future__ import annotations

import asyncio
import time

import pytest

from budgets import pace
from budgets.counters import TALLIES
from budgets.pace import Note
from budgets.tallies import Tallies, sums_now
from tenants.redis import redis_now


@pytest.fixture
def empty_redis():
    redis_now().flushdb()


@pytest.mark.parametrize(
    ("share", "first_bytes", "expected"),
    [
        pytest.param(0.5, {}, None, id="no call"),
        pytest.param(0.5, {"0.1": 10}, 0.075, id="in the middle of its bucket"),
        pytest.param(0.95, {"0.05": 95, "1.0": 5}, 0.05, id="at the edge of one"),
        pytest.param(0.96, {"0.05": 95, "1.0": 5}, 0.6, id="just behind the edge"),
        pytest.param(0.5, {"+Inf": 3}, 600.0, id="beyond all that is told"),
    ],
)
def test_a_quantile_is_evened_out_within_its_bucket(share, first_bytes, expected):
    assert pace.quantile(share, first_bytes) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        pytest.param(Note(0, 10, 1), Note(60, 25, 4), (15, 3), id="what came between"),
        pytest.param(Note(0, 10, 1), Note(60, 10, 1), (0, 0), id="nothing came"),
        pytest.param(Note(0, 10, 1), Note(60, 4, 1), None, id="Redis forgot what it knew"),
        pytest.param(
            Note(0, first_bytes={"0.1": 3}), Note(60, first_bytes={"0.1": 2}), None, id="of a bucket"
        ),
        pytest.param(Note(60, 10), Note(60, 10), None, id="the same moment"),
    ],
)
def test_a_pace_is_what_came_between_two_notes(earlier, later, expected):
    found = pace.between(earlier, later)

    assert (found and (found.requests, found.refusals)) == expected


def test_minutes_without_notes_have_no_data_and_quiet_ones_have_zeros():
    written = [Note(minute * 60, requests=100 * minute) for minute in (13, 12, 10, 9)]
    written += [Note(8 * 60, requests=900)]

    found = pace.by_minute([8, 9, 10, 11, 12, 13], written)

    assert [one and one.requests for one in found] == [0, 100, None, None, 100, None]


@pytest.mark.parametrize(
    ("seconds", "ages", "expected"),
    [
        pytest.param(60, [0, 15, 30, 45, 60, 75], 60, id="on time"),
        pytest.param(60, [0, 15, 30, 45], None, id="not long enough"),
        pytest.param(60, [0, 200], None, id="the note before is too old"),
        pytest.param(60, [], None, id="no notes"),
    ],
)
def test_the_last_seconds_are_told_where_notes_reach_back_so_far(seconds, ages, expected):
    written = [Note(1000 - age, requests=1000 - age) for age in ages]

    found = pace.of_the_last(seconds, written)

    assert (found and found.requests) == expected
    assert found is None or found.a_minute(found.requests) == pytest.approx(60)


def test_what_processes_counted_is_noted_and_read_again(empty_redis):
    counted = Tallies()
    counted.answered("acme", "chat", 200)
    counted.answered("globex", "chat", 429)
    counted.refused("globex", "rate_limited")
    counted.used("acme", 30, 12)
    counted.first_byte("gpu-1", 0.2)
    asyncio.run(counted.hand_over())
    redis_now().hset(TALLIES, "not ours", "1")

    pace.note()

    (found,) = pace.notes()
    assert (found.requests, found.refusals, found.input_tokens, found.output_tokens) == (2, 1, 30, 12)
    assert found.first_bytes == {"0.25": 1}
    assert time.time() - found.at < 10
    assert len(sums_now()) == 7


def test_no_more_notes_are_kept_than_are_shown(empty_redis, monkeypatch):
    monkeypatch.setattr(pace, "KEPT", 3)
    for _ in range(5):
        pace.note()

    assert len(pace.notes()) == 3
