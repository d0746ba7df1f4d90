"""Changed calendars: a budget's new periods begin where the old one ends, and never in the middle of it."""

from __future__ import annotations

import asyncio
import json
import zoneinfo
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.test import Client
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets import ledger, periods, services, usage
from budgets.exceptions import BudgetExhausted
from budgets.models import Budget, BudgetChange, BudgetPeriod, LedgerEntry
from budgets.periods import Calendar, Days, Period, Schedule
from budgets.rebuild import ensure_epoch
from budgets.reservations import reserve, settle
from budgets.schedules import days_of, schedules_of
from budgets.settlements import Moments
from keys.services import issue_key
from keys.verification import Caller, identify, reload
from tenants.ids import new_id
from tenants.models import CalendarChange, Tenant
from tenants.services import change_tenant, create_tenant
from tests.counting import a_demand, redis, some_usage

BERLIN, TOKYO, APIA = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo"), ZoneInfo("Pacific/Apia")


def day(zone: ZoneInfo = BERLIN) -> Calendar:
    return Calendar("day", None, zone, 1)


def since_ever(calendar: Calendar) -> Schedule:
    return Schedule(((0, calendar),))


def second(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def from_to(schedule: Schedule, moment: str) -> tuple[str, str]:
    period = schedule.period(second(moment))
    assert period.ends_at is not None
    return f"{period.starts_at:%m-%d %H:%M}", f"{period.ends_at:%m-%d %H:%M}"


def test_d11_another_zone_is_followed_from_the_end_of_the_running_day() -> None:
    schedule = since_ever(day(BERLIN)).changed(second("2026-06-10 12:00"), day(TOKYO))

    assert from_to(schedule, "2026-06-10 12:00") == ("06-09 22:00", "06-10 22:00")
    assert from_to(schedule, "2026-06-10 21:59") == ("06-09 22:00", "06-10 22:00")
    # The first of the new days is cut off at its front.
    assert from_to(schedule, "2026-06-10 22:00") == ("06-10 22:00", "06-11 15:00")
    assert from_to(schedule, "2026-06-11 15:00") == ("06-11 15:00", "06-12 15:00")


def test_d11_several_changes_in_one_period_begin_one_new_period() -> None:
    schedule = since_ever(day(BERLIN))
    for hour, zone in enumerate([TOKYO, APIA, BERLIN, TOKYO, APIA]):
        schedule = schedule.changed(second(f"2026-06-10 1{hour}:00"), day(zone))

    assert [since for since, _ in schedule.calendars] == [0, second("2026-06-10 22:00")]
    assert schedule.calendar(second("2026-06-11 00:00")) == day(APIA)


def test_d11_a_change_that_is_taken_back_in_time_changes_nothing() -> None:
    changed = since_ever(day(BERLIN)).changed(second("2026-06-10 10:00"), day(TOKYO))

    assert changed.changed(second("2026-06-10 11:00"), day(BERLIN)) == since_ever(day(BERLIN))


@pytest.mark.parametrize(
    ("before", "after", "first", "following"),
    [
        ("day", "hour", ("06-11 00:00", "06-11 01:00"), "06-11 02:00"),
        ("hour", "day", ("06-10 13:00", "06-11 00:00"), "06-12 00:00"),
        ("week", "month", ("06-15 00:00", "07-01 00:00"), "08-01 00:00"),
        ("month", "week", ("07-01 00:00", "07-06 00:00"), "07-13 00:00"),
    ],
)  # fmt: skip
def test_d11_another_length_is_followed_from_the_end_of_the_running_period(
    before: str, after: str, first: tuple[str, str], following: str
) -> None:
    utc, moment = ZoneInfo("UTC"), "2026-06-10 12:30"

    schedule = since_ever(Calendar(before, None, utc, 1)).changed(
        second(moment), Calendar(after, None, utc, 1)
    )

    old = schedule.period(second(moment))
    assert old == periods.current(before, None, utc, 1, second(moment))
    assert old.end is not None
    new = schedule.period(old.end)
    assert (f"{new.starts_at:%m-%d %H:%M}", f"{new.ends_at:%m-%d %H:%M}") == first
    assert new.end is not None
    assert f"{schedule.period(new.end).ends_at:%m-%d %H:%M}" == following


def test_a_week_start_is_followed_from_the_end_of_the_week() -> None:
    utc = ZoneInfo("UTC")
    schedule = since_ever(Calendar("week", None, utc, 1)).changed(
        second("2026-06-10 12:00"), Calendar("week", None, utc, 7)
    )

    assert from_to(schedule, "2026-06-12 12:00") == ("06-08 00:00", "06-15 00:00")
    assert from_to(schedule, "2026-06-15 00:00") == ("06-15 00:00", "06-21 00:00")
    assert from_to(schedule, "2026-06-21 00:00") == ("06-21 00:00", "06-28 00:00")


def test_a_lifetime_may_follow_and_nothing_follows_a_lifetime() -> None:
    lifetime = Calendar("lifetime", None, BERLIN, 1)
    schedule = since_ever(day()).changed(second("2026-06-10 12:00"), lifetime)

    for_ever = schedule.period(second("2030-01-01 00:00"))

    assert (for_ever.start, for_ever.end) == (second("2026-06-10 22:00"), None)
    assert schedule.changed(second("2030-01-01 00:00"), day()) == schedule


def test_a_period_that_was_counted_ends_as_it_was_whatever_a_new_edition_of_the_zones_says() -> None:
    """The clocks of a zone were moved on another day than the edition said that made the period."""
    counted = Period(second("2026-06-09 21:00"), second("2026-06-10 21:00"))
    schedule = Schedule(((0, day(BERLIN)),), counted)

    assert schedule.period(second("2026-06-10 20:59")) == counted
    assert from_to(schedule, "2026-06-10 21:00") == ("06-10 21:00", "06-10 22:00")
    assert from_to(schedule, "2026-06-09 20:59") == ("06-08 22:00", "06-09 21:00")


calendars = st.builds(
    Calendar,
    st.sampled_from(["hour", "day", "week", "month", "year", "fixed"]),
    st.just(36 * 3600),
    st.sampled_from([ZoneInfo(name) for name in (
        "UTC", "Europe/Berlin", "Pacific/Apia", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu",
    )]),
    st.integers(1, 7),
)  # fmt: skip


@given(
    calendars,
    st.lists(st.tuples(st.integers(0, 400 * 86_400), calendars), max_size=6),
    st.integers(0, 500 * 86_400),
)
def test_d11_however_often_calendars_change_periods_have_no_gap_and_no_overlap(
    first: Calendar, changes: list[tuple[int, Calendar]], later: int
) -> None:
    """And no change touches the period in which it is made: nothing is handed out twice."""
    began = second("2026-01-01 00:00")
    schedule = since_ever(first)
    for after, calendar in sorted(changes, key=lambda change: change[0]):
        before = schedule.period(began + after)
        schedule = schedule.changed(began + after, calendar)
        assert schedule.period(began + after) == before

    period = schedule.period(began + later)

    assert period.end is not None
    assert period.contains(began + later)
    assert schedule.period(period.start) == period
    assert schedule.period(period.end - 1) == period
    assert schedule.period(period.end).start == period.end
    assert schedule.period(period.start - 1).end == period.start


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("UTC", "Asia/Tokyo", ["10 10:30 10", "10 23:59 10", "11 00:00 11", "11 14:59 11", "11 15:00 12"]),
        ("UTC", "America/Los_Angeles", ["10 23:59 10", "11 00:00 11", "11 16:00 11", "12 07:00 12"]),
        (
            "Pacific/Kiritimati",
            "Pacific/Pago_Pago",
            ["11 09:59 11", "11 10:00 12", "13 10:59 12", "13 11:00 13"],
        ),
    ],
)
def test_an_accounting_day_that_is_over_does_not_come_again(
    before: str, after: str, expected: list[str]
) -> None:
    schedule = since_ever(day(ZoneInfo(before))).changed(second("2026-06-10 10:30"), day(ZoneInfo(after)))
    days = Days(tuple((since, calendar.zone) for since, calendar in schedule.calendars))

    for moment, date in (text.rsplit(" ", 1) for text in expected):
        assert days.date_of(second(f"2026-06-{moment}")).day == int(date)
    found = [days.date_of(second("2026-06-09 00:00") + 1800 * step) for step in range(48 * 5)]
    assert found == sorted(found)


