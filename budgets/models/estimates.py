"""What was learned of the bytes that a model makes a token of, and what was published of it."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audit.checked import Checked


class Side(models.TextChoices):
    INPUT = "input", "prompt"
    OUTPUT = "output", "answer"


class EstimateSample(Checked):
    """Sums of exact calls to a model that are alike in size and in bytes per token.

    The drain adds to them what it inserts. ``ratio`` is the bytes per token of
    these calls, in 4096ths and cut to its six leading bits, so that there are few
    rows and how far calls lie apart is known to a few percent.
    """

    model = models.TextField()
    side = models.CharField(max_length=6, choices=Side.choices)
    month = models.DateField(help_text="First day of the month of UTC in which the calls ended.")
    up_to_bytes = models.BigIntegerField(help_text="The most bytes that texts of this size have.")
    ratio = models.BigIntegerField()
    calls = models.BigIntegerField()
    bytes = models.BigIntegerField()
    tokens = models.BigIntegerField()

    class Meta:
        ordering = ["model", "side", "month", "up_to_bytes", "ratio"]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "side", "month", "up_to_bytes", "ratio"],
                name="budgets_estimatesample_once_per_likeness",
            ),
            models.CheckConstraint(
                condition=Q(calls__gt=0, bytes__gt=0, tokens__gt=0), name="budgets_estimatesample_is_of_calls"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.calls} calls of {self.model} from {self.month:%Y-%m}"


class Estimate(Checked):
    """How many tokens a model makes of texts of one size: ``tokens`` of ``bytes``. It never changes.

    One publication gives its rows the next ``version`` of the model. What holds
    for a side and size is the row with the newest version; for those without a
    row it is the default.
    """

    model = models.TextField()
    version = models.PositiveIntegerField()
    side = models.CharField(max_length=6, choices=Side.choices)
    up_to_bytes = models.BigIntegerField(
        help_text="The most bytes that texts of this size have; the least is a quarter of it."
    )
    bytes = models.BigIntegerField(help_text="Of the calls that it was learned from.")
    tokens = models.BigIntegerField(help_text="The same.")
    error_per_mille = models.BigIntegerField(
        help_text="The estimates of 95 % of the calls that it was learned from are this near to the truth."
    )
    calls = models.BigIntegerField(help_text="How many it was learned from.")
    published_at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-published_at", "model", "side", "up_to_bytes"]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "side", "up_to_bytes", "version"],
                name="budgets_estimate_once_per_version_and_size",
            ),
            models.CheckConstraint(
                condition=Q(version__gt=0, bytes__gt=0, tokens__gt=0, error_per_mille__gte=0, calls__gt=0),
                name="budgets_estimate_is_of_calls",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.model}: {self.side} up to {self.up_to_bytes} bytes"

    @property
    def name(self) -> str:
        """What the ledger calls the version."""
        return f"learned:{self.version}"

    @property
    def bytes_per_token(self) -> str:
        """With two decimals, rounded down."""
        hundredths = self.bytes * 100 // self.tokens
        return f"{hundredths // 100}.{hundredths % 100:02}"
