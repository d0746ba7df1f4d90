from __future__ import annotations

from datetime import datetime, timedelta
from secrets import token_hex
from urllib.parse import urlsplit

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.core.validators import validate_email
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.timezone import now

from budgets.periods import LENGTHS, in_words
from keys.models import ApiKey
from tenants.ids import new_id
from tenants.models import Member, Team, Tenant

# The largest whole number that Lua's doubles hold exactly.
LARGEST = 2**53 - 1
# $1,000 for a million tokens, $1 for a second; they keep every product a script forms below LARGEST.
LARGEST_PRICE = 10**9
LARGEST_GPU_PRICE = 10**6


# Another spelling would count, cost or stop nothing.
CANONICAL = Q(model__regex=r"^[a-z0-9_./:-]+:[a-z0-9_.-]+$")
WRITE_IT_SO = "Write the model in lower case and with its tag: llama3.2:latest."


class Scope(models.TextChoices):
    """Whose calls are counted together."""

    PLATFORM = "platform"
    TENANT = "tenant"
    TEAM = "team"
    MEMBER = "member"
    KEY = "key"
    MODEL = "model"
    UPSTREAM = "upstream"
    RUN = "run"


class Unit(models.TextChoices):
    """What a budget counts."""

    REQUESTS = "requests"
    TOKENS = "tokens", "Tokens, input and output"
    OUTPUT_TOKENS = "output_tokens", "Output tokens"
    MICRO_USD = "micro_usd", "Micro-USD"
    GPU_MS = "gpu_ms", "GPU milliseconds"


class PeriodKind(models.TextChoices):
    """How long a budget lasts until it is whole again."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    LIFETIME = "lifetime"
    FIXED = "fixed", "Fixed number of seconds"


class Measure(models.TextChoices):
    """What a rate limit bounds."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENT_REQUESTS = "concurrent_requests"


# The columns of each scope, and those it may have besides: (needed, allowed).
# The rows of a tenant's parts name the tenant too, so that a change of one
# takes force for this tenant alone.
SCOPE_COLUMNS: dict[str, tuple[set[str], set[str]]] = {
    Scope.PLATFORM: (set(), set()),
    Scope.TENANT: ({"tenant"}, set()),
    Scope.TEAM: ({"tenant", "team"}, set()),
    Scope.MEMBER: ({"tenant", "member"}, set()),
    Scope.KEY: ({"tenant", "key"}, set()),
    Scope.MODEL: ({"model"}, {"tenant"}),
    Scope.UPSTREAM: ({"upstream"}, {"tenant"}),
    Scope.RUN: ({"tenant"}, {"key"}),
}


def _names_what_its_scope_needs() -> Q:
    """The condition that a row has exactly the columns of its scope."""
    condition = Q()
    for scope, (needed, allowed) in SCOPE_COLUMNS.items():
        fits = Q(scope=scope)
        for column in ("tenant", "team", "member", "key"):
            if column not in allowed:
                fits &= Q(**{f"{column}__isnull": column not in needed})
        for column in ("model", "upstream"):
            fits &= ~Q(**{column: ""}) if column in needed else Q(**{column: ""})
        condition |= fits
    return condition


