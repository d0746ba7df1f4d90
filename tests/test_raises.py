"""Temporary raises: more of a budget or a rate limit, for a while, by the clock that admits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.test import Client
from django.utils.timezone import now
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import services
from budgets.exceptions import LimitReached
from budgets.limits import Counting, Limit, Raise, limit_now, raised
from budgets.models import LARGEST, Budget, LimitRaise, RateLimit, kind_of_limit
from budgets.reservations import reserve
from tenants import snapshots
from tenants.models import Tenant, User
from tenants.services import create_tenant
from tests.counting import a_budget, a_demand, a_rate, ada, concurrency, empty_redis, mistake_the_time, redis

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


# A limit of each kind that is counted, as it is made for so much.
KINDS: dict[str, Callable[[int, tuple[Raise, ...]], Limit]] = {
    "a budget": lambda limit, raises: a_budget(limit, raises=raises, window="lifetime"),
    "tokens a minute": lambda limit, raises: replace(a_rate(limit, "tokens"), raises=raises),
    "requests a minute": lambda limit, raises: replace(a_rate(limit), raises=raises),
    "requests at one time": lambda limit, raises: replace(concurrency(limit), raises=raises),
}


@given(st.sampled_from(sorted(KINDS)), RAISES, st.integers(0, 110), st.integers(0, 110))
def test_a_limit_that_was_worked_out_is_used_for_as_long_as_it_holds(
    kind: str, raises: list[Raise], moment: int, later: int
) -> None:
    """What is remembered is thrown away at each edge of a raise: it says what would be worked out anew."""
    limit = KINDS[kind](100, tuple(raises))
    remembered = Counting.of((limit,), moment)

    if remembered.is_of(later):
        assert remembered.limits[0].limit == Counting.of((limit,), later).limits[0].limit
    holding = [one for one in raises if one.starts_ms <= moment < one.ends_ms]
    assert remembered.limits[0].limit == raised(100, holding)
    # As where something is added to what was worked out, such as the limits of a visitor.
    again = Counting.of(remembered.limits, later)
    assert again.limits[0].limit == Counting.of((limit,), later).limits[0].limit


def present_ms() -> int:
    seconds, micros = redis().time()
    return int(seconds * 1000 + micros // 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_raise_ends_by_the_clock_of_redis_whatever_a_process_thinks(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_redis()
    now_ms = present_ms()
    over = KINDS[kind](0, (to(1000, now_ms - 2 * HOUR_MS, now_ms),))
    # The process believes it is an hour ago, when the raise still held.
    mistake_the_time(monkeypatch, -HOUR_MS)

    with pytest.raises(LimitReached) as refusal:
        asyncio.run(reserve(ada(over), a_demand(input_tokens=50)))

    assert refusal.value.standing[0].limit == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_raise_begins_by_the_clock_of_redis_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_redis()
    now_ms = present_ms()
    begun = KINDS[kind](0, (to(1000, now_ms - 1000, now_ms + HOUR_MS),))
    mistake_the_time(monkeypatch, -HOUR_MS)

    reservation = asyncio.run(reserve(ada(begun), a_demand(input_tokens=50)))

    assert reservation.standing[0].limit == 1000


# Hours from the present: when a raise begins and ends, and by how much a process is wrong.
AROUND = st.lists(
    st.builds(
        lambda begin, length, more: (begin, begin + length, more),
        st.integers(-4, 3), st.integers(1, 5), st.tuples(st.booleans(), st.integers(0, 4)),
    ),
    max_size=3,
)  # fmt: skip


@settings(max_examples=25)
@given(
    st.sampled_from(["requests a minute", "requests at one time"]),
    st.integers(0, 2),
    AROUND,
    st.integers(-5, 5),
)
def test_as_many_are_let_through_as_the_limit_that_holds_says(
    kind: str, limit: int, around: list[tuple[int, int, tuple[bool, int]]], off: int
) -> None:
    """Never fewer than without a raise, never one more than Redis' clock allows, on whatever process."""
    empty_redis()
    # Half an hour off every edge, so that the time that this takes is no matter.
    now_ms = present_ms() + HOUR_MS // 2
    raises = tuple(
        (to if lifts else by)(number + (not lifts), now_ms + begin * HOUR_MS, now_ms + end * HOUR_MS)
        for begin, end, (lifts, number) in around
    )
    allowed = raised(limit, [one for one in raises if one.holds(present_ms())])
    caller = ada(KINDS[kind](limit, raises))

    async def let_through() -> int:
        admitted = 0
        for _ in range((allowed or 0) + 2):
            try:
                await reserve(caller, a_demand())
                admitted += 1
            except LimitReached:
                break
        return admitted

    with pytest.MonkeyPatch.context() as patch:
        mistake_the_time(patch, off * HOUR_MS)
        assert asyncio.run(let_through()) == allowed


