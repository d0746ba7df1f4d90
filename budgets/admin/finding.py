"""What operators type to find calls: in words of theirs, turned into ids that have an index."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from audit.growing import having, uuid_in
from keys.models import ApiKey, KeySecret
from tenants.models import Tenant

FINDS = "Id of a request, key or tenant, beginning of a secret (tg_…), e-mail, tenant, key, or a model or run"

PUBLIC_ID = re.compile(r"(?:tg_)?([0-9A-Za-z]{12})(?:[0-9A-Za-z]*)\Z")
# Labels are not unique; more keys than these no list of calls is narrowed by.
MOST_KEYS = 200


def tenant_called(term: str) -> UUID | None:
    """The id of the tenant with this slug or id; None if there is none."""
    by = {"pk": uuid_in(term)} if uuid_in(term) else {"slug": term}
    return Tenant.objects.filter(**by).values_list("pk", flat=True).first()


def keys_called(term: str) -> list[UUID]:
    """Ids of the keys with this beginning of a secret, of the person with this address, or so labelled."""
    if "@" in term:
        keys = ApiKey.objects.filter(member__user__email__iexact=term)
        return list(keys.values_list("pk", flat=True)[:MOST_KEYS])
    if public_id := PUBLIC_ID.match(term):
        secrets = KeySecret.objects.filter(public_id=public_id[1])
        if found := list(secrets.values_list("key_id", flat=True)):
            return found
    return list(ApiKey.objects.filter(label=term).values_list("pk", flat=True)[:MOST_KEYS])


def calls_found(rows: QuerySet[Any], term: str) -> QuerySet[Any] | None:
    """The rows of calls (request events or ledger entries) that ``term`` leads to; None: it is no id or name.

    An address that belongs to nobody's key finds nothing.
    """
    if (wanted := uuid_in(term)) is not None:
        found = having(rows, ("request_id", "key_id", "tenant_id"), wanted)
        return rows.none() if found is None else found
    if (tenant := tenant_called(term)) is not None:
        return rows.filter(tenant_id=tenant)
    keys = keys_called(term)
    return rows.filter(key_id__in=keys) if keys or "@" in term else None
