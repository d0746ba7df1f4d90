"""What limits a caller: the budgets, rate limits and prices that can apply to their calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import orjson
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.utils.timezone import now as utc_now

from budgets import kill_switches, periods
from budgets.counters import NONE, NUMBERS_OF_KINDS, Counter, Kind, packed
from budgets.exceptions import CountersUnavailable
from budgets.kill_switches import Switch
from budgets.models import LARGEST, Budget, LimitRaise, OutageCredit, Price, RateLimit, Scope
from budgets.pricing import PinnedPrice
from budgets.schedules import schedules_of
from budgets.single_flight import SingleFlight
from keys.verification import Caller
from tenants import snapshots
from tenants.database import DatabaseError
from tenants.redis import RedisError

if TYPE_CHECKING:
    from budgets.reservations import Reservation

Row = TypeVar("Row", Budget, RateLimit)
One = TypeVar("One")

REMEMBERED_KEYS = 10_000
# For each of them.
REMEMBERED_COUNTINGS = 1_000
A_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Raise:
    """More of a limit in ``[starts_ms, ends_ms)``, ms since 1970: to so much, or by so much."""

    starts_ms: int
    ends_ms: int
    to: int | None
    by: int | None

    def holds(self, now_ms: float) -> bool:
        return self.starts_ms <= now_ms < self.ends_ms


@dataclass(slots=True)
class Limit:
    """A budget or rate limit as the path of a request needs it.

    ``name`` is what headers and refusals call it. ``limit`` None: no limit.
    Of one with ``raises`` it is what holds without them, until ``at``
    has been asked. Only a ``hard`` one refuses. ``window`` is ``minute``, ``now`` (concurrency)
    or the kind of a budget's period. Callers do not hear of one that is not ``told``.
    """

    kind: Kind
    id: str
    name: str
    scope: str
    unit: str
    limit: int | None
    hard: bool
    window: str
    model: str
    upstream: str
    schedule: periods.Schedule | None = None
    raises: tuple[Raise, ...] = ()
    told: bool = True
    _without_raises: int | None = field(default=None, repr=False, compare=False)
    _counter: Counter | None = field(default=None, repr=False, compare=False)
    _period: periods.Period | None = field(default=None, repr=False, compare=False)

    def counter(self, now_ms: float, run: str = "") -> Counter:
        """The counter that a call of ``run`` beginning now is counted on."""
        run = run if self.scope == "run" else ""
        past = self._period is not None and not self._period.contains(now_ms / 1000)
        if self._counter is None or past or run:
            if self.schedule is None:
                self._counter = Counter(self.kind, self.id, self.unit, None, None, run)
            else:
                self._period = self.schedule.period(now_ms / 1000)
                start, end = self._period.start, self._period.end
                self._counter = Counter(self.kind, self.id, self.unit, start, end, run)
        return self._counter

    def at(self, now_ms: float) -> Limit:
        """The same with the limit that holds now, raises included; asked of that again, it adds nothing."""
        if not self.raises:
            return self
        without = self.limit if self._without_raises is None else self._without_raises
        holding = (one for one in self.raises if one.holds(now_ms))
        return replace(self, limit=raised(without, holding), _without_raises=without)

    def stays(self, now_ms: float) -> tuple[int | None, int | None]:
        """Between which ms since 1970 limit and counter are those of now; None: no such bound."""
        counter = self.counter(now_ms)
        since = [] if counter.start is None else [counter.start * 1000]
        until = [] if counter.end is None else [counter.end * 1000]
        for edge in [edge for one in self.raises for edge in (one.starts_ms, one.ends_ms)]:
            (since if edge <= now_ms else until).append(edge)
        return max(since, default=None), min(until, default=None)

    def applies_to(self, model: str, upstream: str, run: str) -> bool:
        """Whether calls to a model at an upstream are counted; ``run`` empty: they belong to none."""
        of_run = bool(run) or self.scope != "run"
        return of_run and self.model in ("", model) and self.upstream in ("", upstream)


@dataclass(slots=True)
class Counting:
    """The limits of some calls and the counters of the present periods, side by side.

    ``as_json`` is what the ledger has to know of the counters. ``units`` are those that
    are counted, ``unit_of`` says of each counter which one of them is its; ``refusing`` are
    those of which a limit may refuse. ``stay`` is from when to when (ms) these are the
    counters and limits. The rest is for reserve.lua: ``traits`` are, by name and in their order,
    the kind of each counter and the second at which it may go; ``terms``, packed, the limit
    beyond which it refuses, that beyond which it refuses or says so, and which unit, from 1 on.
    ``last`` is the call admitted last, where the tenant has credit.
    """

    limits: tuple[Limit, ...]
    counters: tuple[Counter, ...]
    as_json: orjson.Fragment
    units: tuple[str, ...]
    unit_of: tuple[int, ...]
    refusing: frozenset[int]
    stay: tuple[float, float]
    traits: dict[str, tuple[int, int]]
    terms: bytes
    _since_ms: float
    _until_ms: float
    last: Reservation | None = None

    @classmethod
    def of(cls, limits: tuple[Limit, ...], now_ms: float, run: str = "") -> Counting:
        limits = tuple(limit.at(now_ms) for limit in limits)
        counters = tuple(limit.counter(now_ms, run) for limit in limits)
        stays = [limit.stays(now_ms) for limit in limits]
        units = tuple(dict.fromkeys(limit.unit for limit in limits))
        since_ms = max((since for since, _ in stays if since is not None), default=-inf)
        until_ms = min((until for _, until in stays if until is not None), default=inf)
        terms: list[float] = []
        for limit in limits:
            most = inf if limit.limit is None else limit.limit
            terms += (most if limit.hard else inf, most, units.index(limit.unit) + 1)
        return cls(
            limits=limits,
            counters=counters,
            as_json=orjson.Fragment(orjson.dumps([counter.as_list() for counter in counters])),
            units=units,
            unit_of=tuple(units.index(limit.unit) for limit in limits),
            refusing=frozenset(
                units.index(limit.unit) for limit in limits if limit.hard and limit.limit is not None
            ),
            stay=(since_ms, until_ms),
            traits={
                counter.key: (
                    NUMBERS_OF_KINDS[counter.kind],
                    -counter.expires if counter.is_put_off else counter.expires or NONE,
                )
                for counter in counters
            },
            terms=packed(terms),
            _since_ms=since_ms,
            # So that what may go, and when, is worked out anew while a run goes on.
            _until_ms=min([until_ms, *(now_ms + A_DAY_MS for counter in counters if counter.is_put_off)]),
        )

    def of_each(self, by_unit: Sequence[One]) -> tuple[One, ...]:
        """Of what there is of each unit, that of each counter."""
        return tuple([by_unit[number] for number in self.unit_of])

    def is_of(self, now_ms: float) -> bool:
        """Whether every period is the present one, and every limit the one that holds."""
        return self._since_ms <= now_ms < self._until_ms


@dataclass(slots=True)
class Limits:
    """All that can limit one caller, read at one moment.

    ``prices`` are by model, the ones that count first: the tenant's before
    everybody's, of each the latest first; with the ms since 1970 they start at.
    ``credit_tokens`` is what a process may lend the tenant while Redis is away.
    ``switches`` are the kill switches that were armed and not lifted.
    """

    limits: tuple[Limit, ...]
    prices: dict[str, list[tuple[int, PinnedPrice]]]
    credit_tokens: int = 0
    switches: tuple[Switch, ...] = ()
    _countings: dict[tuple[str, str, str], Counting] = field(default_factory=dict, repr=False)

    def counting(self, model: str, upstream: str, now_ms: float, run: str = "") -> Counting:
        """What limits a call of ``run`` to ``model`` (canonical name) at ``upstream``, and its counters."""
        if run and not any(limit.scope == "run" for limit in self.limits):
            run = ""
        known = self._countings.get((model, upstream, run))
        if known is None or not known.is_of(now_ms):
            if len(self._countings) >= REMEMBERED_COUNTINGS:
                # There is no end of runs.
                self._countings.clear()
            applying = tuple(limit for limit in self.limits if limit.applies_to(model, upstream, run))
            known = self._countings[model, upstream, run] = Counting.of(applying, now_ms, run)
        return known

    def price_of(self, model: str, now_ms: float) -> PinnedPrice | None:
        """The price of ``model`` now; None if nobody has set one."""
        for starts_ms, price in self.prices.get(model, ()):
            if starts_ms <= now_ms:
                return price
        return None


class _Cache:
    """Limits by key; those used longest ago are forgotten first."""

    def __init__(self) -> None:
        self._limits: OrderedDict[UUID, tuple[tuple[int, int], Limits]] = OrderedDict()
        self._loads: SingleFlight[Limits] = SingleFlight()

    async def get(self, caller: Caller) -> Limits:
        generations = (caller.tenant_generation, caller.platform_generation)
        known = self._limits.get(caller.key_id)
        if known is not None and known[0] == generations:
            self._limits.move_to_end(caller.key_id)
            return known[1]
        limits = await self._loads.do((caller.key_id, *generations), lambda: _load_aside(caller))
        self.put(caller, limits)
        return limits

    def put(self, caller: Caller, limits: Limits) -> None:
        """Remember what limits a caller at the generations of its snapshot."""
        generations = (caller.tenant_generation, caller.platform_generation)
        self._limits[caller.key_id] = (generations, limits)
        self._limits.move_to_end(caller.key_id)
        while len(self._limits) > REMEMBERED_KEYS:
            self._limits.popitem(last=False)


_cache = _Cache()


async def limits_for(caller: Caller) -> Limits:
    """What limits ``caller``; from memory unless a setting of the tenant or the platform changed.

    The rows may be newer than the caller's snapshot, never older: they are read
    after it. Raises ``CountersUnavailable`` if neither PostgreSQL nor Redis has them.
    """
    return await _cache.get(caller)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Limits as they lie in Redis, with the generations of the caller they were read for."""

    generations: tuple[int, int]
    limits: Limits