@pytest.mark.django_db(transaction=True)
class TestServices:
    """Who raises what, and what is refused."""

    @pytest.fixture
    def acme(self) -> Tenant:
        return create_tenant(slug="acme", name="ACME", actor="test")

    @pytest.fixture
    def budget(self, acme: Tenant) -> Budget:
        return services.set_budget(
            scope="tenant", tenant=acme, unit="tokens", period="day", limit=100, actor="test"
        )

    @pytest.fixture
    def rate_limit(self, acme: Tenant) -> RateLimit:
        return services.set_rate_limit(
            scope="tenant", tenant=acme, measure="requests_per_minute", limit=100, actor="test"
        )

    @pytest.fixture(params=["budget", "rate_limit"])
    def row(self, request: pytest.FixtureRequest) -> Budget | RateLimit:
        found: Budget | RateLimit = request.getfixturevalue(request.param)
        return found

    def raise_it(self, row: Budget | RateLimit, **changes: Any) -> LimitRaise:
        options: dict[str, Any] = {
            "ends_at": now() + timedelta(hours=1),
            "reason": "a deadline",
            "actor": "ada",
            "by": 50,
        }
        return services.raise_limit(row=row, **(options | changes))

    def test_a_raise_holds_until_its_end_and_is_in_the_audit(self, row: Budget | RateLimit) -> None:
        granted = self.raise_it(row)

        event = AuditEvent.objects.get(action=f"{kind_of_limit(row)}.raised")
        assert limit_now(row) == 150
        assert (event.actor, event.reason, event.tenant_id) == ("ada", "a deadline", row.tenant_id)
        assert event.details["by"] == 50
        LimitRaise.objects.filter(pk=granted.pk).update(
            starts_at=now() - timedelta(hours=2), ends_at=now() - timedelta(seconds=1)
        )
        assert limit_now(type(row).objects.get()) == 100

    def test_one_that_begins_later_does_not_hold_yet(self, row: Budget | RateLimit) -> None:
        self.raise_it(row, starts_at=now() + timedelta(minutes=30))

        assert limit_now(row) == 100

    def test_one_that_is_taken_back_ends_at_once_and_once(self, row: Budget | RateLimit) -> None:
        granted = self.raise_it(row)

        assert services.take_back_raise(raised=granted, actor="ada", reason="done early")
        assert not services.take_back_raise(raised=granted, actor="ada", reason="again")

        assert limit_now(type(row).objects.get()) == 100
        told = AuditEvent.objects.filter(action=f"{kind_of_limit(row)}.raise_taken_back")
        assert [event.reason for event in told] == ["done early"]

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
    def test_what_a_raise_cannot_be_is_refused(
        self, row: Budget | RateLimit, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(ValidationError):
            self.raise_it(row, **changes)

        assert not LimitRaise.objects.exists()

    def test_what_has_no_limit_cannot_be_raised(self, row: Budget | RateLimit) -> None:
        row.limit = None
        row.save()

        with pytest.raises(ValidationError, match="no limit"):
            self.raise_it(row)

    @pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
    def test_a_raise_is_one_of_a_budget_or_of_a_rate_limit(
        self, budget: Budget, rate_limit: RateLimit, both: bool
    ) -> None:
        named: dict[str, Any] = {"budget": budget, "rate_limit": rate_limit} if both else {}

        with pytest.raises(IntegrityError, match="budgets_limitraise_of_one_limit"):
            LimitRaise.objects.create(**named, by=1, ends_at=now() + timedelta(hours=1), reason="x")

    @pytest.mark.parametrize("change", ["insert", "update", "delete"])
    def test_a_raise_made_by_plain_sql_raises_the_generation_of_its_tenant(
        self, row: Budget | RateLimit, change: str
    ) -> None:
        self.raise_it(row)
        statements = {
            "insert": (
                "INSERT INTO budgets_limitraise (id, budget_id, rate_limit_id, by, starts_at, ends_at, "
                "reason, granted_by, granted_at) SELECT gen_random_uuid(), budget_id, rate_limit_id, by, "
                "starts_at, ends_at, reason, granted_by, granted_at FROM budgets_limitraise"
            ),
            "update": "UPDATE budgets_limitraise SET by = by + 1",
            "delete": "DELETE FROM budgets_limitraise",
        }

        def number() -> int:
            with connection.cursor() as cursor:
                subject = row.tenant.id.hex  # type: ignore[union-attr]  # it has one
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
        assert told["budget_id"] == str(budget.pk)
        assert limit_now(budget) == 500

    def test_a_command_raises_a_rate_limit_and_says_until_when(self, rate_limit: RateLimit) -> None:
        out = StringIO()

        call_command(
            "raise_rate_limit", tenant="acme", measure="requests_per_minute", by=20, until="2099-01-31",
            reason="a demo", stdout=out,
        )  # fmt: skip

        told = "requests_per_minute of tenant acme: 120 until 2099-01-31 00:00 UTC, then 100.\n"
        assert out.getvalue().startswith(told)
        assert limit_now(rate_limit) == 120

    def test_the_commands_raise_what_is_of_any_scope(self, acme: Tenant) -> None:
        model = services.set_rate_limit(
            scope="model", model="tiny:1b", measure="concurrent_requests", limit=2, actor="test"
        )
        platform = services.set_budget(scope="platform", unit="requests", period="90m", limit=2, actor="test")
        until: dict[str, Any] = {"until": "1h", "reason": "a demo", "to": 9, "stdout": StringIO()}

        call_command("raise_rate_limit", model="tiny:1b", measure="concurrent_requests", **until)
        call_command("raise_budget", platform=True, unit="requests", period="90m", **until)

        assert (limit_now(model), limit_now(platform)) == (9, 9)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"unit": "requests", "to": 5}, "There is no budget of requests per day of tenant acme"),
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

    def test_the_command_says_which_rate_limit_there_is_not(self, rate_limit: RateLimit) -> None:
        with pytest.raises(CommandError, match="no rate limit of tokens_per_minute of tenant acme"):
            call_command(
                "raise_rate_limit", tenant="acme", measure="tokens_per_minute", by=1, until="1h", reason="x"
            )

    def test_an_operator_grants_and_takes_back_in_the_admin(self, row: Budget | RateLimit) -> None:
        operator = User.objects.create_superuser("root", "root@tollgate.test", "secret of root")
        browser = Client()
        browser.force_login(operator)
        ends_at = now() + timedelta(hours=1)
        form = {
            kind_of_limit(row): str(row.pk), "by": "50", "to": "", "reason": "a deadline",
            "starts_at_0": f"{now():%Y-%m-%d}", "starts_at_1": f"{now():%H:%M:%S}",
            "ends_at_0": f"{ends_at:%Y-%m-%d}", "ends_at_1": f"{ends_at:%H:%M:%S}",
        }  # fmt: skip

        added = browser.post("/admin/budgets/limitraise/add/", form)

        assert added.status_code == 302, added.content
        assert limit_now(type(row).objects.get()) == 150
        assert "150" in browser.get(f"/admin/budgets/{type(row).__name__.lower()}/").text
        assert str(row) in browser.get("/admin/budgets/limitraise/").text
        granted = LimitRaise.objects.get()
        taken_back = browser.post(
            "/admin/budgets/limitraise/",
            {"action": "take_back", "_selected_action": str(granted.pk), "reason": "done"},
        )
        assert taken_back.status_code == 302
        assert limit_now(type(row).objects.get()) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_limits_with_raises_are_the_same_after_they_lay_in_redis(kind: str) -> None:
    limit = KINDS[kind](100, (to(150, 1, 2), by(7, 3, 4)))

    assert snapshots._shaped(type(limit), snapshots._plain(limit)) == limit
