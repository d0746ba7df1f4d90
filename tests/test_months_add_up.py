"""Whatever is used, late, corrected, closed and opened again: statements and open months are the ledger."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.db.models import Sum
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets import ledger
from budgets.corrections import correct_usage
from budgets.models import ClosedMonth, LedgerEntry, ParkedRecord, Statement
from budgets.month_closing import close_month, confirm_reopening, request_reopening, same_as_closed
from budgets.open_months import following
from budgets.usage import FIGURES, SUMS, Selection, totals
from tenants.models import Tenant
from tests.accounts import a_tenant, ago, of_ledger, of_rollups, on, quiet_counters, settled

MONTHS = [ago(number) for number in (3, 2, 1, 0)]

Step = tuple[Literal["use", "settle", "correct", "close", "reopen"], int, int]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(0, 3), st.integers(0, 50)),
        st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 50)),
        st.tuples(st.just("correct"), st.integers(0, 20), st.integers(-30, 30)),
        st.tuples(st.just("close"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("reopen"), st.integers(0, 2), st.just(0)),
    ),
    min_size=4,
    max_size=25,
)


class Books:
    """A tenant, and what it has used as the test knows it."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.expected: Counter[str] = Counter()
        self.orphans: dict[UUID, dict[str, int]] = {}
        self.calls: list[UUID] = []

    def use(self, month: int, tokens: int) -> None:
        """A call that ended in a month, whichever of them are closed; every third was booked by the sweep."""
        orphaned = tokens % 3 == 0
        figures: dict[str, Any] = {
            "requests": 1, "input_tokens": tokens + 5, "cached_tokens": tokens % 5, "output_tokens": tokens,
            "thinking_tokens": 0, "gpu_ms": 10 * tokens, "cost_micro_usd": 7 * tokens,
        }  # fmt: skip
        request_id = settled(
            self.tenant, on(MONTHS[month], f"{tokens % 24:02}:30"), exact=not orphaned,
            outcome="orphaned" if orphaned else "completed", model=f"model-{tokens % 2}", **figures,
        )  # fmt: skip
        ledger.drain()
        self.calls.append(request_id)
        self.expected.update(figures)
        if orphaned:
            self.orphans[request_id] = figures

    def settle(self, which: int, tokens: int) -> None:
        """The process of a call that the sweep had booked turns up."""
        if not self.orphans:
            return
        request_id = sorted(self.orphans)[which % len(self.orphans)]
        booked = self.orphans.pop(request_id)
        final: dict[str, Any] = booked | {"output_tokens": tokens, "cost_micro_usd": 2 * tokens}
        settled(self.tenant, on(MONTHS[3]), request_id=request_id, **final)
        ledger.drain()
        self.expected.update({name: final[name] - booked[name] for name in SUMS})

    def correct(self, which: int, amount: int) -> None:
        if not self.calls:
            return
        changes = {"output_tokens": amount, "cost_micro_usd": amount}
        try:
            correct_usage(
                request_id=self.calls[which % len(self.calls)], changes=changes, reason="a test", actor="ada"
            )
        except ValidationError:
            return
        self.expected.update(changes)

    def close(self, month: int, _: int) -> None:
        try:
            close_month(tenant=self.tenant, month=MONTHS[month], actor="ada")
        except ValidationError:
            return

    def reopen(self, month: int, _: int) -> None:
        closing = self.closed().filter(month=MONTHS[month]).first()
        if closing is not None:
            request_reopening(closing=closing, actor="ada", reason="a test")
            confirm_reopening(closing=closing, actor="bob")

    def closed(self) -> Any:
        return ClosedMonth.objects.filter(tenant_id=self.tenant.pk, reopened_at=None)

    def check(self) -> None:
        of_statements = Statement.objects.filter(closing__in=self.closed()).aggregate(
            **{figure: Sum(figure, default=0) for figure in FIGURES}
        )
        closed = set(self.closed().values_list("month", flat=True))
        of_open = [
            totals(Selection(tenant_id=self.tenant.pk, from_day=month, before_day=following(month)))
            for month in MONTHS
            if month not in closed
        ]
        both = {figure: of_statements[figure] + sum(one[figure] for one in of_open) for figure in FIGURES}
        assert both == of_ledger(self.tenant) == of_rollups(self.tenant)
        assert {figure: both[figure] for figure in SUMS} == {figure: self.expected[figure] for figure in SUMS}
        assert not ParkedRecord.objects.exists()
        for closing in self.closed():
            assert same_as_closed(closing)
        late = LedgerEntry.objects.filter(tenant_id=self.tenant.pk).exclude(closed_month=None)
        assert not late.exclude(day__gte=MONTHS[3]).exists()


@pytest.mark.django_db(transaction=True)
@settings(max_examples=25)
@given(steps)
def test_statements_and_open_months_are_the_ledger_at_every_moment(taken: list[Step]) -> None:
    quiet_counters()
    # Each example has a tenant of its own, and the tables stay as they are.
    books = Books(a_tenant(f"tenant-{Tenant.objects.count()}"))

    for name, which, amount in taken:
        getattr(books, name)(which, amount)
        books.check()

    numbers = list(Statement.objects.order_by("sequence").values_list("sequence", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))
