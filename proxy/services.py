"""Changes to where calls go, each with its audit event."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from audit.recording import record
from proxy.models import ModelAlias, Upstream
from tenants import generations
from tenants.model_names import canonical_setting


@transaction.atomic
def save_upstream(*, upstream: Upstream, actor: str) -> Upstream:
    """Add or change an upstream; raises ``ValidationError`` for a name or address that cannot be."""
    added = upstream._state.adding  # noqa: SLF001 - Django's documented way to tell a new row
    before = _before(upstream, "base_url", "enabled")
    upstream.full_clean()
    upstream.save()
    record(
        action="upstream.added" if added else "upstream.changed",
        actor=actor,
        subject=upstream.name,
        before=before,
        base_url=upstream.base_url,
        enabled=upstream.enabled,
    )
    transaction.on_commit(generations.project_quietly)
    return upstream


@transaction.atomic
def remove_upstream(*, upstream: Upstream, actor: str) -> None:
    """Forget an upstream; calls that run there go on, and the books keep its name."""
    record(action="upstream.removed", actor=actor, subject=upstream.name, base_url=upstream.base_url)
    upstream.delete()
    transaction.on_commit(generations.project_quietly)


@transaction.atomic
def save_alias(*, alias: ModelAlias, actor: str) -> ModelAlias:
    """Add or change another name of a model; raises ``ValidationError`` for names that cannot be."""
    added = alias._state.adding  # noqa: SLF001 - Django's documented way to tell a new row
    before = _before(alias, "alias", "model")
    for column in ("alias", "model"):
        # What is no name stays, and is refused with the column.
        with suppress(ValidationError):
            setattr(alias, column, canonical_setting(getattr(alias, column)))
    alias.full_clean()
    alias.save()
    record(
        action="alias.added" if added else "alias.changed",
        actor=actor,
        subject=alias.alias,
        tenant_id=alias.tenant_id,
        before=before,
        model=alias.model,
    )
    transaction.on_commit(generations.project_quietly)
    return alias


@transaction.atomic
def remove_alias(*, alias: ModelAlias, actor: str) -> None:
    """Take a name away; the model itself stays."""
    record(
        action="alias.removed", actor=actor, subject=alias.alias, tenant_id=alias.tenant_id, model=alias.model
    )
    alias.delete()
    transaction.on_commit(generations.project_quietly)


def _before(row: Upstream | ModelAlias, *names: str) -> dict[str, Any] | None:
    """What is saved of ``row`` until now; nothing of a new one."""
    saved = type(row)._default_manager.select_for_update().filter(pk=row.pk)  # noqa: SLF001
    before: dict[str, Any] | None = saved.values(*names).first()
    return before
