"""What models cost."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audit.checked import Checked
from audit.walls import Walled
from budgets.models.scopes import CANONICAL, WRITE_IT_SO
from tenants.ids import new_id
from tenants.models import Tenant

# $1,000 for a million tokens, $1 for a second; they keep every product a script forms below LARGEST.
LARGEST_PRICE = 10**9
LARGEST_GPU_PRICE = 10**6


class Price(Checked):
    """What a model costs from one moment on, in micro-USD for a million tokens and for a second of GPU time.

    The price of a tenant goes before everybody's; of several the one that
    started last counts. It is pinned when a call is admitted.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    model = models.CharField(max_length=200, help_text="Canonical name, such as llama3.2:latest.")
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Whose price it is, such as acme. Empty: everybody's who has none of their own.",
    )  # fmt: skip
    input_price = models.BigIntegerField(
        default=0, help_text="Micro-USD for a million input tokens: 150000 for $0.15."
    )
    cached_price = models.BigIntegerField(
        default=0, help_text="The same, for input the model had in its cache."
    )
    output_price = models.BigIntegerField(
        default=0, help_text="Micro-USD for a million output tokens: 600000 for $0.60."
    )
    gpu_price = models.BigIntegerField(
        default=0,
        db_default=0,
        verbose_name="GPU price",
        help_text="Micro-USD for a second of GPU time: 500 for $1.80 an hour.",
    )
    starts_at = models.DateTimeField(
        default=now,
        help_text="From when on it holds, in UTC: 2026-12-01 00:00. Calls admitted before keep theirs.",
    )
    free = models.BooleanField(default=False, help_text="Costs nothing on purpose.")

    objects = Walled(shared=True)

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

    def clean(self) -> None:
        wrong = {}
        for name in ("input_price", "cached_price", "output_price"):
            if not 0 <= getattr(self, name) <= LARGEST_PRICE:
                wrong[name] = "A price lies between $0 and $1,000 for a million tokens."
        if not 0 <= self.gpu_price <= LARGEST_GPU_PRICE:
            wrong["gpu_price"] = "A price lies between $0 and $1 for a second of GPU time."
        if self.cached_price > self.input_price:
            wrong.setdefault("cached_price", "Cached input costs at most what other input does.")
        if self.free == any((self.input_price, self.cached_price, self.output_price, self.gpu_price)):
            wrong["free"] = "A price of nothing has to be called free, and nothing else may be."
        if wrong:
            raise ValidationError(wrong)
