"""Charts as SVG, drawn by the server, for pages that show figures over time.

A chart is one SVG whose shapes are placed in per cent and whose texts are not
scaled, so that it can be read at any width. The same drawing is what
``?chart=<id>.svg`` downloads; ``?chart=<id>.csv`` has its figures. What tells
two series apart is a pattern or a dash besides the colour.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from io import StringIO
from itertools import groupby
from zoneinfo import ZoneInfo

from django.http import Http404, HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from tenants.figures import grouped
from tenants.spreadsheets import harmless

# On a light ground, for a file; on a page the stylesheet has others for each ground.
COLOURS = ("#0b5f58", "#b45309", "#1d4ed8", "#a21caf", "#4d7c0f", "#57534e")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "1 4")
MOST_SERIES = len(COLOURS)
# Texts of the legend stand in the drawing, and have to fit a narrow one.
LONGEST_NAME = 24
# Steps between the lines of the grid are 1, 2 or 5 times a power of ten.
STEPS = (1, 2, 5)
FEWEST_STEPS = 3
MOST_TICKS = 4
# Beyond that, points of a line would cover it.
MOST_MARKED = 62

# Pixels.
HEIGHT_OF_PLOT = 180
TOP = 24
HEIGHT_OF_TICKS = 26
HEIGHT_OF_NAME = 20

# Per cent of the width, as much as a letter takes of the narrowest drawing, which has 260 pixels.
WIDTH_OF_LETTER = 3
LEAST_MARGIN = 12

Text = str | Promise


class Kind(StrEnum):
    """``BARS``: amounts that can be added up, stacked. ``LINES``: values that cannot."""

    BARS = "bars"
    LINES = "lines"


@dataclass(frozen=True, slots=True)
class Measure:
    """What a figure counts: whole numbers of ``10 ** -places`` of ``unit``."""

    unit: Text
    places: int = 0

    def exactly(self, value: int) -> str:
        """A figure as people read it, to its last digit, in their language."""
        return grouped(self.plainly(value))

    def plainly(self, value: int) -> str:
        """The same for programs."""
        return f"{Decimal(value).scaleb(-self.places):.{self.places}f}"

    def briefly(self, value: int) -> str:
        """Such as ``1.5k`` or ``0.002``, in their language: for a grid, whose values are round."""
        amount = Decimal(value).scaleb(-self.places)
        for size, letter in ((9, "G"), (6, "M"), (3, "k")):
            if abs(amount) >= 10**size:
                return f"{number_format(_without_zeros(amount.scaleb(-size)))}{letter}"
        return str(number_format(_without_zeros(amount)))


REQUESTS = Measure(gettext_lazy("requests"))
TOKENS = Measure(gettext_lazy("tokens"))
USD = Measure("USD", places=6)
SECONDS = Measure(gettext_lazy("seconds"), places=3)


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the horizontal axis.

    ``name`` tells it in full, ``tick`` is what fits under the axis, ``value`` is
    for programs. ``at`` is set where it is an instant.
    """

    name: str
    tick: str
    value: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A figure for each point of a chart; None where there is no data, which is not zero.

    ``id`` is for programs, ``name`` for people.
    """

    id: str
    name: Text
    values: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Limit:
    """A value that is not to be passed, drawn as a line through the whole chart."""

    name: Text
    value: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a stack; ``style`` counts series from 1, lengths have their unit with them."""

    style: int
    series: str
    value: int
    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line, at so many per cent of the plot; ``radius`` is in pixels."""

    style: int
    series: str
    value: int
    x: str
    y: str
    radius: int
    colour: str


@dataclass(frozen=True, slots=True)
class Column:
    """All there is at one point: ``told`` is every figure in words; ``empty`` if there is no data."""

    point: Point
    told: str
    x: str
    width: str
    bars: list[Bar]
    marks: list[Mark]
    empty: bool


@dataclass(frozen=True, slots=True)
class Line:
    """What joins the points of a series, in thousandths of the plot; interrupted where there is no data."""

    style: int
    series: str
    parts: list[str]
    colour: str
    dash: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A text at an axis, at so many per cent of it; ``anchor`` keeps it within the drawing."""

    place: str
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A series in the legend, with what it comes to."""

    style: int
    name: str
    told: str
    y: int
    colour: str
    dash: str


@dataclass(frozen=True)
class Chart:
    """Figures over points, ready for ``portal/_chart.html``.

    ``id`` is a word that is unique on the page. Raises ``ValueError`` for
    series that do not fit the points, or more of them than can be told apart;
    see ``largest``.
    """

    id: str
    title: Text
    points: Sequence[Point]
    series: Sequence[Series]
    measure: Measure
    kind: Kind = Kind.BARS
    limit: Limit | None = None
    # What the first column of its table is called.
    over: Text = field(default=gettext_lazy("Time"))

    def __post_init__(self) -> None:
        if not 0 < len(self.series) <= MOST_SERIES:
            raise ValueError(f"a chart has 1 to {MOST_SERIES} series, not {len(self.series)}")
        if any(len(one.values) != len(self.points) for one in self.series):
            raise ValueError("a series has one value for each point")

    @cached_property
    def empty(self) -> bool:
        """Whether there is no data at all."""
        return all(value is None for one in self.series for value in one.values)

    @cached_property
    def entries(self) -> list[Entry]:
        """The legend; its texts stand one below the other."""
        first = TOP + HEIGHT_OF_PLOT + HEIGHT_OF_TICKS + HEIGHT_OF_NAME // 2
        return [
            Entry(
                style=number + 1,
                name=_shortened(str(one.name)),
                told=self._comes_to(one),
                y=first + HEIGHT_OF_NAME * number,
                colour=COLOURS[number],
                dash=DASHES[number],
            )
            for number, one in enumerate(self.series)
        ]

    @cached_property
    def described(self) -> str:
        """What the chart shows, in a sentence for each series."""
        span = (
            _("%(title)s, %(first)s to %(last)s, in %(unit)s.")
            % {
                "title": self.title,
                "first": self.points[0].name,
                "last": self.points[-1].name,
                "unit": self.measure.unit,
            }
            if self.points
            else f"{self.title}."
        )
        told = [f"{one.name}: {self._comes_to(one)}." for one in self.series]
        if self.limit is not None:
            told.append(f"{self.limit.name}: {self.measure.exactly(self.limit.value)}.")
        return " ".join([span, *told])

    @property
    def height(self) -> int:
        return TOP + HEIGHT_OF_PLOT + HEIGHT_OF_TICKS + HEIGHT_OF_NAME * len(self.series)

    @cached_property
    def margin(self) -> int:
        """Per cent of the width that the texts of the grid take, left of the plot."""
        longest = max(len(line.text) for line in self.grid)
        return max(LEAST_MARGIN, WIDTH_OF_LETTER * longest)

    @property
    def width_of_plot(self) -> int:
        """Per cent of the width."""
        return 100 - self.margin

    @property
    def top(self) -> int:
        return TOP

    @property
    def height_of_plot(self) -> int:
        return HEIGHT_OF_PLOT

    @property
    def below(self) -> int:
        """Where the texts under the axis stand."""
        return TOP + HEIGHT_OF_PLOT + 16

    @cached_property
    def columns(self) -> list[Column]:
        """The points with what is drawn at them."""
        width = 100 / max(len(self.points), 1)
        found = []
        for place, point in enumerate(self.points):
            values = [one.values[place] for one in self.series]
            column = Column(
                point=point,
                told=self._told(point, values),
                x=_number(place * width),
                width=_number(width),
                bars=self._bars(place, width) if self.kind == Kind.BARS else [],
                marks=self._marks(place, width) if self.kind == Kind.LINES else [],
                empty=all(value is None for value in values),
            )
            found.append(column)
        return found

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of a chart of lines; none of a chart of bars."""
        if self.kind == Kind.BARS:
            return []
        width = 1000 / max(len(self.points), 1)
        found = []
        for number, one in enumerate(self.series):
            places = [
                None
                if value is None
                else f"{_number((place + 0.5) * width)},{_number(1000 - 10 * self._share(value))}"
                for place, value in enumerate(one.values)
            ]
            runs = [list(run) for known, run in groupby(places, key=bool) if known]
            parts = [" ".join(map(str, run)) for run in runs if len(run) > 1]
            found.append(Line(number + 1, one.id, parts, COLOURS[number], DASHES[number]))
        return found

    @cached_property
    def grid(self) -> list[Tick]:
        """The lines of the grid, from the lowest up, with their texts."""
        return [
            Tick(_number(100 - self._share(value)), self.measure.briefly(value), "end")
            for value in range(0, self._top + 1, self._step)
        ]

    @cached_property
    def ticks(self) -> list[Tick]:
        """The texts under the axis: the first, the last, and some between."""
        count = len(self.points)
        shown = min(MOST_TICKS, count)
        places = sorted({round(number * (count - 1) / max(shown - 1, 1)) for number in range(shown)})
        width = 100 / max(count, 1)
        # Where each point has a text there is room for it; at the edges of many it would leave the drawing.
        anchors = {0: "start", count - 1: "end"} if count > MOST_TICKS else {}
        return [
            Tick(
                _number({"start": 0, "end": 100}.get(anchors.get(place, ""), (place + 0.5) * width)),
                self.points[place].tick,
                anchors.get(place, "middle"),
            )
            for place in places
        ]

    @cached_property
    def limit_line(self) -> Tick | None:
        """The limit, at so many per cent from the top."""
        if self.limit is None:
            return None
        told = f"{self.limit.name}: {self.measure.exactly(self.limit.value)}"
        return Tick(_number(100 - self._share(self.limit.value)), told, "end")

    @cached_property
    def rows(self) -> list[tuple[Point, list[str | None]]]:
        """The same figures as a table: each point with a figure for each series, None without data."""
        return [
            (
                point,
                [
                    None if (value := one.values[place]) is None else self.measure.exactly(value)
                    for one in self.series
                ],
            )
            for place, point in enumerate(self.points)
        ]

    @cached_property
    def summary(self) -> list[str | None]:
        """What each series comes to: its sum, or of a chart of lines its highest figure."""
        return [self._summary(one) for one in self.series]

    @property
    def svg_name(self) -> str:
        return f"{self.id}.svg"

    @property
    def csv_name(self) -> str:
        return f"{self.id}.csv"

    def as_svg(self) -> str:
        """The drawing as a file of its own, which needs no stylesheet."""
        return render_to_string("portal/_chart.svg", {"chart": self, "alone": True})

    def as_csv(self) -> str:
        """The figures for programs: RFC 4180, a column for each series, empty where there is no data."""
        text = StringIO(newline="")
        table = csv.writer(text)
        table.writerow([str(self.over), *(f"{one.name} ({self.measure.unit})" for one in self.series)])
        for place, point in enumerate(self.points):
            values = [one.values[place] for one in self.series]
            table.writerow(
                [
                    harmless(point.value),
                    *("" if value is None else self.measure.plainly(value) for value in values),
                ]
            )
        return text.getvalue()

    @cached_property
    def _step(self) -> int:
        """Between two lines of the grid: the largest that makes at least ``FEWEST_STEPS`` of them."""
        highest = self._highest
        power = 1
        while power * 10 * FEWEST_STEPS <= highest:
            power *= 10
        return max(step * power for step in STEPS if step == 1 or step * power * FEWEST_STEPS <= highest)

    @cached_property
    def _top(self) -> int:
        """What the plot reaches up to: the first line of the grid that nothing is above."""
        return -(-self._highest // self._step) * self._step

    @cached_property
    def _highest(self) -> int:
        # What is negative takes nothing off a stack: it is not drawn.
        known = [[max(value or 0, 0) for value in one.values] for one in self.series]
        together = sum if self.kind == Kind.BARS else max
        highest: list[int] = [together(values) for values in zip(*known, strict=True)]
        reached = max([*highest, *([self.limit.value] if self.limit else [])], default=0)
        # Where all is zero the grid reaches one unit, not the least part of one.
        return reached or 10**self.measure.places

    def _share(self, value: int | None) -> float:
        """Per cent of the height of the plot."""
        return max(value or 0, 0) / self._top * 100

    def _bars(self, place: int, width: float) -> list[Bar]:
        bars, below = [], 0.0
        for style, one in enumerate(self.series, start=1):
            value = one.values[place]
            if value is None:
                continue
            share = self._share(value)
            bars.append(
                Bar(
                    style=style,
                    series=one.id,
                    value=value,
                    x=f"{_number((place + 0.12) * width)}%",
                    y=f"{_number(100 - below - share)}%",
                    width=f"{_number(width * 0.76)}%",
                    # A zero is seen under the axis, where there is nothing without data.
                    height=f"{_number(share)}%" if share else "2",
                )
            )
            below += share
        return bars

    def _marks(self, place: int, width: float) -> list[Mark]:
        marks = []
        for number, one in enumerate(self.series):
            value = one.values[place]
            if value is not None:
                x, y = _number((place + 0.5) * width), _number(100 - self._share(value))
                radius = 3 if self._is_marked(one, place) else 0
                marks.append(Mark(number + 1, one.id, value, x, y, radius, COLOURS[number]))
        return marks

    def _is_marked(self, one: Series, place: int) -> bool:
        """Whether a point is drawn: always where no line comes to it."""
        beside = [one.values[near] for near in (place - 1, place + 1) if 0 <= near < len(one.values)]
        return len(self.points) <= MOST_MARKED or all(value is None for value in beside)

    def _told(self, point: Point, values: Sequence[int | None]) -> str:
        figures = ", ".join(
            f"{one.name} {_('no data') if value is None else self.measure.exactly(value)}"
            for one, value in zip(self.series, values, strict=True)
        )
        return f"{point.name}: {figures} ({self.measure.unit})"

    def _summary(self, one: Series) -> str | None:
        known = [value for value in one.values if value is not None]
        if not known:
            return None
        return self.measure.exactly(sum(known) if self.kind == Kind.BARS else max(known))

    def _comes_to(self, one: Series) -> str:
        summary = self._summary(one)
        if summary is None:
            return _("no data")
        if self.kind == Kind.BARS:
            return _("%(total)s in total") % {"total": summary}
        return _("at most %(highest)s") % {"highest": summary}


def hours(instants: Sequence[datetime], zone: ZoneInfo) -> list[Point]:
    """Points for hours that begin at these instants, told in ``zone``."""
    return [
        Point(f"{local:%Y-%m-%d %H:%M}", f"{local:%H:%M}", at.astimezone(UTC).isoformat(), at)
        for at, local in ((at, at.astimezone(zone)) for at in instants)
    ]


def days(dates: Sequence[date]) -> list[Point]:
    """Points for accounting days."""
    return [Point(day.isoformat(), f"{day:%m-%d}", day.isoformat()) for day in dates]


def largest(series: Sequence[Series]) -> list[Series]:
    """As many series as one chart can tell apart: those with the largest sums, and the rest as one."""
    in_order = sorted(series, key=lambda one: -sum(value or 0 for value in one.values))
    if len(in_order) <= MOST_SERIES:
        return in_order
    told, rest = in_order[: MOST_SERIES - 1], in_order[MOST_SERIES - 1 :]
    together = [
        sum(known) if (known := [value for value in values if value is not None]) else None
        for values in zip(*(one.values for one in rest), strict=True)
    ]
    return [*told, Series("others", _("%(count)s others") % {"count": len(rest)}, together)]


def as_file(request: HttpRequest, charts: Sequence[Chart]) -> HttpResponse | None:
    """The chart that ``?chart=<id>.svg`` or ``?chart=<id>.csv`` asks for, to be kept as a file.

    None if the address asks for none; raises ``Http404`` for one that is not on the page.
    """
    wanted = request.GET.get("chart")
    if wanted is None:
        return None
    for chart in charts:
        if wanted == chart.svg_name:
            content, content_type = chart.as_svg(), "image/svg+xml"
            break
        if wanted == chart.csv_name:
            content, content_type = chart.as_csv(), "text/csv"
            break
    else:
        raise Http404
    return HttpResponse(
        content,
        content_type=f"{content_type}; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{wanted}"'},
    )


def _without_zeros(amount: Decimal) -> Decimal:
    """The same amount without zeros at its end, and not as a power of ten."""
    return Decimal(f"{amount.normalize():f}")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _number(value: float) -> str:
    """A coordinate with at most two digits behind the point, whatever language the page is in."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
