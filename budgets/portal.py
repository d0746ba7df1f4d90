"""Pages about usage: what was used, by whom and of what, down to a request and the lines of its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID
from zoneinfo import ZoneInfo

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path, reverse
from django.utils.timezone import localdate
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from budgets.addresses import IDS, TEXTS, WITHOUT, UsageForm, as_query
from budgets.explaining import Explained, Line, entries_of, explain, month_after, open_parts
from budgets.paging import page_of
from budgets.pricing import exactly_as_usd, usd_in_full
from budgets.reading import readable
from budgets.usage import NONE, PARTS, Selection, breakdown, estimated_share, in_percent
from budgets.usage_drawn import as_csv, drawn
from tenants import charts
from tenants.access import Access, Reach
from tenants.figures import grouped
from tenants.portal import tenant_page

# More than anybody reads on one page; the rest is one line.
MOST_ROWS = 100
# What a file of a page has at most; more than that is ordered as an export.
MOST_IN_FILE = 10_000
# Of so many requests each can be told apart from all others in the time that a page may take.
MOST_COMPARED = 10_000

# The figures as columns, in their order; on a narrow screen the first are seen first.
HEADINGS = {
    "requests": _("Requests"),
    "cost_micro_usd": _("Cost, USD"),
    "estimated_tokens": _("Estimated tokens"),
    "input_tokens": _("Input tokens"),
    "output_tokens": _("Output tokens"),
    "cached_tokens": _("Cached input"),
    "thinking_tokens": _("Thinking"),
    "gpu_ms": _("GPU time, ms"),
}

# What usage is told apart by and narrowed to, as people call it.
NAMES = {
    "tenant": _("tenant"),
    "team": _("team"),
    "member": _("member"),
    "key": _("key"),
    "model": _("model"),
    "upstream": _("upstream"),
    "operation": _("operation"),
    "route": _("route"),
    "run": _("run"),
    "month": _("month"),
    "day": _("day"),
    "hour": _("hour"),
    "request": _("request"),
    "since": _("ended since"),
    "until": _("ended until"),
}
WITHOUT_ONE = {"team": _("no team"), "member": _("no member"), "route": _("not known"), "run": _("no run")}


@dataclass(frozen=True, slots=True)
class Heading:
    """The head of a column of figures; ``href`` sorts by it, ``sort`` is how the rows are sorted now."""

    text: str
    href: str
    sort: str


@dataclass(frozen=True, slots=True)
class Cell:
    """What a row is about; ``at`` is set for an hour, ``href`` leads to what it is made of."""

    text: str
    href: str
    at: datetime | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what it is about, its figures as they are shown, and where its entries are."""

    cells: list[Cell]
    requests: str
    figures: list[str]
    entries: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Something by which usage is narrowed, and the address of the same page without it."""

    part: str
    text: str
    at: datetime | None
    without: str


@tenant_page
def usage(request: HttpRequest, access: Access) -> HttpResponse:
    """What was used, told apart by anything; of the present month, if no range is asked for."""
    form = UsageForm(request.GET, known=["chart", "file"])
    if not form.is_valid():
        return render(request, "portal/usage/refused.html", {"form": form}, status=400)
    selection = _readable(form, access)
    if not (selection.from_day or selection.before_day or selection.since or selection.until):
        month = localdate(timezone=ZoneInfo(access.tenant.time_zone)).replace(day=1)
        selection = replace(selection, from_day=month, before_day=month_after(month))
    by, order = form.cleaned_data["by"] or ["key"], form.cleaned_data["order"]
    if "request" in by:
        number = breakdown(selection, ()).total["requests"]
        if number > MOST_COMPARED:
            messages.info(request, _too_many(number))
            return redirect(_entries_page(access, selection))
    if request.GET.get("file") == "csv":
        return _csv(as_csv(breakdown(selection, by, order=order, limit=MOST_IN_FILE)))
    explained = explain(selection, by, order=order, limit=form.cleaned_data["limit"] or MOST_ROWS)
    whole = explained.whole
    pictures = drawn(selection, whole, order, NAMES | HEADINGS, ZoneInfo(access.time_zone))
    if (file := charts.as_file(request, pictures)) is not None:
        return file
    context = {
        "selection": selection,
        "charts": pictures,
        "by": whole.by,
        "told_apart_by": [NAMES[part] for part in whole.by],
        "parts": [(part, NAMES[part]) for part in PARTS],
        "kept": _kept(selection),
        "filters": list(_filters(selection, access, whole.by)),
        "headings": [_heading(selection, whole.by, order, figure) for figure in HEADINGS],
        "rows": [_row(access, whole.by, part.row, part.selection) for part in explained.parts],
        "left_out": grouped(whole.left_out) if whole.left_out else "",
        "rest": _line(whole.rest, ""),
        "total": _line(whole.total, _entries_page(access, selection)),
        "of_own_keys": access.usage == Reach.OWN_KEYS,
    }
    return render(request, "portal/usage/usage.html", context)


@tenant_page
def entries(request: HttpRequest, access: Access) -> HttpResponse:
    """The entries of which a total is the sum, the newest first."""
    form = UsageForm(request.GET, known=["after"])
    if not form.is_valid():
        return render(request, "portal/usage/refused.html", {"form": form}, status=400)
    selection = _readable(form, access)
    try:
        page = page_of(selection, request.GET.get("after", ""))
    except ValueError as exc:
        raise Http404 from exc
    whole = breakdown(selection, ())
    context = {
        "selection": selection,
        "rows": [(entry, _usd(entry.cost_micro_usd)) for entry in page.entries],
        "total": _line(whole.total, ""),
        "newest": f"?{as_query(selection)}" if request.GET.get("after") else "",
        "older": f"?{as_query(selection, after=page.next)}" if page.next else "",
        "usage": f"{reverse('portal-usage', args=[access.tenant.slug])}?{as_query(selection)}",
        "filters": list(_filters(selection, access, ())),
    }
    return render(request, "portal/usage/entries.html", context)


@tenant_page
def request_explained(request: HttpRequest, access: Access, request_id: UUID) -> HttpResponse:
    """How the cost of a request came about: its entries, line by line."""
    if access.usage == Reach.NOTHING:
        raise PermissionDenied
    selection = readable(Selection(request_id=request_id), access)
    found = entries_of(selection) if selection else []
    if not found:
        raise Http404
    context = {
        "request_id": request_id,
        "first": found[0].entry,
        "entries": [_as_shown(one) for one in found],
        "total": _usd(sum(one.entry.cost_micro_usd for one in found)),
    }
    return render(request, "portal/usage/request.html", context)


def _csv(content: str) -> HttpResponse:
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return HttpResponse(content, content_type="text/csv; charset=utf-8", headers=headers)


def _too_many(number: int) -> str:
    told = gettext(
        "%(number)s requests are too many to be compared with each other: here is each of them, the newest "
        "first. Up to %(most)s are compared: choose a day, a key or a model."
    )
    return told % {"number": grouped(number), "most": grouped(MOST_COMPARED)}


def _readable(form: UsageForm, access: Access) -> Selection:
    """What a person may read of what they asked for; raises for a page that is not theirs."""
    if access.usage == Reach.NOTHING:
        raise PermissionDenied
    selection = readable(form.selection(access.tenant.pk), access)
    if selection is None:
        raise Http404
    return selection


def _kept(selection: Selection) -> list[tuple[str, str]]:
    """What a form has to carry along that asks for other days."""
    return parse_qsl(as_query(replace(selection, from_day=None, before_day=None)))


def _filters(selection: Selection, access: Access, by: Sequence[str]) -> Iterator[Filter]:
    for part in (*IDS, *TEXTS):
        column = f"{part}_id" if part in IDS else part
        value = getattr(selection, column)
        if value is None or (part == "member" and access.usage == Reach.OWN_KEYS):
            continue
        cleared: dict[str, Any] = {column: None}
        without = f"?{as_query(replace(selection, **cleared), by=by)}"
        yield Filter(str(NAMES[part]), _called(selection, part, value), None, without)
    for name in ("since", "until"):
        at = getattr(selection, name)
        if at is not None:
            open_ended: dict[str, Any] = {name: None}
            yield Filter(str(NAMES[name]), "", at, f"?{as_query(replace(selection, **open_ended), by=by)}")


def _called(selection: Selection, part: str, value: Any) -> str:
    """The name of what a selection is narrowed to; its id where nothing of it is selected."""
    if part in WITHOUT and value in (NONE, ""):
        return str(WITHOUT_ONE["route"]) if part == "route" else gettext("none")
    if part not in IDS or part == "request":
        return str(value)
    rows = breakdown(selection, [part]).rows
    return str(rows[0][part]) if rows else str(value)


def _heading(selection: Selection, by: Sequence[str], order: str, figure: str) -> Heading:
    down = order == f"-{figure}"
    href = f"?{as_query(selection, by=by, order=figure if down else f'-{figure}')}"
    sort = "descending" if down else "ascending" if order == figure else ""
    return Heading(str(HEADINGS[figure]), href, sort)


def _row(access: Access, by: Sequence[str], row: Mapping[str, Any], selection: Selection) -> Row:
    cells = [_cell(part, row) for part in by]
    cells[0] = replace(cells[0], href=_further(access, selection))
    return replace(_line(row, _entries_page(access, selection)), cells=cells)


def _cell(part: str, row: Mapping[str, Any]) -> Cell:
    text = str(row[PARTS[part][-1]])
    if part == "month":
        text = text[:7]
    at = datetime.fromisoformat(text) if part == "hour" else None
    return Cell(text or str(WITHOUT_ONE[part]), "", at, part in row["deleted"])


def _further(access: Access, selection: Selection) -> str:
    """Where it is told of what a part is made: by the next thing, and in the end by its entries."""
    following = open_parts(selection)
    if not following:
        return reverse("portal-request", args=[access.tenant.slug, selection.request_id])
    if following[0] == "request":
        return _entries_page(access, selection)
    here = reverse("portal-usage", args=[access.tenant.slug])
    return f"{here}?{as_query(selection, by=following[:1])}"


def _entries_page(access: Access, selection: Selection) -> str:
    return f"{reverse('portal-entries', args=[access.tenant.slug])}?{as_query(selection)}"


def _line(figures: Mapping[str, Any], entries: str) -> Row:
    share = estimated_share(figures)
    estimated = f"{grouped(figures['estimated_tokens'])} ({in_percent(share)})" if share else gettext("none")
    shown = {figure: grouped(figures[figure]) for figure in HEADINGS} | {
        "cost_micro_usd": _usd(figures["cost_micro_usd"]),
        "estimated_tokens": estimated,
    }
    requests, *others = (shown[figure] for figure in HEADINGS)
    return Row([], requests, others, entries)


def _as_shown(one: Explained) -> dict[str, Any]:
    entry = one.entry
    return {
        "entry": entry,
        "by_rates": one.by_rates,
        "lines": [
            (line.what, *_product(line), grouped(exactly_as_usd(line.millionths))) for line in one.lines
        ],
        "cost": _usd(entry.cost_micro_usd),
    }


def _product(line: Line) -> tuple[str, str]:
    if line.quantity is None or line.rate is None:
        return "", ""
    quantity, rate = grouped(line.quantity), _usd(line.rate)
    if line.unit == "ms":
        return f"{quantity} ms", gettext("%(usd)s a second") % {"usd": rate}
    return gettext("%(number)s tokens") % {"number": quantity}, gettext("%(usd)s a million") % {"usd": rate}


def _usd(micro_usd: int) -> str:
    return grouped(usd_in_full(micro_usd))


urlpatterns = [
    path("usage/", usage, name="portal-usage"),
    path("usage/entries/", entries, name="portal-entries"),
    path("requests/<uuid:request_id>/", request_explained, name="portal-request"),
]