@given(
    zones=st.lists(
        st.sampled_from(sorted(zoneinfo.available_timezones())).map(ZoneInfo), min_size=1, max_size=4
    ),
    hours=st.lists(st.integers(1, 24 * 40), min_size=3, max_size=3),
    first=st.integers(second("2011-06-01 00:00"), second("2030-01-01 00:00")),
    later=st.integers(-3, 3),
)
def test_an_accounting_day_begins_with_the_first_second_that_is_reported_under_it_or_later(
    zones: list[ZoneInfo], hours: list[int], first: int, later: int
) -> None:
    schedule, at = since_ever(day(zones[0])), first
    for zone, pause in zip(zones[1:], hours, strict=False):
        at += pause * 3600
        schedule = schedule.changed(at, day(zone))
    days = Days(tuple((since, calendar.zone) for since, calendar in schedule.calendars))

    for since in (first, *(since for since, _ in days.zones[1:])):
        date = datetime.fromtimestamp(since, UTC).date() + timedelta(days=later)
        begin, zone = days.begin(date)
        assert days.date_of(begin) >= date > days.date_of(begin - 1)
        assert zone == next(zone for since, zone in reversed(days.zones) if since <= max(begin, 0))


# The rest goes through PostgreSQL and Redis.


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    redis().flushdb()
    ensure_epoch()
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="UTC")


