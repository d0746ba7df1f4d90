"""Kill switches: they win over everything, on every process, at every door, and end by themselves."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection
from django.utils.timezone import now

from audit.models import AuditEvent, RequestEvent
from budgets import ledger
from budgets.models import Budget, KillSwitch, KillSwitchLift
from budgets.services import arm_kill_switch, lift_kill_switch, set_budget, set_price
from keys.models import ApiKey
from proxy.models import Upstream
from proxy.services import save_upstream
from proxy.simulator.server import SimulatorThread
from tenants import generations
from tenants.services import create_tenant
from tests.conftest import House, eventually
from tests.counting import NOWHERE, open_holds, redis
from tests.gateway import Gateway
from tests.test_crashes import ready
from tests.test_streams import DOORS

SCOPES = ["platform", "tenant", "key", "upstream", "model"]
OTHER_MODEL = "thinker:latest"
LISTINGS = ["/api/tags", "/api/ps", "/v1/models"]


def subject(house: House, scope: str) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {
        "platform": {},
        "tenant": {"tenant": house.acme},
        "key": {"key": house.ada.key},
        "upstream": {"upstream": "sim"},
        "model": {"model": "tiny:1b"},
    }
    return {"scope": scope, **named[scope]}


def arm(house: House, scope: str, **options: Any) -> KillSwitch:
    return arm_kill_switch(actor="olga", reason="runaway agent", **subject(house, scope) | options)


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("scope", SCOPES)
def test_each_layer_refuses_with_its_own_code_in_every_dialect(house, scope, path):
    arm(house, scope, message="Back at noon.")

    response = house.ada.http.post(path, json=DOORS[path])

    assert response.status_code == 403
    assert response.headers["X-Should-Retry"] == "false"
    told = response.json()
    sentence = told["error"] if path.startswith("/api/") else told["error"]["message"]
    assert sentence.startswith("An operator has stopped all calls")
    assert sentence.endswith(" Back at noon.")
    if path == "/v1/messages":
        assert told["error"]["type"] == "permission_error"
    elif path.startswith("/v1/"):
        assert told["error"]["code"] == f"kill_switch_{scope}"
    assert house.ollama.calls == []
    assert open_holds() == []


@pytest.mark.parametrize("scope", SCOPES)
def test_the_code_stands_in_the_request_events(house, scope):
    arm(house, scope)

    house.ada.chat()

    def noted() -> RequestEvent | None:
        ledger.drain()
        return RequestEvent.objects.filter(refusal=f"kill_switch_{scope}").first()

    assert eventually(noted).status == 403


def test_a_switch_wins_over_what_would_refuse_too(house):
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="day", limit=0, actor="test")
    arm(house, "tenant")

    assert house.ada.chat().json()["error"].startswith("An operator has stopped all calls of this tenant.")
    assert house.ada.chat(model="nobody").json()["error"].startswith("An operator")


def test_a_free_model_is_stopped_too(house):
    set_price(model="tiny:1b", free=True, actor="test")
    set_budget(scope="tenant", tenant=house.acme, unit="micro_usd", period="day", limit=None, actor="test")
    arm(house, "platform")

    assert house.ada.chat().status_code == 403


@pytest.mark.parametrize("path", LISTINGS)
@pytest.mark.parametrize("scope", ["platform", "tenant", "key"])
def test_a_listing_is_refused_to_whom_nothing_is_open(house, scope, path):
    arm(house, scope)

    assert house.ada.http.get(path).status_code == 403


def test_a_stopped_model_is_in_no_listing_and_others_work(house):
    arm(house, "model")

    names = [entry["name"] for entry in house.ada.http.get("/api/tags").json()["models"]]
    ids = [entry["id"] for entry in house.ada.http.get("/v1/models").json()["data"]]

    assert "tiny:1b" not in names + ids
    assert OTHER_MODEL in names
    assert house.ada.chat(model=OTHER_MODEL).status_code == 200
    assert house.ada.http.get("/v1/models/tiny:1b").json()["error"]["code"] == "kill_switch_model"
    assert house.ada.http.post("/api/show", json={"model": "tiny:1b"}).status_code == 403


def test_a_model_is_stopped_by_each_of_its_spellings(house):
    arm(house, "model", model="Tiny:1B")

    for spelling in ("tiny:1b", "TINY:1b", "library/tiny:1b"):
        assert house.ada.chat(model=spelling).json()["error"].startswith("An operator has stopped all")


def test_a_model_within_a_tenant_is_stopped_for_nobody_else(house):
    globex = create_tenant(slug="globex", name="Globex", actor="test", allow_all_models=True)
    bob = house.caller(globex)
    arm(house, "model", tenant=house.acme)

    assert house.ada.chat().status_code == 403
    assert bob.chat().status_code == 200


def test_the_switch_of_a_key_leaves_the_others_of_its_tenant_alone(house):
    other = house.caller()
    arm(house, "key")

    assert house.ada.chat().status_code == 403
    assert other.chat().status_code == 200


def test_a_stopped_upstream_is_passed_by_where_the_model_is_elsewhere_too(house):
    with SimulatorThread() as second:
        save_upstream(upstream=Upstream(name="second", base_url=second.url), actor="test")
        eventually(lambda: redis().exists("{p0}:catalog:second"))
        arm(house, "upstream")
        eventually(lambda: house.ada.chat().status_code == 200)

        before = len(house.ollama.calls)
        answers = [house.ada.chat().status_code for _ in range(4)]

        assert answers == [200] * 4
        assert len(house.ollama.calls) == before == 0


def test_a_lifted_switch_stops_nothing_and_a_second_one_still_does(house):
    first, second = arm(house, "tenant"), arm(house, "tenant")

    assert lift_kill_switch(switch=first, actor="olga", reason="fixed")
    assert house.ada.chat().status_code == 403
    assert lift_kill_switch(switch=second, actor="olga", reason="fixed")
    assert not lift_kill_switch(switch=second, actor="otto", reason="again")

    assert house.ada.chat().status_code == 200
    events = AuditEvent.objects.filter(action__startswith="kill_switch.").order_by("id")
    assert [event.action for event in events] == [
        "kill_switch.armed", "kill_switch.armed", "kill_switch.lifted", "kill_switch.lifted",
    ]  # fmt: skip
    assert {(event.actor, event.tenant_id) for event in events} == {("olga", house.acme.pk)}


def test_a_switch_lifts_itself(house):
    switch = arm(house, "platform", until=now() + timedelta(seconds=2))

    status = house.ada.chat().status_code
    assert status == 403 or now() > switch.until
    eventually(lambda: house.ada.chat().status_code == 200)


def test_without_an_end_it_is_on_for_seven_days(transactional_db):
    switch = arm_kill_switch(scope="platform", actor="olga", reason="fire")

    assert abs(switch.until - now() - timedelta(days=7)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("scope", "'platform'"),
        ("scope, model", "'model', 'tiny:1b'"),
        ("scope, tenant_id", "'tenant', (SELECT id FROM tenants_tenant)"),
    ],
)
def test_plain_sql_arms_and_lifts(house, columns, values):
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO budgets_killswitch ({columns}, reason) VALUES ({values}, 'fire')"  # noqa: S608, ours
        )
    eventually(lambda: house.ada.chat().status_code == 403)

    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO budgets_killswitchlift (switch_id, reason) SELECT id, 'out' FROM budgets_killswitch"
        )

    eventually(lambda: house.ada.chat().status_code == 200)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE budgets_killswitch SET until = now()",
        "DELETE FROM budgets_killswitch",
        "UPDATE budgets_killswitchlift SET reason = 'none'",
        "DELETE FROM budgets_killswitchlift",
    ],
)
def test_the_history_is_never_changed(transactional_db, statement):
    switch = arm_kill_switch(scope="platform", actor="olga", reason="fire")
    lift_kill_switch(switch=switch, actor="olga", reason="out")

    with pytest.raises(IntegrityError), connection.cursor() as cursor:
        cursor.execute(statement)

    assert (KillSwitch.objects.count(), KillSwitchLift.objects.count()) == (1, 1)
    assert KillSwitch.objects.get().state == "lifted"


@pytest.mark.parametrize(
    "values",
    [
        {"scope": "tenant"},
        {"scope": "model"},
        {"scope": "upstream"},
        {"scope": "platform", "model": "tiny:1b"},
        {"scope": "platform", "reason": ""},
        {"scope": "model", "model": "no model"},
        {"scope": "platform", "until": now() - timedelta(days=1)},
        {"scope": "member"},
        {"scope": "platform", "message": "x" * 201},
    ],
)
def test_a_switch_that_means_nothing_is_not_armed(transactional_db, values):
    with pytest.raises(ValidationError):
        arm_kill_switch(**{"actor": "olga", "reason": "fire"} | values)

    assert not KillSwitch.objects.exists()


def test_a_key_that_is_deleted_leaves_the_history_of_its_switches(house):
    arm(house, "key")
    ApiKey.objects.all().delete()

    assert str(KillSwitch.objects.get()) == "key key 0 of acme"


def test_every_process_refuses_the_next_call(house):
    with Gateway(workers=2) as second:
        ready(second.url, house.ada.secret)
        arm(house, "tenant")

        answers = [house.ada.http.post(f"{url}/api/chat", json=DOORS["/api/chat"]).status_code
                   for url in (house.gateway.url, second.url) for _ in range(6)]  # fmt: skip

    assert set(answers) == {403}


def test_no_call_that_began_after_the_switch_was_armed_gets_through(house):
    """Arming races with admission: whoever is admitted was admitted before."""
    set_budget(scope="tenant", tenant=house.acme, unit="requests", period="day", limit=None, actor="test")
    callers = [house.caller() for _ in range(4)]
    answers: list[tuple[float, int]] = []

    def ask(caller: Any) -> None:
        refused = 0
        while refused < 3 and len(answers) < 5000:
            began, status = time.monotonic(), caller.chat(stream=False).status_code
            answers.append((began, status))
            refused += status == 403

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answers) >= 4)
    arm(house, "tenant")
    armed_at = time.monotonic()
    for thread in threads:
        thread.join()

    assert {status for began, status in answers if began > armed_at} <= {403}
    assert {status for _, status in answers} <= {200, 403}
    assert any(status == 403 for _, status in answers)


def run(name: str, *arguments: str) -> str:
    said = StringIO()
    call_command(name, *arguments, stdout=said)
    return said.getvalue()


def test_the_commands_arm_list_and_lift(house):
    public_id = house.ada.secret[3:15]
    armed = json.loads(run("kill", "key", public_id, "--reason", "leaked", "--until", "12h", "--json"))
    listed = run("kill", "--list")

    assert (armed["scope"], armed["key"], armed["state"]) == ("key", "key 0", "on")
    assert armed["in_force"] is True
    assert f"{armed['id']}  key key 0 of acme  until " in listed
    assert house.ada.chat().status_code == 403

    lifted = json.loads(run("unkill", "key", public_id, "--reason", "found", "--json"))

    assert lifted == {"lifted": [armed["id"]], "in_force": True}
    assert house.ada.chat().status_code == 200
    assert run("kill", "--list") == "No kill switch is on.\n"
    assert run("unkill", "key", public_id, "--reason", "found") == "No such kill switch was on.\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Say what"),
        (("platform",), "--reason"),
        (("platform", "x", "--reason", "r"), "no name"),
        (("tenant", "--reason", "r"), "Name the tenant"),
        (("tenant", "nobody", "--reason", "r"), "no tenant"),
        (("tenant", "acme", "--tenant", "acme", "--reason", "r"), "with a model only"),
        (("model", "no model", "--reason", "r"), "of a local model"),
        (("platform", "--reason", "r", "--until", "soon"), "no moment"),
        (("platform", "--reason", "r", "--until", "2001-01-01"), "in the future"),
    ],
)
def test_what_cannot_be_armed_is_one_line(house, arguments, told):
    with pytest.raises(CommandError, match=told):
        run("kill", *arguments)


def test_when_the_store_fails_the_commands_do_not_say_off(transactional_db, monkeypatch):
    def gone(*_: Any) -> Any:
        from django.db import OperationalError

        raise OperationalError("no connection")

    monkeypatch.setattr("budgets.models.KillSwitches._fetch_all", gone)

    with pytest.raises(CommandError, match="Nobody knows"):
        run("kill", "--list")
    with pytest.raises(CommandError, match="Nobody knows"):
        run("unkill", "platform", "--reason", "r")


def test_a_switch_that_redis_has_not_heard_of_is_pending(transactional_db, settings):
    settings.CACHES = NOWHERE
    arm_kill_switch(scope="platform", actor="olga", reason="fire")

    assert not generations.in_force(None)
    assert Budget.objects.count() == 0
