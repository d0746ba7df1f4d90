"""How a change gets into the audit."""

import getpass
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.transaction import TransactionManagementError

from audit.models import AuditEvent
from audit.origins import origin
from audit.walls import across

# What follows the name of an account when its person acts by command.
SHELL = " (manage.py)"


def record(
    *, action: str, actor: str, subject: str, tenant_id: UUID | None = None, reason: str = "", **details: Any
) -> AuditEvent:
    """Write an audit event in the transaction of the change it tells of.

    ``action`` is ``<thing>.<what happened>`` (``key.revoked``). ``details`` must
    fit into JSON (UUIDs, dates and times do) and may never hold a secret.

    Raises ``TransactionManagementError`` outside a transaction: there, the
    change could stay when its event is lost.
    """
    if not connection.in_atomic_block:
        raise TransactionManagementError(f"{action}: an audit event belongs in the transaction of its change")
    # Whoever acts, wherever: what is written is the gateway's own.
    with across():
        return AuditEvent.objects.create(
            action=action,
            actor=actor,
            origin=origin.get(),
            subject=subject,
            tenant_id=tenant_id,
            reason=reason,
            details=details,
        )


def person_at_the_shell() -> str:
    """The actor of a management command: the account of the operating system."""
    try:
        return f"{getpass.getuser()}{SHELL}"
    except (KeyError, OSError):  # a container may run as a number without a name
        return "manage.py"
