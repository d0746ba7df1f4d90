"""How the commands about usage are told what to look at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError, CommandParser

from budgets.commands import key_of, team_of
from budgets.usage import PARTS, Selection
from tenants.commands import member_with, moment, tenant_called
from tenants.models import Tenant

TEXTS = ("model", "upstream", "operation", "route", "run")
EMPTY = {"route": "; empty: whose route is not known", "run": "; empty: of calls of none"}


@dataclass(frozen=True, slots=True)
class Selected:
    """What was named: a selection, of one tenant or (None) of all."""

    tenant: Tenant | None
    selection: Selection

    @property
    def time_zone(self) -> str:
        return self.tenant.time_zone if self.tenant else "UTC"


def add_selection_arguments(parser: CommandParser) -> None:
    """Whose usage, of what and of when: the options that ``selected_by`` reads."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", metavar="SLUG", help="that of this tenant")
    whose.add_argument("--all", action="store_true", help="that of all tenants")
    parser.add_argument("--team", metavar="NAME", help="only that of this team; of one gone, its id")
    parser.add_argument("--member", metavar="EMAIL", help="only that of this member; of one gone, their id")
    parser.add_argument("--key", metavar="PUBLIC_ID", help="only that of this key; of one gone, its id")
    for name in TEXTS:
        parser.add_argument(
            f"--{name}", metavar="NAME", help=f"only that of this {name}{EMPTY.get(name, '')}"
        )
    parser.add_argument("--from", dest="from_day", metavar="DAY", help="from this accounting day on")
    parser.add_argument("--before", dest="before_day", metavar="DAY", help="before this accounting day")
    parser.add_argument("--since", metavar="WHEN", help="calls that ended then or later: a date or a time")
    parser.add_argument("--until", metavar="WHEN", help="calls that ended before: a date or a time")


def add_by_argument(parser: CommandParser, meaning: str) -> None:
    """By what usage is told apart: repeated, or with commas; ``parts_named`` reads it."""
    parser.add_argument("--by", action="append", default=[], metavar="PART", help=meaning)


def parts_named(options: dict[str, Any]) -> list[str]:
    """The parts that ``--by`` names; raises ``CommandError`` for one that there is not."""
    parts = [part for text in options["by"] for part in text.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        raise CommandError(f"Usage is not told apart by {unknown[0]!r}, only by {', '.join(PARTS)}.")
    return parts


def selected_by(options: dict[str, Any]) -> Selected:
    """What the options select; raises ``CommandError`` for what there is not."""
    tenant = tenant_called(options["tenant"]) if options["tenant"] else None
    zone = tenant.time_zone if tenant else "UTC"
    selection = Selection(
        tenant_id=tenant.pk if tenant else None,
        team_id=_id_of("team", tenant, options["team"]),
        member_id=_id_of("member", tenant, options["member"]),
        key_id=_id_of("key", tenant, options["key"]),
        from_day=_day(options["from_day"]),
        before_day=_day(options["before_day"]),
        since=moment(options["since"], zone) if options["since"] else None,
        until=moment(options["until"], zone) if options["until"] else None,
        **{name: options[name] for name in TEXTS},
    )
    for first, end in (("from_day", "before_day"), ("since", "until")):
        begins, ends = getattr(selection, first), getattr(selection, end)
        if begins is not None and ends is not None and ends <= begins:
            raise CommandError(f"The range is empty: {options[end]} is not after {options[first]}.")
    return Selected(tenant, selection)


def _id_of(part: str, tenant: Tenant | None, named: str | None) -> UUID | None:
    if not named:
        return None
    try:
        return UUID(named)
    except ValueError:
        if tenant is None:
            raise CommandError(f"Name the --tenant of the {part}, or the id of the {part}.") from None
    look_up = {"team": team_of, "member": lambda tenant, email: member_with(email, tenant), "key": key_of}
    found: UUID = look_up[part](tenant, named).pk
    return found


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as exc:
        raise CommandError(f"{text!r} is no day. An example: 2027-01-31.") from exc
