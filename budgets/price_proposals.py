"""Proposing prices from what a month cost, and deciding on them.

Nothing changes by itself: a proposal becomes a price when a person accepts it,
by the same service that sets any price, and for the future only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils.timezone import now

from audit.recording import record
from budgets.internal_prices import PER_MILLION, NothingToPropose, rounded_up, token_cost
from budgets.models import LARGEST_GPU_PRICE, LARGEST_PRICE, Price, PriceProposal, UpstreamCost
from budgets.money import price_told
from budgets.month_costs import CostUsed, ModelMonth, MonthCosts, month_bounds, month_costs
from budgets.services import set_price

ACTOR = "tollgate"
# Any number; only those who propose take this advisory lock.
LOCK = 0x544F4C4C23
# The first day is left to calls that are booked late, and after a week a person has to ask.
DAYS_TO_PROPOSE = range(2, 8)

State = PriceProposal.State
COST_FIGURES = (
    "hardware_price", "life_months", "busy_watts", "idle_watts", "kwh_price", "other_per_month", "gpus",
)  # fmt: skip


class PriceFigures(NamedTuple):
    """A price: micro-USD for a million tokens of each sort, and for a second of GPU time."""

    input_price: int = 0
    cached_price: int = 0
    output_price: int = 0
    gpu_price: int = 0


@dataclass(frozen=True, slots=True)
class Considered:
    """A model in a month, with its present price, and the price that its cost makes or why there is none."""

    measured: ModelMonth
    present: Price | None
    figures: PriceFigures | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What proposing came to for one model.

    ``made``: the proposal is new. Otherwise it is the one that was there already,
    or there is none, for the ``reason``.
    """

    model: str
    proposal: PriceProposal | None
    made: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a price that starts then would change, for everybody without a price of their own.

    ``before`` holds until then; ``replaced`` starts at the same moment and would
    be gone; ``later`` is the first that goes before it afterwards. ``tenants``
    have prices of their own, which stay.
    """

    starts_at: datetime
    before: Price | None
    replaced: Price | None
    later: Price | None
    tenants: int


def consider(costs: MonthCosts) -> list[Considered]:
    """What each model's price would be after a month."""
    return [_considered(measured) for measured in costs.models]


def _considered(measured: ModelMonth) -> Considered:
    present = price_at(measured.model, now())
    try:
        return Considered(measured, present, _figures(measured, present))
    except NothingToPropose as exc:
        return Considered(measured, present, None, str(exc))


def _figures(measured: ModelMonth, present: Price | None) -> PriceFigures:
    """The price that would have brought in what a model cost, in the form that its present one has.

    Raises ``NothingToPropose``.
    """
    use = measured.use
    if present is not None and present.free:
        raise NothingToPropose("It is free on purpose.")
    if not measured.costs:
        names = ", ".join(sorted(measured.upstreams_without_cost))
        raise NothingToPropose(f"No cost was entered for {names}.")
    if not measured.cost:
        raise NothingToPropose("It cost nothing.")
    if _charges_time_only(present):
        figures = PriceFigures(gpu_price=rounded_up(measured.cost * 1000 / use.gpu_ms))
    else:
        token = token_cost(measured.cost, use)
        # What was cached took no time.
        figures = PriceFigures(
            input_price=rounded_up(token.input * PER_MILLION),
            output_price=rounded_up(token.output * PER_MILLION),
        )
    if max(figures[:3]) > LARGEST_PRICE or figures.gpu_price > LARGEST_GPU_PRICE:
        raise NothingToPropose("It cost more than a price can be.")
    try:
        # Accepting it must not fail for what it is.
        Price(model=measured.model, **figures._asdict()).full_clean(exclude={"starts_at"})
    except ValidationError as exc:
        raise NothingToPropose(" ".join(exc.messages)) from exc
    return figures


def _charges_time_only(price: Price | None) -> bool:
    return price is not None and bool(price.gpu_price) and not (price.input_price or price.output_price)


def price_at(model: str, moment: datetime) -> Price | None:
    """What everybody without a price of their own pays at a moment."""
    return _prices_for_all(model).filter(starts_at__lte=moment).order_by("-starts_at").first()


