"""The limits on a person as they see them: from the platform down to their keys, and how each stands now.

Figures come from the counters. While Redis cannot be asked, those of budgets
are what the ledger has booked, with the time of the last booking; what is held,
and what came within the last minute, nobody knows then.

It begins with a person and finds all that holds for them, rate limits too.
``key_limits`` begins with keys, and ``meters`` with what a live view is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.paginator import Page, Paginator
from django.db.models import Case, Q, Value, When
from django.utils.timezone import now

from audit.walls import across
from budgets.booked import Booked, booked
from budgets.counters import Counter, redis_in_bytes
from budgets.forecasts import Forecast, forecast
from budgets.limits import changes_at, kind_of, limit_now, with_raises
from budgets.models import Budget, RateLimit, Scope
from budgets.standing import Standing, percent_of, standings
from keys.models import ApiKey
from tenants.access import Access, Reach
from tenants.clock import clock
from tenants.redis import RedisError

# What the counters call a minute; one second more than it, as the oldest second counts whole.
WINDOW_SECONDS = 61
ORDER = list(Scope)
# Of a tenant's limits on others so many are looked at together.
USUAL = 200

WHOSE = ("team", "member__user", "key__member__user")


@dataclass(frozen=True, slots=True)
class Seen:
    """One limit and how it stands. Amounts are in ``unit``.

    ``window`` is ``minute``, ``now`` (how many at one time) or the period of a
    budget. ``limit`` is the one that holds now, raises included, and until
    ``changes_at``; None: no raise begins or ends. ``used`` and ``held`` None:
    nobody knows just now, or each run has its own. ``ends_at`` None: it never
    comes back, or needs no time to. ``as_of``: the figures are those of the
    ledger, which last booked something then.
    """

    row: Budget | RateLimit
    scope: str
    unit: str
    window: str
    limit: int
    used: int | None
    held: int | None
    ends_at: datetime | None = None
    as_of: datetime | None = None
    forecast: Forecast | None = None
    changes_at: datetime | None = None

    @property
    def left(self) -> int | None:
        """What is neither used nor held as far as is known; never below nothing."""
        return None if self.used is None else max(0, self.limit - self.used - (self.held or 0))

    @property
    def budget(self) -> Budget | None:
        return self.row if isinstance(self.row, Budget) else None

    @property
    def raised(self) -> bool:
        """Whether a raise holds."""
        return self.limit != self.row.limit

    @property
    def percent(self) -> int | None:
        """How much of it is used or held, as far as is known."""
        return None if self.used is None else percent_of(self.limit, self.used + (self.held or 0))


@dataclass(frozen=True, slots=True)
class Seeing:
    """The limits on a person, and those on others that they see; of the first, the budget that ends first.

    ``blind``: Redis could not be asked. ``others`` are those of ``page``, of several where there are many.
    ``standings`` are those of the budgets on the person, also of those that only count;
    None while nobody knows them.
    """

    own: list[Seen]
    others: list[Seen]
    tightest: Seen | None
    blind: bool
    page: Page[Budget | RateLimit]
    standings: list[Standing] | None = None


def on_person(access: Access) -> Q:
    """The limits that can stop calls of this person's keys."""
    ours = Q(tenant=access.tenant)
    applies = Q(scope="platform") | Q(scope="tenant") & ours
    applies |= Q(scope__in=["model", "upstream"]) & (ours | Q(tenant=None))
    member = access.member
    if member is None:
        return applies | Q(scope="run", key=None) & ours
    keys = ApiKey.objects.filter(member=member, revoked_at=None).values("pk")
    applies |= Q(scope="member", member=member) | Q(scope="key", key__in=keys)
    applies |= Q(scope="run") & ours & (Q(key=None) | Q(key__in=keys))
    if member.team_id is not None:
        applies |= Q(scope="team", team=member.team_id)
    return applies


def seen_by(access: Access) -> Q:
    """The limits that a person may see: those on them; with the whole tenant in view, all of its."""
    if access.usage == Reach.WHOLE_TENANT:
        return on_person(access) | Q(tenant=access.tenant)
    return on_person(access)


def limit_seen_by(access: Access, limit_id: UUID) -> Budget | RateLimit | None:
    """A limit by its id, if it is one that a person may see, and so ask for more of."""
    for kind in (Budget, RateLimit):
        seen: Any = kind.objects.filter(seen_by(access), pk=limit_id).exclude(limit=None)
        found: Budget | RateLimit | None = with_raises(
            seen.select_related("tenant", "member__tenant", *WHOSE)
        ).first()
        if found is not None:
            return found
    return None


def look_at_limits(
    access: Access, *, rates: bool = True, page: str | int | None = 1, size: int = USUAL
) -> Seeing:
    """How the limits stand that a person sees; without ``rates`` only the budgets among them.

    Of those on others ``page`` has ``size``. For one that is not there it is the
    first or the last.
    """
    counted, others = _rows(access, (Budget, RateLimit) if rates else (Budget,))
    own = [row for row in counted if row.limit is not None]
    of_others = Paginator(others, size).get_page(page)
    listed = list(of_others)
    standing: list[Standing] | None = None
    try:
        budgets = [row for row in (*counted, *listed) if isinstance(row, Budget)]
        used = _used_of_rates([row for row in (*own, *listed) if isinstance(row, RateLimit)])
        found = standings(budgets)
    except RedisError:
        figures = _by_the_books([*own, *listed])
    else:
        by_budget = {one.budget.pk: one for one in found}
        standing = [by_budget[row.pk] for row in counted if isinstance(row, Budget)]
        figures = [
            _of_standing(by_budget[row.pk]) if isinstance(row, Budget) else _of_rate(row, used[row.pk])
            for row in (*own, *listed)
        ]
    seen, rest = figures[: len(own)], figures[len(own) :]
    return Seeing(seen, rest, tightest(seen), standing is None, of_others, standing)