async def _load_aside(caller: Caller) -> Limits:
    """What limits ``caller``, from PostgreSQL, or as another process has read it while that is away."""
    name, generations = caller.key_id.hex, (caller.tenant_generation, caller.platform_generation)
    try:
        kept = await snapshots.kept("limits", name, _Kept)
        known = kept.limits if kept is not None and kept.generations == generations else None
        limits = await snapshots.read_or_kept(lambda: load(caller), known)
    except (DatabaseError, RedisError, TimeoutError) as exc:
        raise CountersUnavailable from exc
    if limits is not known:
        await snapshots.keep("limits", name, _Kept(generations, limits))
    return limits


def load(caller: Caller) -> Limits:
    """Read what limits ``caller`` from PostgreSQL."""
    ours = Q(tenant=caller.tenant_id)
    applies = (
        Q(scope="platform")
        | Q(scope="tenant") & ours
        | Q(scope="key", key=caller.key_id)
        | Q(scope__in=["model", "upstream"]) & (ours | Q(tenant=None))
        | Q(scope="run") & ours & (Q(key=None) | Q(key=caller.key_id))
    )
    if caller.team_id is not None:
        applies |= Q(scope="team", team=caller.team_id)
    if caller.member_id is not None:
        applies |= Q(scope="member", member=caller.member_id)
    with transaction.atomic():
        rows_of_rates = RateLimit.objects.filter(applies).order_by("id").prefetch_related("raises")
        rates = [_of_rate_limit(row) for row in rows_of_rates]
        rows_of_budgets = list(
            Budget.objects.filter(applies).order_by("id").select_related("tenant").prefetch_related("raises")
        )
        schedules = schedules_of(rows_of_budgets)
        budgets = [_of_budget(row, schedules[row.pk]) for row in rows_of_budgets]
        prices: dict[str, list[tuple[int, PinnedPrice]]] = {}
        rows = Price.objects.filter(ours | Q(tenant=None), starts_at__lte=utc_now() + timedelta(days=366))
        for row in sorted(rows, key=lambda row: (row.tenant_id is not None, row.starts_at), reverse=True):
            pinned = PinnedPrice(
                row.id.hex, row.input_price, row.cached_price, row.output_price, row.gpu_price
            )
            prices.setdefault(row.model, []).append((int(row.starts_at.timestamp() * 1000), pinned))
        credit = OutageCredit.objects.filter(tenant=caller.tenant_id).values_list("tokens", flat=True).first()
        switches = kill_switches.load(caller)
    limits = (*rates, *budgets)
    for limit in limits:
        # Whoever comes in from the street is not told how much their host uses.
        limit.told = caller.allowance is None
    return Limits(limits, prices, credit or 0, switches)


