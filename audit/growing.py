"""Lists in the admin of tables that grow without end: they open at once with twenty million rows.

Nothing is counted, sorted or listed as a whole. What an index leads to (ids, and
the time) narrows such a list however far back; a filter on anything else looks
at the newest ``LOOK_BACK`` rows of what the ids and the time leave, and the page
says so. Times are chosen from the calendar and not from the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.timezone import now

from audit.admin_pages import AnsweringChangeList

LOOK_BACK = 50_000


def newest(rows: QuerySet[Any], by: str) -> QuerySet[Any]:
    """The newest ``LOOK_BACK`` of ``rows`` by the time in the column ``by``, which has an index."""
    times = rows.order_by(f"-{by}").values_list(by, flat=True)
    oldest = times[LOOK_BACK : LOOK_BACK + 1].first()
    return rows if oldest is None else rows.filter(**{f"{by}__gt": oldest})


class NewestPaginator(Paginator):
    """Pages over the newest rows of a list, without counting all of it."""

    LIMIT = 10_000
    template_name = "admin/_pages_of_newest.html"

    @cached_property
    def count(self) -> int:
        """How many rows there are, ``LIMIT`` at most; for what lies further back there are filters."""
        rows = cast("QuerySet[Any]", self.object_list)
        first = next(iter(rows.query.order_by), "-pk")
        if isinstance(first, str):
            # By this column alone, which an index knows without the rows.
            rows = rows.order_by(first).values_list(first.removeprefix("-"))
        return rows[: self.LIMIT].count()

    @property
    def cut(self) -> bool:
        """Whether there may be more rows than the pages show."""
        return self.count == self.LIMIT


class Narrowing(admin.SimpleListFilter):
    """One id, in an address that leads here from another page; shown while it narrows the list."""

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        value = request.GET.get(str(self.parameter_name), "")
        return [(value, value)] if value else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        try:
            wanted = UUID(str(self.value()))
        except ValueError:
            return queryset.none()
        return queryset.filter(**{str(self.parameter_name): wanted})


def narrowing(column: str, called: str) -> type[Narrowing]:
    """A filter on an id that has an index with the time behind it."""
    return type(f"Narrowing_{column}", (Narrowing,), {"title": called, "parameter_name": column})


class When(admin.SimpleListFilter):
    """Months, then days of a month, then hours of a day; of UTC, and out of the calendar."""

    title = "time (UTC)"
    parameter_name = "when"
    column: ClassVar[str]
    MONTHS = 14

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        present = now().astimezone(UTC)
        chosen = request.GET.get("when", "")
        try:
            start, end = span_of(chosen, present)
        except ValueError:
            start, end = present, present
        step = end - start
        if step > timedelta(days=2):
            days = (start + timedelta(days=number) for number in range(step.days))
            finer = [(f"{day:%Y-%m-%d}", f"{day:%A %d}") for day in days if day <= present]
            return [(chosen, f"{start:%B %Y}"), *reversed(finer)]
        if step > timedelta(hours=1):
            hours = (start + timedelta(hours=number) for number in range(24))
            finer = [(f"{hour:%Y-%m-%dT%H}", f"{hour:%H}:00") for hour in hours if hour <= present]
            up = (f"{start:%Y-%m}", f"All of {start:%B %Y}")
            return [up, (f"{start:%Y-%m-%d}", f"{start:%Y-%m-%d}"), *reversed(finer)]
        if len(chosen) > len("2026-11-27"):
            up = (chosen[:10], f"All of {chosen[:10]}")
            return [up, (chosen, f"{start:%Y-%m-%d %H}:00")]
        months = [present.year * 12 + present.month - 1 - back for back in range(self.MONTHS)]
        dates = [datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC) for number in months]
        return [
            ("hour", "The last hour"),
            (f"{present:%Y-%m-%d}", "Today"),
            *((f"{date:%Y-%m}", f"{date:%B %Y}") for date in dates),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        try:
            start, end = span_of(str(self.value()), now())
        except ValueError:
            return queryset.none()
        return queryset.filter(**{f"{self.column}__gte": start, f"{self.column}__lt": end})


def when(column: str) -> type[When]:
    """The filter on the time in ``column``."""
    return type(f"When_{column}", (When,), {"column": column})


def span_of(text: str, present: datetime) -> tuple[datetime, datetime]:
    """From when to when: ``hour`` (the last one), ``2026-11``, ``2026-11-27`` or ``2026-11-27T09``, of UTC.

    Raises ``ValueError`` for anything else.
    """
    try:
        return _span_of(text, present)
    except OverflowError:
        raise ValueError(text) from None


def _span_of(text: str, present: datetime) -> tuple[datetime, datetime]:
    if text == "hour":
        return present - timedelta(hours=1), present + timedelta(minutes=1)
    if len(text) == len("2026-11"):
        month = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
        return month, (month + timedelta(days=31)).replace(day=1)
    if len(text) == len("2026-11-27"):
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        return day, day + timedelta(days=1)
    hour = datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)
    return hour, hour + timedelta(hours=1)


class AmongNewest(admin.SimpleListFilter):
    """A condition that no index knows: it is looked for among the newest rows of what is left by others."""

    answers: ClassVar[Mapping[str, tuple[str, Q]]]

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin) -> list[tuple[str, str]]:
        self.newest_by = cast("GrowingList", model_admin).newest_by
        return [(value, called) for value, (called, _) in self.answers.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in self.answers:
            return queryset
        return newest(queryset, self.newest_by).filter(self.answers[str(self.value())][1])


def among_newest(name: str, called: str, answers: Mapping[str, tuple[str, Q]]) -> type[AmongNewest]:
    """A filter of ``answers``: what an address says, what people read, and the condition."""
    attributes = {"title": called, "parameter_name": name, "answers": answers}
    return type(f"AmongNewest_{name}", (AmongNewest,), attributes)


class InOrderOfTime(AnsweringChangeList):
    """A list that is in the order of its time, whatever an address asks for."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[str | Combinable]:
        return list(self.model_admin.get_ordering(request))

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        # Nobody knows how many there are; what the pages show is told below them.
        self.full_result_count = self.result_count