def _prices_for_all(model: str) -> QuerySet[Price]:
    return Price.objects.filter(model=model, tenant=None)


def last_month() -> date:
    """The first day of the last month that is over."""
    return (now().date().replace(day=1) - timedelta(days=1)).replace(day=1)


def propose_last_month() -> list[Answer]:
    """In the first week, propose prices from the last month, unless somebody has; a repeat does nothing."""
    month = last_month()
    if now().day not in DAYS_TO_PROPOSE or PriceProposal.objects.filter(month__gte=month).exists():
        return []
    if not UpstreamCost.objects.exists():
        return []
    return propose(month=month, actor=ACTOR)


@transaction.atomic
def propose(*, month: date, actor: str, again: bool = False) -> list[Answer]:
    """Propose prices from a month that is over, one for each model with enough measured.

    A repeat that finds the same changes nothing. What is found otherwise is a
    new proposal, and an open one becomes outdated; so do open ones of earlier
    months. What a person has decided for the month is proposed anew only
    ``again``. Raises ``ValidationError`` for a month that is not over.
    """
    costs = month_costs(month)
    if not costs.complete:
        raise ValidationError(f"{costs.month:%B %Y} is not over.")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    considered = consider(costs)
    answers = [_answer(one, costs.month, actor, again=again) for one in considered]
    gone = PriceProposal.objects.filter(state=State.OPEN, month=costs.month)
    for proposal in gone.exclude(model__in=[answer.model for answer in answers]):
        _outdate(proposal, actor)
    return answers


def _answer(one: Considered, month: date, actor: str, *, again: bool) -> Answer:
    model = one.measured.model
    latest = PriceProposal.objects.filter(model=model).order_by("-month", "-proposed_at").first()
    if latest is not None and latest.month > month:
        return Answer(model, None, reason=f"{latest.month:%B %Y} has been proposed already.")
    if latest is not None and latest.month == month:
        decided = latest.state in (State.ACCEPTED, State.DECLINED)
        if decided and not again:
            return Answer(model, latest, reason=f"It was {latest.state} already.")
        if one.figures is not None and latest.state != State.OUTDATED and _says_the_same(latest, one):
            return Answer(model, latest)
    if latest is not None and latest.state == State.OPEN and not _outdate(latest, actor):
        return Answer(model, latest, reason="It was decided just now.")
    if one.figures is None:
        return Answer(model, None, reason=one.reason)
    proposal = PriceProposal(model=model, month=month, proposed_by=actor, **_basis(one), **_present(one))
    proposal.save(force_insert=True)
    record(
        action="price_proposal.made",
        actor=actor,
        subject=str(proposal.pk),
        model=model,
        month=month,
        cost_micro_usd=proposal.cost_micro_usd,
        **one.figures._asdict(),
    )
    return Answer(model, proposal, made=True)


def _says_the_same(proposal: PriceProposal, one: Considered) -> bool:
    """Whether a proposal would be repeated; of a decided one, whatever the present price is by now."""
    said = _basis(one) | (_present(one) if proposal.state == State.OPEN else {})
    return all(getattr(proposal, name) == value for name, value in said.items())


def _basis(one: Considered) -> dict[str, Any]:
    """The columns of a proposal that tell what was measured and what follows."""
    if one.figures is None:
        raise ValueError("without figures there is nothing to propose")
    use = one.measured.use
    return {
        "calls": use.calls,
        "timed_calls": use.timed_calls,
        "input_tokens": use.input_tokens,
        "cached_tokens": use.cached_tokens,
        "output_tokens": use.output_tokens,
        "gpu_ms": use.gpu_ms,
        "cost_micro_usd": one.measured.cost_micro_usd,
        "costs": [_cost_as_json(held) for held in one.measured.costs],
        **one.figures._asdict(),
    }


def _present(one: Considered) -> dict[str, Any]:
    price = one.present
    return {"present_price_id": price and price.pk} | {
        f"present_{name}": price and getattr(price, name) for name in PriceFigures._fields
    }


