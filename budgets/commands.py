"""What the management commands of this app have in common."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import open_months
from budgets.limits import limit_now
from budgets.models import Budget, RateLimit, ScopedRow, kind_of_limit
from budgets.money import MICRO
from budgets.services import raise_limit
from keys.models import ApiKey
from tenants import generations
from tenants.commands import PENDING, member_with, model_called, moment, tenant_called, told_plainly
from tenants.models import Team, Tenant

# What a row may name besides its tenant, and never two of them.
PARTS = ("team", "member", "key", "model", "upstream")


def add_whose_arguments(parser: CommandParser) -> None:
    """Whose calls are counted: the options that ``whose_named`` reads."""
    parser.add_argument("--platform", action="store_true", help="the calls of everybody")
    parser.add_argument("--tenant", metavar="SLUG", help="those of this tenant")
    parser.add_argument("--team", metavar="NAME", help="only those of this team of the tenant")
    parser.add_argument("--member", metavar="EMAIL", help="only those of this member of the tenant")
    parser.add_argument("--key", metavar="PUBLIC_ID", help="only those of this key of the tenant")
    parser.add_argument(
        "--model", metavar="NAME", help="those of this model, such as llama3.2:latest: of the tenant, or all"
    )
    parser.add_argument("--upstream", metavar="NAME", help="those at this upstream: of the tenant, or all")
    parser.add_argument(
        "--each-run", action="store_true", help="those of each run of the tenant, or of its key, by itself"
    )


def whose_named(options: dict[str, Any]) -> dict[str, Any]:
    """The columns of a budget or rate limit that say whose calls are counted.

    Raises ``CommandError`` for what names nobody, or more than there can be.
    """
    named = [part for part in PARTS if options[part]]
    tenant = tenant_called(options["tenant"]) if options["tenant"] else None
    if len(named) > 1:
        raise CommandError(f"Name only one of --{' and --'.join(named)}.")
    part = named[0] if named else ""
    everybody = options["platform"] or part in ("model", "upstream")
    if options["platform"] and (tenant or part or options["each_run"]):
        raise CommandError("--platform means the calls of everybody: name nothing besides.")
    if options["each_run"] and part not in ("", "key"):
        raise CommandError(f"Runs are limited for a tenant or a key, not for a {part}.")
    if tenant is None and (options["each_run"] or not everybody):
        raise CommandError("Name the --tenant, or say --platform.")
    scope = "run" if options["each_run"] else part or ("platform" if tenant is None else "tenant")
    return {
        "scope": scope,
        "tenant": tenant,
        "team": team_of(tenant, options["team"]) if tenant and part == "team" else None,
        "member": member_with(options["member"], tenant) if tenant and part == "member" else None,
        "key": key_of(tenant, options["key"]) if tenant and part == "key" else None,
        "model": model_called(options["model"] or ""),
        "upstream": options["upstream"] or "",
    }


def add_raise_arguments(parser: CommandParser) -> None:
    """By how much, until when and why: the options that ``raise_and_tell`` reads."""
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--to", type=int, metavar="N", help="the limit meanwhile")
    amount.add_argument("--by", type=int, metavar="N", help="what is added to the limit meanwhile")
    parser.add_argument(
        "--until", required=True, metavar="WHEN", help="90m, 12h, 7d from now, or a date or a time"
    )
    parser.add_argument("--reason", required=True)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def raise_and_tell(command: BaseCommand, row: Budget | RateLimit, options: dict[str, Any]) -> None:
    """Raise a limit as the options say, and print what holds now."""
    with told_plainly():
        raised = raise_limit(
            row=row,
            to=options["to"],
            by=options["by"],
            ends_at=moment(options["until"], row.tenant.time_zone if row.tenant else "UTC"),
            reason=options["reason"],
            actor=person_at_the_shell(),
        )
    holds, in_force = limit_now(row), generations.in_force(row.tenant_id)
    if options["json"]:
        described = {
            "raise_id": str(raised.pk),
            f"{kind_of_limit(row)}_id": str(row.pk),
            "limit": row.limit,
            "limit_now": holds,
            "to": raised.to,
            "by": raised.by,
            "starts_at": raised.starts_at.isoformat(),
            "ends_at": raised.ends_at.isoformat(),
            "reason": raised.reason,
            "in_force": in_force,
        }
        command.stdout.write(json.dumps(described))
        return
    command.stdout.write(f"{row}: {holds} until {raised.ends_at:%Y-%m-%d %H:%M} UTC, then {row.limit}.")
    if not in_force:
        command.stdout.write(PENDING)


def described_whose(row: ScopedRow) -> dict[str, Any]:
    """Whose calls a row counts, for JSON."""
    return {
        "scope": row.scope,
        "tenant": row.tenant and row.tenant.slug,
        "team": row.team and row.team.name,
        "member": row.member and row.member.user.email,
        "key": row.key and row.key.label,
        "model": row.model or None,
        "upstream": row.upstream or None,
    }


def micro_usd_written(text: str | None) -> int:
    """An amount of dollars in millionths; raises ``CommandError`` for a part of one, or no amount at all."""
    try:
        amount = Decimal(text or "0") * MICRO
        whole = int(amount)
    except (InvalidOperation, ValueError, OverflowError) as exc:
        raise CommandError(f"{text!r} is no amount of dollars, such as 0.25.") from exc
    if whole != amount:
        raise CommandError(f"{text} is not a whole number of millionths of a dollar.")
    return whole


def month_written(text: str) -> date:
    """The first day of a month such as ``2026-10``; raises ``CommandError``."""
    try:
        return open_months.month_written(text)
    except ValueError as exc:
        raise CommandError(str(exc)) from exc


def key_of(tenant: Tenant, public_id: str) -> ApiKey:
    """The key of ``tenant`` that has a secret with this public id; raises ``CommandError``."""
    try:
        return ApiKey.objects.get(tenant=tenant, secrets__public_id=public_id)
    except ApiKey.DoesNotExist as exc:
        raise CommandError(f"{tenant.slug} has no key with the public id {public_id!r}.") from exc


def team_of(tenant: Tenant, name: str) -> Team:
    """The team of ``tenant`` with this name; raises ``CommandError``."""
    try:
        return Team.objects.get(tenant=tenant, name=name)
    except Team.DoesNotExist as exc:
        raise CommandError(f"{tenant.slug} has no team {name!r}.") from exc
