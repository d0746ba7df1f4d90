"""Stops that win over everything, and the calls that they end."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audit.checked import Checked
from audit.walls import Walled
from budgets.models.scopes import CANONICAL, WRITE_IT_SO, Scope
from budgets.money import usd_total


def in_seven_days() -> datetime:
    return now() + timedelta(days=7)


class KillSwitches(models.QuerySet["KillSwitch"]):
    def on(self) -> KillSwitches:
        """Those that stop calls now."""
        return self.filter(lift=None, until__gt=now())


class KillSwitch(Checked):
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
        help_text="What is stopped; name below what it needs: for a tenant, its slug.",
    )
    tenant_id = models.UUIDField(null=True, blank=True)
    tenant = models.TextField(blank=True, help_text="Slug of the tenant, as it was.")
    key_id = models.UUIDField(null=True, blank=True)
    key = models.TextField(blank=True, help_text="Label of the key, as it was.")
    model = models.CharField(max_length=350, blank=True, help_text="Canonical name, such as llama3.2:latest.")
    upstream = models.CharField(max_length=80, blank=True, help_text="Name of an upstream, such as gpu-1.")
    reason = models.TextField(help_text="For operators and the audit.")
    message = models.CharField(max_length=200, blank=True, help_text="What callers are told besides.")
    armed_by = models.TextField()
    armed_at = models.DateTimeField(default=now)
    until = models.DateTimeField(
        default=in_seven_days, help_text="When it lifts itself, in UTC: 2026-12-01 00:00."
    )

    objects = Walled.from_queryset(KillSwitches)("tenant_id", shared=True)

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

    objects = Walled("switch", via="budgets.KillSwitch", shared=True)

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
    operator has asked it to end. Names are those at its admission. ``client`` is
    the address it came from, empty for visitors. ``held_tokens``, input and
    output, are the most it may use; ``held_micro_usd`` what is held for it of
    budgets in money, None where there is none.
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
    client = models.TextField(blank=True)
    held_tokens = models.BigIntegerField()
    held_micro_usd = models.BigIntegerField(null=True)

    class Meta:
        managed = False
        default_permissions = ("view", "stop")

    def __str__(self) -> str:
        return str(self.request_id)

    @property
    def held_usd(self) -> str:
        """What is held of budgets in money, as people read it."""
        return "" if self.held_micro_usd is None else usd_total(self.held_micro_usd)