class ScopedRow(models.Model):
    """What budgets and rate limits share: whose calls are counted on the row's one counter.

    A model or an upstream with a tenant counts this tenant's calls to it,
    without one everybody's. A run has a counter for each run of the tenant, or
    with a key of this key: what a client names in ``X-Tollgate-Run``.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    scope = models.CharField(max_length=10, choices=Scope.choices)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    member = models.ForeignKey(Member, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    model = models.CharField(max_length=200, blank=True, help_text="Canonical name, such as llama3.2:latest.")
    upstream = models.CharField(max_length=80, blank=True, help_text="Name of an upstream.")
    limit = models.BigIntegerField(
        null=True, blank=True, help_text="Empty: no limit, only counted. 0: nothing is let through."
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        abstract = True

    @property
    def whose(self) -> str:
        """The scope and who or what it is, such as ``key nightly-report of acme``."""
        part = {
            Scope.TEAM: self.team,
            Scope.MEMBER: self.member,
            Scope.KEY: self.key,
            Scope.RUN: self.key,
            Scope.MODEL: self.model,
            Scope.UPSTREAM: self.upstream,
        }.get(Scope(self.scope))
        named = [str(self.scope)] if part is None else [str(self.scope), str(part)]
        if self.tenant is not None:
            named += [str(self.tenant)] if part is None else ["of", str(self.tenant)]
        return " ".join(named)


def new_salt() -> str:
    return token_hex(16)


def default_thresholds() -> list[int]:
    return [80, 95, 100]


class Budget(ScopedRow):
    """How much may be used in each period. A setting; what was used is a counter in Redis.

    A shadow budget is counted and reported and never refuses. ``limit`` is what
    holds while no raise does (``BudgetRaise``).
    """

    unit = models.CharField(max_length=16, choices=Unit.choices)
    period = models.CharField(max_length=10, choices=PeriodKind.choices)
    seconds = models.BigIntegerField(
        null=True, blank=True, help_text="Length of a fixed period, counted on from 1970-01-01 00:00 UTC."
    )
    shadow = models.BooleanField(default=False, help_text="Counts and reports, never refuses.")
    thresholds = ArrayField(
        models.PositiveSmallIntegerField(),
        default=default_thresholds,
        blank=True,
        help_text="Percents of the limit at which people are told, such as 80,95,100. Empty: none.",
    )

    class Meta:
        ordering = ["scope", "unit", "period"]
        constraints = [
            models.CheckConstraint(
                condition=_names_what_its_scope_needs(), name="budgets_budget_names_what_its_scope_needs"
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

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.budget_id} at {self.at:%Y-%m-%d %H:%M}"


class BudgetRaise(models.Model):
    """More of a budget, until a moment: for deadlines, tests and other things that end.

    Either lifts the limit to ``to``, or adds ``by`` to it. While several raises
    of a budget hold, those that add are summed up and the larger of that and
    the highest ``to`` counts; none makes a limit smaller.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    budget = models.ForeignKey(Budget, on_delete=models.CASCADE, related_name="raises")
    to = models.BigIntegerField(null=True, blank=True, help_text="The limit while it holds.")
    by = models.BigIntegerField(null=True, blank=True, help_text="What is added to the limit while it holds.")
    starts_at = models.DateTimeField(default=now)
    ends_at = models.DateTimeField()
    reason = models.TextField()
    granted_by = models.TextField(editable=False)
    granted_at = models.DateTimeField(default=now, editable=False)
    # Kept beside the end that was meant: people ask for it.
    taken_back_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-ends_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(to__range=(0, LARGEST), to__isnull=False, by=None)
                | Q(to=None, by__range=(1, LARGEST), by__isnull=False),
                name="budgets_budgetraise_to_or_by",
                violation_error_message="A raise says to how much or by how much, one of the two.",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__gt=F("starts_at")),
                name="budgets_budgetraise_ends_after_it_starts",
                violation_error_message="A raise ends after it starts.",
            ),
            models.CheckConstraint(
                condition=~Q(reason=""),
                name="budgets_budgetraise_says_why",
                violation_error_message="A raise needs a reason.",
            ),
        ]

    def __str__(self) -> str:
        amount = f"to {self.to}" if self.by is None else f"by {self.by}"
        return f"{amount} until {self.ends_at:%Y-%m-%d %H:%M} UTC"


