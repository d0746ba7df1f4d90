"""Learning how many bytes of text a model makes a token of, from the calls that it counted itself.

The drain adds every exact call that it inserts to ``budgets_estimatesample``, in
the same transaction, so what is taken twice is learned once. What was learned in
this month and the one before is published when there is enough of it, and again
when it has moved: a model that is replaced under its name is forgotten in time.

All of it is arithmetic of whole numbers: from the same calls, in any order, comes
the same estimator.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Sum

from audit.recording import record
from budgets.estimators import newest, size_of
from budgets.models import Estimate, EstimateSample, LedgerEntry, Side

ACTOR = "tollgate"
# Five of a hundred calls lie outside of where 95 % lie; of fewer calls, one odd one would move the bound.
ENOUGH_CALLS = 100
# By how much a ratio, and by how much its error, has to differ from what is published.
MOVED_PER_MILLE = 20
ERROR_MOVED_PER_MILLE = 50
# More text for a token has none: upstream cut the prompt, or did not count what it had cached.
MOST_BYTES_PER_TOKEN = 16

# In how many parts of a byte per token samples are told apart, and by how many leading bits of that.
PARTS = 4096
LEADING_BITS = 6
# Any number; only whoever publishes takes this advisory lock.
LOCK = 0x544F4C4C06

KEY = ("model", "side", "month", "up_to_bytes", "ratio")
SUMS = ("calls", "bytes", "tokens")


class Sample(NamedTuple):
    """What ``calls`` with the same ``ratio`` come to; see ``EstimateSample``."""

    ratio: int
    calls: int
    bytes: int
    tokens: int


class Learned(NamedTuple):
    """So many tokens for so many bytes, and within how many per mille of the truth 95 % of the calls were."""

    bytes: int
    tokens: int
    calls: int
    error_per_mille: int


def samples_of(entries: Iterable[LedgerEntry]) -> list[dict[str, Any]]:
    """What can be learned of ledger entries, as rows to be added to ``EstimateSample``."""
    sums: defaultdict[tuple[Any, ...], Tally[str]] = defaultdict(Tally)
    for entry in entries:
        if not entry.exact or entry.kind != LedgerEntry.Kind.USAGE:
            continue
        month = entry.ended_at.astimezone(UTC).date().replace(day=1)
        for side, size, tokens in (
            (Side.INPUT, entry.input_bytes, entry.input_tokens),
            (Side.OUTPUT, entry.output_bytes, entry.output_tokens),
        ):
            if size and 0 < size <= MOST_BYTES_PER_TOKEN * tokens:
                key = (entry.model, side.value, month, size_of(size), ratio_of(size, tokens))
                sums[key].update(calls=1, bytes=size, tokens=tokens)
    return [dict(zip(KEY, key, strict=True)) | dict(tally) for key, tally in sums.items()]


def ratio_of(size: int, tokens: int) -> int:
    """Bytes per token in 4096ths, cut to the leading bits: the call's own is less than ``_step`` above it."""
    exactly = size * PARTS // tokens
    dropped = max(0, exactly.bit_length() - LEADING_BITS)
    return exactly >> dropped << dropped


def _step(ratio: int) -> int:
    return 1 << max(0, ratio.bit_length() - LEADING_BITS)


def learned(samples: Sequence[Sample]) -> Learned:
    """What at least one sample teaches.

    Of a call with ``r`` bytes per token the estimate is ``r / mean`` times the
    truth. A sample tells ``r`` up to a step; the farther end of the step counts,
    so the bound is never too small.
    """
    size, tokens = sum(one.bytes for one in samples), sum(one.tokens for one in samples)
    calls = sum(one.calls for one in samples)
    whole = PARTS * size
    errors = sorted(
        (max(abs(end * tokens - whole) for end in (one.ratio, one.ratio + _step(one.ratio))), one.calls)
        for one in samples
    )
    reached = accumulate(those for _, those in errors)
    error = next(error for (error, _), near in zip(errors, reached, strict=True) if near * 20 >= calls * 19)
    return Learned(size, tokens, calls, -(-error * 1000 // whole))


def moved(before: Learned, after: Learned) -> bool:
    """Whether what was learned is worth another version."""
    difference = abs(after.bytes * before.tokens - before.bytes * after.tokens) * 1000
    return (
        difference > MOVED_PER_MILLE * before.bytes * after.tokens
        or abs(after.error_per_mille - before.error_per_mille) > ERROR_MOVED_PER_MILLE
    )


@transaction.atomic
def publish(at: datetime) -> int:
    """Give the models of which enough is known at ``at`` a new version; return how many got one.

    A repeat publishes nothing that has not moved; of two at the same time one
    waits. Samples that are too old to be learned from are forgotten.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    since = _month_before(at)
    EstimateSample.objects.filter(month__lt=since).delete()
    in_force = {(row.model, row.side, row.up_to_bytes): row for row in newest()}
    versions: Tally[str] = Tally()
    for row in in_force.values():
        versions[row.model] = max(versions[row.model], row.version)
    new: defaultdict[str, list[Estimate]] = defaultdict(list)
    for (model, side, up_to_bytes), samples in _samples().items():
        found, before = learned(samples), in_force.get((model, side, up_to_bytes))
        if found.calls < ENOUGH_CALLS or (before is not None and not moved(_learned_of(before), found)):
            continue
        new[model].append(
            Estimate(
                model=model,
                version=versions[model] + 1,
                side=side,
                up_to_bytes=up_to_bytes,
                published_at=at,
                **found._asdict(),
            )
        )
    for model, rows in new.items():
        Estimate.objects.bulk_create(rows)
        record(
            action="estimator.published",
            actor=ACTOR,
            subject=model,
            version=versions[model] + 1,
            sizes=[f"{row.side} up to {row.up_to_bytes} bytes" for row in rows],
        )
    return len(new)


def _month_before(at: datetime) -> date:
    first = at.astimezone(UTC).date().replace(day=1)
    return (first - timedelta(days=1)).replace(day=1)


def _samples() -> dict[tuple[str, str, int], list[Sample]]:
    """All samples by model, side and size."""
    found: defaultdict[tuple[str, str, int], list[Sample]] = defaultdict(list)
    part = ("model", "side", "up_to_bytes", "ratio")
    sums = {f"sum_{name}": Sum(name) for name in SUMS}
    for row in EstimateSample.objects.order_by(*part).values_list(*part).annotate(**sums):
        model, side, up_to_bytes, ratio, calls, size, tokens = row
        found[model, side, up_to_bytes].append(Sample(ratio, int(calls), int(size), int(tokens)))
    return found


def _learned_of(row: Estimate) -> Learned:
    return Learned(row.bytes, row.tokens, row.calls, row.error_per_mille)
