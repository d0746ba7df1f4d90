"""Putting right what was booked: by a signed entry more, never by changing one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, Sum
from django.utils.timezone import now

from audit.recording import record
from budgets import booking
from budgets.archives import archived_with
from budgets.models import LARGEST, LedgerEntry
from budgets.open_months import first_of, open_days, share
from budgets.usage import SUMS
from tenants.ids import new_id


@transaction.atomic
def correct_usage(*, request_id: UUID, changes: Mapping[str, int], reason: str, actor: str) -> LedgerEntry:
    """Book a difference to what the ledger says of a request; return the entry that holds it.

    ``changes`` is what is added to figures of ``usage.SUMS``, signed. The entry
    has the day of the one it corrects; if that month is closed, today's, and it
    names the month. Rollups follow it, counters and periods of budgets do not.
    Each call books another one. Raises ``ValidationError`` for what the ledger
    does not have, and for differences after which the request would have used
    less than nothing, or more cached input than input.
    """
    if not reason:
        raise ValidationError("Say why the usage is corrected.")
    if unknown := sorted(set(changes) - set(SUMS)):
        raise ValidationError(f"There is no figure {', '.join(unknown)}: {', '.join(SUMS)}.")
    if not any(changes.values()):
        raise ValidationError("Say what is to be corrected, and by how much.")
    # No adjustment and no other correction of the request comes between its sum and this entry.
    booking.keep_drains_out()
    corrected = LedgerEntry.objects.filter(request_id=request_id, kind=LedgerEntry.Kind.USAGE).first()
    if corrected is None:
        raise ValidationError(_not_there(request_id))
    _refuse_impossible(_net(request_id), changes)
    entry = copy(corrected)
    entry.pk, entry.request_id, entry.kind = None, new_id(), LedgerEntry.Kind.CORRECTION
    entry.corrects, entry.reason, entry.actor = request_id, reason, actor
    entry.recorded_at, entry.closed_month = now(), None
    for figure in SUMS:
        setattr(entry, figure, changes.get(figure, 0))
    # Measures of the call, which is told of once.
    entry.load_ns = entry.prompt_ns = entry.output_ns = entry.input_bytes = entry.output_bytes = None
    home = first_of(corrected.day)
    if share({(entry.tenant_id, home)}):
        entry.day, entry.closed_month = open_days([entry.tenant_id])[entry.tenant_id], home
    booking.book(entry)
    record(
        action="usage.corrected",
        actor=actor,
        subject=str(request_id),
        tenant_id=entry.tenant_id,
        reason=reason,
        correction=entry.request_id,
        day=entry.day,
        closed_month=entry.closed_month,
        changes=dict(changes),
    )
    return entry


def _net(request_id: UUID) -> dict[str, int]:
    """What the ledger says of a request with all that was booked later."""
    sums = {figure: Sum(figure) for figure in SUMS}
    found = LedgerEntry.objects.filter(Q(request_id=request_id) | Q(corrects=request_id)).aggregate(**sums)
    return {figure: int(found[figure]) for figure in SUMS}


def _refuse_impossible(net: Mapping[str, int], changes: Mapping[str, int]) -> None:
    after = {figure: net[figure] + changes.get(figure, 0) for figure in SUMS}
    if negative := [figure for figure in SUMS if after[figure] < 0]:
        raise ValidationError([f"{name} is {net[name]}; it cannot be {after[name]}." for name in negative])
    for whole, part in (("input_tokens", "cached_tokens"), ("output_tokens", "thinking_tokens")):
        if after[part] > after[whole]:
            raise ValidationError(f"{part} would be {after[part]}, more than {whole}, {after[whole]}.")
    if too_large := [figure for figure in SUMS if after[figure] > LARGEST]:
        raise ValidationError([f"{name} cannot be more than {LARGEST}." for name in too_large])
    if after["requests"] > 1:
        raise ValidationError("It is one request and cannot become more.")


def _not_there(request_id: UUID) -> str:
    archived = archived_with(request_id)
    if archived is None:
        return f"The ledger has no request {request_id}."
    return (
        f"The entries of {archived.month:%Y-%m} lie in {archived.file}: what is archived cannot be corrected."
    )
