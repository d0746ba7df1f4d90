"""Exports that take too long to wait for: ordered, made by the worker, fetched within a week.

An order is a row. The worker leases the oldest one, writes its file, and says
again and again how far it is; a lease that ran out means that its worker died,
and the next one begins anew. Only who still holds the lease can say that the
file is ready, so it never matters how many were at it.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.recording import record
from audit.walls import across
from budgets.exports.orders import Order
from budgets.exports.own_thread import OwnThread
from budgets.exports.sizes import Size, estimate
from budgets.exports.workbooks import MOST_ROWS, TOO_LONG
from budgets.exports.writing import Writing, refuse_archived, whose
from budgets.models import Export
from keys.models import ManagementKey
from tenants.api.programs import Program
from tenants.models import User

logger = logging.getLogger(__name__)

# Any number; only those who lease an export take this advisory lock.
LOCK = 0x544F4C4C18
LEASE = timedelta(seconds=60)
TELLING_SECONDS = 2.0
MOST_ATTEMPTS = 3
MOST_WAITING = 5
# A file that no row names was left by a worker that died.
LEFT_OVER_SECONDS = 24 * 3600


class LeaseLost(Exception):
    """Somebody else makes the export by now."""


def order_export(*, order: Order, user: User | Program) -> Export:
    """Let the worker make a file of ``order`` for ``user``, a person or a management key.

    Raises ``ValidationError`` for what ``fitting`` refuses, and for somebody
    who has ``MOST_WAITING`` exports that are not made yet, of whichever tenants.
    """
    size = fitting(order)
    with transaction.atomic():
        # Two orders of one person at the same time count each other.
        orderers: Any = ManagementKey.objects if isinstance(user, Program) else User.objects
        orderers.select_for_update().get(pk=user.pk)
        with across():
            waiting = Export.objects.filter(
                user_id=user.pk, state__in=[Export.State.WAITING, Export.State.RUNNING]
            ).count()
        if waiting >= MOST_WAITING:
            raise ValidationError(
                _("%(waiting)s of your exports are not made yet. Wait for one of them.")
                % {"waiting": waiting}
            )
        export = Export.objects.create(**_asked_for(order, user), rows_expected=size.rows)
        record(
            action="export.ordered",
            actor=str(user),
            subject=str(export.pk),
            tenant_id=export.tenant_id,
            tenant=export.tenant,
            order=export.order,
        )
    return export


def keep_streamed(*, writing: Writing, user: User) -> Export:
    """Note what went straight to a browser, with its sidecar, which is kept as long as a file."""
    return Export.objects.create(
        **_asked_for(writing.order, user),
        **_result(writing),
        state=Export.State.STREAMED,
        rows_expected=writing.rows,
        started_at=now(),
    )


def fitting(order: Order) -> Size:
    """The size of ``order``; raises ``ValidationError`` for what is too long for a workbook, or archived."""
    refuse_archived(order)
    size = estimate(order)
    if order.layout == "xlsx" and size.rows > MOST_ROWS:
        raise TOO_LONG
    return size


def _asked_for(order: Order, user: User | Program) -> dict[str, Any]:
    return {
        "user_id": user.pk,
        "user": str(user),
        "tenant_id": order.selection.tenant_id,
        "tenant": whose(order),
        "order": order.as_json(),
    }


def _result(writing: Writing) -> dict[str, Any]:
    finished_at = now()
    return {
        "rows": writing.rows,
        "bytes": writing.bytes,
        "sha256": writing.sidecar["sha256"],
        "sidecar": writing.sidecar,
        "finished_at": finished_at,
        "expires_at": finished_at + Export.KEPT,
    }


def make_exports() -> int:
    """Make what was ordered, one after the other; return how many. At once 0 while somebody does it."""
    made = 0
    while (export := claim()) is not None:
        make(export)
        made += 1
    return made


def claim() -> Export | None:
    """Lease the oldest export that nobody makes; None: there is none, or one is being made."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        running = Export.objects.filter(state=Export.State.RUNNING)
        _give_up_on(running.filter(leased_until__lte=Now(), attempts__gte=MOST_ATTEMPTS))
        # The worker books calls too: never more than one of its threads is away for this.
        if running.filter(leased_until__gt=Now()).exists():
            return None
        export = (
            Export.objects.filter(Q(state=Export.State.WAITING) | Q(state=Export.State.RUNNING))
            .order_by("created_at", "id")
            .first()
        )
        if export is None:
            return None
        Export.objects.filter(pk=export.pk).update(
            state=Export.State.RUNNING,
            lease=uuid4(),
            leased_until=Now() + LEASE,
            attempts=F("attempts") + 1,
            rows=0,
            started_at=Now(),
        )
        export.refresh_from_db()
        return export


def _give_up_on(exports: Any) -> None:
    for export in exports:
        _fail(export, "It could not be made: each worker that tried has died.")


