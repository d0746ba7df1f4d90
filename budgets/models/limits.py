"""What may be used, and how fast."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audit.checked import Checked
from audit.walls import Walled
from budgets.models.scopes import (
    CANONICAL,
    LARGEST,
    WRITE_IT_SO,
    Measure,
    PeriodKind,
    ScopedRow,
    Unit,
    names_what_its_scope_needs,
)
from budgets.periods import LENGTHS, in_words
from tenants.ids import new_id
from tenants.models import Tenant


def default_thresholds() -> list[int]:
    return [80, 95, 100]


class Budget(ScopedRow):
    """How much may be used in each period. A setting; what was used is a counter in Redis.

    A shadow budget is counted and reported and never refuses. ``limit`` is what
    holds while no raise does (``LimitRaise``).
    """

    unit = models.CharField(
        max_length=16,
        choices=Unit.choices,
        help_text="What the limit counts: with tokens, 1000000 is a million of them, input and output.",
    )
    period = models.CharField(max_length=10, choices=PeriodKind.choices)
    seconds = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="Length of a fixed period, counted on from 1970-01-01 00:00 UTC: 5400 for 90 minutes.",
    )
    shadow = models.BooleanField(default=False, help_text="Counts and reports, never refuses.")
    thresholds = ArrayField(
        models.PositiveSmallIntegerField(),
        default=default_thresholds,
        blank=True,
        help_text="Percents of the limit at which people are told, such as 80,95,100. Empty: none.",
    )

    objects = Walled(shared=True)

    class Meta:
        ordering = ["scope", "unit", "period"]
        constraints = [
            models.CheckConstraint(
                condition=names_what_its_scope_needs(), name="budgets_budget_names_what_its_scope_needs"
            ),
            models.CheckConstraint(
                condition=Q(model="") | CANONICAL,
                name="budgets_budget_model_is_canonical",
                violation_error_message=WRITE_IT_SO,
            ),
            models.CheckConstraint(condition=Q(unit__in=Unit.values), name="budgets_budget_unit_is_known"),
            models.CheckConstraint(
                condition=Q(period__in=PeriodKind.values), name="budgets_budget_period_is_known"
            ),
            models.CheckConstraint(
                condition=Q(limit=None) | Q(limit__range=(0, LARGEST)),
                name="budgets_budget_limit_counts_exactly",
            ),
            models.CheckConstraint(
                condition=Q(period="fixed", seconds__isnull=False, seconds__range=(LENGTHS[0], LENGTHS[-1]))
                | (~Q(period="fixed") & Q(seconds=None)),
                name="budgets_budget_seconds_only_when_fixed",
            ),
            models.CheckConstraint(
                condition=Q(thresholds__contained_by=list(range(1, 101))),
                name="budgets_budget_thresholds_are_percents",
                violation_error_message="A threshold is a percentage from 1 to 100.",
            ),
            models.UniqueConstraint(
                fields=[
                    "scope", "tenant", "team", "member", "key", "model", "upstream",
                    "unit", "period", "seconds", "shadow",
                ],
                nulls_distinct=False,
                name="budgets_budget_once_per_scope_unit_and_period",
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.unit} per {self.length} of {self.whose}"

    @property
    def length(self) -> str:
        """The period as people write it: ``day``, or ``90m`` for a fixed one."""
        return in_words(self.period, self.seconds)


class BudgetChange(models.Model):
    """A limit or period of a budget that gave way to another; written by a trigger.

    What follows from another period is told in ``budgets.schedules``. No
    reference, so that plain SQL may delete a budget.
    """

    budget_id = models.UUIDField(db_index=True)
    at = models.DateTimeField()
    period_before = models.TextField()
    seconds_before = models.BigIntegerField(null=True)
    limit_before = models.BigIntegerField(null=True)
    period = models.TextField()
    seconds = models.BigIntegerField(null=True)
    limit = models.BigIntegerField(null=True)

    objects = Walled("budget_id", via="budgets.Budget", shared=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.budget_id} at {self.at:%Y-%m-%d %H:%M}"


class RateLimit(ScopedRow):
    """How fast calls may come: in any minute, or at one time.

    A shadow one is counted and reported and never refuses. ``limit`` is what
    holds while no raise does (``LimitRaise``).
    """

    measure = models.CharField(
        max_length=24,
        choices=Measure.choices,
        help_text="What the limit counts: with requests per minute, 60 is one in a second on average.",
    )
    shadow = models.BooleanField(default=False, help_text="Counts and reports, never refuses.")

    objects = Walled(shared=True)

    class Meta:
        ordering = ["scope", "measure"]
        constraints = [
            models.CheckConstraint(
                condition=names_what_its_scope_needs(), name="budgets_ratelimit_names_what_its_scope_needs"
            ),
            models.CheckConstraint(
                condition=Q(model="") | CANONICAL,
                name="budgets_ratelimit_model_is_canonical",
                violation_error_message=WRITE_IT_SO,
            ),
            models.CheckConstraint(
                condition=Q(measure__in=Measure.values), name="budgets_ratelimit_measure_is_known"
            ),
            models.CheckConstraint(
                condition=Q(limit=None) | Q(limit__range=(0, LARGEST)),
                name="budgets_ratelimit_limit_counts_exactly",
            ),
            models.UniqueConstraint(
                fields=["scope", "tenant", "team", "member", "key", "model", "upstream", "measure", "shadow"],
                nulls_distinct=False,
                name="budgets_ratelimit_once_per_scope_and_measure",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.measure} of {self.whose}"

    @property
    def unit(self) -> str:
        """What it counts, one of ``Unit``."""
        tokens = self.measure == Measure.TOKENS_PER_MINUTE
        return (Unit.TOKENS if tokens else Unit.REQUESTS).value

    @property
    def length(self) -> str:
        """``minute``, or ``now`` where it counts what runs at one time."""
        return "now" if self.measure == Measure.CONCURRENT_REQUESTS else "minute"


def is_of_one_limit() -> Q:
    """The condition that a row is of a budget or of a rate limit."""
    return Q(budget__isnull=False, rate_limit=None) | Q(budget=None, rate_limit__isnull=False)


def kind_of_limit(row: ScopedRow) -> str:
    """``budget`` or ``rate_limit``: the column that names the row, and where its audit events begin."""
    return "budget" if isinstance(row, Budget) else "rate_limit"


# What ``select_related`` takes of rows of one limit, so that whose it is can be told.
WITH_ITS_LIMIT = tuple(
    f"{limit}__{part}"
    for limit in ("budget", "rate_limit")
    for part in ("tenant", "team", "member__user", "member__tenant", "key")
)
ONE_LIMIT = "Name a budget or a rate limit, one of the two."


def the_one(budget: Budget | None, rate_limit: RateLimit | None) -> Budget | RateLimit:
    """Which of both a row names; raises ``ValidationError`` for one that names none yet."""
    row = budget or rate_limit
    if row is None:
        raise ValidationError(ONE_LIMIT)
    return row


class LimitRaise(Checked):
    """More of a budget or a rate limit, until a moment: for deadlines, tests and other things that end.

    Either lifts the limit to ``to``, or adds ``by`` to it. While several raises
    of a limit hold, those that add are summed up and the larger of that and
    the highest ``to`` counts; none makes a limit smaller.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    budget = models.ForeignKey(
        Budget,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="raises",
        help_text="The budget that has more for a while, such as tokens of tenant acme in a day.",
    )
    rate_limit = models.ForeignKey(
        RateLimit,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="raises",
        help_text="Or the rate limit, such as requests of tenant acme in a minute, or at one time.",
    )
    to = models.BigIntegerField(
        null=True, blank=True, help_text="The limit while it holds, in what is counted: 2000000."
    )
    by = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="What is added to the limit while it holds, in what is counted: 500000.",
    )
    starts_at = models.DateTimeField(default=now, help_text="In UTC: 2026-12-01 00:00.")
    ends_at = models.DateTimeField(
        help_text="In UTC: 2026-12-24 00:00. From then on the limit is what it was."
    )
    reason = models.TextField(help_text="For the audit: end of the quarter, asked for by finance.")
    granted_by = models.TextField(editable=False)
    granted_at = models.DateTimeField(default=now, editable=False)
    # Kept beside the end that was meant: people ask for it.
    taken_back_at = models.DateTimeField(null=True, editable=False)

    objects = Walled(
        "budget",
        via="budgets.Budget",
        otherwise=Walled("rate_limit", via="budgets.RateLimit", shared=True),
        shared=True,
    )

    class Meta:
        ordering = ["-ends_at"]
        constraints = [
            models.CheckConstraint(
                condition=is_of_one_limit(),
                name="budgets_limitraise_of_one_limit",
                violation_error_message=ONE_LIMIT,
            ),
            models.CheckConstraint(
                condition=Q(to__range=(0, LARGEST), to__isnull=False, by=None)
                | Q(to=None, by__range=(1, LARGEST), by__isnull=False),
                name="budgets_limitraise_to_or_by",
                violation_error_message="A raise says to how much or by how much, one of the two.",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")),
                name="budgets_limitraise_ends_after_it_starts",
                violation_error_message="A raise ends after it starts.",
            ),
            models.CheckConstraint(
                condition=~Q(reason=""),
                name="budgets_limitraise_says_why",
                violation_error_message="A raise needs a reason.",
            ),
        ]

    def __str__(self) -> str:
        amount = f"to {self.to}" if self.by is None else f"by {self.by}"
        return f"{amount} until {self.ends_at:%Y-%m-%d %H:%M} UTC"

    @property
    def row(self) -> Budget | RateLimit:
        """The limit that has more for a while."""
        return the_one(self.budget, self.rate_limit)


class OutageCredit(models.Model):
    """What calls of a tenant may use while Redis cannot be asked, for each process of the gateway.

    Without a row, or with 0, nothing: such calls are refused.
    """

    tenant = models.OneToOneField(
        Tenant,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="+",
        help_text="Whose calls go on while Redis cannot be asked, such as acme.",
    )
    tokens = models.BigIntegerField(
        help_text="Tokens, input and output, that each process may lend until Redis has booked them: 20000. "
        "0: none."
    )

    objects = Walled()

    class Meta:
        verbose_name = "outage credit"
        constraints = [
            models.CheckConstraint(
                condition=Q(tokens__range=(0, LARGEST)),
                name="budgets_outagecredit_in_range",
                violation_error_message="A credit is 0 or more.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tokens} tokens of credit for {self.tenant}"
