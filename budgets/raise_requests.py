"""Asking for more of a limit: a request, and the yes or no of somebody who may grant it.

What a tenant shares out to its teams, members and keys is granted by its owners
and admins. What limits the tenant as a whole, or everybody, is what operators
have promised others, so they grant it. Nobody decides on their own request.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.recording import record
from audit.walls import across
from budgets.limits import limit_now
from budgets.models import (
    WITH_ITS_LIMIT,
    Budget,
    Happening,
    LimitRaise,
    RaiseRequest,
    RateLimit,
    Scope,
    kind_of_limit,
)
from budgets.notice_words import limit_named
from budgets.notices import deliver_to_people, tell
from budgets.services import raise_limit
from tenants.access import GRANT_RAISES, MANAGING, Access, is_operator
from tenants.models import User

SHARED_OUT = frozenset({Scope.TEAM, Scope.MEMBER, Scope.KEY, Scope.RUN})
State = RaiseRequest.State


def may_decide(access: Access, request: RaiseRequest) -> bool:
    """Whether a person may say yes or no to a request that is open."""
    if request.tenant_id != access.tenant.pk or request.asked_by_id == access.user.pk:
        return False
    return access.grants_raises if request.row.scope in SHARED_OUT else access.grants_every_raise


def open_requests(access: Access) -> QuerySet[RaiseRequest]:
    """The requests at a tenant that a person may decide on, those that wait longest first."""
    found = RaiseRequest.objects.filter(tenant=access.tenant, state=State.OPEN).exclude(asked_by=access.user)
    if not access.grants_raises:
        return found.none()
    if not access.grants_every_raise:
        found = found.filter(Q(budget__scope__in=SHARED_OUT) | Q(rate_limit__scope__in=SHARED_OUT))
    return _with_all(found).order_by("asked_at")


def own_requests(access: Access) -> QuerySet[RaiseRequest]:
    """What a person asked for at a tenant, the newest first."""
    return _with_all(RaiseRequest.objects.filter(tenant=access.tenant, asked_by=access.user))


def all_of(access: Access) -> QuerySet[RaiseRequest]:
    """All requests at a tenant, whoever may decide on them."""
    return _with_all(RaiseRequest.objects.filter(tenant=access.tenant))


def _with_all(found: QuerySet[RaiseRequest]) -> QuerySet[RaiseRequest]:
    return found.select_related("tenant", "asked_by", "raised", *WITH_ITS_LIMIT)


@transaction.atomic
def ask_for_raise(
    *,
    access: Access,
    row: Budget | RateLimit,
    to: int,
    until: datetime,
    reason: str,
    pages: str = "",
    request_id: UUID | None = None,
) -> RaiseRequest:
    """Ask that a limit is raised ``to`` so much until ``until``; those who may grant it are told.

    ``pages`` is the address under which each request has its page. Whether the limit
    is one that the person sees is the caller's to know. Raises ``ValidationError``
    for what cannot be granted, and while a request of theirs for this limit is
    open; one whose end has passed is not open any more.
    """
    if not access.asks_for_raises:
        raise PermissionDenied
    of_limit = {kind_of_limit(row): row}
    own = RaiseRequest.objects.filter(**of_limit, asked_by=access.user, state=State.OPEN)
    own.filter(until__lte=now()).update(state=State.LAPSED, decided_at=now(), decided_by="Tollgate")
    limit = limit_now(row)
    if limit is None:
        raise ValidationError(_("There is no limit that could be raised: it is only counted."))
    if to <= limit:
        raise ValidationError({"to": _("The limit is that high already: ask for more than it is now.")})
    asked = RaiseRequest(
        tenant=access.tenant, **of_limit, asked_by=access.user, to=to, until=until, reason=reason,
        request_id=request_id,
    )  # fmt: skip
    asked.full_clean()
    try:
        with transaction.atomic():
            asked.save()
    except IntegrityError as exc:
        # Sent twice at the same time.
        raise ValidationError(_("You have asked for more of this limit already.")) from exc
    _record(asked, "requested", str(access.user), reason, to=to, until=until)
    page = f"{pages}{asked.pk}/" if pages else ""
    values = {"limit": limit, "to": to, "until": until.isoformat(), "reason": reason}
    _tell(asked, Happening.RAISE_REQUESTED, values, page, _who_may_decide(asked))
    return asked


@transaction.atomic
def withdraw_request(*, request: RaiseRequest, access: Access) -> bool:
    """Take one's own request back; returns False if it is not open any more."""
    if request.asked_by_id != access.user.pk:
        raise PermissionDenied
    withdrawn = _decide(request, State.WITHDRAWN, str(access.user))
    if withdrawn:
        _record(request, "request_withdrawn", str(access.user))
    return withdrawn


