"""What of a tenant's usage a person gets to read."""

from __future__ import annotations

from dataclasses import replace

from budgets.usage import Selection
from tenants.access import Access, Reach


def readable(selection: Selection, access: Access) -> Selection | None:
    """What a person may read of a selection, all of one tenant; None: nothing, or it is not theirs."""
    mine = replace(selection, tenant_id=access.tenant.pk)
    if access.usage == Reach.WHOLE_TENANT:
        return mine
    if access.usage == Reach.NOTHING or access.member is None:
        return None
    if selection.member_id not in (None, access.member.pk):
        return None
    return replace(mine, member_id=access.member.pk)