def _cost_as_json(held: CostUsed) -> dict[str, Any]:
    cost = held.cost
    return {
        "upstream_cost_id": str(cost.pk),
        "upstream": cost.upstream,
        "since": held.since.isoformat(),
        "before": held.before.isoformat(),
        **{name: getattr(cost, name) for name in COST_FIGURES},
    }


def _outdate(proposal: PriceProposal, actor: str) -> bool:
    """Take an open proposal out of the way; return False if somebody has decided on it meanwhile."""
    still_open = PriceProposal.objects.filter(pk=proposal.pk, state=State.OPEN)
    if not still_open.update(state=State.OUTDATED, decided_at=now()):
        return False
    record(action="price_proposal.outdated", actor=actor, subject=str(proposal.pk), model=proposal.model)
    return True


def next_start() -> datetime:
    """When a price starts that is accepted now: with the next month of UTC."""
    return month_bounds(now().date())[1]


def effect_of(proposal: PriceProposal, starts_at: datetime | None = None) -> Effect:
    """What accepting a proposal would change, from ``starts_at`` (the next month) on."""
    starts_at = starts_at or next_start()
    for_all = _prices_for_all(proposal.model)
    before = for_all.filter(starts_at__lt=starts_at).order_by("-starts_at").first()
    own = Price.objects.filter(model=proposal.model).exclude(tenant=None)
    return Effect(
        starts_at=starts_at,
        before=before,
        replaced=for_all.filter(starts_at=starts_at).first(),
        later=for_all.filter(starts_at__gt=starts_at).order_by("starts_at").first(),
        tenants=own.values("tenant").distinct().count(),
    )


def effect_in_words(proposal: PriceProposal, effect: Effect) -> list[str]:
    """What a proposal changes if it is accepted, one sentence each."""
    told = [f"From {effect.starts_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC on: {price_told(proposal)}."]
    if effect.before is None:
        told.append("Until then there is no price.")
    elif effect.before.free:
        told.append("Until then it is free.")
    else:
        told.append(f"Until then: {price_told(effect.before)}.")
    if effect.replaced is not None:
        told.append("A price that was to start at that moment is replaced.")
    if effect.later is not None:
        told.append(f"Another price follows at {effect.later.starts_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC.")
    if effect.tenants:
        told.append(f"Prices of their own stay: those of {effect.tenants} tenants.")
    return told


@transaction.atomic
def accept_price(
    *, proposal: PriceProposal, actor: str, reason: str, starts_at: datetime | None = None
) -> Price | None:
    """Set the price that is proposed, from ``starts_at`` (the next month) on, and return it.

    Returns None if the proposal is no longer open; then nothing changes. Raises
    ``ValidationError`` without a reason and for a start that has passed.
    """
    starts_at = starts_at or next_start()
    if starts_at < now():
        raise ValidationError("A price that is accepted starts now or later.")
    if not _decide(proposal, State.ACCEPTED, actor, reason, starts_at=starts_at):
        return None
    figures = {name: getattr(proposal, name) for name in PriceFigures._fields}
    price = set_price(model=proposal.model, actor=actor, starts_at=starts_at, **figures)
    PriceProposal.objects.filter(pk=proposal.pk).update(price_id=price.pk)
    return price


@transaction.atomic
def decline_price(*, proposal: PriceProposal, actor: str, reason: str) -> bool:
    """Leave the price as it is; return False if the proposal is no longer open.

    Raises ``ValidationError`` without a reason.
    """
    return _decide(proposal, State.DECLINED, actor, reason)


def _decide(proposal: PriceProposal, state: str, actor: str, reason: str, **more: Any) -> bool:
    if not reason.strip():
        raise ValidationError("Give a reason.")
    decided = PriceProposal.objects.filter(pk=proposal.pk, state=State.OPEN).update(
        state=state, decided_at=now(), decided_by=actor, reason=reason, **more
    )
    if decided:
        record(
            action=f"price_proposal.{state}",
            actor=actor,
            subject=str(proposal.pk),
            reason=reason,
            model=proposal.model,
            month=proposal.month,
            **more,
        )
    return bool(decided)
