"""Learning how many bytes make a token from what the ledger takes in, and publishing it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter as Tally
from datetime import UTC, date, datetime
from fractions import Fraction
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import booking, estimators, learning, ledger
from budgets.charges import Usage
from budgets.counters import USAGE
from budgets.estimators import DEFAULT, Estimators, published, size_of
from budgets.learning import ENOUGH_CALLS, Learned, Sample, learned, moved, publish, ratio_of, samples_of
from budgets.models import Estimate, EstimateSample, LedgerEntry
from budgets.reservations import Reservation, reserve, settle
from budgets.settlements import Moments
from budgets.sweeping import sweep
from keys.verification import Caller
from tests.conftest import eventually
from tests.counting import (
    MODEL,
    a_budget,
    a_demand,
    ada,
    change_hold,
    change_record,
    empty_redis,
    expire_hold,
    redis,
    some_usage,
)
from tests.test_closed_months import somebody_waits

CALL = st.tuples(st.integers(1, 10**6), st.integers(1, 2**22))


def an_entry(**changes: Any) -> LedgerEntry:
    """An exact entry of 400 bytes for 100 tokens, answered with 60 bytes for 15; nowhere stored."""
    fields: dict[str, Any] = {
        "kind": "usage",
        "model": MODEL,
        "exact": True,
        "ended_at": datetime(2026, 11, 27, tzinfo=UTC),
        "input_bytes": 400,
        "input_tokens": 100,
        "output_bytes": 60,
        "output_tokens": 15,
    }
    return LedgerEntry(**(fields | changes))


def samples_in(calls: list[tuple[int, int]]) -> list[Sample]:
    """The samples of prompts of these bytes and tokens, whatever their sizes."""
    entries = [an_entry(input_bytes=size, input_tokens=tokens, output_bytes=None) for size, tokens in calls]
    return [Sample(row["ratio"], row["calls"], row["bytes"], row["tokens"]) for row in samples_of(entries)]


@given(st.integers(0, 10**9))
def test_a_size_holds_texts_up_to_it_and_longer_than_a_quarter_of_it(text_bytes: int) -> None:
    size = size_of(text_bytes)

    assert text_bytes <= size
    assert size == 64 or text_bytes > size // 4
    assert size_of(size) == size < size_of(size + 1)


@given(CALL)
def test_the_ratio_of_a_sample_is_that_of_its_calls_but_for_a_small_step(call: tuple[int, int]) -> None:
    size, tokens = call
    exactly = Fraction(size * learning.PARTS, tokens)

    ratio = ratio_of(size, tokens)

    assert ratio <= exactly < ratio + learning._step(ratio)
    assert learning._step(ratio) == 1 or learning._step(ratio) * 32 <= ratio


@given(st.lists(CALL, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_ratio_and_bound_are_those_of_exact_arithmetic_in_any_order(
    calls: list[tuple[int, int]], chance: random.Random
) -> None:
    calls = [(size, tokens) for size, tokens in calls if size <= 16 * tokens] or [(400, 100)]
    mean = Fraction(sum(size for size, _ in calls), sum(tokens for _, tokens in calls))

    found = learned(samples_in(calls))

    assert (Fraction(found.bytes, found.tokens), found.calls) == (mean, len(calls))
    bound = Fraction(found.error_per_mille, 1000)
    errors = sorted(abs(Fraction(size, tokens) / mean - 1) for size, tokens in calls)
    assert sum(error <= bound for error in errors) * 20 >= 19 * len(calls)
    # No wider than what samples leave open: a step around the 95th of a hundred calls, and the rounding.
    nearest = errors[-(-len(errors) * 19 // 20) - 1]
    step = max(Fraction(learning._step(ratio_of(*call)), learning.PARTS) / mean for call in calls)
    assert bound <= nearest + step + Fraction(1, 1000)
    ends = sorted(
        max(abs(Fraction(end, learning.PARTS) / mean - 1) for end in (ratio, ratio + learning._step(ratio)))
        for ratio in (ratio_of(size, tokens) for size, tokens in calls)
    )
    assert found.error_per_mille == -(-ends[-(-len(ends) * 19 // 20) - 1] * 1000 // 1)
    chance.shuffle(calls)
    assert learned(samples_in(calls)) == found


@pytest.mark.parametrize(
    ("changes", "sides"),
    [
        pytest.param({}, {"input", "output"}, id="an exact call"),
        pytest.param({"exact": False}, set(), id="an estimate"),
        pytest.param({"kind": "adjustment"}, set(), id="a difference"),
        pytest.param({"kind": "correction"}, set(), id="a correction"),
        pytest.param({"input_bytes": None}, {"output"}, id="a prompt of more than text"),
        pytest.param({"output_bytes": None}, {"input"}, id="an answer that was streamed"),
        pytest.param({"output_tokens": 0}, {"input"}, id="no tokens"),
        pytest.param({"input_bytes": 0}, {"output"}, id="no bytes"),
        pytest.param({"input_bytes": 1600}, {"input", "output"}, id="as few tokens as are believed"),
        pytest.param({"input_bytes": 1601}, {"output"}, id="a prompt that was cut or cached"),
    ],
)
def test_only_what_a_model_counted_of_known_text_is_learned_from(
    changes: dict[str, Any], sides: set[str]
) -> None:
    assert {row["side"] for row in samples_of([an_entry(**changes)])} == sides


@pytest.mark.parametrize(
    ("after", "worth"),
    [
        pytest.param(Learned(4000, 1000, 900, 100), False, id="the same"),
        pytest.param(Learned(4080, 1000, 100, 100), False, id="2 % more"),
        pytest.param(Learned(4081, 1000, 100, 100), True, id="more than 2 % more"),
        pytest.param(Learned(3919, 1000, 100, 100), True, id="more than 2 % less"),
        pytest.param(Learned(4000, 1000, 100, 150), False, id="the bound five points wider"),
        pytest.param(Learned(4000, 1000, 100, 151), True, id="the bound wider than that"),
        pytest.param(Learned(4000, 1000, 100, 49), True, id="the bound narrower than that"),
    ],
)
def test_a_version_is_worth_it_when_something_moved(after: Learned, worth: bool) -> None:
    assert moved(Learned(4000, 1000, 100, 100), after) is worth


@pytest.fixture
def counters(transactional_db: None) -> None:
    empty_redis()


def call(caller: Caller, usage: Usage) -> Reservation:
    """One call from beginning to end."""

    async def through() -> Reservation:
        reservation = await reserve(caller, a_demand(5000, 5000))
        await settle(reservation, usage, "completed", Moments(), 200)
        return reservation

    return asyncio.run(through())


def samples() -> Tally[tuple[Any, ...]]:
    """Calls, bytes and tokens of all samples, by what they have in common."""
    found: Tally[tuple[Any, ...]] = Tally()
    for row in EstimateSample.objects.all():
        for name in learning.SUMS:
            found[(*(getattr(row, column) for column in learning.KEY), name)] += getattr(row, name)
    return found


def test_the_drain_learns_each_call_once_whatever_is_drained_how_often(counters: None) -> None:
    caller, chance = ada(a_budget(None)), random.Random(7)
    for _ in range(40):
        size, answer = chance.randint(1, 3000), chance.randint(1, 900)
        call(caller, some_usage(size // 3 + 1, answer // 5 + 1, input_bytes=size, output_bytes=answer))
    call(caller, some_usage(9, 9, input_bytes=30, output_bytes=30, estimator="default"))
    entries = redis().xrange(USAGE)
    redis().xdel(USAGE, *(stream_id for stream_id, _ in entries))
    chance.shuffle(entries)

    # Batches of records that are new, that the ledger has already, and that come twice in one.
    for start in range(0, len(entries), 7):
        for _, fields in [*entries[max(0, start - 7) : start + 7], *entries[start : start + 3]]:
            redis().xadd(USAGE, fields)
        ledger.drain()

    assert LedgerEntry.objects.count() == 41
    assert sum(row.calls for row in EstimateSample.objects.all()) == 2 * 40
    assert samples() == Tally(
        {
            (*(row[column] for column in learning.KEY), name): row[name]
            for row in samples_of(LedgerEntry.objects.all())
            for name in learning.SUMS
        }
    )


def test_nothing_is_learned_from_what_did_not_get_into_the_ledger(
    counters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(ada(), some_usage(100, 10, input_bytes=400))

    def die(*_: Any) -> None:
        raise DatabaseError("the server went away")

    with monkeypatch.context() as patched:
        patched.setattr(booking, "count_refusals", die)
        with pytest.raises(DatabaseError):
            ledger.drain()

    assert not EstimateSample.objects.exists()
    ledger.drain()
    assert EstimateSample.objects.get().calls == 1


def test_the_ledger_keeps_bytes_and_the_name_of_the_estimator(counters: None) -> None:
    caller = ada()
    call(caller, some_usage(100, 10, input_bytes=400, output_bytes=52))
    call(caller, some_usage(100, 10, input_bytes=400, estimator="learned:3"))
    call(caller, some_usage(10**6, 10, input_bytes=400))

    ledger.drain()

    told = LedgerEntry.objects.order_by("id").values_list("exact", "estimator", "input_bytes", "output_bytes")
    assert list(told) == [
        (True, "", 400, 52),
        (False, "learned:3", 400, None),
        # More than was held for it.
        (False, "bound", 400, None),
    ]


def test_a_call_whose_process_died_is_booked_at_its_bound(counters: None) -> None:
    reservation = asyncio.run(reserve(ada(), a_demand(input_tokens=70)))
    change_hold(reservation.request_id, phase="started")
    expire_hold(reservation.request_id)

    sweep()
    ledger.drain()

    entry = LedgerEntry.objects.get()
    assert (entry.input_tokens, entry.exact, entry.estimator) == (70, False, "bound")
    assert not EstimateSample.objects.exists()


@pytest.mark.parametrize(("estimator", "named"), [("", ""), ("default", "default")])
def test_a_record_of_the_release_before_is_taken_as_it_is(counters: None, estimator: str, named: str) -> None:
    call(ada(), some_usage(100, 10, input_bytes=400, estimator=estimator))
    change_record(
        lambda told: [told["end"].pop(name) for name in ("input_bytes", "output_bytes", "estimator")]
    )

    ledger.drain()

    entry = LedgerEntry.objects.get()
    assert (entry.input_bytes, entry.output_bytes, entry.estimator) == (None, None, named)
    assert not EstimateSample.objects.exists()


def seen(calls: int, size: int, tokens: int, at: datetime | None = None, **changes: Any) -> None:
    """Add so many like calls to what can be learned from."""
    fields = {"input_bytes": size, "input_tokens": tokens, "output_bytes": None, "ended_at": at or now()}
    [row] = samples_of([an_entry(**(fields | changes))])
    found, _ = EstimateSample.objects.get_or_create(
        **{name: row.pop(name) for name in learning.KEY},
        defaults={"calls": 1, "bytes": 1, "tokens": 1},
    )
    found.calls, found.bytes, found.tokens = (calls * row[name] for name in learning.SUMS)
    found.save()


@pytest.mark.django_db
def test_a_version_is_published_when_there_is_enough_to_learn_from() -> None:
    seen(ENOUGH_CALLS - 1, 400, 130)

    before = publish(now())
    seen(ENOUGH_CALLS, 400, 130)
    after = publish(now())

    assert (before, after) == (0, 1)
    [row] = Estimate.objects.all()
    assert (row.model, row.name, row.side, row.up_to_bytes) == (MODEL, "learned:1", "input", 1024)
    assert (row.bytes, row.tokens, row.calls) == (400 * ENOUGH_CALLS, 130 * ENOUGH_CALLS, ENOUGH_CALLS)
    assert row.bytes_per_token == "3.07"
    # All calls were alike; what is left is the step of their sample.
    assert 0 < row.error_per_mille < 40
    event = AuditEvent.objects.get(action="estimator.published")
    assert (event.subject, event.details["version"]) == (MODEL, 1)


@pytest.mark.django_db
def test_what_has_not_moved_is_not_published_again_and_what_has_is_a_version_of_its_own() -> None:
    seen(ENOUGH_CALLS, 400, 100)
    seen(ENOUGH_CALLS, 4000, 1000)
    publish(now())

    repeated = publish(now())
    seen(20 * ENOUGH_CALLS, 400, 130)
    moved_on = publish(now())

    assert (repeated, moved_on) == (0, 1)
    versions = Estimate.objects.order_by("version", "up_to_bytes").values_list("version", "up_to_bytes")
    assert list(versions) == [(1, 1024), (1, 4096), (2, 1024)]
    estimator = published()[MODEL]
    assert estimator.name == "learned:2"
    assert estimator.prompt_tokens(400) == 129
    assert estimator.prompt_tokens(4000) == 1000
    # Nothing is known of other sizes, and of answers.
    assert estimator.prompt_tokens(40_000) == 10_000
    assert estimator.answer_tokens(400) == 100


@pytest.mark.django_db
def test_what_was_learned_long_ago_is_forgotten() -> None:
    seen(ENOUGH_CALLS, 400, 200, datetime(2026, 9, 30, 23, 59, tzinfo=UTC))
    seen(ENOUGH_CALLS, 400, 100, datetime(2026, 10, 1, tzinfo=UTC))
    seen(ENOUGH_CALLS, 400, 50, datetime(2026, 11, 27, tzinfo=UTC))

    publish(datetime(2026, 11, 28, tzinfo=UTC))

    row = Estimate.objects.get()
    assert (row.calls, row.bytes, row.tokens) == (200, 800 * 100, 150 * 100)
    assert set(EstimateSample.objects.values_list("month", flat=True)) == {
        date(2026, 10, 1),
        date(2026, 11, 1),
    }


@pytest.mark.django_db
def test_models_are_learned_of_by_themselves() -> None:
    seen(ENOUGH_CALLS, 400, 100)
    seen(ENOUGH_CALLS, 400, 200, model="other:7b")
    seen(ENOUGH_CALLS - 1, 400, 300, model="rare:7b")

    assert publish(now()) == 2

    known = published()
    assert {model: one.prompt_tokens(400) for model, one in known.items()} == {MODEL: 100, "other:7b": 200}


def test_two_who_publish_at_the_same_time_publish_one_version(counters: None) -> None:
    seen(ENOUGH_CALLS, 400, 100)
    second = list[int]()

    def publish_too() -> None:
        try:
            second.append(publish(now()))
        finally:
            connection.close()

    thread = threading.Thread(target=publish_too)
    with transaction.atomic():
        first = publish(now())
        thread.start()
        eventually(somebody_waits)
    thread.join()

    assert (first, second) == (1, [0])
    assert Estimate.objects.get().version == 1


def test_a_published_version_stays_as_it_is(counters: None) -> None:
    seen(ENOUGH_CALLS, 400, 100)
    publish(now())

    with pytest.raises(IntegrityError):
        Estimate.objects.update(tokens=1)
    with pytest.raises(IntegrityError):
        Estimate.objects.all().delete()


def test_a_process_knows_what_is_published_and_keeps_it_while_postgres_is_away(
    counters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimators, "REFRESH_SECONDS", 0.01)
    seen(ENOUGH_CALLS, 400, 200)
    publish(now())
    process, reads = Estimators(), list[str]()
    unknown = process.of(MODEL)

    def away() -> Any:
        reads.append("away")
        raise DatabaseError("gone")

    async def follow() -> None:
        job = asyncio.ensure_future(process.keep_fresh())
        async with asyncio.timeout(30):
            while process.of(MODEL) is DEFAULT:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            monkeypatch.setattr(estimators, "published", away)
            while len(reads) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        job.cancel()

    asyncio.run(follow())

    assert unknown is DEFAULT
    assert process.of(MODEL).name == "learned:1"
    assert process.of(f"other-{uuid4().hex}") is DEFAULT


@pytest.mark.django_db
def test_the_command_shows_what_holds() -> None:
    seen(ENOUGH_CALLS, 400, 100)
    publish(now())
    seen(30 * ENOUGH_CALLS, 400, 125)
    seen(ENOUGH_CALLS, 60, 40, model="other:7b")
    publish(now())
    shown, as_json, one = StringIO(), StringIO(), StringIO()

    call_command("show_estimators", stdout=shown)
    call_command("show_estimators", "--json", stdout=as_json)
    call_command("show_estimators", "--model", "other:7b", "--json", stdout=one)

    head, first, second = shown.getvalue().splitlines()
    assert head.split() == ["model", "side", "bytes", "bytes_per_token", "within", "calls", "version"]
    assert first.split()[:6] == [MODEL, "input", "up", "to", "1024", "3.22"]
    assert first.split()[-2:] == ["3100", "learned:2"]
    assert second.split()[0] == "other:7b"
    described = json.loads(as_json.getvalue())
    assert [row["version"] for row in described] == ["learned:2", "learned:1"]
    assert described[0]["tokens"] == 125 * 30 * ENOUGH_CALLS + 100 * ENOUGH_CALLS
    assert json.loads(one.getvalue()) == described[1:]
