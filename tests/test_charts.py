"""Charts: what is drawn stands in attributes, and the table, the file and the drawing say the same."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html import unescape
from io import StringIO
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from django.contrib.sessions.backends.base import SessionBase
from django.http import Http404
from django.template.loader import render_to_string
from django.test import RequestFactory

from tenants import charts, services
from tenants.access import Access
from tenants.charts import REQUESTS, TOKENS, USD, Chart, Kind, Limit, Measure, Series
from tenants.models import Tenant, User
from tests.people import Outline

SVG = "{http://www.w3.org/2000/svg}"
BERLIN = ZoneInfo("Europe/Berlin")
MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
FOUR_HOURS = charts.hours([MIDNIGHT + timedelta(hours=hour) for hour in range(4)], BERLIN)


def a_chart(*values: Sequence[int | None], **options: object) -> Chart:
    """A chart over four hours, with a series for each of ``values``."""
    series = [Series(f"s{number}", f"Series {number}", one) for number, one in enumerate(values)]
    chart = Chart("tokens", "Tokens", FOUR_HOURS, series, TOKENS)
    return replace(chart, **options)  # type: ignore[arg-type]


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.as_svg())  # noqa: S314 - our own drawing


def with_data(drawing: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The elements that have this data attribute, in their order."""
    return [one for one in drawing.iter() if f"data-{name}" in one.attrib]


def figures(drawing: ElementTree.Element) -> list[tuple[str, str, str]]:
    """What is drawn: where, which series, how much."""
    return [
        (column.attrib["data-at"], one.attrib["data-series"], one.attrib["data-value"])
        for column in with_data(drawing, "at")
        for one in with_data(column, "value")
    ]


def as_per_cent(length: str) -> float:
    assert length.endswith("%"), length
    return float(length.removesuffix("%"))


def page_with(chart: Chart, tenant: Tenant) -> str:
    """The chart as a page shows it."""
    request = RequestFactory().get("/portal/acme/", {"days": "7"})
    request.user, request.session = User(), SessionBase()
    request.access = Access(request.user, tenant, None)  # type: ignore[attr-defined]
    return render_to_string("portal/_chart.html", {"chart": chart}, request)


def cells_of(page: str) -> list[str]:
    """The figures of the table, sums included, row by row."""
    cells = re.findall(r'<td class="number">(.*?)</td>', page)
    return [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in cells]


@pytest.mark.parametrize("kind", Kind)
def test_each_figure_is_drawn_once_and_what_is_not_known_is_not(kind: Kind) -> None:
    drawing = drawn(a_chart([5, 0, None, 7], [1, 2, None, None], kind=kind))

    assert figures(drawing) == [
        ("2026-03-01T00:00:00+00:00", "s0", "5"),
        ("2026-03-01T00:00:00+00:00", "s1", "1"),
        ("2026-03-01T01:00:00+00:00", "s0", "0"),
        ("2026-03-01T01:00:00+00:00", "s1", "2"),
        ("2026-03-01T03:00:00+00:00", "s0", "7"),
    ]
    empty = [one.attrib["data-at"] for one in with_data(drawing, "empty")]
    assert empty == ["2026-03-01T02:00:00+00:00"]


def test_a_zero_can_be_seen_and_is_told_apart_from_no_data() -> None:
    drawing = drawn(a_chart([4, 0, None, 4]))

    zero = next(one for one in with_data(drawing, "value") if one.attrib["data-value"] == "0")
    titles = [one.findtext(f"{SVG}title") for one in with_data(drawing, "at")]

    assert (zero.attrib["y"], zero.attrib["height"]) == ("100%", "2")
    assert titles[1:3] == [
        "2026-03-01 02:00: Series 0 0 (tokens)",
        "2026-03-01 03:00: Series 0 no data (tokens)",
    ]


