"""Whose calls are counted, and in what."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audit.checked import Checked
from keys.models import ApiKey
from tenants.ids import new_id
from tenants.models import Member, Team, Tenant

# The largest whole number that Lua's doubles hold exactly.
LARGEST = 2**53 - 1


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


def names_what_its_scope_needs() -> Q:
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


class ScopedRow(Checked):
    """What budgets and rate limits share: whose calls are counted on the row's one counter.

    A model or an upstream with a tenant counts this tenant's calls to it,
    without one everybody's. A run has a counter for each run of the tenant, or
    with a key of this key: what a client names in ``X-Tollgate-Run``.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    scope = models.CharField(
        max_length=10,
        choices=Scope.choices,
        help_text="Whose calls are counted together; name below what it needs, as a key and its tenant.",
    )
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Such as acme. Empty: the platform, or everybody's calls to a model or an upstream.",
    )  # fmt: skip
    team = models.ForeignKey(
        Team, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Only for the scope team: one of the tenant's, such as Research.",
    )  # fmt: skip
    member = models.ForeignKey(
        Member, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Only for the scope member: all keys of this person in the tenant are counted.",
    )  # fmt: skip
    key = models.ForeignKey(
        ApiKey, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="For the scope key, such as nightly-report; for the scope run, empty is any key.",
    )  # fmt: skip
    model = models.CharField(max_length=200, blank=True, help_text="Canonical name, such as llama3.2:latest.")
    upstream = models.CharField(max_length=80, blank=True, help_text="Name of an upstream, such as gpu-1.")
    limit = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="In what is counted: 1000000 tokens, or 25000000 micro-USD for $25. "
        "Empty: no limit, only counted. 0: nothing is let through.",
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        abstract = True

    def clean(self) -> None:
        if self.limit is not None and not 0 <= self.limit <= LARGEST:
            raise ValidationError({"limit": f"A limit is a whole number from 0 to {LARGEST}, or none."})

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
