"""What a key used, was refused and waited for, as charts over a span of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import (
    Aggregate,
    Count,
    DurationField,
    ExpressionWrapper,
    F,
    Q,
    QuerySet,
    TextChoices,
)
from django.db.models.functions import TruncDate, TruncHour
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from audit.models import RequestEvent
from budgets.key_limits import MEASURES, KeyLimit
from budgets.models import Unit
from budgets.usage import Figures, Selection, breakdown
from keys.models import ApiKey
from tenants.charts import (
    REQUESTS,
    SECONDS,
    TOKENS,
    USD,
    Chart,
    Kind,
    Limit,
    Point,
    Series,
    days,
    hours,
    largest,
)

# Shorter periods are drawn hour by hour, longer ones day by day, and not more than a year of these.
LONGEST_BY_HOUR = timedelta(hours=48)
MOST_DAYS = 366
PERCENTILES = (0.5, 0.95)


class Span(TextChoices):
    """What the charts of a key are drawn over, until now."""

    DAY = "24h", gettext_lazy("24 hours")
    WEEK = "7d", gettext_lazy("7 days")
    MONTH = "30d", gettext_lazy("30 days")
    PERIOD = "period", gettext_lazy("Present period")


@dataclass(frozen=True, slots=True)
class Steps:
    """The bars of a chart, up to the present one: hours that begin at instants, or accounting days."""

    instants: Sequence[datetime] = ()
    dates: Sequence[date] = ()

    @property
    def part(self) -> str:
        """By what usage is told apart for them."""
        return "hour" if self.instants else "day"

    def points(self, zone: ZoneInfo) -> list[Point]:
        return hours(self.instants, zone) if self.instants else days(self.dates)

    def names(self) -> list[str]:
        """The steps as a breakdown of usage names them."""
        steps: Sequence[date] = self.instants or self.dates
        return [step.isoformat() for step in steps]

    def selection(self, key: ApiKey) -> Selection:
        if self.instants:
            since, until = self.instants[0], self.instants[-1] + timedelta(hours=1)
            return Selection(tenant_id=key.tenant_id, key_id=key.pk, since=since, until=until)
        before = self.dates[-1] + timedelta(days=1)
        return Selection(tenant_id=key.tenant_id, key_id=key.pk, from_day=self.dates[0], before_day=before)


def tightest(limits: Sequence[KeyLimit]) -> KeyLimit | None:
    """Of the limits the one of which the smallest share is left; None if none limits."""
    limiting = [(one.left / one.limit if one.limit else 0, one) for one in limits if one.left is not None]
    return min(limiting, key=lambda found: found[0], default=(0, None))[1]


def charts_of(
    key: ApiKey, span: Span, limits: Sequence[KeyLimit], moment: datetime, shown_in: ZoneInfo
) -> list[Chart]:
    """The charts of a key until ``moment``, hours in the zone ``shown_in``, days in the tenant's.

    Of its own ``limits`` those are drawn whose period is as long as a bar.
    Without any request in the span there is no data, which is not zero; nor is
    there any from before the key was issued.
    """
    zone = ZoneInfo(key.tenant.time_zone)
    steps = _steps(span, tightest(limits), key, moment, zone)
    points, names = steps.points(shown_in), steps.names()
    used = {str(row[steps.part]): row for row in breakdown(steps.selection(key), (steps.part,)).rows}
    events = _events(key, steps, zone)
    issued = _full_hour(key.created_at) if steps.instants else key.created_at.astimezone(zone).date()
    first = issued.isoformat()

    def series(name: str, title: str, figures: dict[str, int], *, known: bool) -> Series:
        values = [figures.get(step, 0) if known and step >= first else figures.get(step) for step in names]
        return Series(name, title, values)

    def of_usage(name: str, title: str) -> Series:
        return series(name, title, {step: row[name] for step, row in used.items()}, known=bool(used))

    refused = _refusals(events)
    known = bool(refused) or bool(used)
    refusals = [series(code, code, figures, known=known) for code, figures in sorted(refused.items())]
    nothing = series("refused", _("Refused"), {}, known=known)
    charts = [
        Chart(
            "tokens",
            _("Tokens"),
            points,
            [of_usage("input_tokens", _("Tokens in")), of_usage("output_tokens", _("Tokens out"))],
            TOKENS,
            limit=_limit_of_a_bar(limits, steps, Unit.TOKENS),
        ),
        Chart(
            "cost",
            _("Cost"),
            points,
            [of_usage("cost_micro_usd", _("Cost"))],
            USD,
            limit=_limit_of_a_bar(limits, steps, Unit.MICRO_USD),
        ),
        Chart("refusals", _("Refused calls"), points, largest(refusals) or [nothing], REQUESTS),
        *_waits(events, points, names),
    ]
    if span == Span.PERIOD and (limit := tightest(limits)) is not None:
        charts.insert(0, _towards(limit, points, names, used))
    return charts


def _steps(span: Span, limit: KeyLimit | None, key: ApiKey, moment: datetime, zone: ZoneInfo) -> Steps:
    today, hour = (
        moment.astimezone(zone).date(),
        moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0),
    )
    if span == Span.DAY:
        return Steps(instants=[hour - timedelta(hours=back) for back in range(23, -1, -1)])
    if span == Span.PERIOD:
        starts_at = today.replace(day=1) if limit is None else limit.starts_at.astimezone(zone).date()
        if limit is not None and limit.ends_at and limit.ends_at - limit.starts_at <= LONGEST_BY_HOUR:
            first = _full_hour(limit.starts_at)
            count = max(0, (hour - first) // timedelta(hours=1)) + 1
            return Steps(instants=[first + timedelta(hours=number) for number in range(count)])
        # Before it was issued there is nothing to be seen of it.
        starts_at = max(starts_at, key.created_at.astimezone(zone).date())
        count = min((today - starts_at).days + 1, MOST_DAYS)
    else:
        count = 7 if span == Span.WEEK else 30
    return Steps(dates=[today - timedelta(days=back) for back in range(max(count, 1) - 1, -1, -1)])


def _full_hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _limit_of_a_bar(limits: Sequence[KeyLimit], steps: Steps, unit: str) -> Limit | None:
    for one in limits:
        if one.limit is not None and one.budget.unit == unit and one.budget.length == steps.part:
            return Limit(_("Limit of the key"), one.limit)
    return None


def _towards(
    limit: KeyLimit,
    points: Sequence[Point],
    names: Sequence[str],
    used: dict[str, dict[str, Any]],
) -> Chart:
    """How a budget was used up, added up from the beginning of its period."""
    amounts = [_amount(used.get(step), limit.budget.unit) for step in names]
    together: list[int | None] = list(accumulate(amounts)) if used else [None] * len(names)
    return Chart(
        "period",
        _("Used of the budget in the present period, added up"),
        points,
        [Series("used", _("Used so far"), together)],
        MEASURES[limit.budget.unit],
        kind=Kind.LINES,
        limit=None if limit.limit is None else Limit(_("Limit of the key"), limit.limit),
    )


def _amount(row: Figures | dict[str, Any] | None, unit: str) -> int:
    if row is None:
        return 0
    if unit == Unit.TOKENS:
        return int(row["input_tokens"] + row["output_tokens"])
    return int(row["cost_micro_usd" if unit == Unit.MICRO_USD else unit])


class _Percentile(Aggregate):
    """What so large a share of the values is not above, between two of them where it falls there."""

    template = "PERCENTILE_CONT(%(share)s) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = DurationField()


def _events(key: ApiKey, steps: Steps, zone: ZoneInfo) -> QuerySet[Any, Any]:
    """The calls of a key in the span, grouped by ``step``."""
    if steps.instants:
        since, until = steps.instants[0], steps.instants[-1] + timedelta(hours=1)
        step: Any = TruncHour("at", tzinfo=UTC)
    else:
        since = datetime.combine(steps.dates[0], datetime.min.time(), zone)
        until = datetime.combine(steps.dates[-1] + timedelta(days=1), datetime.min.time(), zone)
        step = TruncDate("at", tzinfo=zone)
    events = RequestEvent.objects.filter(tenant_id=key.tenant_id, key_id=key.pk, at__gte=since, at__lt=until)
    return events.order_by().annotate(step=step).values("step")


def _refusals(events: QuerySet[Any, Any]) -> dict[str, dict[str, int]]:
    """How many calls were refused in each step, by the code of the refusal."""
    refused: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in events.exclude(refusal="").values("step", "refusal").annotate(count=Count("pk")):
        refused[row["refusal"]][row["step"].isoformat()] = row["count"]
    return dict(refused)


def _waits(events: QuerySet[Any, Any], points: Sequence[Point], names: Sequence[str]) -> list[Chart]:
    """How long calls took until their first byte, and in all."""
    until = {
        "first": ("first_byte_at", _("Time to the first token")),
        "whole": ("ended_at", _("Time of a whole call")),
    }
    asked = {
        f"{name}_{int(share * 100)}": _Percentile(
            ExpressionWrapper(F(column) - F("admitted_at"), output_field=DurationField()),
            share=share,
            filter=Q(refusal="", admitted_at__isnull=False, **{f"{column}__isnull": False}),
        )
        for name, (column, _title) in until.items()
        for share in PERCENTILES
    }
    found = {row["step"].isoformat(): row for row in events.annotate(**asked)}
    charts = []
    for name, (_column, title) in until.items():
        series = []
        for share in PERCENTILES:
            percent = int(share * 100)
            spans = [found.get(step, {}).get(f"{name}_{percent}") for step in names]
            values = [None if span is None else span // timedelta(milliseconds=1) for span in spans]
            series.append(
                Series(f"p{percent}", _("%(share)s %% of calls within") % {"share": percent}, values)
            )
        charts.append(Chart(name, title, points, series, SECONDS, kind=Kind.LINES))
    return charts
