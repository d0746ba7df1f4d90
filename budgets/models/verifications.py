"""What came of comparing the books."""

from __future__ import annotations

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audit.checked import Checked
from tenants.ids import new_id


class Verification(Checked):
    """One comparison of request events, ledger, rollups and counters, as it came out.

    ``position`` is the id of the newest usage record at that moment, empty if
    Redis could not be asked. ``figures`` is what was counted on the way.
    ``differences`` lists those that were found, as ``manage.py verify --json``
    does, up to a number; ``found`` is how many there were. ``unasked`` says of
    each comparison that could not be made why not. ``standing`` are the names of
    the differences that people were told of and that are not known to be gone.
    """

    class Outcome(models.TextChoices):
        AGREES = "agrees", "The books agree"
        DIFFERS = "differs", "The books do not agree"
        UNASKED = "unasked", "Something could not be asked"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    at = models.DateTimeField(default=now)
    seconds = models.DecimalField(max_digits=9, decimal_places=3)
    asked_by = models.TextField()
    scope = models.TextField(help_text="Whose books, and of which days.")
    whole = models.BooleanField(help_text="All tenants, and at least the days that are still open.")
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    position = models.TextField(blank=True)
    figures = models.JSONField(encoder=DjangoJSONEncoder)
    differences = models.JSONField(encoder=DjangoJSONEncoder)
    found = models.PositiveIntegerField()
    unasked = models.JSONField()
    standing = models.JSONField(default=list)

    class Meta:
        ordering = ["-at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(outcome__in=["agrees", "differs", "unasked"]),
                name="budgets_verification_outcome_is_known",
            ),
            models.CheckConstraint(
                condition=Q(outcome="differs", found__gt=0) | ~Q(outcome="differs") & Q(found=0),
                name="budgets_verification_differs_if_something_was_found",
            ),
        ]
        indexes = [
            models.Index(fields=["-at"], name="budgets_verification_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.get_outcome_display()}: {self.at:%Y-%m-%d %H:%M}"
