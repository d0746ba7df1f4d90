"""What is done to limits, prices, kill switches, running calls and recipients.

Each is a transaction with its audit event.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.recording import record
from budgets import periods, webhooks
from budgets.models import (
    Budget,
    KillSwitch,
    KillSwitchLift,
    LimitRaise,
    OutageCredit,
    Price,
    RateLimit,
    Recipient,
    RunningCall,
    ScopedRow,
    UpstreamCost,
    kind_of_limit,
    new_salt,
)
from budgets.running_calls import ask_to_end
from budgets.schedules import schedules_of
from keys.models import ApiKey
from tenants import generations
from tenants.model_names import canonical_setting
from tenants.models import Member, Team, Tenant

Row = TypeVar("Row", bound=ScopedRow)

# What a price and a cost say, beside of what and since when.
PRICE_FIGURES = ("input_price", "cached_price", "output_price", "gpu_price", "free")
COST_FIGURES = (
    "hardware_price", "life_months", "busy_watts", "idle_watts", "kwh_price", "other_per_month", "gpus",
)  # fmt: skip


@transaction.atomic
def set_budget(
    *,
    scope: str,
    unit: str,
    period: str,
    limit: int | None,
    actor: str,
    tenant: Tenant | None = None,
    team: Team | None = None,
    member: Member | None = None,
    key: ApiKey | None = None,
    model: str = "",
    upstream: str = "",
    shadow: bool = False,
    thresholds: list[int] | None = None,
) -> Budget:
    """Give a scope a budget, or its budget of this unit and period another limit; returns it.

    ``period`` is ``day`` and so on, or a length such as ``90m``. ``limit`` None:
    no limit, only counted. ``thresholds`` are the percents at
    which people are told; None: as they are, or the default. The tenant of a
    team, member or key need not be named. What was used stays used, under a
    new limit too. Raises ``ValidationError`` for values a budget cannot have.
    """
    whose = _whose(scope, tenant, team, member, key, model, upstream)
    identity = whose | {"unit": unit, "shadow": shadow} | _period(period)
    others = {} if thresholds is None else {"thresholds": sorted(set(thresholds))}
    return _set(Budget, identity, limit, actor, **others)


@transaction.atomic
def change_period(*, budget: Budget, period: str, actor: str) -> Budget:
    """Give a budget periods of another length, from the end of the present one on; returns it.

    ``period`` is written as for ``set_budget``. Raises ``ValidationError`` for
    periods it cannot have; any other than its own is one where it lasts for a lifetime.
    """
    budget = Budget.objects.select_for_update(of=["self"]).select_related("tenant").get(pk=budget.pk)
    before, values = budget.length, _period(period)
    if budget.period == "lifetime" and values["period"] != "lifetime":
        raise ValidationError(
            _("A lifetime does not end, so no other period can follow it: set another budget.")
        )
    for name, value in values.items():
        setattr(budget, name, value)
    budget.full_clean()
    budget.save(update_fields=list(values))
    change = schedules_of([budget])[budget.pk].next_change(now().timestamp())
    _record(
        budget,
        "period_changed",
        actor,
        before=before,
        after=budget.length,
        takes_effect_at=None if change is None else datetime.fromtimestamp(change[0], UTC),
    )
    return budget


@transaction.atomic
def remove_budget(*, budget: Budget, actor: str) -> None:
    """Remove a budget. What it counted stays in the ledger; a new one counts from nothing."""
    _remove(budget, actor)


@transaction.atomic
def raise_limit(
    *,
    row: Budget | RateLimit,
    ends_at: datetime,
    reason: str,
    actor: str,
    to: int | None = None,
    by: int | None = None,
    starts_at: datetime | None = None,
) -> LimitRaise:
    """Lift a budget or rate limit ``to`` or ``by`` so much, from ``starts_at`` (now) until ``ends_at``.

    It ends by the clock that admits calls; what was admitted until then runs
    on. A repeat is another raise. Raises ``ValidationError`` for a row
    without a limit, an end that has passed, and what a raise cannot have.
    """
    begun = now()
    if row.limit is None:
        raise ValidationError("There is no limit that could be raised: it is only counted.")
    if ends_at <= begun:
        raise ValidationError("A raise ends in the future.")
    raised = LimitRaise(
        **{kind_of_limit(row): row}, to=to, by=by, starts_at=starts_at or begun, ends_at=ends_at,
        reason=reason, granted_by=actor,
    )  # fmt: skip
    raised.full_clean()
    raised.save()
    _record(row, "raised", actor, reason, to=to, by=by, starts_at=raised.starts_at, ends_at=ends_at)
    return raised


@transaction.atomic
def take_back_raise(*, raised: LimitRaise, actor: str, reason: str) -> bool:
    """End a raise now; returns False if it has ended already."""
    running = LimitRaise.objects.filter(pk=raised.pk, taken_back_at=None, ends_at__gt=now())
    taken_back = running.update(taken_back_at=now())
    if taken_back:
        _record(raised.row, "raise_taken_back", actor, reason, raised=str(raised))
    return bool(taken_back)


@transaction.atomic
def set_rate_limit(
    *,
    scope: str,
    measure: str,
    limit: int | None,
    actor: str,
    tenant: Tenant | None = None,
    team: Team | None = None,
    member: Member | None = None,
    key: ApiKey | None = None,
    model: str = "",
    upstream: str = "",
    shadow: bool = False,
) -> RateLimit:
    """Give a scope a rate limit, or its rate limit of this measure another number; returns it.

    ``limit`` and the errors are as with ``set_budget``.
    """
    whose = _whose(scope, tenant, team, member, key, model, upstream)
    return _set(RateLimit, whose | {"measure": measure, "shadow": shadow}, limit, actor)


@transaction.atomic
def remove_rate_limit(*, rate_limit: RateLimit, actor: str) -> None:
    """Remove a rate limit."""
    _remove(rate_limit, actor)


@transaction.atomic
def set_price(
    *,
    model: str,
    actor: str,
    tenant: Tenant | None = None,
    input_price: int = 0,
    cached_price: int | None = None,
    output_price: int = 0,
    gpu_price: int = 0,
    starts_at: datetime | None = None,
    free: bool = False,
) -> Price:
    """Set what ``model`` costs from ``starts_at`` (now) on, in micro-USD; returns it.

    Prices are for a million tokens, ``gpu_price`` for a second of GPU time.
    Without ``cached_price``, cached input costs what other input does. A price
    that started at the same moment is replaced. Raises ``ValidationError`` for
    values a price cannot have.
    """
    figures: dict[str, Any] = {
        "input_price": input_price,
        "cached_price": input_price if cached_price is None else cached_price,
        "output_price": output_price,
        "gpu_price": gpu_price,
        "free": free,
    }
    model, starts_at = _canonical(model), starts_at or now()
    row = Price.objects.select_for_update().filter(model=model, tenant=tenant, starts_at=starts_at).first()
    before = {name: getattr(row, name) for name in figures} if row else None
    price = row or Price(model=model, tenant=tenant, starts_at=starts_at)
    for name, value in figures.items():
        setattr(price, name, value)
    price.full_clean()
    price.save()
    record(
        action="price.set",
        actor=actor,
        subject=str(price.pk),
        tenant_id=price.tenant_id,
        model=model,
        starts_at=starts_at,
        before=before,
        **figures,
    )
    transaction.on_commit(generations.project_quietly)
    return price


@transaction.atomic
def remove_price(*, price: Price, actor: str) -> None:
    """Remove a price. Calls that were admitted with it keep their cost."""
    subject, tenant_id = str(price.pk), price.tenant_id
    price.delete()
    record(
        action="price.removed",
        actor=actor,
        subject=subject,
        tenant_id=tenant_id,
        model=price.model,
        starts_at=price.starts_at,
        # Nobody can look it up any more.
        before={name: getattr(price, name) for name in PRICE_FIGURES},
    )
    transaction.on_commit(generations.project_quietly)


@transaction.atomic
def set_upstream_cost(
    *,
    upstream: str,
    actor: str,
    life_months: int,
    hardware_price: int = 0,
    busy_watts: int = 0,
    idle_watts: int = 0,
    kwh_price: int = 0,
    other_per_month: int = 0,
    gpus: int = 1,
    starts_at: datetime | None = None,
) -> UpstreamCost:
    """Enter what an upstream costs from ``starts_at`` (now) on; returns it.

    Prices are in micro-USD, watts are those of the whole upstream. A cost that
    started at the same moment is replaced; months that were proposed from keep
    theirs. Raises ``ValidationError`` for values a cost cannot have.
    """
    figures: dict[str, Any] = {
        "hardware_price": hardware_price,
        "life_months": life_months,
        "busy_watts": busy_watts,
        "idle_watts": idle_watts,
        "kwh_price": kwh_price,
        "other_per_month": other_per_month,
        "gpus": gpus,
    }
    starts_at = starts_at or now()
    row = UpstreamCost.objects.select_for_update().filter(upstream=upstream, starts_at=starts_at).first()
    before = {name: getattr(row, name) for name in figures} if row else None
    cost = row or UpstreamCost(upstream=upstream, starts_at=starts_at)
    for name, value in figures.items():
        setattr(cost, name, value)
    cost.full_clean()
    cost.save()
    _record_cost(cost, "set", actor, before=before, **figures)
    return cost


@transaction.atomic
def remove_upstream_cost(*, cost: UpstreamCost, actor: str) -> None:
    """Remove what was entered; the one before it holds on. Proposals made with it stay as they are."""
    _record_cost(cost, "removed", actor, before={name: getattr(cost, name) for name in COST_FIGURES})
    cost.delete()


def _record_cost(cost: UpstreamCost, what: str, actor: str, **figures: Any) -> None:
    record(
        action=f"upstream_cost.{what}",
        actor=actor,
        subject=str(cost.pk),
        upstream=cost.upstream,
        starts_at=cost.starts_at,
        **figures,
    )


@transaction.atomic
def set_outage_credit(*, tenant: Tenant, tokens: int, actor: str) -> OutageCredit:
    """Let each process lend ``tenant`` so many tokens while Redis cannot be asked; 0 for none; returns it.

    Raises ``ValidationError`` for less than nothing.
    """
    row = OutageCredit.objects.select_for_update().filter(tenant=tenant).first()
    before = None if row is None else row.tokens
    row = row or OutageCredit(tenant=tenant)
    row.tokens = tokens
    row.full_clean()
    row.save()
    record(
        action="outage_credit.set",
        actor=actor,
        subject=str(tenant.pk),
        tenant_id=tenant.pk,
        before=before,
        tokens=tokens,
    )
    transaction.on_commit(generations.project_quietly)
    return row


@transaction.atomic
def arm_kill_switch(
    *,
    scope: str,
    actor: str,
    reason: str,
    message: str = "",
    until: datetime | None = None,
    tenant: Tenant | None = None,
    key: ApiKey | None = None,
    model: str = "",
    upstream: str = "",
) -> KillSwitch:
    """Stop all calls of a scope, running ones too, until ``until`` (in 7 days); returns the switch.

    The tenant of a key need not be named. ``message`` is told to callers.
    Armed again, there is one switch more, and each is on until its own end.
    Raises ``ValidationError`` for values a switch cannot have.
    """
    tenant = tenant if key is None else key.tenant
    switch = KillSwitch(
        **subject_of_switch(scope, tenant, key, model, upstream),
        tenant=tenant.slug if tenant else "",
        key=key.label if key else "",
        reason=reason,
        message=message,
        armed_by=actor,
        armed_at=now(),
    )
    if until is not None:
        switch.until = until
    switch.full_clean()
    switch.save(force_insert=True)
    record(
        action="kill_switch.armed",
        actor=actor,
        subject=str(switch.pk),
        tenant_id=switch.tenant_id,
        reason=reason,
        what=str(switch),
        message=message,
        until=switch.until,
    )
    transaction.on_commit(generations.project_quietly)
    return switch


def lift_kill_switch(*, switch: KillSwitch, actor: str, reason: str) -> bool:
    """End a kill switch before its time; return False if somebody has lifted it already."""
    try:
        with transaction.atomic():
            lift = KillSwitchLift(switch=switch, reason=reason, lifted_by=actor)
            lift.clean_fields()
            lift.save(force_insert=True)
            record(
                action="kill_switch.lifted",
                actor=actor,
                subject=str(switch.pk),
                tenant_id=switch.tenant_id,
                reason=reason,
                what=str(switch),
            )
            transaction.on_commit(generations.project_quietly)
    except IntegrityError:
        return False
    return True


def subject_of_switch(
    scope: str,
    tenant: Tenant | None = None,
    key: ApiKey | None = None,
    model: str = "",
    upstream: str = "",
) -> dict[str, Any]:
    """The columns that say what a kill switch stops; raises ``ValidationError`` for no name of a model."""
    tenant = tenant if key is None else key.tenant
    return {
        "scope": scope,
        "tenant_id": tenant.pk if tenant else None,
        "key_id": key.pk if key else None,
        "model": _canonical(model),
        "upstream": upstream,
    }


def _canonical(model: str) -> str:
    """The name of a model, or of none, as the column ``model`` has it; raises ``ValidationError``."""
    try:
        return canonical_setting(model)
    except ValidationError as exc:
        raise ValidationError({"model": exc.messages}) from exc


@transaction.atomic
def stop_calls(
    *, calls: Iterable[RunningCall], actor: str, reason: str, message: str = ""
) -> list[RunningCall]:
    """End running calls, within seconds; returns those that have not ended by themselves.

    ``message`` is told to their callers. Raises ``RedisError``; a repeat asks again.
    """
    wanted = {call.request_id: call for call in calls}
    stopped = [wanted[request_id] for request_id in ask_to_end(wanted, message)]
    for call in stopped:
        record(
            action="call.stopped",
            actor=actor,
            subject=str(call.request_id),
            tenant_id=call.tenant_id,
            reason=reason,
            key=call.key,
            model=call.model,
            message=message,
        )
    return stopped


def _period(text: str) -> dict[str, Any]:
    """The columns of a period that people write as ``text``."""
    try:
        kind, seconds = periods.kind_and_seconds(text)
    except ValueError as exc:
        raise ValidationError({"period": str(exc)}) from exc
    return {"period": kind, "seconds": seconds}


@transaction.atomic
def add_recipient(
    *, kind: str, address: str, actor: str, tenant: Tenant | None = None, happenings: list[str] | None = None
) -> Recipient:
    """Let somebody be told of what happens to a tenant, or with none to everybody; returns them.

    ``kind`` is ``email`` or ``webhook``; without ``happenings``, all but closed
    periods. What a webhook is signed with says ``webhooks.secret_of``. Raises
    ``ValidationError`` for an address that cannot be one, or is there already.
    """
    recipient = Recipient(tenant=tenant, kind=kind, address=address)
    if happenings is not None:
        recipient.happenings = sorted(set(happenings))
    recipient.full_clean()
    recipient.save()
    _record_recipient(recipient, "added", actor)
    return recipient


@transaction.atomic
def change_recipient(*, recipient: Recipient, actor: str, happenings: list[str], active: bool) -> None:
    """Change what a recipient is told of; deliveries on their way are sent all the same."""
    # In an order of its own: the usual one is by tenants, and of the platform there is none to lock.
    saved = Recipient.objects.select_for_update().filter(pk=recipient.pk).order_by("pk")
    before = saved.values("happenings", "active").first()
    recipient.happenings, recipient.active = sorted(set(happenings)), active
    recipient.full_clean()
    recipient.save()
    _record_recipient(recipient, "changed", actor, before=before)


@transaction.atomic
def new_webhook_secret(*, recipient: Recipient, actor: str, reason: str = "") -> str:
    """Give a webhook another secret, from the next delivery on, and return it: it is shown this once."""
    recipient.salt = new_salt()
    recipient.save()
    _record_recipient(recipient, "secret_changed", actor, reason=reason)
    return webhooks.secret_of(recipient)


@transaction.atomic
def remove_recipient(*, recipient: Recipient, actor: str) -> None:
    """Tell somebody nothing any more, not even what is on its way; what was delivered stays recorded."""
    _record_recipient(recipient, "removed", actor)
    recipient.delete()


def _record_recipient(recipient: Recipient, what: str, actor: str, **details: Any) -> None:
    record(
        action=f"recipient.{what}",
        actor=actor,
        subject=str(recipient.pk),
        tenant_id=recipient.tenant_id,
        what=str(recipient),
        happenings=recipient.happenings,
        active=recipient.active,
        **details,
    )


def _whose(
    scope: str,
    tenant: Tenant | None,
    team: Team | None,
    member: Member | None,
    key: ApiKey | None,
    model: str,
    upstream: str,
) -> dict[str, Any]:
    """The columns that say whose calls a row counts."""
    part = key or member or team
    return {
        "scope": scope,
        "tenant": tenant if part is None else part.tenant,
        "team": team,
        "member": member,
        "key": key,
        "model": _canonical(model),
        "upstream": upstream,
    }


def _set(kind: type[Row], identity: dict[str, Any], limit: int | None, actor: str, **others: Any) -> Row:
    rows = kind._default_manager  # noqa: SLF001, the manager of whichever model it is
    row = rows.select_for_update().filter(**identity).first()
    before = None if row is None else row.limit
    row = row or kind(**identity)
    row.limit = limit
    for name, value in others.items():
        setattr(row, name, value)
    row.full_clean()
    row.save()
    _record(row, "set", actor, before=before, limit=limit, **others)
    return row


def _remove(row: Budget | RateLimit, actor: str) -> None:
    # What it was and of which key, because nobody can look at the row any more.
    was = {"unit": row.unit, "period": row.length} if isinstance(row, Budget) else {"measure": row.measure}
    _record(row, "removed", actor, limit=row.limit, key=row.key_id, **was)
    row.delete()


def _record(row: ScopedRow, what: str, actor: str, reason: str = "", **details: Any) -> None:
    """Tell the audit of a change, and every process once it is committed."""
    record(
        action=f"{kind_of_limit(row)}.{what}",
        actor=actor,
        subject=str(row.pk),
        tenant_id=row.tenant_id,
        reason=reason,
        what=str(row),
        **details,
    )
    transaction.on_commit(generations.project_quietly)
