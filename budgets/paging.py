"""Pages of ledger entries, the newest first: each begins where the one before it ended.

The ledger finds entries of a tenant or a key by when they ended. In which hours
of which keys there are some of a team, a member, a model or a route, it cannot
say without reading all of them; the rollups can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from budgets.models import LedgerEntry, UsageRollup
from budgets.usage import Selection

USUAL = 100
MOST = 1000
NEWEST_FIRST = ("-ended_at", "-id")
HOUR = timedelta(hours=1)
_SINCE = datetime(1970, 1, 1, tzinfo=UTC)
# What of a selection no index of the ledger finds.
_SOUGHT = ("team_id", "member_id", "model", "upstream", "operation", "route")

# An hour, and a key of which it has entries.
KeyHour = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some entries, and the ``after`` of the next page; empty: there is none."""

    entries: list[LedgerEntry]
    next: str


def page_of(selection: Selection, after: str = "", size: int = USUAL) -> EntryPage:
    """``size`` entries of a selection, at most ``MOST``, that come after those of the page before.

    Raises ``ValueError`` for an ``after`` that no page gave.
    """
    last: dict[str, Any] = {}
    if after:
        ended_at, until, number = _read(after)
        # It holds for the rollups too.
        selection = replace(selection, until=min(selection.until or until, until))
        last = {"ended_at": ended_at, "id__gte": number}
    found = selection.entries().order_by(*NEWEST_FIRST)
    if last:
        found = found.exclude(**last)
    size = min(size, MOST)
    entries = _newest(found, selection, size + 1)
    return EntryPage(entries[:size], _written(entries[size - 1]) if len(entries) > size else "")


def _newest(found: QuerySet[LedgerEntry], selection: Selection, number: int) -> list[LedgerEntry]:
    """The first ``number`` of what was found, without reading much else."""
    sought = any(getattr(selection, name) is not None for name in _SOUGHT)
    # Of a run and of a request there are few, and the ledger has an index of them.
    if not sought or selection.run or selection.request_id is not None:
        return list(found[:number])
    oldest, keys = _hours_with(selection, number)
    # So many keys have some that every walk meets them soon.
    if len(keys) > 2 * number:
        return list(found[:number])
    entries = _within(found, keys, number)
    # Hours that the rollups know may have nothing of it left: what they had is archived, or of some run.
    if oldest is not None and len(entries) < number:
        entries += found.filter(ended_at__lt=oldest)[: number - len(entries)]
    return entries


def _hours_with(selection: Selection, number: int) -> tuple[datetime | None, list[KeyHour]]:
    """The newest hours of keys that have ``number`` entries, and the first hour; None: these are all.

    They have them for sure if nothing was archived and it is not asked for calls of no run.
    """
    rollups = _rollups(selection)
    whole = rollups
    if selection.until is not None:
        whole = rollups.filter(hour_start__lt=_hour_of(selection.until))
    # Each rollup has an entry at least.
    enough = whole.order_by("-hour_start").values_list("hour_start", flat=True)[number - 1 : number]
    oldest = next(iter(enough), None)
    if oldest is not None:
        rollups = rollups.filter(hour_start__gte=oldest)
    return oldest, list(rollups.values_list("hour_start", "key_id").distinct()[: 2 * number + 1])


def _rollups(selection: Selection) -> QuerySet[UsageRollup]:
    """The rollups of all entries of a selection, and of others: of any run, and of whole hours."""
    since = None if selection.since is None else _hour_of(selection.since)
    rollups = replace(selection, run=None, since=since, until=None).rollups()
    assert rollups is not None  # noqa: S101, there are some of whatever is of whole hours
    return rollups if selection.until is None else rollups.filter(hour_start__lt=selection.until)


def _within(found: QuerySet[LedgerEntry], keys: list[KeyHour], number: int) -> list[LedgerEntry]:
    """The first ``number`` of what was found in these hours of keys, each looked up by itself."""
    if not keys:
        return []
    of_key = "key_id = hours.key_id AND ended_at >= hours.hour AND ended_at < hours.hour + interval '1 hour'"
    of_hour = found.filter(RawSQL(of_key, [], output_field=BooleanField()))[:number]  # noqa: S611
    sql, values = of_hour.query.sql_with_params()
    hours = [hour for hour, _ in keys], [key for _, key in keys]
    return list(
        LedgerEntry.objects.raw(
            "SELECT entry.* FROM unnest(%s::timestamptz[], %s::uuid[]) AS hours (hour, key_id) "  # noqa: S608
            f"CROSS JOIN LATERAL ({sql}) AS entry ORDER BY ended_at DESC, id DESC LIMIT %s",
            [*hours, *values, number],
        )
    )


def _hour_of(moment: datetime) -> datetime:
    return moment - (moment - _SINCE) % HOUR


def _written(entry: LedgerEntry) -> str:
    return f"{(entry.ended_at - _SINCE) // timedelta(microseconds=1)}-{entry.pk}"


def _read(after: str) -> tuple[datetime, datetime, int]:
    """When the last entry of a page ended, the first moment at which it would not have, and its id."""
    microseconds, _, number = after.partition("-")
    try:
        ended_at = _SINCE + timedelta(microseconds=int(microseconds))
        return ended_at, ended_at + timedelta(microseconds=1), int(number)
    except OverflowError as exc:
        raise ValueError(f"no page ended at {after!r}") from exc
