"""A verification in words, for the command and the admin, and in JSON."""

from __future__ import annotations

from typing import Any

from budgets.models import Verification
from budgets.usage import in_percent


def as_dict(row: Verification) -> dict[str, Any]:
    """For JSON: whole numbers, shares as decimal texts, instants as texts; null is what nobody could tell."""
    return {
        "id": str(row.pk),
        "outcome": row.outcome,
        "scope": row.scope,
        "at": row.at.isoformat(),
        "seconds": str(row.seconds),
        "position": row.position or None,
        "figures": row.figures,
        "found": row.found,
        "differences": row.differences,
        "unasked": row.unasked,
    }


def figures_in_words(row: Verification) -> list[tuple[str, str]]:
    """What each figure is called, and how much it is."""
    figures = row.figures
    oldest = figures["oldest_hold_seconds"]
    told = [
        ("stream position", row.position or "unknown"),
        ("records that wait for the ledger", number(figures["waiting"])),
        ("settlements in the spool", number(figures["spooled"])),
        ("parked records", number(figures["parked"])),
        ("calls not settled yet", number(figures["holds"])),
        ("of these, of processes that are gone", number(figures["overdue_holds"])),
        ("the oldest of them, seconds", "-" if oldest is None else number(oldest)),
        ("calls that ended", number(figures["ended"])),
        ("of these, in the ledger", number(figures["captured"])),
        ("capture rate", figures["capture_rate"] or "-"),
    ]
    if figures["costs_without_rates"]:
        told.append(("entries of earlier releases, without rates", number(figures["costs_without_rates"])))
    return told


def tenants_in_words(row: Verification) -> list[tuple[str, str, str, str]]:
    """Of each tenant its name, tokens, estimated tokens and their share."""
    return [
        (
            one["tenant"],
            number(one["tokens"]),
            number(one["estimated_tokens"]),
            in_percent(one["estimated_share_per_mille"]),
        )
        for one in row.figures["tenants"]
    ]


def lines(row: Verification) -> list[str]:
    """All of it, for a terminal."""
    told = [f"{row.get_outcome_display()}: {row.scope}, in {row.seconds} s.", ""]
    named = figures_in_words(row)
    width = max(len(name) for name, _ in named)
    told += [f"{name.ljust(width)}  {figure}" for name, figure in named]
    for name, tokens, estimated, share in tenants_in_words(row):
        told.append(f"{name}: {tokens} tokens, {estimated} of them estimated ({share})")
    for check, why in row.unasked.items():
        told += ["", f"{check}: not compared. {why}"]
    for one in row.differences:
        told += ["", f"{one['check']}: {one['what']}"]
        told += [f"  {sentence}" for sentence in (one["cause"], one["remedy"]) if sentence]
    if row.found > len(row.differences):
        told += ["", f"{row.found - len(row.differences):,} more differences are not listed."]
    return told


def number(figure: int | None) -> str:
    return "unknown" if figure is None else f"{figure:,}"
