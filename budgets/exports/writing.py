"""Writing an export: its bytes, and the sidecar that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import closing
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Max
from django.utils.timezone import now

from budgets import usage
from budgets.archives import archived_between
from budgets.exports.calendars import Calendars, calendars_for
from budgets.exports.lines import Lines, gzipped
from budgets.exports.orders import Order
from budgets.exports.snapshots import snapshot
from budgets.exports.workbooks import Sheet
from budgets.models import LedgerEntry
from budgets.usage import Selection
from tenants.models import Tenant

ALL_TENANTS = "all-tenants"


def whose(order: Order) -> str:
    """The slug of the tenant that is exported, or ``all-tenants``."""
    tenant_id = order.selection.tenant_id
    if tenant_id is None:
        return ALL_TENANTS
    return Tenant.objects.filter(pk=tenant_id).values_list("slug", flat=True).first() or str(tenant_id)


def file_name(order: Order) -> str:
    return order.file_name(whose(order))


def refuse_archived(order: Order) -> None:
    """Raises ``ValidationError`` when entries of the days of ``order`` are in the database no more."""
    if archived := archived_between(order.from_day, order.before_day):
        files = ", ".join(month.file for month in archived)
        last = max(month.days[1] for month in archived)
        raise ValidationError(
            f"Entries of these days were archived ({files}). Their sums stay in statements and usage; "
            f"all entries are there of days after {last}."
        )


class Writing:
    """An export that is being written: iterate once for its bytes, some of them empty.

    One snapshot holds from the first piece to the last, and a database
    connection with it. ``rows`` and ``bytes`` grow meanwhile; after the last
    piece ``sidecar`` says what was written. Raises ``ValidationError`` for more
    rows than a workbook has, and for days of which entries are archived.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.bytes = 0
        self.sidecar: dict[str, Any] = {}
        self._rows: Lines | Sheet | None = None

    @property
    def rows(self) -> int:
        return self._rows.rows if self._rows else 0

    def __iter__(self) -> Generator[bytes]:
        order, digest = self.order, hashlib.sha256()
        with snapshot():
            refuse_archived(order)
            days = calendars_for(order.selection)
            known = self._known(days)
            query = order.profile.query(order.selection, days)
            self._rows = (Sheet if order.layout == "xlsx" else Lines)(order, query)
            # Closed before the snapshot: a ``COPY`` that nobody reads on has to be told.
            with closing(iter(self._rows)) as rows:
                for chunk in gzipped(rows) if order.gzip else rows:
                    digest.update(chunk)
                    self.bytes += len(chunk)
                    yield chunk
        self.sidecar = known | {
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": digest.hexdigest(),
        }

    def _known(self, days: Calendars) -> dict[str, Any]:
        """What the sidecar tells that does not depend on the bytes."""
        order = self.order
        written = order.as_json()
        selection = written.pop("selection")
        return {
            "tollgate": settings.VERSION,
            "file": file_name(order),
            "tenant": whose(order),
            "order": written,
            "range": {
                "from_day": selection.pop("from_day"),
                "before_day": selection.pop("before_day"),
                "time_zones": days.zones(),
            },
            "selection": selection,
            "columns": [column.name for column in order.profile.columns],
            "totals": usage.totals(order.selection),
            "as_of": {**_newest_of(order.selection), "at": now().isoformat()},
        }


def _newest_of(selection: Selection) -> dict[str, Any]:
    """Which entry was booked last, by its request: ids of the ledger would tell how much others use."""
    newest = selection.entries().aggregate(id=Max("id"))["id"]
    entry = LedgerEntry.objects.filter(id=newest).values("request_id", "kind", "recorded_at").first()
    if entry is None:
        return {"newest_request": None, "newest_kind": None, "booked_at": None}
    return {
        "newest_request": str(entry["request_id"]),
        "newest_kind": entry["kind"],
        "booked_at": entry["recorded_at"].isoformat(),
    }


def as_text(sidecar: dict[str, Any]) -> str:
    """A sidecar as its file has it."""
    return json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