def test_a_grid_over_nothing_but_zeros_reaches_one_unit() -> None:
    grid = [line.text for line in a_chart([0, 0, None, 0], measure=USD).grid]

    assert grid == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_bars_of_one_hour_stand_on_each_other() -> None:
    drawing = drawn(a_chart([30, 0, 0, 0], [10, 0, 0, 0], [20, 0, 0, 0]))

    bars = with_data(with_data(drawing, "at")[0], "value")
    tops = [as_per_cent(bar.attrib["y"]) for bar in bars]
    heights = [as_per_cent(bar.attrib["height"]) for bar in bars]

    assert heights == [pytest.approx(share, abs=0.01) for share in (50, 16.67, 33.33)]
    assert tops == [pytest.approx(top, abs=0.01) for top in (50, 33.33, 0)]


def test_a_line_is_interrupted_where_there_is_no_data() -> None:
    drawing = drawn(a_chart([10, 20, None, 20], kind=Kind.LINES))

    [line] = drawing.iter(f"{SVG}polyline")

    assert line.attrib["data-series"] == "s0"
    assert line.attrib["points"] == "125,500 375,0"
    assert [one.attrib["r"] for one in with_data(drawing, "value")] == ["3", "3", "3"]


def test_a_limit_is_a_line_that_the_plot_has_room_for() -> None:
    drawing = drawn(a_chart([5, 5, 5, 5], limit=Limit("Limit of the key", 20)))

    [line] = with_data(drawing, "limit")

    assert (line.attrib["data-limit"], line.attrib["y1"], line.attrib["y2"]) == ("20", "0%", "0%")
    assert as_per_cent(with_data(drawing, "value")[0].attrib["y"]) == 75
    assert "Limit of the key: 20" in "".join(drawing.itertext())


def test_series_are_told_apart_by_pattern_and_dash_besides_the_colour() -> None:
    values = [[1, 1, 1, 1]] * charts.MOST_SERIES

    bars, lines = drawn(a_chart(*values)), drawn(a_chart(*values, kind=Kind.LINES))

    fills = {one.attrib["fill"] for one in with_data(bars, "value")}
    patterns = {one.attrib["id"]: ElementTree.tostring(one) for one in bars.iter(f"{SVG}pattern")}
    shapes = {
        pattern.split(b"currentColor", 1)[1] for name, pattern in patterns.items() if "none" not in name
    }
    assert len(fills) == len(shapes) == charts.MOST_SERIES
    assert {fill.removeprefix("url(#").removesuffix(")") for fill in fills} < set(patterns)
    assert len({one.attrib["stroke-dasharray"] for one in lines.iter(f"{SVG}polyline")}) == charts.MOST_SERIES


@pytest.mark.parametrize(
    ("highest", "grid"),
    [
        (0, ["0", "1"]),
        (1, ["0", "1"]),
        (3, ["0", "1", "2", "3"]),
        (7, ["0", "2", "4", "6", "8"]),
        (999, ["0", "200", "400", "600", "800", "1k"]),
        (15_000, ["0", "5k", "10k", "15k"]),
        (4_200_000, ["0", "1M", "2M", "3M", "4M", "5M"]),
        (2**53, ["0", "2000000G", "4000000G", "6000000G", "8000000G", "10000000G"]),
    ],
)
def test_the_grid_has_round_lines_up_to_above_the_highest(highest: int, grid: list[str]) -> None:
    chart = a_chart([highest, None, None, None])

    assert [tick.text for tick in chart.grid] == grid
    assert (chart.grid[0].place, chart.grid[-1].place) == ("100", "0")


@pytest.mark.parametrize(
    ("highest", "longest", "margin"), [(80, "80", 12), (80_000, "0.08", 12), (80, "0.00008", 21)]
)
def test_long_texts_of_the_grid_have_room_beside_the_plot(highest: int, longest: str, margin: int) -> None:
    measure = TOKENS if longest == "80" else USD
    chart = a_chart([highest, None, None, None], measure=measure)

    plot = next(one for one in drawn(chart).findall(f"{SVG}svg") if one.findall(f"{SVG}g"))

    assert longest in [line.text for line in chart.grid]
    assert (plot.attrib["x"], plot.attrib["width"]) == (f"{margin}%", f"{100 - margin}%")