def make(export: Export) -> None:
    """Write the file of an export that was claimed, and say that it is ready, or why not."""
    try:
        _make(export)
    except LeaseLost:
        logger.warning("export %s was taken up by another worker", export.pk)
    except ValidationError as exc:
        _fail(export, " ".join(exc.messages))
    except Exception:
        # Whatever broke this export must not keep the next from being made.
        error_id = secrets.token_hex(6)
        logger.exception("export %s cannot be made: error %s", export.pk, error_id)
        _fail(export, "It could not be made, for a reason that is in the gateway's log.", error_id)


def _make(export: Export) -> None:
    order = Order.from_json(export.order)
    directory = Path(settings.EXPORT_DIR)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of this attempt alone: one that is thought dead may still be writing.
    file = directory / f"{export.pk}-{export.attempts}.{order.extension}"
    part = file.with_name(f"{file.name}.part")
    try:
        writing = _write(export, order, part)
        part.rename(file)
        _sync(directory)
        changed = _held(export).update(
            **_result(writing), state=Export.State.READY, file=file.name, lease=None, leased_until=None
        )
        if not changed:
            file.unlink()
            raise LeaseLost
    finally:
        part.unlink(missing_ok=True)


def _write(export: Export, order: Order, part: Path) -> Writing:
    writing = Writing(order)
    told_at = time.monotonic()
    with closing(OwnThread(iter(writing))) as pieces, part.open("wb") as file:
        for piece in pieces.with_pauses(TELLING_SECONDS):
            file.write(piece)
            if time.monotonic() - told_at >= TELLING_SECONDS:
                _tell(export, writing.rows)
                told_at = time.monotonic()
        file.flush()
        os.fsync(file.fileno())
    return writing


def _held(export: Export) -> Any:
    return Export.objects.filter(pk=export.pk, state=Export.State.RUNNING, lease=export.lease)


def _tell(export: Export, rows: int) -> None:
    """Say how far it is, and keep the lease; raises ``LeaseLost``."""
    if not _held(export).update(rows=rows, leased_until=Now() + LEASE):
        raise LeaseLost


def _fail(export: Export, error: str, error_id: str = "") -> None:
    _held(export).update(
        state=Export.State.FAILED,
        error=error,
        error_id=error_id,
        lease=None,
        leased_until=None,
        finished_at=Now(),
    )


def _sync(directory: Path) -> None:
    """Let the name of a new file outlive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expire_exports() -> int:
    """Delete the files whose time is over, and what dead workers left; return how many exports expired."""
    expired = 0
    for export in Export.objects.filter(state=Export.State.READY, expires_at__lte=Now()):
        (Path(settings.EXPORT_DIR) / export.file).unlink(missing_ok=True)
        # After the file: whoever dies in between finds the row again.
        expired += Export.objects.filter(pk=export.pk, state=Export.State.READY).update(
            state=Export.State.EXPIRED
        )
    _delete_left_over()
    return expired


def _delete_left_over() -> None:
    directory = Path(settings.EXPORT_DIR)
    old = time.time() - LEFT_OVER_SECONDS
    left = {path.name: path for path in directory.glob("*-*.*") if path.stat().st_mtime < old}
    known = Export.objects.filter(file__in=left, state=Export.State.READY).values_list("file", flat=True)
    for name in left.keys() - set(known):
        left[name].unlink(missing_ok=True)


def file_of(export: Export) -> Path | None:
    """Where the file of an export lies, if it is ready, its time is not over, and this machine sees it."""
    if export.state != Export.State.READY or export.expires_at is None or export.expires_at <= now():
        return None
    path = Path(settings.EXPORT_DIR) / export.file
    return path if path.is_file() else None


def linked(*, user_id: UUID, link: str) -> Export | None:
    """The export that a link leads to, for whoever ordered it and nobody else; not when it is over."""
    export = Export.objects.filter(link=link, user_id=user_id).first()
    if export is None or export.expires_at is None or export.expires_at <= now():
        return None
    return export


@transaction.atomic
def note_download(*, export: Export) -> None:
    """Audit that whoever ordered an export fetches its file."""
    Export.objects.filter(pk=export.pk).update(downloads=F("downloads") + 1)
    record(
        action="usage.exported",
        actor=export.user,
        subject=export.tenant,
        tenant_id=export.tenant_id,
        export=export.pk,
        order=export.order,
        rows=export.rows,
        sha256=export.sha256,
    )


@transaction.atomic
def note_export(*, order: Order, actor: str, **told: Any) -> None:
    """Audit that usage leaves; before it does, so that none leaves unaudited."""
    record(
        action="usage.exported",
        actor=actor,
        subject=whose(order),
        tenant_id=order.selection.tenant_id,
        order=order.as_json(),
        **told,
    )
