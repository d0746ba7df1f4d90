"""What upstreams cost to run, and the prices that are proposed from that."""

from __future__ import annotations

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from audit.checked import Checked
from budgets.models.prices import LARGEST_GPU_PRICE, LARGEST_PRICE, Price
from budgets.models.scopes import CANONICAL, WRITE_IT_SO
from tenants.ids import new_id

# A thousand million dollars, a megawatt, a hundred years; they catch a number typed into the wrong field.
LARGEST_COST = 10**15
LARGEST_KWH_PRICE = 10**8
MOST_WATTS = 10**6
LONGEST_LIFE = 1200
MOST_GPUS = 1024


class UpstreamCost(Checked):
    """What an upstream costs from one moment on, until its next one begins.

    It is named as it was: one that is renamed or deleted keeps what it cost.
    One that is no longer there costs nothing, which is entered like any cost.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    upstream = models.SlugField(max_length=63, help_text="Its name as in reports and limits: gpu-1.")
    starts_at = models.DateTimeField(
        default=now, help_text="From when on it costs so much, until the next one begins."
    )
    hardware_price = models.BigIntegerField(
        default=0,
        help_text="Micro-USD for all of its hardware: 24000000000 for $24,000. 0 once it is written off.",
    )
    life_months = models.PositiveSmallIntegerField(
        default=48,
        verbose_name="life in months",
        help_text="The months over which that is spread in equal parts: 48 for four years.",
    )
    busy_watts = models.PositiveIntegerField(
        default=0, help_text="What all of it draws while every GPU works, cooling included: 1400."
    )
    idle_watts = models.PositiveIntegerField(
        default=0, help_text="What all of it draws while no GPU works: 180."
    )
    kwh_price = models.BigIntegerField(
        default=0, verbose_name="price of a kWh", help_text="Micro-USD for a kilowatt-hour: 300000 for $0.30."
    )
    other_per_month = models.BigIntegerField(
        default=0,
        help_text="Micro-USD a month for rent, network, support and people: 120000000 for $120.",
    )
    gpus = models.PositiveSmallIntegerField(
        default=1, verbose_name="GPUs", help_text="How many GPUs it has: its hours are counted for each."
    )

    class Meta:
        ordering = ["upstream", "-starts_at"]
        constraints = [
            models.CheckConstraint(condition=~Q(upstream=""), name="budgets_upstreamcost_names_its_upstream"),
            models.CheckConstraint(
                condition=Q(
                    hardware_price__range=(0, LARGEST_COST),
                    life_months__range=(1, LONGEST_LIFE),
                    busy_watts__range=(0, MOST_WATTS),
                    kwh_price__range=(0, LARGEST_KWH_PRICE),
                    other_per_month__range=(0, LARGEST_COST),
                    gpus__range=(1, MOST_GPUS),
                ),
                name="budgets_upstreamcost_in_range",
                violation_error_message="A figure is below nothing, or larger than it can be.",
            ),
            models.CheckConstraint(
                condition=Q(idle_watts__range=(0, F("busy_watts"))),
                name="budgets_upstreamcost_idle_draws_no_more_than_busy",
                violation_error_message="Idle it cannot draw more than busy.",
            ),
            models.UniqueConstraint(
                fields=["upstream", "starts_at"], name="budgets_upstreamcost_once_per_start"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.upstream} from {self.starts_at:%Y-%m-%d %H:%M}"


class PriceProposal(Checked):
    """A price for a model, worked out from what one month cost and what was measured in it.

    It changes nothing until a person accepts it. What was measured, the costs of
    the upstreams (``costs``, each with the part of the month for which it held)
    and the present price are kept as they were. Figures never change: what is
    worked out anew is another proposal, and the older one is outdated, at
    ``decided_at``.
    """

    class State(models.TextChoices):
        OPEN = "open"
        ACCEPTED = "accepted"
        DECLINED = "declined"
        OUTDATED = "outdated"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    month = models.DateField(help_text="The first day of the month, in UTC, that was measured.")
    model = models.CharField(max_length=200)
    calls = models.BigIntegerField()
    timed_calls = models.BigIntegerField(
        help_text="Those that told how long prompt and answer took; the others have no part in the split."
    )
    input_tokens = models.BigIntegerField()
    cached_tokens = models.BigIntegerField(help_text="Part of the input tokens.")
    output_tokens = models.BigIntegerField()
    gpu_ms = models.BigIntegerField(verbose_name="GPU milliseconds")
    cost_micro_usd = models.BigIntegerField(
        help_text="Of the time in which the model worked, idle time apart."
    )
    costs = models.JSONField(
        encoder=DjangoJSONEncoder, help_text="What the upstreams cost, and for how long that held."
    )
    input_price = models.BigIntegerField(help_text="Proposed, in micro-USD for a million input tokens.")
    cached_price = models.BigIntegerField(help_text="The same, for input the model had in its cache.")
    output_price = models.BigIntegerField(help_text="The same, for output.")
    gpu_price = models.BigIntegerField(
        verbose_name="GPU price", help_text="Proposed, in micro-USD for a second of GPU time."
    )
    present_price_id = models.UUIDField(
        null=True, help_text="The price that held when this was proposed; null: there was none."
    )
    present_input_price = models.BigIntegerField(null=True)
    present_cached_price = models.BigIntegerField(null=True)
    present_output_price = models.BigIntegerField(null=True)
    present_gpu_price = models.BigIntegerField(null=True, verbose_name="present GPU price")
    proposed_at = models.DateTimeField(default=now)
    proposed_by = models.TextField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    decided_at = models.DateTimeField(null=True)
    decided_by = models.TextField(blank=True, default="")
    reason = models.TextField(blank=True, default="")
    price_id = models.UUIDField(null=True, help_text="The price that was set when it was accepted.")
    starts_at = models.DateTimeField(null=True, help_text="From when on that price holds.")

    class Meta:
        ordering = ["-month", "model", "-proposed_at"]
        permissions = [("decide_priceproposal", "Can accept and decline price proposals")]
        constraints = [
            models.CheckConstraint(
                condition=CANONICAL,
                name="budgets_priceproposal_model_is_canonical",
                violation_error_message=WRITE_IT_SO,
            ),
            models.CheckConstraint(
                condition=Q(month__day=1), name="budgets_priceproposal_month_is_its_first_day"
            ),
            models.CheckConstraint(
                condition=Q(
                    calls__gte=0,
                    timed_calls__range=(0, F("calls")),
                    input_tokens__gte=0,
                    cached_tokens__range=(0, F("input_tokens")),
                    output_tokens__gte=0,
                    gpu_ms__gt=0,
                    cost_micro_usd__gte=0,
                ),
                name="budgets_priceproposal_measured_something",
            ),
            # What a price may be, so that accepting one cannot fail for its figures.
            models.CheckConstraint(
                condition=Q(input_price__range=(0, LARGEST_PRICE))
                & Q(output_price__range=(0, LARGEST_PRICE))
                & Q(gpu_price__range=(0, LARGEST_GPU_PRICE))
                & Q(cached_price__range=(0, F("input_price")))
                & (Q(input_price__gt=0) | Q(output_price__gt=0) | Q(gpu_price__gt=0)),
                name="budgets_priceproposal_could_be_a_price",
            ),
            models.CheckConstraint(
                condition=Q(state="open", decided_at=None, decided_by="", reason="")
                | Q(state="outdated", decided_at__isnull=False, decided_by="", reason="")
                | Q(state__in=["accepted", "declined"], decided_at__isnull=False)
                & ~Q(decided_by="")
                & ~Q(reason=""),
                name="budgets_priceproposal_decisions_say_who_and_why",
            ),
            models.CheckConstraint(
                condition=Q(state="accepted", starts_at__isnull=False)
                | ~Q(state="accepted") & Q(price_id=None, starts_at=None),
                name="budgets_priceproposal_sets_a_price_when_accepted",
            ),
            models.UniqueConstraint(
                fields=["model"], condition=Q(state="open"), name="budgets_priceproposal_open_once_per_model"
            ),
        ]
        indexes = [
            models.Index(fields=["model", "-month"], name="budgets_priceproposal_of_model"),
        ]

    def __str__(self) -> str:
        return f"{self.model} after {self.month:%Y-%m}"

    @property
    def present(self) -> Price | None:
        """The price that held when this was proposed, as it was; it is in no database by itself."""
        if self.present_price_id is None:
            return None
        figures = ("input_price", "cached_price", "output_price", "gpu_price")
        return Price(
            id=self.present_price_id,
            model=self.model,
            **{name: getattr(self, f"present_{name}") for name in figures},
        )
