"""The kinds of rows that an export may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.utils.translation import gettext_noop as _

from budgets.exports import calendars, focus
from budgets.exports.calendars import Calendars
from budgets.exports.columns import Column, ids, integers, texts, usd
from budgets.exports.queries import ESTIMATED_TOKENS, Query, entries_of
from budgets.usage import FIGURES, Selection

DAY = (Column("day", "day"), Column("time_zone"))
SUMS = (*integers("entries", *FIGURES), usd("cost_usd"))

OF_REQUESTS = (
    *ids("request_id"),
    *texts("kind"),
    *DAY,
    Column("closed_month", "day"),
    *(Column(name, "instant") for name in ("admitted_at", "started_at", "first_byte_at", "ended_at")),
    *ids("tenant_id"),
    *texts("tenant"),
    *ids("team_id"),
    *texts("team"),
    *ids("member_id"),
    *texts("member"),
    *ids("key_id"),
    *texts("key", "model", "upstream", "route", "operation", "dialect", "run"),
    Column("stream", "boolean"),
    *texts("outcome"),
    *integers("status", *FIGURES),
    usd("cost_usd"),
    *ids("price_id"),
    *integers("input_price", "cached_price", "output_price", "gpu_price"),
    Column("exact", "boolean"),
    *texts("estimator"),
    *(Column(name, "boolean") for name in ("late", "on_credit")),
    *ids("corrects"),
    *texts("reason", "actor"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of rows: a title to be translated, its columns, and the query that has them, in order.

    ``figures_in`` reads from a row of its CSV what it adds to the figures of the ledger.
    ``usual_bytes``: about what a row takes in CSV. ``groups``: the columns of a rollup by which rows are
    told apart, and ``rows_of_a_group`` the most that each gives; none: a row is an entry.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    query: Callable[[Selection, Calendars], Query]
    figures_in: Callable[[dict[str, str]], dict[str, int]]
    usual_bytes: int
    groups: tuple[str, ...] = ()
    rows_of_a_group: int = 1


def _requests(selection: Selection, days: Calendars) -> Query:
    entries, parameters = entries_of(selection)
    worked_out = {"time_zone": "coalesce(of_day.time_zone, 'UTC')", "estimated_tokens": ESTIMATED_TOKENS}
    worked_out["cost_usd"] = "e.cost_micro_usd"
    columns = ", ".join(
        f"{worked_out[column.name]} AS {column.name}" if column.name in worked_out else f"e.{column.name}"
        for column in OF_REQUESTS
    )
    sql = f"""
WITH {calendars.CTE}
SELECT {columns} FROM ({entries}) AS e {calendars.JOIN}
ORDER BY e.day, e.ended_at, e.id"""  # noqa: S608
    return sql, [*days.parameters(), *parameters]


def _summed(*by: str, names: tuple[str, ...] = ()) -> Callable[[Selection, Calendars], Query]:
    """A query that has one row for each tenant and each of what ``by`` tells apart.

    What has an id has the name that it had last, by which ``names`` are known too.
    """
    group = ("tenant_id", *by)
    grouped = ", ".join(f"e.{column}" for column in group)
    sums = {figure: f"sum(e.{figure})" for figure in FIGURES} | {
        "entries": "count(*)",
        "estimated_tokens": f"sum({ESTIMATED_TOKENS})",
        "cost_usd": "sum(e.cost_micro_usd)",
        "newest": "max(e.id)",
    }
    summed = ", ".join(f"{expression} AS {name}" for name, expression in sums.items())
    named = ", ".join(f"newest.{name}" for name in ("tenant", *names))
    # By code points, which is the same on every server.
    order = [
        *(["e.day"] if "day" in by else []),
        *(f'newest.{name} COLLATE "C"' for name in ("tenant", *names)),
        *(f"e.{column}" for column in group),
    ]

    def query(selection: Selection, days: Calendars) -> Query:
        entries, parameters = entries_of(selection)
        cte, join, zone, before = "", "", "", []
        if "day" in by:
            cte, join, before = f"WITH {calendars.CTE}", calendars.JOIN, days.parameters()
            zone = ", coalesce(of_day.time_zone, 'UTC') AS time_zone"
        sql = f"""
{cte}
SELECT e.*, {named}{zone}
FROM (SELECT {grouped}, {summed} FROM ({entries}) AS e GROUP BY {grouped}) AS e
JOIN budgets_ledgerentry AS newest ON newest.id = e.newest {join}
ORDER BY {", ".join(order)}"""  # noqa: S608
        return sql, [*before, *parameters]

    return query


def _own_figures(row: dict[str, str]) -> dict[str, int]:
    return {figure: int(row[figure]) for figure in FIGURES}


_WHOSE = (*ids("tenant_id"), *texts("tenant"))

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("requests", _("Each entry of the ledger"), OF_REQUESTS, _requests, _own_figures, 510),
        Profile(
            "day", _("Sums by day"), (*_WHOSE, *DAY, *SUMS), _summed("day"), _own_figures, 130,
            ("tenant_id", "day"),
        ),
        Profile(
            "key", _("Sums by key"), (*_WHOSE, *ids("key_id"), *texts("key", "member", "team"), *SUMS),
            _summed("key_id", names=("key", "member", "team")), _own_figures, 170,
            ("tenant_id", "key_id"),
        ),
        Profile(
            "model", _("Sums by model"), (*_WHOSE, *texts("model"), *SUMS), _summed("model"), _own_figures,
            130, ("tenant_id", "model"),
        ),
        Profile(
            "team", _("Sums by team"), (*_WHOSE, *ids("team_id"), *texts("team"), *SUMS),
            _summed("team_id", names=("team",)), _own_figures, 160,
            ("tenant_id", "team_id"),
        ),
        Profile(
            "focus", _("FOCUS 1.2: charges by day, key, model and meter"), focus.COLUMNS, focus.query,
            focus.figures_in, 750,
            ("tenant_id", "key_id", "model", "day"), len(focus.METERS),
        ),
    )
}  # fmt: skip