def tightest(limits: Iterable[Seen]) -> Seen | None:
    """The budget that will stop calls first: of each unit the one with least left, of these the fullest.

    The same that ``GET /v1/usage`` tells a program. Left out is what refuses
    nothing, or only calls to one model or server, or of one run.
    """
    least: dict[str, tuple[int, Seen]] = {}
    for one in limits:
        if one.budget is None or one.row.shadow or one.left is None:
            continue
        if one.scope in (Scope.MODEL, Scope.UPSTREAM, Scope.RUN):
            continue
        if one.unit not in least or one.left < least[one.unit][0]:
            least[one.unit] = one.left, one
    found = min(
        least.values(), key=lambda found: found[0] / found[1].limit if found[1].limit else 0, default=None
    )
    return found and found[1]


def _rows(
    access: Access, kinds: Iterable[type[Budget | RateLimit]]
) -> tuple[list[Budget | RateLimit], list[Budget | RateLimit]]:
    """The limits on a person, budgets that only count among them, and the limits on others that they see."""
    on_them: Any = Case(When(on_person(access), then=Value(True)), default=Value(False))
    rows: list[Any] = []
    for kind in kinds:
        found: Any = kind.objects.filter(seen_by(access)).annotate(on_them=on_them).select_related(*WHOSE)
        rows += with_raises(found)
    for row in rows:
        # All are of this tenant, or of none; to read it with each of them takes longer than all the rest.
        if row.tenant_id is not None:
            row.tenant = access.tenant
        if row.member is not None:
            row.member.tenant = access.tenant
    rows.sort(key=lambda row: (ORDER.index(Scope(row.scope)), isinstance(row, RateLimit), row.pk))
    return (
        [row for row in rows if row.on_them],
        [row for row in rows if not row.on_them and row.limit is not None],
    )


def _of_standing(one: Standing) -> Seen:
    budget, moment = one.budget, int(now().timestamp())
    since = max(int(one.starts_at.timestamp()), int(budget.created_at.timestamp()))
    end = None if one.ends_at is None else int(one.ends_at.timestamp())
    seen = Seen(
        row=budget,
        scope=budget.scope,
        unit=budget.unit,
        window=one.length,
        limit=one.limit or 0,
        used=one.used,
        held=one.held,
        ends_at=one.ends_at,
        forecast=forecast(one.limit or 0, one.used, since, moment, end),
        changes_at=changes_at(budget),
    )
    if budget.scope == Scope.RUN:
        # Each run has a counter of its own, and nobody knows their names.
        return replace(seen, used=None, held=None, forecast=None)
    return seen


def _of_rate(row: RateLimit, used: int | None) -> Seen:
    return Seen(
        row=row,
        scope=row.scope,
        unit=row.unit,
        window=row.length,
        limit=limit_now(row) or 0,
        used=None if row.scope == Scope.RUN else used,
        held=None,
        changes_at=changes_at(row),
    )


def _used_of_rates(rows: Sequence[RateLimit]) -> dict[UUID, int]:
    """What each limit has counted in the present minute, or of calls that run."""
    if not rows:
        return {}
    pipeline = redis_in_bytes().pipeline(transaction=False)
    pipeline.time()
    for row in rows:
        kind = kind_of(row)
        counter = Counter(kind, row.pk.hex, row.unit, None, None)
        if kind == "leases":
            pipeline.zcount(counter.key, f"({clock.now_ms():.0f}", "+inf")
        else:
            pipeline.hgetall(counter.key)
    (second, _microseconds), *counted = pipeline.execute()
    return {
        row.pk: found if isinstance(found, int) else _within_window(found, second)
        for row, found in zip(rows, counted, strict=True)
    }


def _within_window(seconds: dict[bytes, bytes], now_second: int) -> int:
    # Beside the seconds there are two other fields, their sum and the oldest.
    return sum(
        int(amount)
        for second, amount in seconds.items()
        if second.isdigit() and int(second) + WINDOW_SECONDS > now_second
    )


def _by_the_books(rows: Sequence[Budget | RateLimit]) -> list[Seen]:
    # Those of the platform too: how it stands is told of every limit on a person, and it is one.
    with across():
        found = {one.budget.pk: one for one in booked([row for row in rows if isinstance(row, Budget)])}
    return [_of_booked(found[row.pk]) if isinstance(row, Budget) else _of_rate(row, None) for row in rows]


def _of_booked(one: Booked) -> Seen:
    budget = one.budget
    return Seen(
        row=budget,
        scope=budget.scope,
        unit=budget.unit,
        window=budget.length,
        limit=one.limit or 0,
        # Each run has sums of its own.
        used=None if budget.scope == Scope.RUN else one.used,
        held=None,
        ends_at=one.ends_at,
        as_of=one.as_of,
        changes_at=changes_at(budget),
    )