def as_if(limits: Limits, rows: Iterable[Budget | RateLimit], gone: Collection[UUID]) -> Limits:
    """``limits`` as they would be if ``rows`` were saved and those with the ids of ``gone`` were not."""
    rows = list(rows)
    budgets = [row for row in rows if isinstance(row, Budget)]
    schedules, ids = schedules_of(budgets), {pk.hex for pk in gone} | {row.pk.hex for row in rows}
    others = [one for one in limits.limits if one.id not in ids]
    rates = [_of_rate_limit(row) for row in rows if isinstance(row, RateLimit)]
    ahead = (*others, *rates, *(_of_budget(row, schedules[row.pk]) for row in budgets))
    return Limits(ahead, limits.prices, limits.credit_tokens, limits.switches)


def _of_rate_limit(row: RateLimit) -> Limit:
    kind = kind_of(row)
    counted = "concurrent-requests" if kind == "leases" else f"{row.unit}-minute"
    return Limit(
        kind=kind, id=row.id.hex, name=f"{_scope_name(row)}-{counted}", scope=row.scope, unit=row.unit,
        limit=row.limit, hard=not row.shadow, window=row.length, model=row.model, upstream=row.upstream,
        raises=raises_of(row),
    )  # fmt: skip


def _scope_name(row: Budget | RateLimit) -> str:
    """The scope, and whose it is where a call can meet two of the same scope."""
    if row.scope in (Scope.MODEL, Scope.UPSTREAM) and row.tenant_id is not None:
        return f"tenant-{row.scope}"
    if row.scope == Scope.RUN and row.key_id is not None:
        return "key-run"
    return row.scope


