"""What the upstreams cost in a month, and what each model had of it: the costs entered, and the ledger.

A month is one of UTC, as upstreams are nobody's in particular. A call belongs to
the month, and to the cost, in which it ended. Where no cost was entered yet,
what was used is told apart, and nothing of it is in the figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any, cast

from django.db.models import F, Q, QuerySet, Sum
from django.utils.timezone import now

from audit.months import months_from
from budgets.internal_prices import HourlyCost, Use, attribute, hourly_cost, per_mille, whole_amounts
from budgets.models import LedgerEntry, UpstreamCost
from budgets.usage import Selection

NO_USE = Use()
MICROSECOND = timedelta(microseconds=1)

TIMED = (
    Q(kind=LedgerEntry.Kind.USAGE, exact=True, requests=1)
    & (Q(prompt_ns__isnull=False) | Q(cached_tokens=F("input_tokens")))
    & (Q(output_ns__isnull=False) | Q(output_tokens=0))
)
MEASURED = {
    "calls": Sum("requests"),
    "input_tokens": Sum("input_tokens"),
    "cached_tokens": Sum("cached_tokens"),
    "output_tokens": Sum("output_tokens"),
    "gpu_ms": Sum("gpu_ms"),
    "timed_calls": Sum("requests", filter=TIMED),
    "timed_input_tokens": Sum(F("input_tokens") - F("cached_tokens"), filter=TIMED),
    "timed_output_tokens": Sum("output_tokens", filter=TIMED),
    "prompt_ns": Sum("prompt_ns", filter=TIMED),
    "output_ns": Sum("output_ns", filter=TIMED),
}


@dataclass(frozen=True, slots=True)
class CostUsed:
    """A cost that held for a part of the month, ``[since, before)``."""

    cost: UpstreamCost
    since: datetime
    before: datetime


@dataclass(slots=True)
class UpstreamMonth:
    """One upstream in a month: what its hours cost, and for which part of them it worked.

    Milliseconds are those of one GPU; ``gpu_ms`` is what was measured, which may
    be more than its GPUs have, and ``busy_ms`` what it worked at most. Money is
    in micro-USD, exact and, where the name says so, whole: whole amounts add up
    too. ``without_cost`` was used before it had a cost.
    """

    upstream: str
    costs: list[CostUsed] = field(default_factory=list)
    seconds: Fraction = Fraction()
    capacity_ms: Fraction = Fraction()
    busy_ms: Fraction = Fraction()
    gpu_ms: int = 0
    by_model: dict[str, Fraction] = field(default_factory=dict)
    idle: Fraction = Fraction()
    by_model_micro_usd: dict[str, int] = field(default_factory=dict)
    idle_micro_usd: int = 0
    without_cost: Use = NO_USE

    @property
    def busy(self) -> Fraction:
        return sum(self.by_model.values(), Fraction())

    @property
    def total(self) -> Fraction:
        return self.busy + self.idle

    @property
    def busy_micro_usd(self) -> int:
        return sum(self.by_model_micro_usd.values())

    @property
    def total_micro_usd(self) -> int:
        return self.busy_micro_usd + self.idle_micro_usd

    @property
    def idle_per_mille(self) -> int:
        """What its idle time is of its whole cost."""
        return per_mille(self.idle, self.total)

    @property
    def says_something(self) -> bool:
        """Whether it cost something or was used; not so where it is no longer there."""
        return bool(self.total or self.gpu_ms or self.without_cost != NO_USE)


@dataclass(slots=True)
class ModelMonth:
    """One model in a month, on all upstreams that have a cost.

    ``cost`` is that of the time in which it worked, in micro-USD; ``loaded`` has
    its part of the idle time in it. ``without_cost``: on upstreams, named in
    ``upstreams_without_cost``, that had none yet.
    """

    model: str
    use: Use = NO_USE
    cost: Fraction = Fraction()
    loaded: Fraction = Fraction()
    cost_micro_usd: int = 0
    costs: list[CostUsed] = field(default_factory=list)
    without_cost: Use = NO_USE
    upstreams_without_cost: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class MonthCosts:
    """A month, ``[since, before)``, as far as it is over; upstreams and models by name."""

    month: date
    since: datetime
    before: datetime
    complete: bool
    upstreams: list[UpstreamMonth]
    models: list[ModelMonth]


def month_bounds(month: date) -> tuple[datetime, datetime]:
    """When the month of a day begins, and when the next one does, in UTC."""
    first, following = (datetime(day.year, day.month, 1, tzinfo=UTC) for day in months_from(month, 1))
    return first, following


def month_costs(month: date) -> MonthCosts:
    """What the month of a day cost, by upstream and by model; of the present one, so far."""
    since, following = month_bounds(month)
    before = max(since, min(following, now()))
    hours_in_month = (following - since) // timedelta(hours=1)
    upstreams: dict[str, UpstreamMonth] = {}
    models: dict[str, ModelMonth] = {}
    for part in _parts(since, before):
        # Ordered, so that what is worked out again is the same to the letter.
        for name in sorted({*part.costs, *part.uses}):
            upstream = upstreams.setdefault(name, UpstreamMonth(name))
            uses, cost = part.uses.get(name, {}), part.costs.get(name)
            used_by = {model: models.setdefault(model, ModelMonth(model)) for model in uses}
            if cost is None:
                _add_without_cost(upstream, used_by, uses)
            else:
                held = CostUsed(cost, part.since, part.before)
                _add(held, hourly_cost(cost, hours_in_month), upstream, used_by, uses)
    told = sorted((one for one in upstreams.values() if one.says_something), key=lambda one: one.upstream)
    for upstream in told:
        _make_whole(upstream, models)
    return MonthCosts(
        month=since.date(),
        since=since,
        before=before,
        complete=before == following,
        upstreams=told,
        models=[models[name] for name in sorted(models)],
    )


def _add(
    held: CostUsed,
    hour: HourlyCost,
    upstream: UpstreamMonth,
    used_by: Mapping[str, ModelMonth],
    uses: Mapping[str, Use],
) -> None:
    """Add what an upstream cost, and was used for, while one cost of it held."""
    seconds = Fraction((held.before - held.since) // MICROSECOND, 10**6)
    gpu_ms = {model: use.gpu_ms for model, use in uses.items()}
    shared = attribute(hour, seconds=seconds, gpus=held.cost.gpus, gpu_ms=gpu_ms)
    upstream.costs.append(held)
    upstream.seconds += seconds
    upstream.capacity_ms += shared.capacity_ms
    upstream.busy_ms += shared.busy_ms
    upstream.gpu_ms += sum(gpu_ms.values())
    upstream.idle += shared.idle
    for model, use in uses.items():
        own = shared.by_model.get(model, Fraction())
        upstream.by_model[model] = upstream.by_model.get(model, Fraction()) + own
        one = used_by[model]
        one.use += use
        one.cost += own
        one.loaded += shared.loaded.get(model, Fraction())
        one.costs.append(held)


def _add_without_cost(
    upstream: UpstreamMonth, used_by: Mapping[str, ModelMonth], uses: Mapping[str, Use]
) -> None:
    for model, use in uses.items():
        upstream.without_cost += use
        used_by[model].without_cost += use
        used_by[model].upstreams_without_cost.add(upstream.upstream)


def _make_whole(upstream: UpstreamMonth, models: Mapping[str, ModelMonth]) -> None:
    """Round what an upstream cost, by model and idle, so that the parts add up to the whole."""
    names = sorted(upstream.by_model)
    *amounts, upstream.idle_micro_usd = whole_amounts(
        [*(upstream.by_model[name] for name in names), upstream.idle]
    )
    for name, amount in zip(names, amounts, strict=True):
        upstream.by_model_micro_usd[name] = amount
        models[name].cost_micro_usd += amount


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the month in which no cost changed: what held, and by upstream and model what was used."""

    since: datetime
    before: datetime
    costs: Mapping[str, UpstreamCost]
    uses: Mapping[str, Mapping[str, Use]]


