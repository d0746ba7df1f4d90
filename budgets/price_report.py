"""The report of a month's costs and prices, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Any

from budgets.internal_prices import PER_MILLION, NothingToPropose, Use, rounded, token_cost
from budgets.models import Price, PriceProposal
from budgets.money import usd, usd_exactly, usd_total
from budgets.month_costs import MonthCosts, UpstreamMonth, month_costs
from budgets.price_proposals import Considered, PriceFigures, consider

MS_PER_HOUR = 3_600_000
NONE = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """A month: its costs, what price each model's cost makes, and what was proposed, newest first."""

    costs: MonthCosts
    considered: list[Considered]
    proposals: list[PriceProposal]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown; the first ``names`` columns are names, the others figures."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    names: int = 1


def report_of(month: date) -> Report:
    """The report of the month of a day; of the present one, so far."""
    costs = month_costs(month)
    proposals = PriceProposal.objects.filter(month=costs.month)
    return Report(costs, consider(costs), list(proposals))


def upstream_table(report: Report) -> Table:
    """What the hours of each upstream cost, those in which it worked and those in which it did not."""
    rows = [
        (
            one.upstream,
            _tenths(one.seconds / 3600),
            _tenths(one.capacity_ms / MS_PER_HOUR),
            _tenths(one.busy_ms / MS_PER_HOUR),
            _tenths((one.capacity_ms - one.busy_ms) / MS_PER_HOUR),
            usd_total(one.total_micro_usd),
            usd_total(one.busy_micro_usd),
            usd_total(one.idle_micro_usd),
            str(one.idle_per_mille),
            _exactly(_gpu_second(one.busy, one.gpu_ms)),
            _exactly(_gpu_second(one.total, one.gpu_ms)),
        )
        for one in report.costs.upstreams
    ]
    columns = (
        "upstream", "hours", "GPU hours", "busy", "idle", "cost", "cost of busy", "cost of idle",
        "idle per mille", "GPU second", "GPU second with idle",
    )  # fmt: skip
    return Table(columns, rows)


def model_table(report: Report) -> Table:
    """What was measured of each model where its upstream has a cost, and what that cost."""
    rows = [
        (
            one.model,
            str(one.use.calls),
            str(one.use.timed_calls),
            str(one.use.input_tokens),
            str(one.use.cached_tokens),
            str(one.use.output_tokens),
            _tenths(Fraction(one.use.gpu_ms, 1000)),
            usd_total(one.cost_micro_usd),
        )
        for one in report.costs.models
    ]
    columns = (
        "model", "calls", "timed calls", "input tokens", "cached tokens", "output tokens", "GPU seconds",
        "cost",
    )  # fmt: skip
    return Table(columns, rows)


def price_table(report: Report) -> Table:
    """Cost, present price and proposals of each model, for a million tokens and a second of GPU time."""
    rows = [row for one in report.considered for row in _price_rows(one, report.proposals)]
    return Table(("model", "figure", "input", "cached", "output", "GPU second"), rows, names=2)


def _price_rows(one: Considered, proposals: list[PriceProposal]) -> Iterator[tuple[str, ...]]:
    measured, model = one.measured, one.measured.model
    for name, cost in (("cost", measured.cost), ("cost with idle", measured.loaded)):
        input_cost, output_cost = _per_million(cost, measured.use)
        # What was cached took no time.
        cached_cost = None if input_cost is None else Fraction()
        second = _gpu_second(cost, measured.use.gpu_ms)
        yield (model, name, *map(_exactly, (input_cost, cached_cost, output_cost, second)))
    yield (model, "present price", *_price_cells(one.present))
    for proposal in proposals:
        if proposal.model == model:
            yield (model, f"proposed, {proposal.state}", *_price_cells(proposal))


def _price_cells(price: Price | PriceProposal | None) -> tuple[str, ...]:
    if price is None:
        return (NONE,) * len(PriceFigures._fields)
    return tuple(usd(getattr(price, name)) for name in PriceFigures._fields)


def notes(report: Report) -> list[str]:
    """What has to be known to read the tables, and why a model has no price from this month."""
    costs = report.costs
    told = [] if costs.complete else [f"{costs.month:%B %Y} is not over: this is what it cost so far."]
    if not costs.upstreams:
        told.append("No upstream has a cost, and none was used.")
    for upstream in costs.upstreams:
        if upstream.without_cost.calls or upstream.without_cost.gpu_ms:
            told.append(
                f"{upstream.upstream}: calls that ended while no cost was entered for it, "
                f"and are in no figure: {upstream.without_cost.calls}."
            )
        if upstream.costs and upstream.gpu_ms > upstream.busy_ms:
            told.append(
                f"{upstream.upstream}: it worked on several calls at once, so they add up to "
                f"{_tenths(Fraction(upstream.gpu_ms, MS_PER_HOUR))} GPU hours, more than it has."
            )
    told += [
        f"{one.measured.model}: no price follows. {one.reason}" for one in report.considered if one.reason
    ]
    return told