@pytest.mark.parametrize(
    ("measure", "value", "exactly", "plainly", "briefly"),
    [
        (REQUESTS, 1_234_567, "1,234,567", "1234567", "1.234567M"),
        (REQUESTS, 0, "0", "0", "0"),
        (REQUESTS, -1_500, "-1,500", "-1500", "-1.5k"),
        (USD, 1, "0.000001", "0.000001", "0.000001"),
        (USD, 1_234_567_890, "1,234.567890", "1234.567890", "1.23456789k"),
        (charts.SECONDS, 20, "0.020", "0.020", "0.02"),
    ],
)
def test_figures_are_told_to_their_last_digit(
    measure: Measure, value: int, exactly: str, plainly: str, briefly: str
) -> None:
    told = (measure.exactly(value), measure.plainly(value), measure.briefly(value))

    assert told == (exactly, plainly, briefly)


def test_the_file_for_programs_has_the_same_figures_and_nothing_for_no_data() -> None:
    chart = a_chart([1_500_000, 0, None, 1], [2, None, None, 3], measure=USD)

    rows = list(csv.reader(StringIO(chart.as_csv(), newline="")))

    assert rows == [
        ["Time", "Series 0 (USD)", "Series 1 (USD)"],
        ["2026-03-01T00:00:00+00:00", "1.500000", "0.000002"],
        ["2026-03-01T01:00:00+00:00", "0.000000", ""],
        ["2026-03-01T02:00:00+00:00", "", ""],
        ["2026-03-01T03:00:00+00:00", "0.000001", "0.000003"],
    ]


def test_no_name_in_the_file_for_programs_is_a_formula_of_a_spreadsheet() -> None:
    points = [charts.Point(name, name, name) for name in ("=rest()", "nightly", "'told")]
    series = [charts.Series("requests", "Requests", [1, 2, 3])]

    file = charts.Chart("usage", "Requests by key", points, series, charts.REQUESTS).as_csv()

    assert [row[0] for row in csv.reader(StringIO(file, newline=""))][1:] == ["'=rest()", "nightly", "''told"]


@pytest.mark.django_db
def test_a_page_shows_the_chart_with_its_table_and_its_files() -> None:
    acme = services.create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin")

    page = page_with(a_chart([1_000, 0, None, 7], limit=Limit("Limit", 2_000)), acme)

    assert cells_of(page) == ["1,000", "0", "no data", "7", "1,007"]
    assert 'title="2026-03-01 00:00:00 UTC">2026-03-01 01:00:00<' in page
    assert Outline(page).links == ["?days=7&chart=tokens.svg", "?days=7&chart=tokens.csv"]
    assert "Series 0: 1,007 in total" in page
    assert not Outline(page).inline


@pytest.mark.django_db
def test_a_chart_without_any_data_is_a_sentence_and_not_an_axis_with_zeros() -> None:
    acme = services.create_tenant(slug="acme", name="ACME", actor="test")

    page = page_with(a_chart([None] * 4), acme)

    assert "There is no data. That is not a zero" in page
    assert "<svg" not in page


def test_the_description_tells_span_sums_and_limit_in_words() -> None:
    bars = a_chart([1, 2, None, 4], [None] * 4, limit=Limit("Limit of the key", 9_000))
    lines = a_chart([1, 2, None, 4], kind=Kind.LINES, limit=None)

    assert bars.described == (
        "Tokens, 2026-03-01 01:00 to 2026-03-01 04:00, in tokens. Series 0: 7 in total. Series 1: no data. "
        "Limit of the key: 9,000."
    )
    assert lines.described.endswith("Series 0: at most 4.")
    assert drawn(bars).findtext(f"{SVG}desc") == bars.described