class RateLimit(ScopedRow):
    """How fast calls may come: in any minute, or at one time.

    A shadow one is counted and reported and never refuses.
    """

    measure = models.CharField(max_length=24, choices=Measure.choices)
    shadow = models.BooleanField(default=False, help_text="Counts and reports, never refuses.")

    class Meta:
        ordering = ["scope", "measure"]
        constraints = [
            models.CheckConstraint(
                condition=_names_what_its_scope_needs(), name="budgets_ratelimit_names_what_its_scope_needs"
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


class Price(models.Model):
    """What a model costs from one moment on, in micro-USD for a million tokens and for a second of GPU time.

    The price of a tenant goes before everybody's; of several the one that
    started last counts. It is pinned when a call is admitted.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    model = models.CharField(max_length=200, help_text="Canonical name, such as llama3.2:latest.")
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    input_price = models.BigIntegerField(default=0, help_text="Micro-USD for a million input tokens.")
    cached_price = models.BigIntegerField(
        default=0, help_text="The same, for input the model had in its cache."
    )
    output_price = models.BigIntegerField(default=0, help_text="Micro-USD for a million output tokens.")
    gpu_price = models.BigIntegerField(
        default=0, db_default=0, verbose_name="GPU price", help_text="Micro-USD for a second of GPU time."
    )
    starts_at = models.DateTimeField(default=now)
    free = models.BooleanField(default=False, help_text="Costs nothing on purpose.")

    class Meta:
        ordering = ["model", "-starts_at"]
        constraints = [
            models.CheckConstraint(
                condition=CANONICAL,
                name="budgets_price_model_is_canonical",
                violation_error_message=WRITE_IT_SO,
            ),
            models.CheckConstraint(
                condition=Q(input_price__range=(0, LARGEST_PRICE))
                & Q(output_price__range=(0, LARGEST_PRICE))
                & Q(gpu_price__range=(0, LARGEST_GPU_PRICE))
                & Q(cached_price__gte=0)
                # What is held for a call before it is known what was cached.
                & Q(cached_price__lte=F("input_price")),
                name="budgets_price_in_range",
            ),
            # A price of nothing has to be meant.
            models.CheckConstraint(
                condition=Q(free=True, input_price=0, cached_price=0, output_price=0, gpu_price=0)
                | Q(free=False) & (Q(input_price__gt=0) | Q(output_price__gt=0) | Q(gpu_price__gt=0)),
                name="budgets_price_is_nothing_only_when_free",
            ),
            models.UniqueConstraint(
                fields=["model", "tenant", "starts_at"],
                nulls_distinct=False,
                name="budgets_price_once_per_start",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} from {self.starts_at:%Y-%m-%d %H:%M}"


class OutageCredit(models.Model):
    """What calls of a tenant may use while Redis cannot be asked, for each process of the gateway.

    Without a row, or with 0, nothing: such calls are refused.
    """

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, primary_key=True, related_name="+")
    tokens = models.BigIntegerField(
        help_text="Tokens, input and output, that each process may lend until Redis has booked them. 0: none."
    )

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


def in_seven_days() -> datetime:
    return now() + timedelta(days=7)


class KillSwitches(models.QuerySet["KillSwitch"]):
    def on(self) -> KillSwitches:
        """Those that stop calls now."""
        return self.filter(lift=None, until__gt=now())


class KillSwitch(models.Model):
    """A stop that wins over everything: no call of its scope is admitted, and running ones end.

    It is on from the moment it is written until ``until``, or until there is a
    ``KillSwitchLift`` of it. A model with a tenant stops this tenant's calls to
    it, without one everybody's. Nothing is pointed at, so a row outlives what it
    names; the database refuses to change or delete one, and has defaults for
    all that plain SQL leaves out.
    """

    scope = models.CharField(
        max_length=10,
        choices=[
            (scope.value, scope.label)
            for scope in (Scope.PLATFORM, Scope.TENANT, Scope.KEY, Scope.UPSTREAM, Scope.MODEL)
        ],
    )
    tenant_id = models.UUIDField(null=True, blank=True)
    tenant = models.TextField(blank=True, help_text="Slug of the tenant, as it was.")
    key_id = models.UUIDField(null=True, blank=True)
    key = models.TextField(blank=True, help_text="Label of the key, as it was.")
    model = models.CharField(max_length=350, blank=True, help_text="Canonical name, such as llama3.2:latest.")
    upstream = models.CharField(max_length=80, blank=True, help_text="Name of an upstream.")
    reason = models.TextField(help_text="For operators and the audit.")
    message = models.CharField(max_length=200, blank=True, help_text="What callers are told besides.")
    armed_by = models.TextField()
    armed_at = models.DateTimeField(default=now)
    until = models.DateTimeField(default=in_seven_days, help_text="When it lifts itself.")

    objects = KillSwitches.as_manager()

    class Meta:
        verbose_name_plural = "kill switches"
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(scope="platform", tenant_id=None, key_id=None, model="", upstream="")
                | Q(scope="tenant", tenant_id__isnull=False, key_id=None, model="", upstream="")
                | Q(scope="key", tenant_id__isnull=False, key_id__isnull=False, model="", upstream="")
                | Q(scope="upstream", tenant_id=None, key_id=None, model="") & ~Q(upstream="")
                | Q(scope="model", key_id=None, upstream="") & ~Q(model=""),
                name="budgets_killswitch_names_what_its_scope_needs",
            ),
            models.CheckConstraint(
                condition=Q(model="") | CANONICAL,
                name="budgets_killswitch_model_is_canonical",
                violation_error_message=WRITE_IT_SO,
            ),
            models.CheckConstraint(
                condition=~Q(reason="") & ~Q(armed_by=""), name="budgets_killswitch_says_who_and_why"
            ),
            models.CheckConstraint(
                condition=Q(until__gt=F("armed_at")),
                name="budgets_killswitch_ends_after_it_begins",
                violation_error_message="A kill switch has to end in the future.",
            ),
        ]

    def __str__(self) -> str:
        return self.subject

    @property
    def subject(self) -> str:
        """What is stopped, in words; typed by whoever arms it to confirm that it is meant."""
        named = {
            Scope.TENANT: self.tenant or str(self.tenant_id),
            Scope.KEY: self.key or str(self.key_id),
            Scope.UPSTREAM: self.upstream,
            Scope.MODEL: self.model,
        }.get(Scope(self.scope))
        within = "" if self.scope == Scope.TENANT or self.tenant_id is None else f" of {self.tenant}"
        return "platform" if named is None else f"{self.scope} {named}{within}"

    @property
    def state(self) -> str:
        """``on``, ``lapsed`` (it lifted itself) or ``lifted`` (by somebody)."""
        if hasattr(self, "lift"):
            return "lifted"
        return "on" if self.until > now() else "lapsed"


class KillSwitchLift(models.Model):
    """The end of a kill switch before its time. Only ever added, as the switches are."""

    switch = models.OneToOneField(KillSwitch, on_delete=models.PROTECT, related_name="lift")
    reason = models.TextField()
    lifted_by = models.TextField()
    lifted_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(reason="") & ~Q(lifted_by=""), name="budgets_killswitchlift_says_who_and_why"
            ),
        ]

    def __str__(self) -> str:
        return f"lift of {self.switch}"


class RunningCall(models.Model):
    """A call with a live hold, as far as its last heartbeat has told; it lies in Redis and has no table.

    ``output_tokens`` were delivered by then, of ``output_cap`` at most.
    ``started`` says that its upstream has been called, ``stopping`` that an
    operator has asked it to end. Names are those at its admission.
    """

    request_id = models.UUIDField(primary_key=True)
    tenant_id = models.UUIDField()
    tenant = models.TextField()
    key_id = models.UUIDField()
    key = models.TextField()
    member = models.TextField(blank=True)
    model = models.TextField()
    upstream = models.TextField()
    route = models.TextField()
    stream = models.BooleanField()
    admitted_at = models.DateTimeField()
    output_tokens = models.BigIntegerField()
    output_cap = models.BigIntegerField()
    started = models.BooleanField()
    stopping = models.BooleanField()

    class Meta:
        managed = False
        default_permissions = ("view", "stop")

    def __str__(self) -> str:
        return str(self.request_id)


class LedgerEntry(models.Model):
    """What one call used: the append-only truth.

    Every admitted call ends as one entry of kind ``usage``. If the sweep booked
    it and its owner turned up later, an ``adjustment`` holds the difference,
    signed. Names are kept as they were; nothing is pointed at, so an entry
    outlives what it names. Durations and instants Ollama did not tell are null.
    """

    class Kind(models.TextChoices):
        USAGE = "usage"
        ADJUSTMENT = "adjustment"

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
    day = models.DateField(help_text="On which the call ended, in the tenant's time zone.")
    admitted_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    first_byte_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField()
    requests = models.BigIntegerField(help_text="1, or 0 if no model worked on the call.")
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField(help_text="Part of the input tokens.")
    output_tokens = models.BigIntegerField()
    thinking_tokens = models.BigIntegerField(help_text="Part of the output tokens.")
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
    exact = models.BooleanField(help_text="False: the tokens are estimated.")
    late = models.BooleanField(help_text="Settled when its hold was gone already.")
    # With a default in the database, because the release before this one writes entries too.
    on_credit = models.BooleanField(
        default=False, db_default=False, help_text="Admitted while Redis could not be asked."
    )
    outcome = models.TextField()
    status = models.SmallIntegerField()
    recorded_at = models.DateTimeField(default=now)

    class Meta:
        verbose_name_plural = "ledger entries"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["request_id", "kind"], name="budgets_ledgerentry_once_per_request_and_kind"
            ),
            models.CheckConstraint(
                condition=Q(kind__in=["usage", "adjustment"]), name="budgets_ledgerentry_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(kind="adjustment")
                | Q(
                    requests__range=(0, 1),
                    input_tokens__gte=0,
                    cached_tokens__range=(0, F("input_tokens")),
                    output_tokens__gte=0,
                    thinking_tokens__range=(0, F("output_tokens")),
                    gpu_ms__gte=0,
                    cost_micro_usd__gte=0,
                ),
                name="budgets_ledgerentry_only_adjustments_are_negative",
            ),
        ]
        indexes = [
            models.Index(fields=["tenant_id", "-ended_at"], name="budgets_ledgerentry_of_tenant"),
            models.Index(fields=["key_id", "-ended_at"], name="budgets_ledgerentry_of_key"),
            models.Index(fields=["-ended_at"], name="budgets_ledgerentry_newest"),
            models.Index(
                fields=["tenant_id", "run"], condition=~Q(run=""), name="budgets_ledgerentry_of_run"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.request_id}"


class UsageRollup(models.Model):
    """Sums of the ledger for one hour of one key, model, upstream and operation.

    ``day`` is the tenant's; an hour in which two of its days meet has a row for
    each. Names are those of the latest entry.
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

    class Meta:
        ordering = ["-hour_start"]
        constraints = [
            models.UniqueConstraint(
                fields=[
                    "tenant_id", "day", "hour_start", "team_id", "member_id", "key_id",
                    "model", "upstream", "operation",
                ],
                nulls_distinct=False,
                name="budgets_usagerollup_once_per_hour_and_part",
            )
        ]  # fmt: skip
        indexes = [models.Index(fields=["-hour_start"], name="budgets_usagerollup_newest")]

    def __str__(self) -> str:
        return f"{self.tenant} {self.hour_start:%Y-%m-%d %H}h {self.model}"


class BudgetPeriod(models.Model):
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
    and its request id for a ``stream_id``.
    """

    stream_id = models.CharField(max_length=64, unique=True)
    record = models.TextField()
    reason = models.TextField()
    parked_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-id"]

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


def trouble_with_url(url: str) -> str:
    """What is wrong with the URL of a webhook, wherever it leads; nothing, if it is well formed."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "This is no URL."
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "A webhook is an https:// address."
    if parts.username is not None or parts.password is not None:
        return "A webhook has no user name or password in its address."
    if not url.isascii() or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        return "A webhook has no spaces or special characters in its address."
    return ""


class Happening(models.TextChoices):
    """What people are told of."""

    THRESHOLD = "threshold", "a share of a budget is used"
    EXHAUSTED = "exhausted", "a budget refused a call"
    SHADOW_REFUSED = "shadow_refused", "a shadow budget would have refused a call"
    PERIOD_CLOSED = "period_closed", "a period of a budget is over"
    RAISE_ENDED = "raise_ended", "a raise of a budget is over"
    KILL_SWITCH_ARMED = "kill_switch_armed", "a kill switch stops calls"
    KILL_SWITCH_LIFTED = "kill_switch_lifted", "a kill switch no longer stops calls"
    TEST = "test", "somebody tries whether notices arrive"


def every_happening() -> list[str]:
    return [happening for happening in Happening.values if happening != Happening.TEST]


def happenings_told_of() -> list[str]:
    """What a recipient is told of who says nothing: all but each of very many periods."""
    return [happening for happening in every_happening() if happening != Happening.PERIOD_CLOSED]


class Recipient(models.Model):
    """Who is told of what happens to a tenant, or with no tenant to any and to the platform."""

    class Kind(models.TextChoices):
        EMAIL = "email", "E-mail"
        WEBHOOK = "webhook"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="Empty: told of all tenants and of the platform.",
    )
    kind = models.CharField(max_length=8, choices=Kind.choices)
    address = models.CharField(max_length=2000, help_text="An e-mail address, or the URL of a webhook.")
    happenings = ArrayField(
        models.CharField(max_length=20, choices=Happening.choices),
        default=happenings_told_of,
        help_text="What they are told of.",
    )
    active = models.BooleanField(default=True, help_text="One that is not active is told of nothing new.")
    # What the secret of a webhook is derived from, with KEY_PEPPER.
    salt = models.CharField(max_length=32, editable=False, default=new_salt)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["tenant__slug", "kind", "address"]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=["email", "webhook"]), name="budgets_recipient_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(happenings__contained_by=every_happening()),
                name="budgets_recipient_happenings_are_known",
            ),
            models.UniqueConstraint(
                fields=["tenant", "kind", "address"],
                nulls_distinct=False,
                name="budgets_recipient_once_per_address",
                violation_error_message="This address is told already.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.shown_address}"

    def clean(self) -> None:
        if self.kind == self.Kind.EMAIL:
            try:
                validate_email(self.address)
            except ValidationError as exc:
                raise ValidationError({"address": exc.messages}) from exc
        elif trouble := trouble_with_url(self.address):
            raise ValidationError({"address": trouble})

    @property
    def shown_address(self) -> str:
        """The address without what may be a secret: of a URL the host alone."""
        return self.address if self.kind == self.Kind.EMAIL else (urlsplit(self.address).hostname or "?")


class Notice(models.Model):
    """Something that happened and that people are told of, once.

    ``subject`` is the id of what it happened to. A threshold is told once for
    each period and limit of a budget; with ``limit`` and ``used`` as they were.
    ``facts`` is what webhooks are sent; names are kept as they were.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    happening = models.CharField(max_length=20, choices=Happening.choices)
    subject = models.TextField()
    period_start = models.DateTimeField(null=True)
    threshold = models.PositiveSmallIntegerField(null=True)
    limit = models.BigIntegerField(null=True)
    used = models.BigIntegerField(null=True)
    tenant_id = models.UUIDField(null=True)
    at = models.DateTimeField(default=now)
    text = models.TextField()
    facts = models.JSONField(encoder=DjangoJSONEncoder)

    class Meta:
        ordering = ["-at"]
        constraints = [
            models.UniqueConstraint(
                fields=["happening", "subject", "period_start", "threshold", "limit"],
                nulls_distinct=False,
                name="budgets_notice_once_per_crossing",
            ),
        ]
        indexes = [models.Index(fields=["-at"], name="budgets_notice_newest")]

    def __str__(self) -> str:
        return self.text


class Delivery(models.Model):
    """One notice on its way to one recipient; ``id`` is what the receiver knows a repeat by.

    ``next_at``: when it is tried next; also when it is tried again, should the
    process that tries it now die. ``attempts`` has ``at``, ``status`` (of HTTP)
    and ``error`` of each attempt that ended, oldest first.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        DELIVERED = "delivered"
        DEAD = "dead", "Dead: given up"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    notice = models.ForeignKey(Notice, on_delete=models.CASCADE, related_name="deliveries")
    recipient = models.ForeignKey(Recipient, on_delete=models.SET_NULL, null=True, related_name="deliveries")
    to = models.TextField(help_text="The recipient as it was, without secrets.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    begun = models.PositiveSmallIntegerField(default=0, help_text="How many attempts were begun.")
    attempts = models.JSONField(default=list)
    next_at = models.DateTimeField(default=now)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["notice", "recipient"], name="budgets_delivery_once_per_notice_and_recipient"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "delivered", "dead"]),
                name="budgets_delivery_state_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["next_at"], condition=Q(state="waiting"), name="budgets_delivery_waiting"),
        ]

    def __str__(self) -> str:
        return f"{self.notice} to {self.to}"
