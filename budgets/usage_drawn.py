"""A breakdown of usage as a chart, and as a file for programs; both say what the table of the page says."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo

from django.utils.functional import Promise
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from budgets.pricing import usd_in_full
from budgets.usage import PARTS, Breakdown, Selection, breakdown
from tenants.charts import REQUESTS, TOKENS, USD, Chart, Measure, Point, Series, days, hours
from tenants.spreadsheets import harmless

# As many bars as can be told apart; of times as many as a quarter has days, or four days hours.
MOST_BARS = 100
# What fits under a bar.
LONGEST_TICK = 8
MEASURES = {"requests": REQUESTS, "cost_micro_usd": USD, "gpu_ms": Measure("ms")}


def drawn(
    selection: Selection, whole: Breakdown, order: str, names: Mapping[str, Promise], zone: ZoneInfo
) -> list[Chart]:
    """The chart of ``whole``, told apart by its first part only: the figure it is sorted by, else tokens.

    None where each bar would be one request. ``names`` are those of parts and
    figures; hours are told in ``zone``.
    """
    part = whole.by[0]
    if part == "request" or not whole.rows:
        return []
    # Two things side by side are a table, not an axis.
    if len(whole.by) > 1 or len(whole.rows) > MOST_BARS:
        whole = breakdown(selection, [part], order=order, limit=MOST_BARS)
    rows, left_out = whole.rows, whole.left_out
    if part in ("hour", "day"):
        rows, points = _over_time(part, rows, zone)
    else:
        points = [_of_thing(str(row[PARTS[part][-1]])[: 7 if part == "month" else None]) for row in rows]
    if left_out:
        rows = [*rows, whole.rest]
        points.append(_of_thing(_("%(count)s others") % {"count": left_out}))
    figure = order.removeprefix("-")
    figures = [figure] if figure else ["input_tokens", "output_tokens"]
    series = [Series(one, names[one], [row.get(one) for row in rows]) for one in figures]
    # The unit stands at the axis.
    told = str(names[figure]).partition(",")[0] if figure else _("Tokens")
    title = _("%(figure)s by %(part)s") % {"figure": told, "part": names[part]}
    return [
        Chart("usage", title, points, series, MEASURES.get(figure, TOKENS), over=capfirst(str(names[part])))
    ]


def as_csv(whole: Breakdown) -> str:
    """The rows for programs: RFC 4180, each part with its id, then the figures; cost in US dollars.

    No name is taken for a formula by a spreadsheet. ``parts`` is 1, and of the last row, if rows
    were left out, how many it stands for.
    """
    columns = [column for part in whole.by for column in PARTS[part]]
    figures = [name for name in whole.total if name != "cost_micro_usd"]
    text = StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*columns, *figures, "cost_usd", "parts"])
    rows: list[tuple[dict[str, Any], int]] = [(row, 1) for row in whole.rows]
    if whole.left_out:
        rows.append((whole.rest, whole.left_out))
    for row, parts in rows:
        named = [harmless(str(row.get(column) or "")) for column in columns]
        cost = usd_in_full(row["cost_micro_usd"])
        table.writerow([*named, *(row[name] for name in figures), cost, parts])
    return text.getvalue()


def _over_time(
    part: str, rows: Sequence[dict[str, Any]], zone: ZoneInfo
) -> tuple[list[dict[str, Any]], list[Point]]:
    """The rows in the order of time, with one that knows nothing for each time between them."""
    known = {str(row[part]): row for row in rows}
    if part == "day":
        first, last = date.fromisoformat(min(known)), date.fromisoformat(max(known))
        dates = [first + timedelta(days=number) for number in range((last - first).days + 1)]
        dates = dates if len(dates) <= MOST_BARS else [date.fromisoformat(day) for day in sorted(known)]
        return [known.get(day.isoformat(), {}) for day in dates], days(dates)
    begin, end = (datetime.fromisoformat(pick(known)).astimezone(UTC) for pick in (min, max))
    instants = [begin + timedelta(hours=number) for number in range((end - begin) // timedelta(hours=1) + 1)]
    if len(instants) > MOST_BARS:
        instants = [datetime.fromisoformat(hour) for hour in sorted(known)]
    return [known.get(at.isoformat(), {}) for at in instants], hours(instants, zone)


def _of_thing(name: str) -> Point:
    name = name or _("none")
    tick = name if len(name) <= LONGEST_TICK else f"{name[: LONGEST_TICK - 1]}…"
    return Point(name, tick, name)