@transaction.atomic
def grant_request(
    *, request: RaiseRequest, access: Access, to: int, until: datetime, answer: str = "", page: str = ""
) -> LimitRaise | None:
    """Raise the limit ``to`` so much until ``until``, which may be less than was asked for.

    Whoever asked is told. Returns the raise; None if the request is not open
    any more. Raises ``PermissionDenied`` for somebody who may not grant it, and
    ``ValidationError`` for what a raise cannot have.
    """
    if not may_decide(access, request):
        raise PermissionDenied
    actor, row = str(access.user), request.row
    if not _decide(request, State.GRANTED, actor, answer):
        return None
    reason = f"asked for by {request.asked_by}: {request.reason}"
    # It was asked whether the person may; a limit of the platform is behind a wall from within a tenant.
    with across():
        raised = raise_limit(row=row, to=to, ends_at=until, reason=reason, actor=actor)
    request.raised = raised
    request.save(update_fields=["raised"])
    _record(request, "request_granted", actor, answer, to=to, until=until, raised=raised.pk)
    values = {"granted": True, "decided_by": actor, "to": to, "until": until.isoformat(), "answer": answer}
    _tell(request, Happening.RAISE_DECIDED, values, page, [request.asked_by])
    return raised


@transaction.atomic
def decline_request(*, request: RaiseRequest, access: Access, answer: str, page: str = "") -> bool:
    """Say no, with a reason that whoever asked is told; returns False if it is not open any more.

    Raises ``PermissionDenied`` for somebody who may not decide, ``ValidationError`` without a reason.
    """
    if not may_decide(access, request):
        raise PermissionDenied
    if not answer.strip():
        raise ValidationError({"answer": _("Say why, so that the person knows what to do.")})
    actor = str(access.user)
    declined = _decide(request, State.DECLINED, actor, answer)
    if declined:
        _record(request, "request_declined", actor, answer)
        values = {"granted": False, "decided_by": actor, "answer": answer}
        _tell(request, Happening.RAISE_DECIDED, values, page, [request.asked_by])
    return declined


def _decide(request: RaiseRequest, state: str, actor: str, answer: str = "") -> bool:
    """Of two who decide at the same time one is first."""
    decided = RaiseRequest.objects.filter(pk=request.pk, state=State.OPEN).update(
        state=state, decided_at=now(), decided_by=actor, answer=answer
    )
    request.refresh_from_db(fields=["state", "decided_at", "decided_by", "answer"])
    return bool(decided)


def _who_may_decide(request: RaiseRequest) -> list[User]:
    others = User.objects.filter(is_active=True).exclude(pk=request.asked_by_id)
    if request.row.scope in SHARED_OUT:
        return list(others.filter(memberships__tenant=request.tenant_id, memberships__role__in=MANAGING))
    return [one for one in others.filter(Q(is_staff=True)) if is_operator(one, GRANT_RAISES)]


def _tell(
    request: RaiseRequest, happening: str, values: dict[str, Any], page: str, people: list[User]
) -> None:
    facts = {
        "raise_request": {
            "id": str(request.pk),
            "state": request.state,
            "budget": request.budget and str(request.budget),
            "rate_limit": request.rate_limit and str(request.rate_limit),
            "to": request.to,
            "until": request.until.isoformat(),
            "reason": request.reason,
            "asked_by": str(request.asked_by),
            "answer": request.answer,
            "page": page or None,
        }
    }
    values |= {
        "budget": limit_named(request.row),
        "tenant": request.tenant.slug,
        "asked_by": str(request.asked_by),
        "page": page,
    }
    # Recipients of the platform hear of it too.
    with across():
        notice = tell(
            happening=happening, subject=str(request.pk), values=values, facts=facts,
            tenant_id=request.tenant_id, tenant=request.tenant.slug,
        )  # fmt: skip
        if notice is not None:
            deliver_to_people(notice, people)


def _record(request: RaiseRequest, what: str, actor: str, reason: str = "", **details: Any) -> None:
    record(
        action=f"raise.{what}",
        actor=actor,
        subject=str(request.pk),
        tenant_id=request.tenant_id,
        reason=reason,
        what=str(request.row),
        **details,
    )