def _parts(since: datetime, before: datetime) -> Iterator[_Part]:
    """The parts of ``[since, before)``, cut where a cost begins."""
    rows = list(UpstreamCost.objects.filter(starts_at__lt=before).order_by("starts_at"))
    cuts = sorted({since, *(row.starts_at for row in rows if row.starts_at > since)})
    for begins, ends in zip(cuts, [*cuts[1:], before], strict=True):
        # Of several of one upstream the last one to begin stays.
        costs = {row.upstream: row for row in rows if row.starts_at <= begins}
        if begins < ends:
            yield _Part(begins, ends, costs, _uses(begins, ends))


def _uses(since: datetime, before: datetime) -> dict[str, dict[str, Use]]:
    """What the ledger says of calls that ended in ``[since, before)``, by upstream and model."""
    entries = Selection(since=since, until=before).entries()
    figures = {f"sum_{name}": figure for name, figure in MEASURED.items()}
    uses: dict[str, dict[str, Use]] = defaultdict(dict)
    rows = entries.values("upstream", "model").annotate(**figures).order_by("upstream", "model")
    for row in cast("QuerySet[Any, dict[str, Any]]", rows):
        # A difference may have been booked in a later part than what it takes back.
        sums = {name: max(0, int(row[f"sum_{name}"] or 0)) for name in MEASURED}
        sums["cached_tokens"] = min(sums["cached_tokens"], sums["input_tokens"])
        sums["timed_calls"] = min(sums["timed_calls"], sums["calls"])
        use = Use(**sums)
        if use != NO_USE:
            uses[row["upstream"]][row["model"]] = use
    return uses