def kind_of(row: RateLimit) -> Kind:
    """How a rate limit is counted: by the seconds of a minute, or by leases."""
    return "leases" if row.length == "now" else "rate"


def _of_budget(row: Budget, schedule: periods.Schedule) -> Limit:
    return Limit(
        kind="budget", id=row.id.hex, name=f"{_scope_name(row)}-{row.unit}-{row.length}".replace("_", "-"),
        scope=row.scope, unit=row.unit, limit=row.limit, hard=not row.shadow, window=row.period,
        model=row.model, upstream=row.upstream, schedule=schedule,
        raises=raises_of(row),
    )  # fmt: skip


def limit_now(row: Budget | RateLimit) -> int | None:
    """The limit that holds now, raises included; None: no limit."""
    return limit_at(row, utc_now().timestamp() * 1000)


def limit_at(row: Budget | RateLimit, now_ms: float) -> int | None:
    """The same at a moment, present or to come."""
    return raised(row.limit, (one for one in raises_of(row) if one.holds(now_ms)))


def changes_at(row: Budget | RateLimit) -> datetime | None:
    """When a raise that begins or ends changes the limit next; None: none will."""
    now_ms, present = utc_now().timestamp() * 1000, limit_now(row)
    edges = {edge for one in raises_of(row) for edge in (one.starts_ms, one.ends_ms)}
    for edge in sorted(edge for edge in edges if edge > now_ms):
        if limit_at(row, edge) != present:
            return datetime.fromtimestamp(edge / 1000, UTC)
    return None


def raised(limit: int | None, holding: Iterable[Raise]) -> int | None:
    """``limit`` under the raises that hold; None: there is no limit to raise."""
    if limit is None:
        return None
    added, highest = limit, 0
    for one in holding:
        added += one.by or 0
        highest = max(highest, one.to or 0)
    return min(max(added, highest), LARGEST)


def with_raises(rows: QuerySet[Row]) -> QuerySet[Row]:
    """These limits, with what ``raises_of`` wants to know read for all of them at once.

    As a list: for the related manager Django makes a query for each row, even
    if it is never sent, and of a walled table that takes longer than the rest.
    """
    return rows.prefetch_related(Prefetch("raises", to_attr="read_raises"))


def raises_of(row: Budget | RateLimit) -> tuple[Raise, ...]:
    """The raises of a limit that hold or will; those that are over are left out."""
    read: list[LimitRaise] | None = getattr(row, "read_raises", None)
    return tuple(
        Raise(_ms(one.starts_at), _ms(one.ends_at), one.to, one.by)
        for one in (row.raises.all() if read is None else read)
        if one.taken_back_at is None and one.ends_at > utc_now() - timedelta(hours=1)
    )


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
