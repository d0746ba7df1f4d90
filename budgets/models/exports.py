"""Files of usage that people ordered."""

from __future__ import annotations

import secrets
from datetime import timedelta

from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from audit.checked import Checked
from audit.walls import Walled
from tenants.ids import new_id

LINK_BYTES = 32


def new_link() -> str:
    """The part of an address that nobody guesses."""
    return secrets.token_urlsafe(LINK_BYTES)


class Export(Checked):
    """One file somebody ordered, from the order to the day on which it is deleted.

    Whoever ordered it is named as they were; only they may fetch it. ``order``
    is what ``budgets.exports.Order`` reads. A worker that makes it holds the
    ``lease`` until ``leased_until`` and again and again says how far it is; one
    that dies loses it, and another begins anew. ``sidecar`` says what is in the
    file. What went straight to a browser is ``streamed`` and has no file.
    """

    class State(models.TextChoices):
        WAITING = "waiting", _("Waiting")
        RUNNING = "running", _("Running")
        READY = "ready", _("Ready")
        STREAMED = "streamed", _("Streamed")
        FAILED = "failed", _("Failed")
        EXPIRED = "expired", _("Expired")

    # How long a file is kept, and so the link to it good.
    KEPT = timedelta(days=7)

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    user_id = models.UUIDField()
    user = models.TextField()
    tenant_id = models.UUIDField(null=True, help_text="Null: all tenants.")
    tenant = models.TextField(help_text="Slug, or all-tenants.")
    order = models.JSONField()
    state = models.CharField(max_length=8, choices=State.choices, default=State.WAITING)
    rows_expected = models.BigIntegerField(default=0)
    rows = models.BigIntegerField(default=0, help_text="Written so far.")
    attempts = models.SmallIntegerField(default=0)
    lease = models.UUIDField(null=True)
    leased_until = models.DateTimeField(null=True)
    file = models.TextField(blank=True, help_text="Its name in EXPORT_DIR.")
    bytes = models.BigIntegerField(null=True)
    sha256 = models.CharField(max_length=64, blank=True)
    sidecar = models.JSONField(default=dict)
    link = models.CharField(max_length=64, unique=True, default=new_link, editable=False)
    downloads = models.IntegerField(default=0)
    error = models.TextField(blank=True, help_text="Told to whoever ordered it.")
    error_id = models.CharField(max_length=12, blank=True, help_text="Names the line in the log.")
    created_at = models.DateTimeField(default=now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "running", "ready", "streamed", "failed", "expired"]),
                name="budgets_export_state_is_known",
            ),
            models.CheckConstraint(
                condition=Q(state="running", lease__isnull=False, leased_until__isnull=False)
                | ~Q(state="running") & Q(lease=None, leased_until=None),
                name="budgets_export_is_leased_while_it_runs",
            ),
            models.CheckConstraint(
                condition=~Q(state="ready")
                | ~Q(file="") & ~Q(sha256="") & ~Q(sidecar={}) & Q(expires_at__gt=F("created_at")),
                name="budgets_export_that_is_ready_has_a_file_that_expires",
            ),
        ]
        indexes = [
            models.Index(fields=["user_id", "-created_at"], name="budgets_export_of_user"),
            models.Index(
                fields=["created_at"],
                condition=Q(state__in=["waiting", "running"]),
                name="budgets_export_to_make",
            ),
            models.Index(fields=["expires_at"], condition=Q(state="ready"), name="budgets_export_to_expire"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant} for {self.user}"
