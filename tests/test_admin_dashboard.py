"""The operators' dashboard: its figures, that each part fails alone, who sees which, and that it is live."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.utils.timezone import now

from audit.models import AuditCheck
from budgets import ledger, pace
from budgets.booking import BY_MONTH
from budgets.models import LedgerEntry, ParkedRecord, UsageRollup
from budgets.services import set_budget, set_price
from budgets.tallies import HAND_OVER_SECONDS
from config import dashboard
from config.dashboard import PARTS, figures
from tenants.models import User
from tests.conftest import House, eventually
from tests.counting import NOWHERE
from tests.people import a_browser
from tests.sockets import closing_of, message_until, opened

ALL = [part.name for part in PARTS]
LIVE = "/live/admin/dashboard/"


@pytest.fixture(autouse=True)
def read_anew():
    for part in PARTS:
        part.forget()


@pytest.fixture
def olga(house: House) -> Client:
    return a_browser(User.objects.create_superuser("olga"))


def state_of(name: str) -> tuple[str, str]:
    """State and sentence of one line of what the gateway stands on."""
    next(part for part in PARTS if part.name == "health").forget()
    told = figures(["health"])["health"]
    assert told is not None
    line = next(line for line in told["lines"] if line.name == name)
    return line.state, line.told


def with_a_booked_call(house: House) -> LedgerEntry:
    set_price(model="tiny:1b", input_price=10**6, output_price=10**6, actor="test")
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=10_000, actor="test")
    assert house.ada.chat(options={"num_predict": 20}).status_code == 200
    return house.booked()[0]


def test_what_was_used_today_stands_against_budgets(house: House) -> None:
    entry = with_a_booked_call(house)
    used = entry.input_tokens + entry.output_tokens

    told = figures(["spend"])["spend"]

    assert told is not None
    assert told["cost"] == f"${used / 1_000_000:.6f}"
    assert told["tokens"] == used
    (row,) = told["tenants"]
    assert (row["tenant"], row["calls"]) == ("acme", 1)
    assert row["budget"]["told"] == f"{used} of 10,000"
    assert [chart.id for chart in told["charts"]] == ["spend", "tokens"]
    assert sum(value or 0 for one in told["charts"][1].series for value in one.values) == used


def test_the_tightest_budget_is_one_that_lets_nothing_through(house: House) -> None:
    with_a_booked_call(house)
    set_budget(scope="tenant", tenant=house.acme, unit="requests", period="year", limit=0, actor="test")

    told = figures(["spend"])["spend"]

    assert told is not None
    (row,) = told["tenants"]
    assert (row["budget"]["told"], row["budget"]["percent"]) == ("0 of 0", 100)


def all_handed_over() -> pace.Note | None:
    """A note that has what was asked before it; a gateway hands over what it counted every second."""
    pace.note()
    newest, *older = pace.notes()
    still = any(
        one.requests == newest.requests and newest.at - one.at > 2 * HAND_OVER_SECONDS for one in older
    )
    return newest if still else None


def test_calls_refusals_and_first_bytes_are_told_a_minute(house: House) -> None:
    written = eventually(all_handed_over)
    assert house.ada.chat().status_code == 200
    assert house.ada.chat(model="nowhere").status_code == 403

    def noted() -> pace.Note | None:
        pace.note()
        newest = pace.notes()[0]
        return newest if newest.requests >= written.requests + 2 else None

    later = eventually(noted)

    came = pace.between(written, later)

    assert came is not None
    assert came.refusals == 1
    assert sum(came.first_bytes.values()) == 1
    # Notes of ten seconds say nothing of a minute.
    told = figures(["traffic"])["traffic"]
    assert told is not None
    assert told["requests"] is None
    assert [len(chart.points) for chart in told["charts"]] == [60, 60]


def test_budgets_that_are_empty_or_soon_will_be_are_named(house: House) -> None:
    roomy = set_budget(
        scope="tenant", tenant=house.acme, unit="tokens", period="month", limit=10**9, actor="test"
    )
    set_budget(scope="key", key=house.ada.key, unit="requests", period="day", limit=1, actor="test")
    assert house.ada.chat().status_code == 200
    assert house.ada.chat().status_code == 429

    told = figures(["running-out"])["running-out"]

    assert told is not None
    assert [one["told"] for one in told["budgets"]] == ["1 of 1"]
    assert roomy.pk not in {one["id"] for one in told["budgets"]}


def test_upstreams_are_told_with_their_health_and_models(house: House) -> None:
    part = next(part for part in PARTS if part.name == "upstreams")

    def listed() -> dict[str, Any] | None:
        part.forget()
        (node,) = (part.figures() or {"nodes": [None]})["nodes"]
        return node if node and node["health"] == "up" else None

    # The gateway puts what it knows into an empty Redis with its next poll.
    node = eventually(listed)
    assert (str(node["upstream"]), node["running"]) == ("sim", 0)
    assert node["models"] >= 1


def test_without_redis_parts_that_need_it_are_unknown_and_the_others_are_told(house: House, settings) -> None:
    with_a_booked_call(house)
    settings.CACHES = NOWHERE

    told = figures(ALL)

    assert {name for name, one in told.items() if one is None} == {"traffic", "upstreams", "running-out"}
    assert told["spend"] is not None
    assert told["spend"]["tenants"][0]["budget"] is None
    assert told["health"] is not None
    states = {line.name: line.state for line in told["health"]["lines"]}
    assert states["Redis"] == states["Worker"] == states["Ledger"] == "unknown"
    assert states["Database"] == "good"


def test_a_table_that_cannot_be_read_takes_no_other_part_with_it(house: House, olga: Client) -> None:
    with_a_booked_call(house)
    another = connection.copy()
    another.set_autocommit(False)
    try:
        with another.cursor() as cursor:
            cursor.execute("LOCK TABLE budgets_usagerollup IN ACCESS EXCLUSIVE MODE")
        page = olga.get("/admin/")
    finally:
        another.rollback()
        another.close()

    assert page.status_code == 200
    assert page.content.decode().count("Unknown: it cannot be asked now.") == 1
    assert "Streams now" in page.content.decode()


@pytest.mark.parametrize(
    ("found", "age", "state"),
    [(0, 10, "good"), (2, 10, "bad"), (0, 7200, "warning")],
    ids=["as it was written", "not as it was written", "not looked at for long"],
)
def test_the_audit_is_told_as_the_last_look_found_it(house: House, found: int, age: int, state: str) -> None:
    AuditCheck.objects.create(
        at=now() - timedelta(seconds=age), seconds=1, events=9, reached=0, found=found, troubles=["a trouble"]
    )

    assert state_of("Audit")[0] == state


def test_worker_and_beat_are_told_by_what_they_did_last(house: House, monkeypatch) -> None:
    ledger.drain()
    pace.note()

    assert state_of("Worker")[0] == "good"
    assert state_of("Beat")[0] == "good"
    monkeypatch.setattr(dashboard, "WORKER_LATE_SECONDS", -1)
    monkeypatch.setattr(pace, "EVERY_SECONDS", -1)
    state, told = state_of("Worker")
    assert state == "warning"
    assert told.endswith("no task waits, so nobody bids it.")
    assert state_of("Beat")[0] == "bad"


def test_the_ledger_tells_what_waits_and_what_needs_a_person(house: House) -> None:
    assert state_of("Ledger") == ("good", "Nothing waits.")
    assert house.ada.chat().status_code == 200
    ParkedRecord.objects.create(stream_id="1-1", record="{}", reason="it is no record")

    state, told = eventually(lambda: (found := state_of("Ledger")) and "1 record waits" in found[1] and found)

    assert state == "warning"
    assert "1 parked record needs a person" in told


def test_who_may_not_read_something_does_not_see_its_part(house: House) -> None:
    watcher = User.objects.create(username="wanda", is_staff=True)
    seen = a_browser(watcher).get("/admin/").content.decode()
    watcher.user_permissions.add(Permission.objects.get(codename="view_ledgerentry"))
    more = a_browser(watcher).get("/admin/").content.decode()

    assert [name for name in ALL if f'data-live-part="{name}"' in seen] == ["traffic", "health"]
    assert [name for name in ALL if f'data-live-part="{name}"' in more] == ["traffic", "health", "spend"]


def test_the_page_asks_as_often_for_many_tenants_as_for_one(
    house: House, olga: Client, django_assert_max_num_queries
) -> None:
    entry = with_a_booked_call(house)
    row = UsageRollup.objects.get()
    for number in range(30):
        row.pk, row.model = None, f"model-{number}:latest"
        row.save()
    read = dict.fromkeys(BY_MONTH)

    with django_assert_max_num_queries(60) as asked:
        olga.get("/admin/")

    statements = " ".join(one["sql"] for one in asked.captured_queries)
    assert entry.pk
    assert [table for table in read if f'FROM "{table}"' in statements] == []


@pytest.mark.parametrize("kind", ["svg", "csv"])
def test_a_chart_is_had_as_a_file(house: House, olga: Client, kind: str) -> None:
    with_a_booked_call(house)

    answer = olga.get(f"/admin/?chart=tokens.{kind}")

    assert answer.status_code == 200
    assert "attachment" in answer.headers["Content-Disposition"]
    assert olga.get("/admin/?chart=nothing.svg").status_code == 404


def test_an_open_page_is_told_of_a_call_that_runs_and_is_booked(house: House, olga: Client) -> None:
    with opened(house.gateway, LIVE, olga) as socket:
        first = message_until(socket, lambda said: set(ALL) <= set(said["parts"]))
        assert "Nothing is booked today yet." in first["parts"]["spend"]

        with_a_booked_call(house)

        later = message_until(socket, lambda said: "acme" in said["parts"].get("spend", ""))
    assert later["stale"] is None


def test_the_socket_is_for_the_staff(house: House) -> None:
    nobody = User.objects.create(username="nobody")
    watcher = User.objects.create(username="wanda", is_staff=True)

    with opened(house.gateway, LIVE, a_browser(nobody)) as socket:
        assert closing_of(socket) == 4403
    with opened(house.gateway, LIVE, a_browser(watcher)) as socket:
        said = message_until(socket, lambda said: said["parts"])
        assert set(said["parts"]) == {"traffic", "health"}
