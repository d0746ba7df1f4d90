"""Why a call was refused: each question that was asked of it, in order, with the values it looked at then.

Of any call there is a ``RequestEvent``; of one that was refused before it was
admitted also a ``RefusedCall`` with these values, for as long as those are
kept. The questions are those of ``proxy.admission.admit``. The portal shows
this to the people of the tenant and the admin to operators, of calls that were
let through as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from django.db.models import Q

from audit.models import RequestEvent
from budgets.models import Budget, KillSwitch, RateLimit, RefusedCall, Scope
from budgets.refusal_reasons import QUESTIONS, Asked, Reason, reason_of
from keys.models import ApiKey

# From the platform down to the key; then what a call is about.
ORDER = list(Scope)

# Redis may be missing, and its clock wrong, at any question that looks at a kill switch or a limit.
ANYWHERE = frozenset({"counters_unavailable", "clock_doubtful", "backlog_full"})


class Answer(StrEnum):
    """How a question was answered; ``UNTOLD``: it may have been asked, and nobody wrote it down."""

    YES = "yes"
    NO = "no"
    NOT_ASKED = "not asked"
    UNTOLD = "untold"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit as the call met it. Amounts are in ``unit``; ``row`` None: it is a visitor's, or gone now.

    ``needed`` is the least with which the call would have been let through.
    ``back_at`` None: never, or nobody knows. A limit that is not ``hard`` is in
    shadow mode: ``refused`` then says that it would have.
    """

    kind: str
    name: str
    scope: str
    unit: str
    window: str
    model: str
    upstream: str
    limit: int
    used: int
    held: int
    needed: int
    hard: bool
    refused: bool
    back_at: datetime | None
    row: Budget | RateLimit | None

    @property
    def left(self) -> int:
        """What was neither used nor held; never below nothing."""
        return max(0, self.limit - self.used - self.held)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the gateway's, and how it was answered for this call."""

    asked: Asked
    text: Any
    answer: Answer


@dataclass(frozen=True, slots=True)
class Explained:
    """A call, question by question.

    ``reason``: why it got an error instead of an answer; None: it got none.
    ``limits`` are those that were asked, from the platform down; empty when the
    call did not get so far. ``switches`` are the kill switches that were on
    then, of the kind that stopped it. ``models``: what the key could call then;
    None: every installed one. ``endpoints`` and ``networks``: those that it could be used for and from, of
    a call for which that was asked in vain. ``field``: of the request, the one that was wrong.
    ``told`` is false when the values are not kept, or not any more.
    """

    event: RequestEvent
    reason: Reason | None
    questions: list[Question]
    limits: list[Limit]
    switches: list[KillSwitch]
    models: list[str] | None
    endpoints: list[str]
    networks: list[str]
    field: str
    key_expires_at: datetime | None
    told: bool

    @property
    def may_be_raised(self) -> list[Limit]:
        """Those that said no and still limit something: of these more can be asked for."""
        return [
            one
            for one in self.limits
            if one.refused and one.hard and one.row is not None and one.row.limit is not None
        ]


def explain_refusal(
    request_id: UUID, *, tenant_id: UUID | None = None, member_id: UUID | None = None
) -> Explained | None:
    """Why a call was refused or cut; None for one that was not, and for one that is not theirs.

    ``tenant_id``: only of this tenant; ``member_id``: only by this member's own
    keys. A call that nobody knows looks like somebody else's.
    """
    event = event_of(request_id, tenant_id=tenant_id, member_id=member_id)
    return explain_call(event) if event is not None and event.refusal else None


def event_of(
    request_id: UUID, *, tenant_id: UUID | None = None, member_id: UUID | None = None
) -> RequestEvent | None:
    """The event of a call, within the same bounds."""
    events = RequestEvent.objects.filter(pk=request_id)
    if tenant_id is not None:
        events = events.filter(tenant_id=tenant_id)
    if member_id is not None:
        events = events.filter(key_id__in=ApiKey.objects.filter(member=member_id).values("pk"))
    return events.first()


def explain_call(event: RequestEvent) -> Explained:
    """How each question was answered for any call; of one that was let through no values are kept."""
    admitted = event.admitted_at is not None
    reason = reason_of(event.refusal) if event.refusal else None
    kept = None if admitted else RefusedCall.objects.filter(pk=event.request_id).first()
    facts: dict[str, Any] = {} if kept is None else kept.facts
    expires_ms = facts.get("expires_at_ms")
    return Explained(
        event=event,
        reason=reason,
        questions=list(_questions(event, reason)),
        limits=_limits(facts.get("limits", ())),
        switches=_switches(event),
        models=facts.get("models", []),
        endpoints=facts.get("endpoints", []),
        networks=facts.get("networks", []),
        field=facts.get("field", ""),
        key_expires_at=None if expires_ms is None else datetime.fromtimestamp(expires_ms / 1000, UTC),
        told=admitted or bool(facts),
    )


def _questions(event: RequestEvent, reason: Reason | None) -> Iterator[Question]:
    said_no = Asked.ANSWER if event.admitted_at is not None or reason is None else reason.asked
    for asked, text in QUESTIONS.items():
        if asked == said_no:
            answer = Answer.NO if reason is not None else _to_the_end(event)
        elif asked > said_no:
            answer = Answer.NOT_ASKED
        elif event.refusal in ANYWHERE and event.admitted_at is None and asked > Asked.REQUEST:
            answer = Answer.UNTOLD
        else:
            answer = Answer.YES
        yield Question(asked, text, answer)


def _to_the_end(event: RequestEvent) -> Answer:
    # Of a call whose caller left, nobody knows whether the model server had come to the end.
    return Answer.YES if event.outcome == "completed" else Answer.UNTOLD


def _limits(noted: Any) -> list[Limit]:
    ids = [UUID(one["id"]) for one in noted]
    rows: dict[UUID, Budget | RateLimit] = {}
    for kind in (Budget, RateLimit):
        named = kind.objects.select_related("tenant", "team", "member__user", "key")
        rows |= {row.pk: row for row in named.filter(pk__in=ids)}
    found = [
        Limit(
            **{name: one[name] for name in Limit.__slots__ if name not in ("back_at", "row")},
            back_at=None if one["back_at"] is None else datetime.fromtimestamp(one["back_at"], UTC),
            row=rows.get(UUID(one["id"])),
        )
        for one in noted
    ]
    return sorted(found, key=lambda one: _place(one.scope))


def _place(scope: str) -> int:
    # What visitors are counted on has scopes of its own, below all others.
    return ORDER.index(Scope(scope)) if scope in ORDER else len(ORDER)


def _switches(event: RequestEvent) -> list[KillSwitch]:
    """The switches that were on then, of the kind that the code names."""
    kind, _, scope = event.refusal.rpartition("_")
    if kind != "kill_switch":
        return []
    applies = (
        Q(scope__in=["platform", "upstream"])
        | Q(scope="tenant", tenant_id=event.tenant_id)
        | Q(scope="key", key_id=event.key_id)
        | Q(scope="model", tenant_id=event.tenant_id)
        | Q(scope="model", tenant_id=None)
    )
    # The event was written down a moment later than the call came, of which its id tells.
    at = datetime.fromtimestamp((event.request_id.int >> 80) / 1000, UTC)
    on = Q(armed_at__lte=at, until__gt=at) & (Q(lift=None) | Q(lift__lifted_at__gt=at))
    return list(KillSwitch.objects.filter(applies, on, scope=scope))
