"""What was used: the ledger, its sums, and what waits to be booked."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from audit.checked import Checked
from audit.walls import Walled


class LedgerEntry(Checked):
    """What one call used: the append-only truth.

    Every admitted call ends as one entry of kind ``usage``. If the sweep booked
    it and its owner turned up later, an ``adjustment`` holds the difference,
    signed; what a person puts right is a ``correction``, signed too, with an id
    of its own. Names and prices are kept as they were; nothing is pointed at, so
    an entry outlives what it names. What Ollama did not tell is null.

    The table has a partition for each month of ``request_id`` (``audit.months``).
    Its rows are unique by request and kind; ``id`` only tells their order.
    """

    class Kind(models.TextChoices):
        USAGE = "usage", _("Usage")
        ADJUSTMENT = "adjustment", _("Adjustment")
        CORRECTION = "correction", _("Correction")

    request_id = models.UUIDField()
    kind = models.CharField(max_length=10, choices=Kind.choices)
    tenant_id = models.UUIDField()
    tenant = models.TextField()
    team_id = models.UUIDField(null=True)
    team = models.TextField(blank=True)
    member_id = models.UUIDField(null=True)
    member = models.TextField(blank=True)
    key_id = models.UUIDField()
    key = models.TextField()
    model = models.TextField()
    upstream = models.TextField()
    route = models.TextField()
    operation = models.TextField()
    dialect = models.TextField()
    stream = models.BooleanField()
    day = models.DateField(
        help_text="Accounting day: on which the call ended, in the tenant's time zone; "
        "of an entry for a closed month, on which it was booked."
    )
    closed_month = models.DateField(
        null=True,
        help_text="First day of the closed month to which the entry belongs; it came too late for it.",
    )
    admitted_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    first_byte_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField()
    requests = models.BigIntegerField(help_text="1, or 0 if no model worked on the call.")
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField(help_text="Part of the input tokens.")
    output_tokens = models.BigIntegerField()
    thinking_tokens = models.BigIntegerField(help_text="Part of the output tokens.")
    input_bytes = models.BigIntegerField(null=True, help_text="Of the text of the prompt, where known.")
    output_bytes = models.BigIntegerField(null=True, help_text="Of the text of the answer, where known.")
    load_ns = models.BigIntegerField(null=True)
    prompt_ns = models.BigIntegerField(null=True)
    output_ns = models.BigIntegerField(null=True)
    gpu_ms = models.BigIntegerField(
        help_text="What Ollama told; where it told nothing, the time for which it had the call."
    )
    cost_micro_usd = models.BigIntegerField()
    run = models.TextField(
        blank=True, default="", db_default="", help_text="What the client named as its run."
    )
    price_id = models.UUIDField(
        null=True, help_text="The price the cost was worked out with; null: no price was set."
    )
    input_price = models.BigIntegerField(
        null=True, help_text="Of that price, micro-USD for a million tokens."
    )
    cached_price = models.BigIntegerField(null=True, help_text="The same, for cached input.")
    output_price = models.BigIntegerField(null=True, help_text="The same, for output.")
    gpu_price = models.BigIntegerField(null=True, help_text="The same, for a second of GPU time.")
    exact = models.BooleanField(help_text="False: the tokens are estimated.")
    estimator = models.TextField(
        blank=True, default="", db_default="", help_text="Version of what estimated the tokens."
    )
    late = models.BooleanField(help_text="Settled when its hold was gone already.")
    # With a default in the database, because the release before this one writes entries too.
    on_credit = models.BooleanField(
        default=False, db_default=False, help_text="Admitted while Redis could not be asked."
    )
    outcome = models.TextField()
    status = models.SmallIntegerField()
    recorded_at = models.DateTimeField(default=now)
    corrects = models.UUIDField(null=True, help_text="Request whose entry a correction puts right.")
    actor = models.TextField(blank=True, default="", db_default="", help_text="Who corrected.")
    reason = models.TextField(blank=True, default="", db_default="", help_text="Why it was corrected.")

    objects = Walled("tenant_id")

    class Meta:
        verbose_name_plural = "ledger entries"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["request_id", "kind"], name="budgets_ledgerentry_once_per_request_and_kind"
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["usage", "adjustment", "correction"]),
                name="budgets_ledgerentry_kind_is_known",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["adjustment", "correction"])
                | Q(
                    requests__range=(0, 1),
                    input_tokens__gte=0,
                    cached_tokens__range=(0, F("input_tokens")),
                    output_tokens__gte=0,
                    thinking_tokens__range=(0, F("output_tokens")),
                    gpu_ms__gte=0,
                    cost_micro_usd__gte=0,
                ),
                name="budgets_ledgerentry_only_differences_are_negative",
            ),
            models.CheckConstraint(
                condition=Q(kind="correction", corrects__isnull=False) & ~Q(actor="") & ~Q(reason="")
                | ~Q(kind="correction") & Q(corrects=None, actor="", reason=""),
                name="budgets_ledgerentry_corrections_say_what_who_and_why",
            ),
            models.CheckConstraint(
                condition=Q(closed_month=None) | Q(closed_month__day=1, closed_month__lt=F("day")),
                name="budgets_ledgerentry_closed_month_is_before_its_day",
            ),
            models.CheckConstraint(
                condition=Q(
                    price_id=None, input_price=None, cached_price=None, output_price=None, gpu_price=None
                )
                | Q(price_id__isnull=False),
                name="budgets_ledgerentry_rates_are_those_of_a_price",
            ),
        ]
        indexes = [
            models.Index(fields=["tenant_id", "-ended_at"], name="budgets_ledgerentry_of_tenant"),
            models.Index(fields=["key_id", "-ended_at"], name="budgets_ledgerentry_of_key"),
            models.Index(fields=["-ended_at"], name="budgets_ledgerentry_newest"),
            models.Index(fields=["tenant_id", "day"], name="budgets_ledgerentry_of_day"),
            models.Index(
                fields=["corrects"], condition=~Q(corrects=None), name="budgets_ledgerentry_corrects"
            ),
            models.Index(
                fields=["tenant_id", "run"], condition=~Q(run=""), name="budgets_ledgerentry_of_run"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.request_id}"


class UsageRollup(models.Model):
    """Sums of the ledger for one hour of one key, model, upstream, operation and route.

    ``day`` is the tenant's; an hour in which two of its days meet has a row for
    each. Names are those of the latest entry. ``route`` is empty where it is not
    known: what was archived before rollups had routes.
    """

    tenant_id = models.UUIDField()
    day = models.DateField()
    hour_start = models.DateTimeField(help_text="A whole hour of UTC.")
    team_id = models.UUIDField(null=True)
    member_id = models.UUIDField(null=True)
    key_id = models.UUIDField()
    model = models.TextField()
    upstream = models.TextField()
    operation = models.TextField()
    route = models.TextField(
        blank=True, default="", db_default="", help_text="Empty: the entries were archived without it."
    )
    tenant = models.TextField()
    team = models.TextField(blank=True)
    member = models.TextField(blank=True)
    key = models.TextField()
    requests = models.BigIntegerField()
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    thinking_tokens = models.BigIntegerField()
    estimated_tokens = models.BigIntegerField(help_text="Input and output of the entries that are not exact.")
    gpu_ms = models.BigIntegerField()
    cost_micro_usd = models.BigIntegerField()

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-hour_start"]
        constraints = [
            models.UniqueConstraint(
                fields=[
                    "tenant_id", "day", "hour_start", "team_id", "member_id", "key_id",
                    "model", "upstream", "operation", "route",
                ],
                nulls_distinct=False,
                name="budgets_usagerollup_once_per_hour_and_part",
            )
        ]  # fmt: skip
        indexes = [
            models.Index(fields=["-hour_start"], name="budgets_usagerollup_newest"),
            models.Index(fields=["tenant_id", "day"], name="budgets_usagerollup_of_day"),
            models.Index(fields=["key_id", "day"], name="budgets_usagerollup_of_key"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant} {self.hour_start:%Y-%m-%d %H}h {self.model}"


class BudgetPeriod(Checked):
    """What the ledger says was used of a budget in one period: what its counter must equal.

    A budget of runs has one for each ``run``. ``last_at``: when something was
    last added.
    ``refused`` counts the calls that the budget refused, or in shadow mode would
    have. Of a process that died, those of its last half second are not in it.
    ``told`` is the part of ``used`` that the closing and its late usage tell of;
    null: the period is not closed.
    """

    budget_id = models.UUIDField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField(null=True)
    run = models.TextField(blank=True, default="", db_default="")
    last_at = models.DateTimeField(default=now, db_default=Now())
    used = models.BigIntegerField(db_default=0)
    refused = models.BigIntegerField(db_default=0)
    told = models.BigIntegerField(null=True)

    objects = Walled("budget_id", via="budgets.Budget")

    class Meta:
        ordering = ["-period_start"]
        constraints = [
            models.UniqueConstraint(
                fields=["budget_id", "period_start", "run"],
                name="budgets_budgetperiod_once_per_start_and_run",
            ),
            models.CheckConstraint(
                condition=Q(period_end=None) | Q(period_end__gt=F("period_start")),
                name="budgets_budgetperiod_ends_after_it_starts",
            ),
        ]
        indexes = [
            models.Index(fields=["-period_end"], name="budgets_budgetperiod_latest"),
            # Those that are closed at all: visitors and runs leave many that are not.
            models.Index(
                fields=["budget_id", "period_end"],
                condition=Q(told=None, run=""),
                name="budgets_budgetperiod_open",
            ),
            models.Index(
                fields=["period_end"],
                condition=~Q(told=None) & ~Q(told=F("used")),
                name="budgets_budgetperiod_late",
            ),
        ]

    def __str__(self) -> str:
        of_run = f" of run {self.run}" if self.run else ""
        return f"{self.budget_id}{of_run} from {self.period_start:%Y-%m-%d %H:%M}"


class PeriodClosing(models.Model):
    """What a budget's period came to, written once when it was over and booked; it never changes.

    ``budget`` and ``limit`` are as they were when the period ended; a limit of
    null is no limit. Of a budget that was removed with plain SQL only the id is
    known. What is booked later is in ``LateUsage``. Whoever tells people of it
    notes that in ``notified_at``, the one column that is written later.
    """

    budget_id = models.UUIDField()
    tenant_id = models.UUIDField(null=True)
    budget = models.TextField(blank=True)
    unit = models.TextField(blank=True)
    shadow = models.BooleanField(default=False)
    time_zone = models.TextField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    limit = models.BigIntegerField(null=True)
    used = models.BigIntegerField()
    refused = models.BigIntegerField()
    closed_at = models.DateTimeField(default=now)
    notified_at = models.DateTimeField(null=True)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-period_end"]
        constraints = [
            models.UniqueConstraint(
                fields=["budget_id", "period_start"], name="budgets_periodclosing_once_per_start"
            )
        ]
        indexes = [
            models.Index(fields=["-period_end"], name="budgets_periodclosing_latest"),
            models.Index(fields=["tenant_id", "-period_end"], name="budgets_periodclosing_tenant"),
            models.Index(
                fields=["closed_at"], condition=Q(notified_at=None), name="budgets_periodclosing_untold"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.budget or self.budget_id} from {self.period_start:%Y-%m-%d %H:%M}"


class LateUsage(models.Model):
    """What was booked on a period after its closing: more, or less where an adjustment took it back."""

    closing = models.ForeignKey(PeriodClosing, on_delete=models.PROTECT, related_name="late_usage")
    used = models.BigIntegerField()
    at = models.DateTimeField(default=now)

    objects = Walled("closing", via="budgets.PeriodClosing")

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "late usage"

    def __str__(self) -> str:
        return f"{self.used:+d} for {self.closing}"


class SpooledSettlement(models.Model):
    """A settlement Redis could not take, kept until it can."""

    request_id = models.UUIDField(primary_key=True)
    settlement = models.JSONField()
    created_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["created_at"]

    def __str__(self) -> str:
        return str(self.request_id)


class ParkedRecord(models.Model):
    """A usage record that could not be booked, put aside so that its neighbours could.

    ``record`` is what the stream held, as ASCII JSON of its fields; bytes that
    are not ASCII are written as escapes. One out of the spool has ``spool:``
    and its request id for a ``stream_id``. ``told``: people were told of it.
    """

    stream_id = models.CharField(max_length=64, unique=True)
    record = models.TextField()
    reason = models.TextField()
    parked_at = models.DateTimeField(default=now)
    # With a default in the database, because the release before this one parks records too.
    told = models.BooleanField(default=False, db_default=False)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["id"], condition=Q(told=False), name="budgets_parkedrecord_untold"),
        ]

    def __str__(self) -> str:
        return self.stream_id


class CounterEpoch(models.Model):
    """The mark that the counters in Redis must carry to be believed. One row, at most."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    epoch = models.TextField()
    since = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="budgets_counterepoch_is_one_row")]

    def __str__(self) -> str:
        return self.epoch