class GrowingList:
    """What the admin of a table that grows has besides; it goes before ``ReadOnlyAdmin``.

    ``newest_by`` is the column of its time. ``list_filter`` begins with what
    ``narrowing`` and ``when`` make. What is typed into the search is looked up by
    ``found``; what that does not know is compared with the newest rows, by the
    lookups in ``compared``.
    """

    newest_by: ClassVar[str]
    list_filter: Sequence[type[admin.SimpleListFilter]] = ()
    compared: tuple[str, ...] = ()
    sortable_by: tuple[str, ...] = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_before_template = "admin/_looks_back.html"
    # Without fields to search there is no field to type into; what is typed is never asked of these.
    search_fields: tuple[str, ...] = ("pk",)
    paginator = NewestPaginator
    look_back = LOOK_BACK

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return (f"-{self.newest_by}", "-pk")

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[AnsweringChangeList]:
        return InOrderOfTime

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Nothing but what the filters say: any other column would be looked through row by row."""
        return any(lookup == one.parameter_name for one in self.list_filter)

    def found(self, rows: QuerySet[Any], term: str) -> QuerySet[Any] | None:
        """What an index leads to from ``term``; None if that is nothing the table's ids know."""
        return None

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        found = self.found(queryset, term)
        if found is None:
            conditions: list[Any] = [(lookup, term) for lookup in self.compared]
            found = newest(queryset, self.newest_by).filter(Q.create(conditions, Q.OR))
        return found, False


def having(rows: QuerySet[Any], columns: tuple[str, ...], value: Any) -> QuerySet[Any] | None:
    """``rows`` with ``value`` in the first of ``columns`` that has it anywhere; None if none has.

    One column after the other, because a condition on several would be looked
    for row by row in the order of time.
    """
    everything = rows.model.objects.all()
    for column in columns:
        if everything.filter(**{column: value}).exists():
            return rows.filter(**{column: value})
    return None


def uuid_in(term: str) -> UUID | None:
    """The id that was typed, if it is one."""
    try:
        return UUID(term)
    except ValueError:
        return None
