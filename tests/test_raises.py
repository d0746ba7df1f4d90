"""Temporary raises: more of a budget, for a while, by the clock that admits."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import services
from budgets.exceptions import BudgetExhausted
from budgets.limits import Counting, Raise, limit_now, raised
from budgets.models import LARGEST, Budget, BudgetRaise
from budgets.reservations import reserve
from tenants import snapshots
from tenants.models import User
from tenants.services import create_tenant
from tests.counting import a_budget, a_demand, ada, empty_redis, mistake_the_time, redis

HOUR_MS = 3_600_000


def to(limit: int, starts_ms: int = 0, ends_ms: int = 2**50) -> Raise:
    return Raise(starts_ms, ends_ms, limit, None)


def by(amount: int, starts_ms: int = 0, ends_ms: int = 2**50) -> Raise:
    return Raise(starts_ms, ends_ms, None, amount)


@pytest.mark.parametrize(
    ("limit", "raises", "expected"),
    [
        pytest.param(100, [], 100, id="nothing raised"),
        pytest.param(100, [to(150)], 150, id="to"),
        pytest.param(100, [by(30)], 130, id="by"),
        pytest.param(100, [to(50)], 100, id="never lowers"),
        pytest.param(100, [by(30), by(20)], 150, id="those that add are summed up"),
        pytest.param(100, [to(150), to(120)], 150, id="the highest"),
        pytest.param(100, [to(150), by(30)], 150, id="the larger of both"),
        pytest.param(100, [to(110), by(30)], 130, id="the larger of both, the other way round"),
        pytest.param(0, [by(5)], 5, id="nothing was let through"),
        pytest.param(None, [by(5), to(9)], None, id="no limit stays no limit"),
        pytest.param(LARGEST, [by(5)], LARGEST, id="as much as can be counted"),
    ],
)
def test_several_raises_make_one_limit(limit: int | None, raises: list[Raise], expected: int | None) -> None:
    assert raised(limit, raises) == expected


SPANS = st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda span: (span[0], span[0] + span[1]))
RAISES = st.lists(
    st.one_of(
        st.builds(lambda span, limit: to(limit, *span), SPANS, st.integers(0, 500)),
        st.builds(lambda span, amount: by(amount, *span), SPANS, st.integers(1, 500)),
    ),
    max_size=5,
)


@given(RAISES, st.integers(0, 110), st.integers(0, 110))
def test_a_limit_that_was_worked_out_is_used_for_as_long_as_it_holds(
    raises: list[Raise], moment: int, later: int
) -> None:
    """What is remembered is thrown away at each edge of a raise: it says what would be worked out anew."""
    limit = a_budget(100, raises=tuple(raises), window="lifetime")
    remembered = Counting.of((limit,), moment)

    if remembered.is_of(later):
        assert remembered.limits[0].limit == Counting.of((limit,), later).limits[0].limit
    holding = [one for one in raises if one.starts_ms <= moment < one.ends_ms]
    assert remembered.limits[0].limit == raised(100, holding)


def test_a_raise_ends_by_the_clock_of_redis_whatever_a_process_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty_redis()
    seconds, micros = redis().time()
    now_ms = seconds * 1000 + micros // 1000
    over = a_budget(10, raises=(to(1000, now_ms - 2 * HOUR_MS, now_ms),))
    # The process believes it is an hour ago, when the raise still held.
    mistake_the_time(monkeypatch, -HOUR_MS)

    with pytest.raises(BudgetExhausted) as refusal:
        asyncio.run(reserve(ada(over), a_demand(input_tokens=50)))

    assert refusal.value.standing[0].limit == 10


def test_a_raise_begins_by_the_clock_of_redis_too(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_redis()
    seconds, _ = redis().time()
    begun = a_budget(10, raises=(to(1000, seconds * 1000 - 1, seconds * 1000 + HOUR_MS),))
    mistake_the_time(monkeypatch, -HOUR_MS)

    reservation = asyncio.run(reserve(ada(begun), a_demand(input_tokens=50)))

    assert reservation.standing[0].limit == 1000


@pytest.mark.django_db(transaction=True)
class TestServices:
    """Who raises what, and what is refused."""

    @pytest.fixture
    def budget(self) -> Budget:
        acme = create_tenant(slug="acme", name="ACME", actor="test")
        return services.set_budget(
            scope="tenant", tenant=acme, unit="tokens", period="day", limit=100, actor="test"
        )

    def raise_it(self, budget: Budget, **changes: Any) -> BudgetRaise:
        options: dict[str, Any] = {
            "ends_at": now() + timedelta(hours=1),
            "reason": "a deadline",
            "actor": "ada",
            "by": 50,
        }
        return services.raise_budget(budget=budget, **(options | changes))

    def test_a_raise_holds_until_its_end_and_is_in_the_audit(self, budget: Budget) -> None:
        granted = self.raise_it(budget)

        event = AuditEvent.objects.get(action="budget.raised")
        assert limit_now(budget) == 150
        assert (event.actor, event.reason, event.tenant_id) == ("ada", "a deadline", budget.tenant_id)
        assert event.details["by"] == 50
        BudgetRaise.objects.filter(pk=granted.pk).update(
            starts_at=now() - timedelta(hours=2), ends_at=now() - timedelta(seconds=1)
        )
        assert limit_now(Budget.objects.get()) == 100

    def test_one_that_begins_later_does_not_hold_yet(self, budget: Budget) -> None:
        self.raise_it(budget, starts_at=now() + timedelta(minutes=30))

        assert limit_now(budget) == 100

    def test_one_that_is_taken_back_ends_at_once_and_once(self, budget: Budget) -> None:
        granted = self.raise_it(budget)

        assert services.take_back_raise(raised=granted, actor="ada", reason="done early")
        assert not services.take_back_raise(raised=granted, actor="ada", reason="again")

        assert limit_now(Budget.objects.get()) == 100
        assert [event.reason for event in AuditEvent.objects.filter(action="budget.raise_taken_back")] == [
            "done early"
        ]

    @pytest.mark.parametrize(
        "changes",
        [
            {"by": None},
            {"to": 10},
            {"by": 0},
            {"by": -1},
            {"by": None, "to": LARGEST + 1},
            {"reason": ""},
            {"ends_at": now() - timedelta(seconds=1)},
            {"starts_at": now() + timedelta(days=1)},
        ],
        ids="-".join,
    )
    def test_what_a_raise_cannot_be_is_refused(self, budget: Budget, changes: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            self.raise_it(budget, **changes)

        assert not BudgetRaise.objects.exists()

    def test_a_budget_without_a_limit_cannot_be_raised(self, budget: Budget) -> None:
        free = services.set_budget(
            scope="tenant", tenant=budget.tenant, unit="requests", period="day", limit=None, actor="test"
        )

        with pytest.raises(ValidationError):
            self.raise_it(free)

    @pytest.mark.parametrize("change", ["insert", "update", "delete"])
    def test_a_raise_made_by_plain_sql_raises_the_generation_of_its_tenant(
        self, budget: Budget, change: str
    ) -> None:
        granted = self.raise_it(budget)
        statements = {
            "insert": (
                "INSERT INTO budgets_budgetraise (id, budget_id, by, starts_at, ends_at, reason, granted_by, "
                "granted_at) SELECT gen_random_uuid(), budget_id, by, starts_at, ends_at, reason, "
                "granted_by, granted_at FROM budgets_budgetraise"
            ),
            "update": "UPDATE budgets_budgetraise SET by = by + 1",
            "delete": "DELETE FROM budgets_budgetraise",
        }

        def number() -> int:
            with connection.cursor() as cursor:
                subject = granted.budget.tenant.id.hex  # type: ignore[union-attr]  # it has one
                cursor.execute("SELECT number FROM tenants_generation WHERE subject = %s", [subject])
                return int(cursor.fetchone()[0])

        before = number()
        with connection.cursor() as cursor:
            cursor.execute(statements[change])

        assert number() > before

    def test_the_command_raises_a_budget_and_says_until_when(self, budget: Budget) -> None:
        out = StringIO()

        call_command(
            "raise_budget", tenant="acme", unit="tokens", period="day", to=500, until="2h",
            reason="a demo", json=True, stdout=out,
        )  # fmt: skip

        told = json.loads(out.getvalue())
        assert (told["limit"], told["limit_now"], told["to"], told["by"]) == (100, 500, 500, None)
        assert limit_now(budget) == 500

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"unit": "requests", "to": 5}, "no budgets of requests per day"),
            ({"unit": "tokens", "to": -5}, "says to how much"),
            ({"unit": "tokens", "to": 5, "until": "yesterday"}, "is no moment"),
        ],
    )
    def test_the_command_says_what_is_wrong(
        self, budget: Budget, options: dict[str, Any], complaint: str
    ) -> None:
        defaults = {"tenant": "acme", "period": "day", "until": "2h", "reason": "a demo"}

        with pytest.raises(CommandError, match=complaint):
            call_command("raise_budget", **(defaults | options))

    def test_an_operator_grants_and_takes_back_in_the_admin(self, budget: Budget) -> None:
        operator = User.objects.create_superuser("root", "root@tollgate.test", "secret of root")
        browser = Client()
        browser.force_login(operator)
        ends_at = now() + timedelta(hours=1)
        form = {
            "budget": str(budget.pk), "by": "50", "to": "", "reason": "a deadline",
            "starts_at_0": f"{now():%Y-%m-%d}", "starts_at_1": f"{now():%H:%M:%S}",
            "ends_at_0": f"{ends_at:%Y-%m-%d}", "ends_at_1": f"{ends_at:%H:%M:%S}",
        }  # fmt: skip

        added = browser.post("/admin/budgets/budgetraise/add/", form)

        assert added.status_code == 302, added.content
        assert limit_now(Budget.objects.get()) == 150
        assert "150" in browser.get("/admin/budgets/budget/").text
        granted = BudgetRaise.objects.get()
        taken_back = browser.post(
            "/admin/budgets/budgetraise/",
            {"action": "take_back", "_selected_action": str(granted.pk), "reason": "done"},
        )
        assert taken_back.status_code == 302
        assert limit_now(Budget.objects.get()) == 100


def test_limits_with_raises_are_the_same_after_they_lay_in_redis() -> None:
    limit = a_budget(100, raises=(to(150, 1, 2), by(7, 3, 4)))

    assert snapshots._shaped(type(limit), snapshots._plain(limit)) == limit
