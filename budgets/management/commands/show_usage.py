import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from budgets import usage
from budgets.selecting import add_by_argument, add_selection_arguments, parts_named, selected_by
from budgets.usage import FIGURES, PARTS, estimated_share, in_percent

SHARE = "estimated"


class Command(BaseCommand):
    help = "Show what the ledger says was used, by a tenant or by all, told apart by anything."

    def add_arguments(self, parser: CommandParser) -> None:
        add_selection_arguments(parser)
        add_by_argument(
            parser, f"one line for each: {', '.join(PARTS)}; several make one for each combination"
        )
        parser.add_argument("--most", choices=FIGURES, help="lines with the most of this first")
        parser.add_argument("--limit", type=int, metavar="N", help="so many lines; the rest becomes one more")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] is not None and options["limit"] < 1:
            raise CommandError("--limit is one line or more.")
        chosen, by = selected_by(options), parts_named(options)
        order = f"-{options['most']}" if options["most"] else ""
        found = usage.breakdown(chosen.selection, by, order=order, limit=options["limit"])
        if options["json"]:
            since, until = chosen.selection.since, chosen.selection.until
            described = {
                "tenant": chosen.tenant and chosen.tenant.slug,
                "time_zone": chosen.time_zone,
                **{name: options[name] for name in ("key", "run", "from_day", "before_day")},
                "since": since and since.isoformat(),
                "until": until and until.isoformat(),
                "by": by,
                "rows": [row | _share(row) for row in found.rows],
                "left_out": found.left_out,
                "rest": found.rest | _share(found.rest),
                "total": found.total | _share(found.total),
            }
            self.stdout.write(json.dumps(described))
            return
        names = [[_name(row, part) for part in by] for row in found.rows]
        rows = list(found.rows)
        if found.left_out:
            names.append(_filled(f"{found.left_out} more", by))
            rows.append(found.rest)
        names.append(_filled("total", by))
        rows.append(found.total)
        heads = list(by) or [""]
        widths = [max(len(name) for name in column) for column in zip(heads, *names, strict=True)]
        self.stdout.write("  ".join([*map(str.ljust, heads, widths), *FIGURES, SHARE]))
        for told, row in zip(names, rows, strict=True):
            figures = [str(row[figure]).rjust(len(figure)) for figure in FIGURES]
            share = in_percent(estimated_share(row)).rjust(len(SHARE))
            self.stdout.write("  ".join([*map(str.ljust, told, widths), *figures, share]))


def _name(row: dict[str, Any], part: str) -> str:
    name = row[PARTS[part][-1]] or "-"
    return f"{name} (deleted)" if part in row["deleted"] else name


def _filled(name: str, by: list[str]) -> list[str]:
    return [name, *[""] * (len(by) - 1)]


def _share(row: dict[str, Any]) -> dict[str, int]:
    return {"estimated_share_per_mille": estimated_share(row)}