def as_json(report: Report) -> dict[str, Any]:
    """The report for programs: whole micro-USD, but nano-USD for a second of GPU time."""
    costs = report.costs
    return {
        "month": f"{costs.month:%Y-%m}",
        "time_zone": "UTC",
        "since": costs.since.isoformat(),
        "before": costs.before.isoformat(),
        "complete": costs.complete,
        "upstreams": [_upstream_as_json(one) for one in costs.upstreams],
        "models": [_model_as_json(one) for one in report.considered],
        "proposals": [proposal_as_json(one) for one in report.proposals],
        "notes": notes(report),
    }


def _upstream_as_json(one: UpstreamMonth) -> dict[str, Any]:
    return {
        "upstream": one.upstream,
        "seconds": rounded(one.seconds),
        "capacity_gpu_ms": rounded(one.capacity_ms),
        "busy_gpu_ms": rounded(one.busy_ms),
        "measured_gpu_ms": one.gpu_ms,
        "cost_micro_usd": one.total_micro_usd,
        "busy_micro_usd": one.busy_micro_usd,
        "busy_micro_usd_by_model": one.by_model_micro_usd,
        "idle_micro_usd": one.idle_micro_usd,
        "idle_per_mille": one.idle_per_mille,
        "nano_usd_per_gpu_second": _nano(_gpu_second(one.busy, one.gpu_ms)),
        "nano_usd_per_gpu_second_with_idle": _nano(_gpu_second(one.total, one.gpu_ms)),
        "calls_without_cost": one.without_cost.calls,
    }


def _model_as_json(one: Considered) -> dict[str, Any]:
    measured, use = one.measured, one.measured.use
    return {
        "model": measured.model,
        "calls": use.calls,
        "timed_calls": use.timed_calls,
        "input_tokens": use.input_tokens,
        "cached_tokens": use.cached_tokens,
        "output_tokens": use.output_tokens,
        "gpu_ms": use.gpu_ms,
        "cost_micro_usd": measured.cost_micro_usd,
        "calls_without_cost": measured.without_cost.calls,
        "cost": _cost_as_json(measured.cost, use),
        "cost_with_idle": _cost_as_json(measured.loaded, use),
        "present_price": one.present and _figures_as_json(one.present),
        "reason": one.reason or None,
    }


def _cost_as_json(cost: Fraction, use: Use) -> dict[str, int | None]:
    input_cost, output_cost = _per_million(cost, use)
    return {
        "micro_usd_per_million_input": None if input_cost is None else rounded(input_cost),
        "micro_usd_per_million_output": None if output_cost is None else rounded(output_cost),
        "nano_usd_per_gpu_second": _nano(_gpu_second(cost, use.gpu_ms)),
    }


def proposal_as_json(proposal: PriceProposal) -> dict[str, Any]:
    """A proposal for programs."""
    return {
        "proposal_id": str(proposal.pk),
        "month": f"{proposal.month:%Y-%m}",
        "model": proposal.model,
        "state": proposal.state,
        **_figures_as_json(proposal),
        "decided_at": proposal.decided_at and proposal.decided_at.isoformat(),
        "decided_by": proposal.decided_by or None,
        "reason": proposal.reason or None,
        "price_id": proposal.price_id and str(proposal.price_id),
        "starts_at": proposal.starts_at and proposal.starts_at.isoformat(),
    }


def _figures_as_json(price: Price | PriceProposal) -> dict[str, int]:
    return {
        "input_micro_usd_per_million": price.input_price,
        "cached_micro_usd_per_million": price.cached_price,
        "output_micro_usd_per_million": price.output_price,
        "gpu_micro_usd_per_second": price.gpu_price,
    }


def _per_million(cost: Fraction, use: Use) -> tuple[Fraction | None, Fraction | None]:
    """What a million tokens of input that is not cached, and of output, cost; None where nobody can tell."""
    try:
        token = token_cost(cost, use)
    except NothingToPropose:
        return None, None
    return token.input * PER_MILLION, token.output * PER_MILLION


def _gpu_second(cost: Fraction, gpu_ms: int) -> Fraction | None:
    """What a measured second of GPU time cost; None where none was."""
    return cost * 1000 / gpu_ms if gpu_ms else None


def _exactly(amount: Fraction | None) -> str:
    return NONE if amount is None else usd_exactly(amount)


def _nano(amount: Fraction | None) -> int | None:
    return None if amount is None else rounded(amount * 1000)


def _tenths(amount: Fraction) -> str:
    whole, tenths = divmod(rounded(amount * 10), 10)
    return f"{whole}.{tenths}"
