import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets.explaining import DOWN, Explained, Line, entries_of, open_parts
from budgets.pricing import exactly_as_usd, usd_in_full
from budgets.selecting import Selected, add_by_argument, add_selection_arguments, parts_named, selected_by
from budgets.usage import FIGURES, PARTS, Figures, Selection, breakdown, estimated_share, in_percent


class Command(BaseCommand):
    help = "Explain a total of usage down to what it is made of, or the cost of one request line by line."

    def add_arguments(self, parser: CommandParser) -> None:
        add_selection_arguments(parser)
        add_by_argument(
            parser, f"one level of the tree for each; else what is open of {', '.join(DOWN[:-1])}"
        )
        parser.add_argument("--request", metavar="ID", help="explain this request alone")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = selected_by(options)
        if options["request"]:
            self._explain_request(chosen, options)
            return
        # Single requests only where they are asked for: there are too many.
        levels = parts_named(options) or list(open_parts(chosen.selection)[:-1])
        found = breakdown(chosen.selection, levels)
        if options["json"]:
            tree = {"name": "total", **found.total, "parts": list(_tree(found.rows, levels))}
            self.stdout.write(json.dumps({"by": levels, "total": tree}))
            return
        lines = [("total", found.total), *_lines(_tree(found.rows, levels), 1)]
        width = max(len(name) for name, _ in lines)
        for name, row in lines:
            self.stdout.write(f"{name.ljust(width)}  {_in_words(row)}")

    def _explain_request(self, chosen: Selected, options: dict[str, Any]) -> None:
        try:
            request_id = UUID(options["request"])
        except ValueError as exc:
            raise CommandError(f"{options['request']!r} is no id of a request.") from exc
        entries = entries_of(Selection(tenant_id=chosen.selection.tenant_id, request_id=request_id))
        if not entries:
            raise CommandError(f"The ledger has no request {request_id}.")
        total = sum(one.entry.cost_micro_usd for one in entries)
        if options["json"]:
            described = {
                "request_id": str(request_id),
                "entries": [_described(one) for one in entries],
                "cost_micro_usd": total,
            }
            self.stdout.write(json.dumps(described))
            return
        first = entries[0].entry
        self.stdout.write(
            f"Request {request_id} of {first.tenant}, key {first.key}: {first.model} at {first.upstream}"
        )
        for one in entries:
            self.stdout.write("")
            for line in _told(one):
                self.stdout.write(line)
        self.stdout.write(f"\ntotal {usd_in_full(total)} USD")


def _tree(rows: Sequence[dict[str, Any]], levels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a breakdown by ``levels``, which come in their order, as the nodes of a tree."""
    if not levels:
        return
    part, *deeper = levels
    columns = PARTS[part]
    for _, group in groupby(rows, key=lambda row: row[columns[0]]):
        below = list(group)
        sums: Figures = {figure: sum(row[figure] for row in below) for figure in FIGURES}
        node = {"part": part, "name": below[0][columns[-1]], **{name: below[0][name] for name in columns}}
        yield {
            **node,
            "deleted": part in below[0]["deleted"],
            **sums,
            "parts": list(_tree(below, deeper)),
        }


def _lines(
    nodes: Iterator[dict[str, Any]] | list[dict[str, Any]], depth: int
) -> Iterator[tuple[str, Figures]]:
    for node in nodes:
        gone = " (deleted)" if node["deleted"] else ""
        yield f"{'  ' * depth}{node['part']} {node['name'] or '-'}{gone}", node
        yield from _lines(node["parts"], depth + 1)


def _in_words(row: Figures) -> str:
    return (
        f"{row['requests']:>8} requests  {row['input_tokens']:>10} in  {row['output_tokens']:>10} out  "
        f"{in_percent(estimated_share(row)):>7} estimated  {usd_in_full(row['cost_micro_usd']):>14} USD"
    )


def _told(one: Explained) -> Iterator[str]:
    entry = one.entry
    sort = f"estimated by {entry.estimator}" if entry.estimator else "estimated"
    late = f", late for the closed month {entry.closed_month:%Y-%m}" if entry.closed_month else ""
    sort = "exact" if entry.exact else sort
    yield f"{entry.kind} of {entry.day}, ended {entry.ended_at.isoformat()}, {sort}{late}"
    if entry.corrects:
        yield f"  by {entry.actor}: {entry.reason}"
    if entry.price_id:
        yield f"  price {entry.price_id}"
    for line in one.lines:
        yield f"  {_product(line):<60} {exactly_as_usd(line.millionths):>20}"
    doubt = "" if one.by_rates else "  NOT what its rates give"
    yield f"  {'=':<60} {usd_in_full(entry.cost_micro_usd):>14} USD{doubt}"


def _product(line: Line) -> str:
    if line.rate is None or line.quantity is None:
        return line.what
    per = "a second" if line.unit == "ms" else "a million"
    return f"{line.what}: {line.quantity} {line.unit} at {usd_in_full(line.rate)} {per}"


def _described(one: Explained) -> dict[str, Any]:
    entry = one.entry
    return {
        "kind": entry.kind,
        "day": entry.day.isoformat(),
        "ended_at": entry.ended_at.isoformat(),
        "closed_month": entry.closed_month and entry.closed_month.isoformat(),
        "corrects": entry.corrects and str(entry.corrects),
        "actor": entry.actor,
        "reason": entry.reason,
        "exact": entry.exact,
        "estimator": entry.estimator,
        "price_id": entry.price_id and str(entry.price_id),
        "lines": [
            {
                "what": line.what,
                "quantity": line.quantity,
                "unit": line.unit,
                "rate_micro_usd": line.rate,
                "usd": exactly_as_usd(line.millionths),
            }
            for line in one.lines
        ],
        "by_rates": one.by_rates,
        "cost_micro_usd": entry.cost_micro_usd,
    }
