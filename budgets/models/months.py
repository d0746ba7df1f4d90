"""Closed months, the statements that were drawn up of them, and months whose detail lies in files."""

from __future__ import annotations

from datetime import date, timedelta

from django.contrib.postgres.fields import ArrayField
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audit.checked import Checked
from audit.walls import Walled
from budgets.pricing import usd_in_full

# How long a second person has to agree to a reopening.
REOPENING_EXPIRES = timedelta(hours=24)


class ClosedMonth(Checked):
    """A calendar month of a tenant's accounting days in which nothing may be booked any more.

    The database refuses ledger entries and changes of rollups on its days.
    ``month`` is its first day; slug, name and zone of the tenant are kept as
    they were. ``export_sha256`` is the digest of its entries as
    ``budgets.canonical`` writes them, ``entries`` how many these were.

    A row never changes, but for its reopening: one person asks, another one
    agrees within a day. Then it stays as it is for good, and the month may be
    closed again, by another row.
    """

    tenant_id = models.UUIDField()
    tenant = models.TextField()
    tenant_name = models.TextField()
    month = models.DateField(help_text="Its first day.")
    time_zone = models.TextField()
    entries = models.BigIntegerField()
    export_sha256 = models.CharField(max_length=64, help_text="SHA-256 of its entries, one by one, as CSV.")
    closed_at = models.DateTimeField(default=now)
    closed_by = models.TextField()
    reason = models.TextField(blank=True)
    reopening_asked_at = models.DateTimeField(null=True)
    reopening_asked_by = models.TextField(blank=True, default="")
    reopening_reason = models.TextField(blank=True, default="")
    reopened_at = models.DateTimeField(null=True)
    reopened_by = models.TextField(blank=True, default="")

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-month", "tenant"]
        permissions = [
            ("close_month", "Can close a month of a tenant"),
            ("reopen_month", "Can ask for and agree to the reopening of a month"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant_id", "month"],
                condition=Q(reopened_at=None),
                name="budgets_closedmonth_closed_once",
                violation_error_message="The month is closed already.",
            ),
            models.CheckConstraint(
                condition=Q(month__day=1), name="budgets_closedmonth_is_told_by_its_first_day"
            ),
            models.CheckConstraint(condition=~Q(closed_by=""), name="budgets_closedmonth_says_who_closed"),
            models.CheckConstraint(
                condition=Q(reopening_asked_at=None, reopening_asked_by="", reopening_reason="")
                | Q(reopening_asked_at__isnull=False) & ~Q(reopening_asked_by="") & ~Q(reopening_reason=""),
                name="budgets_closedmonth_reopening_says_who_and_why",
            ),
            models.CheckConstraint(
                condition=Q(reopened_at=None, reopened_by="")
                | Q(
                    # Comparisons with null are neither true nor false, which a constraint lets pass.
                    reopening_asked_at__isnull=False,
                    reopened_at__gte=F("reopening_asked_at"),
                    reopened_at__lte=F("reopening_asked_at") + REOPENING_EXPIRES,
                )
                & ~Q(reopened_by="")
                & ~Q(reopened_by=F("reopening_asked_by")),
                name="budgets_closedmonth_reopened_by_two_within_a_day",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.month:%Y-%m} of {self.tenant}"

    @property
    def before(self) -> date:
        """The first day that is not of the month any more."""
        return (self.month + timedelta(days=31)).replace(day=1)


class Statement(Checked):
    """What a tenant's closed month came to, drawn up once with a number of its own; it never changes.

    Numbers count from 1 in each year (UTC) without a gap. A month that was
    reopened and closed again has a statement of the next ``revision``, which
    names the one it ``replaces``. ``lines`` and ``prices`` are what the papers
    show, shaped as ``budgets.statements`` makes them; the papers themselves are
    kept as they were handed out, with their digests.
    """

    number = models.CharField(max_length=20, unique=True, help_text="Such as 2026-000017.")
    year = models.PositiveSmallIntegerField()
    sequence = models.PositiveIntegerField()
    closing = models.OneToOneField(ClosedMonth, on_delete=models.PROTECT, related_name="statement")
    replaces = models.OneToOneField(
        "self", on_delete=models.PROTECT, related_name="replaced_by", null=True, blank=True
    )
    revision = models.PositiveSmallIntegerField(default=1)
    issuer = models.TextField()
    tenant_id = models.UUIDField()
    tenant = models.TextField()
    tenant_name = models.TextField()
    month = models.DateField(help_text="Its first day.")
    time_zone = models.TextField()
    requests = models.BigIntegerField()
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    thinking_tokens = models.BigIntegerField()
    estimated_tokens = models.BigIntegerField(help_text="Input and output of the entries that are not exact.")
    gpu_ms = models.BigIntegerField()
    cost_micro_usd = models.BigIntegerField()
    lines = models.JSONField(encoder=DjangoJSONEncoder)
    prices = models.JSONField(encoder=DjangoJSONEncoder)
    csv = models.BinaryField()
    csv_sha256 = models.CharField(max_length=64)
    pdf = models.BinaryField()
    pdf_sha256 = models.CharField(max_length=64)
    drawn_at = models.DateTimeField(default=now)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-year", "-sequence"]
        constraints = [
            models.UniqueConstraint(
                fields=["year", "sequence"], name="budgets_statement_once_per_number_of_a_year"
            ),
            models.CheckConstraint(
                condition=Q(revision=1, replaces=None) | Q(revision__gt=1, replaces__isnull=False),
                name="budgets_statement_later_revisions_replace_one",
            ),
        ]
        indexes = [models.Index(fields=["tenant_id", "-month"], name="budgets_statement_of_tenant")]

    def __str__(self) -> str:
        return self.number

    @property
    def cost(self) -> str:
        """In USD, exactly."""
        return usd_in_full(self.cost_micro_usd)

    @property
    def before(self) -> date:
        """The first day that is not of the month any more."""
        return (self.month + timedelta(days=31)).replace(day=1)


class ArchivedMonth(Checked):
    """A partition whose rows were written into a file and taken out of the database; it never changes.

    ``table`` and ``month`` tell which partition it was (``audit.months``), and
    ``file`` the name in ``ARCHIVE_DIR``: gzip of CSV with a head, as ``COPY``
    reads it. ``totals`` are the sums of what the rows tell, ``days`` the first
    and last accounting day of them.
    """

    table = models.TextField()
    month = models.DateField(help_text="Its first day.")
    file = models.TextField()
    sha256 = models.CharField(max_length=64, help_text="Of the file.")
    rows = models.BigIntegerField()
    totals = models.JSONField(default=dict)
    days = ArrayField(models.DateField(), default=list, blank=True)
    archived_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-month", "table"]
        constraints = [
            models.UniqueConstraint(fields=["table", "month"], name="budgets_archivedmonth_once_per_table"),
            models.CheckConstraint(
                condition=Q(month__day=1), name="budgets_archivedmonth_is_told_by_its_first_day"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.table} {self.month:%Y-%m}"
