"""Asking for more of a limit, and what became of it."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from audit.checked import Checked
from audit.walls import Walled
from budgets.models.limits import (
    ONE_LIMIT,
    Budget,
    LimitRaise,
    RateLimit,
    is_of_one_limit,
    the_one,
)
from budgets.models.scopes import LARGEST
from tenants.ids import new_id
from tenants.models import Tenant, User


class RaiseRequest(Checked):
    """Somebody asks that a budget or rate limit on them is raised to ``to`` until ``until``.

    ``tenant`` is where they ask, also of a limit of the whole platform. Of one
    that was granted, ``raised`` has what was granted, which may be less.
    ``request_id`` is the refused call that led to it, if one did.
    """

    class State(models.TextChoices):
        OPEN = "open", _("open")
        GRANTED = "granted", _("granted")
        DECLINED = "declined", _("declined")
        WITHDRAWN = "withdrawn", _("withdrawn")
        LAPSED = "lapsed", _("lapsed")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    budget = models.ForeignKey(
        Budget, on_delete=models.CASCADE, null=True, blank=True, related_name="raise_requests"
    )
    rate_limit = models.ForeignKey(
        RateLimit, on_delete=models.CASCADE, null=True, blank=True, related_name="raise_requests"
    )
    asked_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    to = models.BigIntegerField(help_text="The limit that is asked for.")
    until = models.DateTimeField(help_text="Until when it should hold.")
    reason = models.TextField()
    request_id = models.UUIDField(null=True, blank=True)
    asked_at = models.DateTimeField(default=now, editable=False)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN, editable=False)
    decided_at = models.DateTimeField(null=True, editable=False)
    decided_by = models.TextField(blank=True, editable=False)
    answer = models.TextField(blank=True, editable=False, help_text="What the person was told.")
    raised = models.OneToOneField(
        LimitRaise, on_delete=models.SET_NULL, null=True, editable=False, related_name="asked_for"
    )

    objects = Walled()

    class Meta:
        ordering = ["-asked_at"]
        constraints = [
            models.CheckConstraint(
                condition=is_of_one_limit(),
                name="budgets_raiserequest_of_one_limit",
                violation_error_message=ONE_LIMIT,
            ),
            models.UniqueConstraint(
                fields=["budget", "rate_limit", "asked_by"],
                condition=Q(state="open"),
                nulls_distinct=False,
                name="budgets_raiserequest_one_open_per_person_and_limit",
                violation_error_message=_("You have asked for more of this limit already."),
            ),
            models.CheckConstraint(
                condition=Q(state__in=["open", "granted", "declined", "withdrawn", "lapsed"]),
                name="budgets_raiserequest_state_is_known",
            ),
            models.CheckConstraint(
                condition=Q(state="open", decided_at=None, decided_by="")
                | ~Q(state="open") & Q(decided_at__isnull=False) & ~Q(decided_by=""),
                name="budgets_raiserequest_says_who_decided",
            ),
            models.CheckConstraint(
                condition=Q(to__range=(1, LARGEST)),
                name="budgets_raiserequest_to_counts_exactly",
                violation_error_message=_("Ask for a whole number above 0."),
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="budgets_raiserequest_says_why"),
            models.CheckConstraint(
                condition=~Q(state="declined") | ~Q(answer=""), name="budgets_raiserequest_no_has_a_reason"
            ),
            models.CheckConstraint(
                condition=Q(until__gt=F("asked_at")),
                name="budgets_raiserequest_ends_after_it_is_asked",
                violation_error_message=_("A raise ends in the future."),
            ),
        ]
        indexes = [
            models.Index(fields=["tenant", "-asked_at"], name="budgets_raiserequest_of_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.row} to {self.to} until {self.until:%Y-%m-%d %H:%M} UTC"

    @property
    def row(self) -> Budget | RateLimit:
        """The limit of which more is asked for."""
        return the_one(self.budget, self.rate_limit)
