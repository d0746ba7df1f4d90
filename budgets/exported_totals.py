"""Whether what is exported adds up to the ledger: the rows of files, read back from their bytes."""

from __future__ import annotations

from datetime import timedelta

from django.core.exceptions import ValidationError
from django.db.models import Max, Min

from budgets import usage
from budgets.comparisons import Difference, Found, Slugs
from budgets.exports import Order, totals_of
from budgets.rollups import Part

# A row for each day is read whatever the size; a row for each call, and FOCUS, of so many calls at most.
SUMMARY = "day"
IN_DETAIL = ("requests", "focus")
MOST_IN_DETAIL = 100_000
# What even FOCUS tells.
IN_EVERY_FILE = ("input_tokens", "output_tokens", "cost_micro_usd")


def compare(part: Part) -> tuple[Found, str]:
    """What exports of this part add up to and the ledger does not, and why some could not be asked."""
    days = usage.Selection(part.tenant_id, part.from_day, part.before_day).entries()
    ends = days.aggregate(first=Min("day"), last=Max("day"))
    if ends["first"] is None:
        return ([], 0), ""
    selection = usage.Selection(part.tenant_id, ends["first"], ends["last"] + timedelta(days=1))
    differences: list[Difference] = []
    detailed = usage.totals(selection)["requests"] <= MOST_IN_DETAIL
    for profile in (SUMMARY, *IN_DETAIL) if detailed else (SUMMARY,):
        try:
            exported, ledger = totals_of(Order(selection, profile))
        except ValidationError as exc:
            return (differences, len(differences)), " ".join(exc.messages)
        differences += _differences(profile, part, ledger, exported)
    return (differences, len(differences)), ""


def _differences(
    profile: str, part: Part, ledger: dict[str, int], exported: dict[str, int]
) -> list[Difference]:
    tenant = Slugs([part.tenant_id]).of(part.tenant_id) or "all tenants"
    # A file without a row tells nothing of any figure.
    exported = exported or dict.fromkeys(IN_EVERY_FILE, 0)
    return [
        Difference(
            check="exports",
            name=f"{profile}:{figure}",
            tenant=tenant,
            what=f"The export {profile} of {tenant} adds up to {found} of {figure}, "
            f"the ledger to {ledger[figure]}.",
            expected=ledger[figure],
            found=found,
            cause="",
            remedy="Send no export to anybody before this is explained.",
        )
        for figure, found in exported.items()
        if found != ledger[figure]
    ]