def budget_of(acme: Tenant, period: str = "day", limit: int | None = 3, unit: str = "requests") -> Budget:
    return services.set_budget(
        scope="tenant", tenant=acme, unit=unit, period=period, limit=limit, actor="test"
    )


def schedule_of(budget: Budget) -> Schedule:
    return schedules_of([Budget.objects.select_related("tenant").get(pk=budget.pk)])[budget.pk]


def sql(statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def end_of(budget: Budget) -> datetime:
    ends_at = schedule_of(budget).period(now().timestamp()).ends_at
    assert ends_at is not None
    return ends_at


def test_d11_another_zone_takes_effect_at_the_next_boundary_of_each_budget(acme: Tenant) -> None:
    by_month, by_year = budget_of(acme, "month"), budget_of(acme, "year")
    ends = [end_of(by_month), end_of(by_year)]

    change_tenant(tenant=acme, actor="ada", time_zone="Asia/Kathmandu")

    assert [end_of(by_month), end_of(by_year)] == ends
    for budget, end in zip([by_month, by_year], ends, strict=True):
        follows = schedule_of(budget).next_change(now().timestamp())
        assert follows is not None
        assert (follows[0], follows[1].zone.key) == (end.timestamp(), "Asia/Kathmandu")


def test_d11_plain_sql_is_followed_at_the_next_boundary_too(acme: Tenant) -> None:
    budget = budget_of(acme, "year")
    before = schedule_of(budget).period(now().timestamp())

    sql("UPDATE tenants_tenant SET time_zone = 'Asia/Tokyo', week_start = 7 WHERE id = %s", acme.pk)
    sql("UPDATE budgets_budget SET period = 'fixed', seconds = 5400 WHERE id = %s", budget.pk)

    assert schedule_of(budget).period(now().timestamp()) == before
    follows = schedule_of(budget).next_change(now().timestamp())
    assert follows == (before.end, Calendar("fixed", 5400, TOKYO, 7))


def test_what_changes_no_calendar_is_no_change(acme: Tenant) -> None:
    budget = budget_of(acme)

    change_tenant(tenant=acme, actor="ada", name="Acme", time_zone="UTC")
    services.set_budget(scope="tenant", tenant=acme, unit="requests", period="day", limit=4, actor="ada")

    assert not CalendarChange.objects.exists()
    assert [(one.limit_before, one.limit) for one in BudgetChange.objects.all()] == [(3, 4)]
    assert schedule_of(budget) == since_ever(day(ZoneInfo("UTC")))


def test_a_budget_made_after_a_change_follows_it_at_once(acme: Tenant) -> None:
    change_tenant(tenant=acme, actor="ada", time_zone="Asia/Tokyo")

    assert schedule_of(budget_of(acme)) == since_ever(day(TOKYO))


def test_a_zone_that_nobody_knows_stops_no_call_and_no_drain(acme: Tenant) -> None:
    budget = budget_of(acme)

    sql("UPDATE tenants_tenant SET time_zone = 'Mars/Olympus' WHERE id = %s", acme.pk)

    assert schedule_of(budget).period(now().timestamp()).end is not None
    assert acme.pk in days_of([acme.pk])


def test_a_lifetime_keeps_its_period(acme: Tenant) -> None:
    budget = budget_of(acme, "lifetime")

    with pytest.raises(ValidationError, match="lifetime does not end"):
        services.change_period(budget=budget, period="day", actor="ada")
    with pytest.raises(IntegrityError, match="lifetime does not end"):
        sql("UPDATE budgets_budget SET period = 'day' WHERE id = %s", budget.pk)


def test_two_budgets_of_one_scope_cannot_come_to_have_the_same_period(acme: Tenant) -> None:
    budget_of(acme, "day")
    hourly = budget_of(acme, "hour")

    with pytest.raises(ValidationError):
        services.change_period(budget=hourly, period="day", actor="ada")


def test_a_changed_period_is_in_the_audit_with_the_moment_from_which_it_counts(acme: Tenant) -> None:
    budget = budget_of(acme, "year")

    services.change_period(budget=budget, period="90m", actor="ada")

    event = AuditEvent.objects.get(action="budget.period_changed")
    assert (event.details["before"], event.details["after"]) == ("year", "90m")
    assert datetime.fromisoformat(event.details["takes_effect_at"]) == end_of(budget)


def test_the_period_that_the_ledger_has_counted_stays(acme: Tenant) -> None:
    budget = budget_of(acme, "month")
    start, end = now() - timedelta(days=2), now() + timedelta(hours=3)
    start, end = start.replace(microsecond=0), end.replace(microsecond=0)
    BudgetPeriod.objects.create(budget_id=budget.pk, period_start=start, period_end=end, used=3)

    period = schedule_of(budget).period(now().timestamp())

    assert (period.starts_at, period.ends_at) == (start, end)


def call(secret: str) -> str:
    """Make a call as admission does; returns what became of it."""

    async def ask() -> str:
        caller: Caller = await identify({"authorization": f"Bearer {secret}"})
        caller = await reload(caller.public_id)
        try:
            reservation = await reserve(caller, a_demand())
        except BudgetExhausted:
            return "refused"
        await settle(reservation, some_usage(), "done", Moments(), 200)
        return "held"

    return asyncio.run(ask())


def test_d11_no_change_of_a_calendar_hands_a_budget_out_again(acme: Tenant) -> None:
    budget = budget_of(acme, "year", limit=3)
    _, secret = issue_key(tenant=acme, label="nightly", actor="test")
    told = [call(secret)]

    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        change_tenant(tenant=acme, actor="ada", time_zone=zone)
        told.append(call(secret))
    services.change_period(budget=budget, period="60s", actor="ada")
    told.append(call(secret))
    services.change_period(budget=budget, period="month", actor="ada")
    told.append(call(secret))

    assert told == ["held"] * 3 + ["refused"] * 2


def told(*arguments: str) -> Any:
    output = StringIO()
    call_command(*arguments, "--json", stdout=output)
    return json.loads(output.getvalue())


def test_a_person_sets_a_fixed_length_and_changes_it(acme: Tenant) -> None:
    whose = ["--tenant", "acme", "--unit", "requests", "--limit", "5"]

    made = told("set_budget", *whose, "--period", "2400h")
    changed = told("set_budget", *whose, "--was", "100d", "--period", "36h")

    assert (made["period"], made["seconds"], made["takes_effect_at"]) == ("100d", 8_640_000, None)
    assert (changed["period"], changed["seconds"]) == ("36h", 129_600)
    assert changed["budget_id"] == made["budget_id"]
    budget = Budget.objects.get()
    assert datetime.fromisoformat(changed["takes_effect_at"]) == end_of(budget)
    with pytest.raises(CommandError, match="no such budget per 100d"):
        told("set_budget", *whose, "--was", "100d", "--period", "36h")
    with pytest.raises(CommandError, match="is no period"):
        told("set_budget", *whose, "--period", "fortnight")


def test_a_person_sees_how_budgets_stand(acme: Tenant) -> None:
    budget_of(acme, "year", limit=3)
    budget_of(acme, "lifetime", limit=None, unit="tokens")
    _, secret = issue_key(tenant=acme, label="nightly", actor="test")
    call(secret)
    change_tenant(tenant=acme, actor="ada", time_zone="Asia/Kathmandu")

    shown = {row["period"]: row for row in told("show_budgets", "--tenant", "acme")["budgets"]}
    output = StringIO()
    call_command("show_budgets", "--tenant", "acme", stdout=output)

    by_year, year = shown["year"], now().year
    assert by_year["starts_at"] == f"{year}-01-01T00:00:00+00:00"
    assert by_year["ends_at"] == f"{year + 1}-01-01T00:00:00+00:00"
    assert [by_year[name] for name in ("limit", "used", "held", "left")] == [3, 1, 0, 2]
    assert (by_year["then_per"], by_year["then_in"]) == ("year", "Asia/Kathmandu")
    assert [shown["lifetime"][name] for name in ("limit", "used", "left", "ends_at")] == [
        None,
        27,
        None,
        None,
    ]
    assert "requests per year of tenant acme" in output.getvalue()
    assert "on per year, Asia/Kathmandu." in output.getvalue()


def test_the_admin_takes_lengths_and_tells_from_when_they_count(acme: Tenant, admin_client: Client) -> None:
    budget = budget_of(acme, "year")
    page = f"/admin/budgets/budget/{budget.pk}/change/"

    refused = admin_client.post(page, {"length": "a while", "limit": "7"})
    told = admin_client.post(page, {"length": "36h", "limit": "7"}, follow=True)

    budget.refresh_from_db()
    assert "is no period" in refused.content.decode()
    assert (budget.length, budget.limit) == ("36h", 7)
    assert f"the new ones begin at {end_of(budget).isoformat()}" in told.content.decode()
    shown = admin_client.get(page).content.decode()
    year = now().year
    assert (
        f"{year}-01-01 00:00:00+00:00 to {year + 1}-01-01 00:00:00+00:00, UTC, then per 36h in UTC" in shown
    )


def test_the_admin_says_from_when_a_zone_of_a_tenant_counts(acme: Tenant, admin_client: Client) -> None:
    page = f"/admin/tenants/tenant/{acme.pk}/change/"
    form = {"slug": "acme", "name": "ACME", "week_start": "1", "may_call": "silent", "listed": ""}

    told = admin_client.post(page, form | {"time_zone": "Asia/Tokyo"}, follow=True).content.decode()

    acme.refresh_from_db()
    assert acme.time_zone == "Asia/Tokyo"
    assert "from the end of its present period on" in told


def test_d12_reports_are_half_open_and_add_up_at_their_edges(acme: Tenant) -> None:
    _, secret = issue_key(tenant=acme, label="nightly", actor="test")
    call(secret)
    ledger.drain()
    entry = LedgerEntry.objects.get()
    edge = datetime(2026, 6, 11, tzinfo=UTC)
    for step in (-1, 0, 1):
        entry.pk, entry.request_id, entry.ended_at = None, new_id(), edge + timedelta(microseconds=step)
        entry.save(force_insert=True)
    day_before, day_after = edge - timedelta(days=1), edge + timedelta(days=1)

    def requests(since: datetime, until: datetime) -> int:
        return usage.totals(usage.Selection(tenant_id=acme.pk, since=since, until=until))["requests"]

    first, second_day = requests(day_before, edge), requests(edge, day_after)

    both = requests(day_before, day_after)
    assert (first, second_day, both) == (1, 2, 3)
    assert "UTC" in told("show_usage", "--tenant", "acme")["time_zone"]


def test_the_zones_are_those_of_the_release_and_not_of_the_machine() -> None:
    assert zoneinfo.TZPATH == ()
    assert ZoneInfo.no_cache("Asia/Kathmandu").key == "Asia/Kathmandu"


def test_the_admin_says_what_the_database_would_refuse(acme: Tenant, admin_client: Client) -> None:
    budget_of(acme, "hour")
    budget = budget_of(acme, "day")
    page = f"/admin/budgets/budget/{budget.pk}/change/"

    twice = admin_client.post(page, {"length": "hour", "limit": "7"})

    assert twice.status_code == 200
    assert "already exists" in twice.content.decode()
    assert Budget.objects.get(pk=budget.pk).length == "day"