@pytest.mark.parametrize(("kind", "content_type"), [("svg", "image/svg+xml"), ("csv", "text/csv")])
def test_an_address_downloads_one_chart_of_a_page(kind: str, content_type: str) -> None:
    chart = a_chart([1, 2, 3, 4])
    asked = RequestFactory().get("/", {"chart": f"tokens.{kind}"})

    response = charts.as_file(asked, [a_chart([9, 9, 9, 9], id="other"), chart])

    assert response is not None
    assert response.content.decode() == (chart.as_svg() if kind == "svg" else chart.as_csv())
    assert response.headers["Content-Type"] == f"{content_type}; charset=utf-8"
    assert response.headers["Content-Disposition"] == f'attachment; filename="tokens.{kind}"'


def test_an_address_that_asks_for_no_chart_is_left_to_the_page() -> None:
    assert charts.as_file(RequestFactory().get("/"), [a_chart([1, 2, 3, 4])]) is None


@pytest.mark.parametrize("wanted", ["", "tokens", "tokens.png", "other.svg", "tokens.svg\r\n"])
def test_a_chart_that_is_not_on_the_page_is_not_found(wanted: str) -> None:
    with pytest.raises(Http404):
        charts.as_file(RequestFactory().get("/", {"chart": wanted}), [a_chart([1, 2, 3, 4])])


def test_what_cannot_be_told_apart_is_added_up() -> None:
    series = [Series(str(number), f"m{number}", [number, None]) for number in range(9)]

    told = charts.largest(series)

    assert [one.name for one in told] == ["m8", "m7", "m6", "m5", "m4", "4 others"]
    assert told[-1].values == [3 + 2 + 1 + 0, None]
    assert charts.largest(series[:6]) == series[5::-1]


@pytest.mark.parametrize(
    "series",
    [
        pytest.param([], id="none at all"),
        pytest.param([Series("s", "S", [1, 2])], id="fewer values than points"),
        pytest.param([Series(str(number), "S", [1] * 4) for number in range(7)], id="too many"),
    ],
)
def test_series_that_cannot_be_drawn_are_refused(series: list[Series]) -> None:
    with pytest.raises(ValueError, match="series"):
        Chart("tokens", "Tokens", FOUR_HOURS, series, TOKENS)


def test_days_are_told_as_days() -> None:
    [point] = charts.days([date(2026, 3, 1)])

    assert (point.name, point.tick, point.value, point.at) == ("2026-03-01", "03-01", "2026-03-01", None)


def test_texts_under_the_axis_are_few_and_stay_within_the_drawing() -> None:
    month = charts.days([date(2026, 3, 1) + timedelta(days=day) for day in range(31)])
    chart = Chart("tokens", "Tokens", month, [Series("s", "S", [1] * 31)], TOKENS)

    assert [(tick.text, tick.anchor) for tick in chart.ticks] == [
        ("03-01", "start"), ("03-11", "middle"), ("03-21", "middle"), ("03-31", "end"),
    ]  # fmt: skip
    assert (chart.ticks[0].place, chart.ticks[-1].place) == ("0", "100")


@pytest.mark.parametrize(
    ("count", "places"), [(1, ["50"]), (2, ["25", "75"]), (4, ["12.5", "37.5", "62.5", "87.5"])]
)
def test_the_texts_of_few_bars_stand_under_their_bars(count: int, places: list[str]) -> None:
    days = charts.days([date(2026, 3, 1) + timedelta(days=day) for day in range(count)])
    chart = Chart("tokens", "Tokens", days, [Series("s", "S", [1] * count)], TOKENS)

    assert [(tick.place, tick.anchor) for tick in chart.ticks] == [(place, "middle") for place in places]


def test_a_name_from_outside_cannot_draw_anything() -> None:
    hostile = '"><script>alert(1)</script>'
    chart = Chart(
        "tokens", hostile, FOUR_HOURS, [Series(hostile, hostile, [1] * 4)], TOKENS, limit=Limit(hostile, 2)
    )

    assert "<script" not in chart.as_svg()
    assert drawn(chart).findtext(f"{SVG}title") == hostile
