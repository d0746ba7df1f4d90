"""What must hold once nothing runs any more: the invariants, each a function that yields what breaks it."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Sum

from audit.models import RequestEvent
from budgets import booking, ledger
from budgets.exceptions import BudgetCut
from budgets.models import BudgetPeriod, LedgerEntry, UsageRollup
from budgets.usage import SUMS
from proxy.errors import ANSWERS
from proxy.simulator.truth import Record
from tests import books
from tests.chaos.clients import Asked
from tests.chaos.stage import REDIS_TIMEOUT_SECONDS, Stage
from tests.chaos.watcher import Sample, Watcher
from tests.chaos.workers import Worker
from tests.counting import told_by

# A refusal for want of Redis may take two attempts; the rest is for a machine with other work.
BLIND_SECONDS = 2 * REDIS_TIMEOUT_SECONDS + 4.0
# What a revoked key's calls may take to end, and what a busy machine adds.
STOP_SECONDS = 5 + 5
# Two processes on one machine read one clock, to the millisecond.
CLOCK_SECONDS = 0.05
# Ollama notes a call when it has read it, which takes a while on a busy machine.
NOTING_SECONDS = 2
PREFIXES = 5
TOKENS = ("input_tokens", "output_tokens")


@dataclass(slots=True)
class Evidence:
    """All logs of a round."""

    stage: Stage
    watcher: Watcher
    workers: list[Worker]
    asked: list[Asked]
    entries: dict[UUID, LedgerEntry]
    adjustments: dict[UUID, LedgerEntry]
    truth: dict[str, list[Record]]

    def net(self, request_id: UUID, figure: str) -> int:
        """What the ledger says of a call after its adjustment, if there was one."""
        entry, adjustment = self.entries[request_id], self.adjustments.get(request_id)
        return int(getattr(entry, figure)) + int(getattr(adjustment, figure) if adjustment else 0)


def gather(stage: Stage, watcher: Watcher, workers: list[Worker], asked: list[Asked]) -> Evidence:
    """Read the books."""
    tenants = [tenant.pk for tenant in stage.tenants]
    rows = LedgerEntry.objects.filter(tenant_id__in=tenants)
    truth: dict[str, list[Record]] = defaultdict(list)
    for record in stage.ollama.calls:
        start = record.body.index("marker-")
        truth[record.body[start : record.body.index(".", start) + 1]].append(record)
    return Evidence(
        stage,
        watcher,
        workers,
        asked,
        {row.request_id: row for row in rows if row.kind == "usage"},
        {row.request_id: row for row in rows if row.kind == "adjustment"},
        truth,
    )


def problems(evidence: Evidence) -> list[str]:
    """Every broken promise, in words."""
    checks = (
        nothing_went_wrong_aside,
        answers_are_of_the_usual_kinds,
        no_budget_is_passed,
        a_lowered_limit_is_obeyed,
        no_rate_is_passed,
        nothing_is_held,
        the_books_agree,
        every_call_is_booked_once,
        every_call_had_a_hold,
        calls_are_billed_for_what_they_were,
        a_repeat_changes_nothing,
        without_redis_nothing_is_admitted,
        off_means_off,
        a_whole_answer_is_passed_on_whole,
        a_cut_answer_looks_cut,
    )
    return [f"{check.__name__}: {found}" for check in checks for found in check(evidence)]


def nothing_went_wrong_aside(evidence: Evidence) -> Iterator[str]:
    for worker in evidence.workers:
        for error in worker.errors:
            yield f"{worker.name}: {error!r}"
    for door in evidence.stage.doors:
        if "Traceback" in door.log or "CRITICAL" in door.log:
            yield f"gateway {door.number} logged {door.log[-3000:]}"


def answers_are_of_the_usual_kinds(evidence: Evidence) -> Iterator[str]:
    """A gateway may be busy, or gone, or say no; nothing asked for here is wrong, and Ollama is well."""
    for asked in evidence.asked:
        excuses = {0: asked.door.gone, 403: asked.key.doubtful}.get(asked.status, [])
        excused = any(span.touches(asked.sent_at, asked.ended_at) for span in excuses)
        if asked.status not in (200, 401, 429, 503) and not excused:
            yield f"{asked}"


def no_budget_is_passed(evidence: Evidence) -> Iterator[str]:
    """INV1; but what a process delivered after its lease had run out was not held any more.

    Nor are calls of a process that could not put their holds back before the
    counters were rebuilt: from then on nothing can be said.
    """
    beyond = _lifted(evidence)
    worst: dict[str, int] = {}
    for sample in evidence.watcher.samples:
        if sample.at > evidence.stage.unheld_since:
            break
        worst[sample.id] = max(worst.get(sample.id, 0), sample.total)
    for limit_id, limit in evidence.stage.limits.items():
        if worst.get(limit_id, 0) > limit + beyond[limit_id]:
            yield f"{limit_id}: {worst[limit_id]} of {limit} (+{beyond[limit_id]} by adjustments)"


def a_lowered_limit_is_obeyed(evidence: Evidence) -> Iterator[str]:
    """Once it is in force, what is above it only sinks."""
    beyond = _lifted(evidence)
    for budget_id, lowered in evidence.stage.lowered.items():
        ceiling = None
        for sample in evidence.watcher.samples:
            if (
                sample.id != budget_id
                or sample.at > evidence.stage.unheld_since
                or _is_lost(evidence, sample)
            ):
                continue
            if (
                sample.at > lowered.since
                and ceiling is not None
                and sample.total > ceiling + beyond[budget_id]
            ):
                yield f"{budget_id}: {sample.total} after {ceiling}, with a limit of {lowered.limit}"
            ceiling = max(lowered.limit, sample.total)


def _is_lost(evidence: Evidence, sample: Sample) -> bool:
    """Whether Redis had just lost its counters, or had some of them back."""
    return any(
        span.since - NOTING_SECONDS <= sample.at <= span.until + NOTING_SECONDS
        for span in evidence.stage.flushed
    )


def no_rate_is_passed(evidence: Evidence) -> Iterator[str]:
    """In no minute more than was allowed; a minute that Redis has lost nobody remembers."""
    if evidence.stage.flushed:
        return
    for keyed in evidence.stage.keys:
        entries = [entry for entry in evidence.entries.values() if entry.key_id == keyed.key.pk]
        adjustments = [row for row in evidence.adjustments.values() if row.key_id == keyed.key.pk]
        lifted = sum(max(0, booking.amount_of("tokens", row)) for row in adjustments)
        for first in entries:
            until = first.admitted_at + timedelta(seconds=60)
            minute = [entry.request_id for entry in entries if first.admitted_at <= entry.admitted_at < until]
            calls = sum(evidence.net(name, "requests") for name in minute)
            tokens = sum(evidence.net(name, figure) for name in minute for figure in TOKENS)
            limits = keyed.limits
            if calls > limits.requests_per_minute or tokens > limits.tokens_per_minute + lifted:
                yield f"{keyed.key}: {calls} calls and {tokens} tokens in a minute, {limits}"
                break


def _lifted(evidence: Evidence) -> Tally[str]:
    """By how much adjustments have lifted each budget."""
    lifted: Tally[str] = Tally()
    for adjustment in evidence.adjustments.values():
        for counter in _facts(evidence).get(adjustment.request_id, {}).get("counters", ()):
            if counter[0] == "budget":
                lifted[counter[1]] += max(0, booking.amount_of(counter[2], adjustment))
    return lifted


def _facts(evidence: Evidence) -> dict[UUID, dict[str, Any]]:
    """What was known of each call when it was admitted, from the usage records."""
    calls = (told_by(fields)["call"] for fields in evidence.watcher.records.values())
    return {UUID(call["request_id"]): call for call in calls}


def nothing_is_held(_: Evidence) -> Iterator[str]:
    """INV3, the open half."""
    return books.what_is_underway()


def the_books_agree(evidence: Evidence) -> Iterator[str]:
    """INV3."""
    flushed_at = max((span.until for span in evidence.stage.flushed), default=0.0)
    return books.disagreements(evidence.stage.tenants, flushed_at=flushed_at)


def every_call_is_booked_once(evidence: Evidence) -> Iterator[str]:
    """INV5, and that every call that reached Ollama has its own entry."""
    by_id = {UUID(asked.request_id): asked for asked in evidence.asked if asked.request_id}
    for marker, records in evidence.truth.items():
        if len(records) > 1:
            yield f"{marker} reached Ollama {len(records)} times"
    for request_id in evidence.adjustments:
        if request_id not in evidence.entries:
            yield f"{request_id} was adjusted and never booked"
        elif evidence.entries[request_id].outcome != "orphaned":
            yield f"{request_id} was adjusted and is no orphan"
    for request_id, asked in by_id.items():
        if request_id not in evidence.entries and (asked.status == 200 or asked.marker in evidence.truth):
            yield f"{asked} has no entry"
    for record, asked in _unmatched(evidence, by_id):
        yield f"{asked} reached Ollama at {record.started_at} and has no entry"


def _unmatched(evidence: Evidence, by_id: dict[UUID, Asked]) -> list[tuple[Record, Asked]]:
    """Calls that reached Ollama and for which no entry is left.

    Whose client never got an id is matched with the entries nobody else has: by
    key, route and time, as well as can be (augmenting paths).
    """
    asked_of = {asked.marker: asked for asked in evidence.asked}
    free = [entry for request_id, entry in evidence.entries.items() if request_id not in by_id]
    wanting = [
        (records[0], asked_of[marker])
        for marker, records in evidence.truth.items()
        if not asked_of[marker].request_id
    ]
    taken: dict[UUID, int] = {}

    def fits(entry: LedgerEntry, record: Record, asked: Asked) -> bool:
        admitted = entry.admitted_at.timestamp()
        return (
            entry.key_id == asked.key.key.pk
            and (entry.route, entry.stream) == (asked.route, asked.stream)
            and asked.sent_at - CLOCK_SECONDS <= admitted <= record.started_at + CLOCK_SECONDS
        )

    def place(number: int, tried: set[UUID]) -> bool:
        record, asked = wanting[number]
        for entry in free:
            if entry.request_id in tried or not fits(entry, record, asked):
                continue
            tried.add(entry.request_id)
            if entry.request_id not in taken or place(taken[entry.request_id], tried):
                taken[entry.request_id] = number
                return True
        return False

    return [wanting[number] for number in range(len(wanting)) if not place(number, set())]


def every_call_had_a_hold(evidence: Evidence) -> Iterator[str]:
    """INV2: between its admission and its end a call reached Ollama, not before and not after."""
    for asked, entry, record in _known(evidence):
        if not (
            entry.admitted_at.timestamp() - CLOCK_SECONDS
            <= record.started_at
            <= entry.ended_at.timestamp() + NOTING_SECONDS
        ):
            yield f"{asked}: at {record.started_at}, not from {entry.admitted_at} to {entry.ended_at}"


def _known(evidence: Evidence) -> Iterator[tuple[Asked, LedgerEntry, Record]]:
    """The calls that all three sides know of."""
    for asked in evidence.asked:
        entry = evidence.entries.get(UUID(asked.request_id)) if asked.request_id else None
        if entry is not None and asked.marker in evidence.truth:
            yield asked, entry, evidence.truth[asked.marker][0]


def calls_are_billed_for_what_they_were(evidence: Evidence) -> Iterator[str]:
    """INV6: delivered ≤ billed ≤ held; what Ollama reported is billed when the whole answer came."""
    facts = _facts(evidence)
    for asked, entry, record in _known(evidence):
        name = entry.request_id
        billed = (evidence.net(name, "input_tokens"), evidence.net(name, "output_tokens"))
        held = (facts[name]["input_bound"] if name in facts else billed[0], _cap(record))
        if billed[0] > held[0] or billed[1] > held[1]:
            yield f"{asked}: {billed} billed, {held} held"
        final = name in evidence.adjustments or entry.outcome != "orphaned"
        if not final:
            if not any(asked.sent_at <= death for death in asked.door.deaths) and asked.status == 200:
                yield f"{asked} was taken for dead, and its gateway was not"
            continue
        if asked.whole and billed != (record.prompt_tokens, record.output_tokens):
            yield f"{asked}: {billed} billed, {(record.prompt_tokens, record.output_tokens)} used"
        if asked.pieces > billed[1]:
            yield f"{asked}: {billed[1]} billed, {asked.pieces} delivered"
        if asked.status == 200 and not evidence.net(name, "requests"):
            yield f"{asked} was answered and not billed"


def _cap(record: Record) -> int:
    """The output that Ollama was asked for at most."""
    cap = record.fields.get("options", {}).get("num_predict", record.fields.get("max_tokens", 0))
    assert isinstance(cap, int)
    return cap


def a_repeat_changes_nothing(evidence: Evidence) -> Iterator[str]:
    """INV9: any part of the stream may be taken again, in any order."""
    random = Random(evidence.stage.plan.seed)
    records: list[ledger.Entry] = list(evidence.watcher.records.items())
    before = _books()
    for _ in range(PREFIXES):
        part = records[: random.randint(0, len(records))]
        random.shuffle(part)
        with transaction.atomic():
            ledger._take(part)
        if (after := _books()) != before:
            yield f"taking {len(part)} records again made {after} of {before}"
            return


def _books() -> list[Any]:
    sums = {name: Sum(name) for name in SUMS}
    return [
        LedgerEntry.objects.aggregate(**sums),
        LedgerEntry.objects.count(),
        UsageRollup.objects.aggregate(**sums),
        sorted(BudgetPeriod.objects.values_list("budget_id", "period_start", "run", "used")),
        RequestEvent.objects.count(),
    ]


def without_redis_nothing_is_admitted(evidence: Evidence) -> Iterator[str]:
    """INV11: 503, soon, and nothing else."""
    for asked in evidence.asked:
        blind = any(span.covers(asked.sent_at, asked.ended_at) for span in asked.door.blind)
        flushed = any(span.covers(asked.sent_at, asked.ended_at) for span in evidence.stage.flushed)
        if (blind or flushed) and asked.status == 200:
            yield f"{asked} was admitted without Redis"
        if blind and asked.ended_at - asked.sent_at > BLIND_SECONDS:
            yield f"{asked} waited {asked.ended_at - asked.sent_at:.2f} s"


def off_means_off(evidence: Evidence) -> Iterator[str]:
    """INV14 and INV15; and the other way round: a good key is never called bad."""
    for asked in evidence.asked:
        off = asked.key.off
        doubted = any(span.touches(asked.sent_at, asked.ended_at) for span in asked.key.doubtful)
        if asked.status == 401 and not doubted:
            yield f"{asked} was called bad"
        if asked.status == 200 and any(span.covers(asked.sent_at, asked.ended_at) for span in off):
            yield f"{asked} was admitted with a key that is off: {off}"
        stopped_at = min((span.since for span in off if span.since > asked.sent_at), default=float("inf"))
        slept = any(
            span.touches(stopped_at, asked.ended_at) for span in (*asked.door.asleep, *asked.door.blind)
        )
        ends = min((span.until for span in off if span.since == stopped_at), default=float("inf"))
        if not slept and asked.ended_at > stopped_at + STOP_SECONDS and ends > stopped_at + STOP_SECONDS:
            yield f"{asked} went on for {asked.ended_at - stopped_at:.1f} s"


def a_whole_answer_is_passed_on_whole(evidence: Evidence) -> Iterator[str]:
    """A stream breaks when its key goes off, its lease was lost, its gateway went, or its budget was cut."""
    for asked in evidence.asked:
        if asked.status != 200 or not asked.trouble:
            continue
        door = asked.door
        excuses = (*door.gone, *door.asleep, *door.blind, *asked.key.doubtful)
        cut = ANSWERS[BudgetCut].sentence in asked.trouble and any(
            lowered.began <= asked.ended_at for lowered in evidence.stage.lowered.values()
        )
        if not cut and not any(span.touches(asked.sent_at, asked.ended_at) for span in excuses):
            yield f"{asked} broke for no reason"


def a_cut_answer_looks_cut(evidence: Evidence) -> Iterator[str]:
    """A client knows a whole answer from a broken one."""
    for asked in evidence.asked:
        if asked.status == 200 and not (asked.whole or asked.trouble or asked.left):
            yield f"{asked} ended without an end"
        records = evidence.truth.get(asked.marker, [])
        if asked.stream and asked.whole and not all(record.complete for record in records):
            yield f"{asked} looks whole and is not"
