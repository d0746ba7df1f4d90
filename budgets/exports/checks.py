"""What an export says, for whoever compares it with the books."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from budgets.exports.orders import Order
from budgets.exports.writing import Writing

# Cells of texts may be as long as what people wrote.
csv.field_size_limit(2**27)


def sha256_of(order: Order) -> str:
    """The digest of the file that ``order`` gives; the same over the same ledger."""
    digest = hashlib.sha256()
    for chunk in Writing(order):
        digest.update(chunk)
    return digest.hexdigest()


def totals_of(order: Order) -> tuple[dict[str, int], dict[str, int]]:
    """What the rows add up to, read from the bytes of the plain CSV of ``order``, and what the ledger says.

    Both are of the same snapshot. FOCUS tells nothing of requests and thinking
    tokens, and a file without rows of nothing; these are not among the first.
    """
    writing = Writing(replace(order, layout="csv", separator="comma", decimal_comma=False, gzip=False))
    totals: Counter[str] = Counter()
    for row in csv.DictReader(_lines(writing)):
        totals.update(order.profile.figures_in(row))
    return dict(totals), writing.sidecar["totals"]


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines with their ends; a cell may have several."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode() + "\n"
    if rest:
        yield rest.decode()
