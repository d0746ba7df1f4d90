"""The scripts against a model of them that fits on a page, in any order and with any repeats."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from budgets.exceptions import CountersUnavailable, LimitReached
from budgets.heartbeats import Heartbeats, Progress
from budgets.reservations import Demand, Reservation, release, reserve, settle
from budgets.settlements import Moments
from budgets.sweeping import _sweep
from tests.counting import (
    a_budget,
    a_demand,
    a_rate,
    ada,
    concurrency,
    empty_redis,
    expire_hold,
    figures,
    open_holds,
    records,
    records_counted,
    some_usage,
)

TOKENS, REQUESTS, RUNNING = 300, 12, 3


@dataclass
class Call:
    """One call as the model knows it: ``state`` is held, swept or ended."""

    demand: Demand
    reservation: Reservation
    state: str = "held"
    cap: int = 0
    delivered: int = 0
    heard: bool = False
    used: int = 0
    counted: int = 0


class Counting(RuleBasedStateMachine):
    """Calls come, live, end, die and are repeated; after each step Redis must say what the model says."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        empty_redis()
        self.runner = asyncio.Runner()
        self.tokens, self.requests = a_budget(TOKENS), a_budget(REQUESTS, "requests")
        self.running, self.rate = concurrency(RUNNING), a_rate(None, "tokens")
        self.caller = ada(self.tokens, self.requests, self.running, self.rate)
        self.known: list[Call] = []
        self.records = 0
        self.adjusted = False

    def teardown(self) -> None:
        self.runner.close()

    def held(self) -> int:
        return sum(call.demand.input_tokens + call.cap for call in self.known if call.state == "held")

    def used(self) -> int:
        return sum(call.used for call in self.known)

    def counted(self) -> int:
        return sum(call.counted for call in self.known)

    def open(self) -> list[Call]:
        return [call for call in self.known if call.state == "held"]

    @rule(target=calls, input_tokens=st.integers(0, 60), output_tokens=st.integers(0, 120))
    def reserve(self, input_tokens: int, output_tokens: int) -> object:
        demand = a_demand(input_tokens, output_tokens)
        room = TOKENS - self.used() - self.held() - input_tokens
        fits = (
            room >= demand.least_output
            and self.counted() + len(self.open()) < REQUESTS
            and len(self.open()) < RUNNING
        )
        try:
            reservation = self.runner.run(reserve(self.caller, demand))
        except LimitReached:
            assert not fits
            return multiple()
        assert fits
        assert reservation.output_cap == min(output_tokens, room)
        call = Call(demand, reservation, cap=reservation.output_cap)
        self.known.append(call)
        return call

    @rule(call=calls)
    def reserve_again(self, call: Call) -> None:
        try:
            again = self.runner.run(reserve(self.caller, call.demand))
        except CountersUnavailable:
            assert call.state != "held"
        else:
            assert call.state == "held"
            assert again.output_cap == call.cap

    @rule(call=calls, delivered=st.integers(0, 120))
    def heartbeat(self, call: Call, delivered: int) -> None:
        async def beat() -> None:
            heartbeats = Heartbeats()
            heartbeats.watch(call.reservation, lambda: Progress(min(delivered, call.cap), "started"))
            await heartbeats.beat()
            await heartbeats.aclose()

        self.runner.run(beat())
        if call.state == "held":
            call.delivered, call.heard = max(call.delivered, min(delivered, call.cap)), True

    @rule(call=calls, input_tokens=st.integers(-5, 80), output_tokens=st.integers(-5, 150))
    def settle(self, call: Call, input_tokens: int, output_tokens: int) -> None:
        call.reservation.ended = False
        usage = some_usage(input_tokens, output_tokens)
        self.runner.run(settle(call.reservation, usage, "completed", Moments(), 200))
        spent = min(max(input_tokens, 0), call.demand.input_tokens) + min(max(output_tokens, 0), call.cap)
        self.end(call, spent, 1)

    @rule(call=calls)
    def release(self, call: Call) -> None:
        call.reservation.ended = False
        self.runner.run(release(call.reservation, "upstream_failed", 502))
        self.end(call, 0, 0)

    def end(self, call: Call, used: int, counted: int) -> None:
        if call.state != "ended":
            self.adjusted |= call.state == "swept"
            self.records += 1
            call.state, call.used, call.counted = "ended", used, counted

    @rule(call=calls, dead=st.booleans())
    def sweep(self, call: Call, dead: bool) -> None:
        if dead and call.state == "held":
            expire_hold(call.reservation.request_id)
        swept = _sweep(str(call.reservation.request_id))
        assert swept == (dead and call.state == "held")
        if swept:
            self.records += 1
            call.state, call.used, call.counted = "swept", call.demand.input_tokens + call.delivered, 1

    @invariant()
    def redis_says_what_the_model_says(self) -> None:
        assert figures(self.tokens) == (self.used(), self.held())
        assert figures(self.requests) == (self.counted(), len(self.open()))
        assert figures(self.running) == (len(self.open()), 0)
        assert figures(self.rate) == (self.used() + self.held(), 0)
        assert sorted(open_holds()) == sorted(str(call.reservation.request_id) for call in self.open())

    @invariant()
    def no_budget_is_passed(self) -> None:
        # The owner of a swept call may turn up with more than the sweep had booked.
        if not self.adjusted:
            assert sum(figures(self.tokens)) <= TOKENS
            assert sum(figures(self.requests)) <= REQUESTS

    @invariant()
    def the_records_add_up_to_the_counters(self) -> None:
        told = records()
        assert len(told) == records_counted() == self.records
        total = 0
        for record in told:
            end, first = record["end"], record.get("first", {})
            for name in ("input_tokens", "output_tokens"):
                total += end[name] - first.get(name, 0)
        assert total == figures(self.tokens)[0]


Counting.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCountersAgainstTheirModel = Counting.TestCase
