"""Handing out the papers of a statement, as they were drawn."""

from __future__ import annotations

from base64 import b64encode

from django.http import HttpResponse

from budgets.models import Statement

KINDS = {"pdf": "application/pdf", "csv": "text/csv; charset=utf-8"}


def paper(statement: Statement, kind: str) -> HttpResponse:
    """The ``pdf`` or ``csv`` of a statement, with its digest (RFC 9530)."""
    digest = b64encode(bytes.fromhex(getattr(statement, f"{kind}_sha256"))).decode()
    return HttpResponse(
        bytes(getattr(statement, kind)),
        content_type=KINDS[kind],
        headers={
            "Content-Disposition": f'attachment; filename="statement-{statement.number}.{kind}"',
            "Repr-Digest": f"sha-256=:{digest}:",
        },
    )
