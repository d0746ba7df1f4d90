"""Reading usage records: from the two texts of a settlement to the ledger entry that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from budgets.counters import Counter
from budgets.estimators import DEFAULT
from budgets.models import LedgerEntry
from budgets.periods import Days
from budgets.pricing import PinnedPrice
from budgets.usage import SUMS

# Name of a limit, and its counter unless the call was larger than the whole limit.
RefusedBy = tuple[str, Counter | None]
Fields = dict[bytes, bytes]
# What reading an entry raises that is no record.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)

KINDS = ("usage", "late", "adjustment")
TEXTS = ("call", "end", "first")
DURATIONS = ("load_ns", "prompt_ns", "output_ns")


@dataclass(frozen=True, slots=True)
class Record:
    """One usage record, as the row it becomes and the counters it was booked on.

    ``refusal`` is the code its client was told if there was trouble;
    ``refused_by``: name and counter of each shadow limit that would have refused the call.
    """

    row: LedgerEntry
    counters: tuple[Counter, ...]
    refused_by: tuple[RefusedBy, ...]
    refusal: str = ""

    @property
    def name(self) -> tuple[UUID, str]:
        return self.row.request_id, self.row.kind


def record_in(fields: Fields | None) -> Record:
    """The record in a stream entry; raises one of ``UNREADABLE`` for one that is none."""
    if fields is None:
        raise ValueError("the stream has lost the entry")
    told = told_in({name.decode(): text.decode() for name, text in fields.items()})
    kind, call, end = told["kind"], told["call"], told["end"]
    if kind == "adjustment":
        end = _difference(end, told["first"])
    elif kind not in ("usage", "late"):
        raise ValueError(f"no such kind of record: {kind}")
    ended_at = instant(told["at"])
    row = LedgerEntry(
        request_id=UUID(call["request_id"]),
        kind=LedgerEntry.Kind.ADJUSTMENT if kind == "adjustment" else LedgerEntry.Kind.USAGE,
        tenant_id=UUID(call["tenant_id"]),
        team_id=uuid_or_none(call["team_id"]),
        member_id=uuid_or_none(call["member_id"]),
        key_id=UUID(call["key_id"]),
        **{
            name: call[name]
            for name in (
                "tenant", "team", "member", "key",
                "model", "upstream", "route", "operation", "dialect", "stream",
            )
        },
        run=call.get("run", ""),
        day=_day(ended_at, call["time_zone"]),
        admitted_at=instant(end["admitted_ms"]),
        started_at=_instant_or_none(end["started_ms"]),
        first_byte_at=_instant_or_none(end["first_byte_ms"]),
        ended_at=ended_at,
        **{name: end[name] for name in (*SUMS, *DURATIONS)},
        # A record of an earlier release tells neither bytes nor estimator, of which it had one.
        input_bytes=end.get("input_bytes"),
        output_bytes=end.get("output_bytes"),
        **_pinned(call["price"]),
        exact=end["exact"],
        estimator=end.get("estimator", "" if end["exact"] else DEFAULT.name),
        late=kind == "late",
        on_credit=call.get("on_credit", False),
        outcome=end["outcome"],
        status=end["status"],
    )  # fmt: skip
    # A record of an earlier release says nothing of shadow limits and codes.
    return Record(
        row,
        tuple(Counter(*counter) for counter in call["counters"]),
        refused_by_in(end.get("refused_by", [])),
        end.get("refusal", ""),
    )


def told_in(fields: Mapping[str, str]) -> dict[str, Any]:
    """What a stream entry tells: ``kind``, ``at`` (ms), ``call``, ``end``, and of an adjustment ``first``.

    What is not there is left out. Raises one of ``UNREADABLE``.
    """
    told: dict[str, Any] = {name: orjson.loads(fields[name]) for name in TEXTS if name in fields}
    for kind in KINDS:
        if kind in fields:
            told |= {"kind": kind, "at": int(fields[kind])}
    if "kind" in fields:
        # So a release before wrote it, and what it wrote may still wait.
        told |= {"kind": fields["kind"], "at": int(fields["at"])}
    return told


def _pinned(price: list[Any] | None) -> dict[str, Any]:
    """The price that was pinned at admission; nothing without one."""
    if price is None:
        return {}
    pinned = PinnedPrice(*price)
    return {
        "price_id": UUID(pinned.id),
        "input_price": pinned.input,
        "cached_price": pinned.cached,
        "output_price": pinned.output,
        "gpu_price": pinned.gpu_second,
    }


def refused_by_in(noted: list[list[Any]]) -> tuple[RefusedBy, ...]:
    return tuple((str(name), Counter(*counter) if counter else None) for name, *counter in noted)


def _difference(end: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    durations = {
        name: None if end[name] is None else end[name] - (first[name] or 0) for name in DURATIONS
    }  # fmt: skip
    return end | durations | {name: end[name] - first[name] for name in SUMS}


def _instant_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else instant(milliseconds)


def instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC) + timedelta(milliseconds=milliseconds % 1000)


def _day(ended_at: datetime, time_zone: str) -> date:
    """The accounting day in a zone that the tenant always had; ``set_days`` knows those it changed."""
    return Days(((0, ZoneInfo(time_zone)),)).date_of(ended_at.timestamp())


def uuid_or_none(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def position(stream_id: bytes) -> tuple[int, int]:
    """An id of a stream as two numbers that compare as ids do."""
    milliseconds, _, number = stream_id.decode().partition("-")
    return int(milliseconds), int(number)
