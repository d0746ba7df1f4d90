"""One race: callers of a drawn number and size at a barrier, on budgets too small for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from budgets import ledger, spool
from budgets.counters import redis_in_bytes
from budgets.models import Budget, LedgerEntry
from budgets.services import set_budget, set_price
from budgets.sweeping import sweep
from keys.services import issue_key
from proxy.simulator.server import SimulatorThread
from proxy.simulator.truth import Record
from tenants.services import create_tenant
from tests import books
from tests.chaos.watcher import Watcher
from tests.conftest import eventually
from tests.crowd import Question, ask_at_once
from tests.gateway import Gateway

MODEL = "tiny:1b"
MOST_WISH = 150
SCOPES = ("platform", "tenant", "key")
UNITS = ("requests", "tokens", "output_tokens", "micro_usd")
INPUT_PRICE, OUTPUT_PRICE = 300_000, 1_700_000
ROUTES = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions")
UNRULY = "take no notice of the cap."


@dataclass(frozen=True, slots=True)
class Race:
    """``limits`` are scope, unit and limit of each budget.

    ``wishes`` are for each caller a route, the output it wishes, the words of
    its prompt, whether it streams, and whether Ollama ignores its cap.
    """

    seed: int
    limits: tuple[tuple[str, str, int], ...]
    wishes: tuple[tuple[str, int, int, bool, bool], ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {len(self.wishes)} callers, {self.limits}"


def draw(seed: int, callers: int) -> Race:
    """The race of a seed: up to four budgets of any scope and unit, from nothing to more than all need."""
    random = Random(seed)
    kinds = random.sample([(scope, unit) for scope in SCOPES for unit in UNITS], random.randint(1, 4))
    # What a call holds at most, and uses, is of this order.
    size = {"requests": 1, "tokens": 500, "output_tokens": 75, "micro_usd": 250}

    def limit(unit: str) -> int:
        return round(size[unit] * math.exp(random.uniform(math.log(0.5), math.log(2 * callers))))

    def wish() -> tuple[str, int, int, bool, bool]:
        stream = random.random() < 0.7
        # An answer that comes as one cannot be cut while it is made; it is refused when it is too long.
        unruly = stream and random.random() < 0.3
        return random.choice(ROUTES), random.randint(1, MOST_WISH), random.randint(0, 40), stream, unruly

    return Race(
        seed,
        tuple((scope, unit, limit(unit)) for scope, unit in kinds),
        tuple(wish() for _ in range(callers)),
    )


def run(race: Race, ollama: SimulatorThread, gateways: Sequence[Gateway]) -> tuple[dict[int, int], list[str]]:
    """Hold the race on a furnished, empty house; return how often each status came, and what was broken."""
    ollama.settings.piece_delay = 0.002
    ollama.fault("pieces-1000")
    ollama.fault("endless", marker=UNRULY)
    acme = create_tenant(slug="acme", name="ACME", actor="race", allow_all_models=True)
    key, secret = issue_key(tenant=acme, label="racer", actor="race")
    set_price(model=MODEL, input_price=INPUT_PRICE, output_price=OUTPUT_PRICE, actor="race")
    whose: dict[str, dict[str, Any]] = {"platform": {}, "tenant": {"tenant": acme}, "key": {"key": key}}
    for scope, unit, limit in race.limits:
        set_budget(scope=scope, unit=unit, period="lifetime", limit=limit, actor="race", **whose[scope])
    questions = [
        Question(gateways[number % len(gateways)].url + wish[0], secret, _body(*wish))
        for number, wish in enumerate(race.wishes)
    ]
    watcher = Watcher()
    watcher.start()
    try:
        answers = ask_at_once(questions)
        come_to_rest()
    finally:
        watcher.stop()
        watcher.join()
    watcher.look()
    statuses = [answer.status for answer in answers]
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    broken = [
        *(f"a status that nobody earned: {status}" for status in counts if status not in (200, 429, 503)),
        *passed(watcher),
        *beyond_the_truth(ollama.calls),
        *books.what_is_underway(),
        *books.disagreements([acme]),
    ]
    return counts, broken


def come_to_rest() -> None:
    """Book whatever waits."""

    def at_rest() -> bool:
        spool.replay()
        sweep()
        ledger.drain()
        return not any(books.what_is_underway())

    eventually(at_rest)


def passed(watcher: Watcher) -> list[str]:
    """Each budget whose counter was ever seen above its limit."""
    limits = {row.id.hex: row.limit for row in Budget.objects.exclude(limit=None).filter(shadow=False)}
    worst: dict[str, int] = {}
    for sample in watcher.samples:
        worst[sample.id] = max(worst.get(sample.id, 0), sample.total)
    return [
        f"{budget}: {total} of {limits[budget]}"
        for budget, total in worst.items()
        if budget in limits and total > (limits[budget] or 0)
    ]


def beyond_the_truth(calls: Sequence[Record]) -> list[str]:
    """Each budget from which Ollama gave more than its limit, by Ollama's own log.

    All calls are of one key. What an upstream makes after the cap that it was
    told nobody gets, so it counts up to there.
    """
    totals = dict.fromkeys(UNITS, 0)
    for call in calls:
        output = min(call.output_tokens, cap_of(call))
        totals["requests"] += 1
        totals["tokens"] += call.prompt_tokens + output
        totals["output_tokens"] += output
        totals["micro_usd"] += -(-(call.prompt_tokens * INPUT_PRICE + output * OUTPUT_PRICE) // 10**6)
    found = [
        f"Ollama gave {totals[row.unit]} {row.unit} of {row.limit} of the {row.scope}"
        for row in Budget.objects.all()
        if row.limit is not None and totals[row.unit] > row.limit
    ]
    billed = sum(LedgerEntry.objects.values_list("output_tokens", flat=True))
    if billed > totals["output_tokens"]:
        found.append(f"{billed} output tokens billed, {totals['output_tokens']} asked for and made")
    return found


def cap_of(call: Record) -> int:
    """The output that Ollama was asked for at most."""
    options = call.fields.get("options", {})
    cap = options.get("num_predict", call.fields.get("max_tokens"))
    assert isinstance(cap, int), "no cap was told"
    return cap


def held_by_one() -> int:
    """What the only running call holds of the only budget."""
    redis = redis_in_bytes()
    (counter,) = redis.keys("{p0}:budget:*")
    return int(redis.hget(counter, "held") or 0)


def _body(route: str, wish: int, words: int, stream: bool, unruly: bool) -> dict[str, Any]:
    text = "word " * words + (UNRULY if unruly else "go.")
    body: dict[str, Any] = {"model": MODEL, "stream": stream}
    chats = "chat" in route
    body |= {"messages": [{"role": "user", "content": text}]} if chats else {"prompt": text}
    return body | ({"options": {"num_predict": wish}} if route.startswith("/api/") else {"max_tokens": wish})
