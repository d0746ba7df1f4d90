"""Kill switches and running calls in the admin and in the management API: who may, and what they are told."""

from __future__ import annotations

import html
import json
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.db import OperationalError
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets.models import KillSwitch
from budgets.running_calls import running_calls
from budgets.services import arm_kill_switch
from keys.models import ApiKey
from keys.services import issue_key, revoke_key
from tenants.models import Tenant, User
from tenants.services import create_tenant
from tests.conftest import House, eventually
from tests.counting import NOWHERE
from tests.managing import manager
from tests.test_streams import open_raw

SWITCHES = "/manage/v1/kill-switches/"
CALLS = "/manage/v1/running-calls/"
ADD = "admin:budgets_killswitch_add"
LIST = "admin:budgets_killswitch_changelist"
TENANTS = "admin:tenants_tenant_changelist"
RUNNING = "admin:budgets_runningcall_changelist"


def signed_in(*permissions: str, **fields: Any) -> Client:
    name = str(uuid.uuid4())
    user = User.objects.create(username=name, email=f"{name}@example.org", **fields)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def olga(transactional_db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    return client


@pytest.fixture
def acme(transactional_db: None) -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test")


def post(client: Client, address: str, **body: Any) -> tuple[int, Any]:
    response = client.post(address, json.dumps(body), content_type="application/json")
    return response.status_code, response.json()


def form(**fields: Any) -> dict[str, Any]:
    until = now() + timedelta(days=7)
    return {
        "scope": "platform", "tenant": "", "key": "", "upstream": "", "model": "", "reason": "fire",
        "message": "", "until_0": f"{until:%Y-%m-%d}", "until_1": f"{until:%H:%M:%S}",
    } | fields  # fmt: skip


def messages_of(response: Any) -> str:
    return " ".join(str(message) for message in get_messages(response.wsgi_request))


@pytest.mark.parametrize(
    ("fields", "confirmation"),
    [
        ({"scope": "platform"}, "platform"),
        ({"scope": "tenant", "tenant": "acme"}, "tenant acme"),
        ({"scope": "model", "model": "Tiny"}, "model tiny:latest"),
        ({"scope": "model", "model": "tiny:1b", "tenant": "acme"}, "model tiny:1b of acme"),
        ({"scope": "upstream", "upstream": "gpu-1"}, "upstream gpu-1"),
    ],
)
def test_a_switch_is_armed_by_whoever_types_its_name(olga, acme, fields, confirmation):
    refused = olga.post(reverse(ADD), form(**fields, confirmation="yes"))
    armed_before = KillSwitch.objects.count()
    response = olga.post(reverse(ADD), form(**fields, confirmation=confirmation))

    assert f"To confirm, type: {confirmation}" in refused.content.decode()
    assert armed_before == 0
    assert response.status_code == 302
    switch = KillSwitch.objects.get()
    assert (str(switch), switch.armed_by, switch.state) == (confirmation, "olga", "on")
    assert "Armed; in force." in messages_of(response)
    assert AuditEvent.objects.get(action="kill_switch.armed").reason == "fire"


def test_the_switch_of_a_key_is_armed_by_its_public_id(olga, acme):
    _, secret = issue_key(tenant=acme, label="nightly", actor="test")

    olga.post(reverse(ADD), form(scope="key", key=secret[3:15], confirmation="key nightly of acme"))

    assert str(KillSwitch.objects.get()) == "key nightly of acme"


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": "tenant"},
        {"scope": "tenant", "tenant": "nobody"},
        {"scope": "key", "key": "nobody000000"},
        {"scope": "platform", "model": "tiny:1b"},
        {"scope": "model", "model": "no model"},
        {"until_0": "2001-01-01"},
        {"reason": ""},
    ],
)
def test_the_form_tells_what_is_wrong_and_arms_nothing(olga, acme, fields):
    response = olga.post(reverse(ADD), form(**{"confirmation": "platform"} | fields))

    assert response.status_code == 200
    shown = html.unescape(response.content.decode())
    wrong = [text for texts in response.context["adminform"].errors.values() for text in texts]
    assert wrong
    assert [text for text in wrong if text not in shown] == []
    assert not KillSwitch.objects.exists()


def test_switches_are_lifted_with_a_reason_and_their_history_stays(olga, acme):
    switch = arm_kill_switch(scope="tenant", tenant=acme, actor="otto", reason="fire")
    chosen = {"action": "lift", "_selected_action": [str(switch.pk)]}

    asked = olga.post(reverse(LIST), chosen)
    mistyped = olga.post(reverse(LIST), chosen | {"reason": "out", "confirmation": "tenant globex"})
    before = KillSwitch.objects.get().state
    response = olga.post(reverse(LIST), chosen | {"reason": "out", "confirmation": "tenant acme"})

    assert "Reason, for the audit" in asked.content.decode()
    assert "type <strong>tenant acme</strong>" in asked.content.decode()
    assert "That is something else." in mistyped.content.decode()
    assert before == "on"
    assert "Lifted 1 of 1; in force." in messages_of(response)
    page = olga.get(reverse("admin:budgets_killswitch_change", args=[switch.pk])).content.decode()
    for told in ("tenant acme", "fire", "otto", "lifted", "olga", "out"):
        assert told in page
    assert olga.get(reverse(LIST) + "?state=on").content.decode().count("tenant acme") == 0
    assert "tenant acme" in olga.get(reverse(LIST) + "?state=lifted").content.decode()


def test_several_switches_are_lifted_by_typing_how_many(olga, acme):
    switches = [arm_kill_switch(scope="tenant", tenant=acme, actor="otto", reason="fire") for _ in range(2)]
    chosen = {"action": "lift", "_selected_action": [str(one.pk) for one in switches], "reason": "out"}

    response = olga.post(reverse(LIST), chosen | {"confirmation": "2 kill switches"})

    assert "Lifted 2 of 2; in force." in messages_of(response)


def test_without_redis_a_switch_is_armed_and_pending(olga, settings):
    settings.CACHES = NOWHERE

    response = olga.post(reverse(ADD), form(confirmation="platform"))

    assert "Armed; pending, because Redis cannot be reached." in messages_of(response)
    assert KillSwitch.objects.get().state == "on"


def test_who_may_look_at_switches_may_not_arm_or_lift_them(acme):
    switch = arm_kill_switch(scope="platform", actor="otto", reason="fire")
    looker = signed_in("view_killswitch", "view_runningcall", is_staff=True)

    assert looker.get(reverse(LIST)).status_code == 200
    assert looker.post(reverse(ADD), form(confirmation="platform")).status_code == 403
    chosen = {"action": "lift", "_selected_action": [str(switch.pk)]}
    looker.post(reverse(LIST), chosen | {"reason": "x", "confirmation": "platform"})
    assert looker.get(SWITCHES).status_code == 200
    assert post(looker, SWITCHES, scope="platform", reason="x")[0] == 403
    assert post(looker, f"{SWITCHES}{switch.pk}/lift/", reason="x")[0] == 403
    assert looker.get(reverse(RUNNING)).status_code == 200
    assert post(looker, f"{CALLS}stop/", all=True, reason="x")[0] == 403
    assert KillSwitch.objects.get().state == "on"


@pytest.mark.parametrize("address", [SWITCHES, CALLS])
def test_the_api_is_for_operators_only(acme, address):
    strangers = [(Client(), 401, "Unauthorized")] + [
        (client, 403, "Forbidden")
        for client in (signed_in("view_killswitch", "view_runningcall"), signed_in(is_staff=True))
    ]
    for client, status, title in strangers:
        response = client.get(address)

        assert response.status_code == status
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["title"] == title


def test_the_api_wants_the_token_against_forged_requests(olga):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get())

    assert post(strict, SWITCHES, scope="platform", reason="fire")[0] == 403
    assert not KillSwitch.objects.exists()


def test_the_api_arms_lists_and_lifts(olga, acme):
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")

    status, armed = post(olga, SWITCHES, scope="key", key=str(key.pk), reason="leaked", message="Ask us.")
    _, model = post(olga, SWITCHES, scope="model", model="tiny:1b", tenant="acme", reason="fire")
    listed = olga.get(SWITCHES).json()
    lifted_status, lifted = post(olga, f"{SWITCHES}{armed['id']}/lift/", reason="found")
    _, again = post(olga, f"{SWITCHES}{armed['id']}/lift/", reason="found")

    assert status == 201
    assert (armed["scope"], armed["key"], armed["tenant"], armed["state"]) == ("key", "nightly", "acme", "on")
    assert (armed["in_force"], armed["armed_by"], armed["message"]) == (True, "olga", "Ask us.")
    assert [one["id"] for one in listed["results"]] == [model["id"], armed["id"]]
    assert (lifted_status, lifted["state"], lifted["lifted_now"]) == (200, "lifted", True)
    assert (lifted["lifted_by"], lifted["lift_reason"]) == ("olga", "found")
    assert again["lifted_now"] is False
    assert [one["id"] for one in olga.get(f"{SWITCHES}?state=on").json()["results"]] == [model["id"]]
    assert olga.get(f"{SWITCHES}{model['id']}/").json()["model"] == "tiny:1b"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scope": "platform"}, "reason"),
        ({"reason": "fire"}, "scope"),
        ({"scope": "team", "reason": "fire"}, "scope"),
        ({"scope": "tenant", "tenant": "nobody", "reason": "fire"}, "tenant"),
        ({"scope": "key", "key": "nobody", "reason": "fire"}, "key"),
        ({"scope": "model", "reason": "fire"}, "non_field_errors"),
        ({"scope": "platform", "reason": "fire", "until": "2001-01-01T00:00Z"}, "non_field_errors"),
        ({"scope": "platform", "reason": "fire", "message": "x" * 201}, "message"),
    ],
)
def test_what_the_api_does_not_understand_is_a_problem_that_names_the_field(olga, body, field):
    response = olga.post(SWITCHES, json.dumps(body), content_type="application/json")

    assert response.status_code == 400
    assert response["Content-Type"] == "application/problem+json"
    told = response.json()
    assert (told["status"], told["title"]) == (400, "Bad Request")
    assert field in told["errors"]
    assert not KillSwitch.objects.exists()


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", f"{SWITCHES}17/", 404),
        ("POST", f"{SWITCHES}17/lift/", 404),
        ("DELETE", SWITCHES, 405),
        ("PUT", f"{SWITCHES}17/", 405),
    ],
)
def test_what_there_is_not_is_a_problem_too(olga, method, address, status):
    response = olga.generic(method, address, json.dumps({"reason": "x"}), content_type="application/json")

    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"


def test_while_postgres_cannot_be_asked_the_api_knows_nothing(olga, monkeypatch):
    def gone(*_: Any) -> Any:
        raise OperationalError("no connection")

    monkeypatch.setattr("budgets.api.kill_switches.KillSwitchViewSet.get_queryset", gone)

    response = olga.get(f"{SWITCHES}?state=on")

    assert response.status_code == 503
    assert response["Content-Type"] == "application/problem+json"


def test_while_redis_cannot_be_asked_nobody_says_that_nothing_runs(olga, settings):
    settings.CACHES = NOWHERE

    page = olga.get(reverse(RUNNING)).content.decode()
    response = olga.get(CALLS)

    assert "Nobody knows what is running" in page
    assert response.status_code == 503
    assert post(olga, f"{CALLS}stop/", all=True, reason="x")[0] == 503


def in_order(call: Any) -> Any:
    """Some calls are admitted in one and the same millisecond."""
    return call.admitted_at, call.request_id


@pytest.fixture
def running(house: House) -> Iterator[list[str]]:
    """Three calls that wait for their model, by request id."""
    house.ollama.fault("load-60000")
    connections = [open_raw(house, "/api/chat") for _ in range(3)]
    eventually(lambda: len(list(running_calls())) == 3)
    yield [str(call.request_id) for call in sorted(running_calls(), key=in_order)]
    for connection in connections:
        connection.close()


def being_stopped() -> set[str]:
    """The calls that somebody was told to have stopped."""
    return set(AuditEvent.objects.filter(action="call.stopped").values_list("subject", flat=True))


def test_the_page_of_running_calls_stops_those_that_are_selected(olga, running):
    page = olga.get(reverse(RUNNING)).content.decode()

    response = olga.post(reverse(RUNNING), {"call": running[:1], "which": "selected", "reason": "loop"})

    assert all(request_id in page for request_id in running)
    assert "Stopping 1 calls." in messages_of(response)
    assert being_stopped() == set(running[:1])
    event = AuditEvent.objects.get(action="call.stopped")
    assert (event.actor, event.reason) == ("olga", "loop")


def test_before_a_call_is_stopped_its_page_shows_what_that_does(olga, running):
    page = olga.get(reverse(RUNNING)).content.decode()

    asked = olga.post(reverse(RUNNING), {"one": running[0]}).content.decode()

    assert "127.0.0.1" in page
    assert (running[0] in asked, running[1] in asked) == (True, False)
    assert "Stop 1 call<" in asked
    assert being_stopped() == set()


def test_the_page_of_running_calls_stops_all_that_were_found(olga, running):
    nobody = olga.post(reverse(RUNNING) + "?q=globex", {"which": "all", "reason": "loop"})
    silent = olga.post(reverse(RUNNING), {"which": "all", "reason": " "})
    before = being_stopped()
    everybody = olga.post(reverse(RUNNING) + "?q=ACME", {"which": "all", "reason": "loop"})

    assert "None of these calls runs any more." in messages_of(nobody)
    assert "All calls of everybody" in silent.content.decode()
    assert before == set()
    assert "Stopping 3 calls." in messages_of(everybody)
    assert being_stopped() == set(running)


def test_before_a_tenant_is_suspended_its_page_shows_what_that_does(olga, house, running):
    spare, _ = issue_key(tenant=house.acme, label="spare", actor="test")
    revoke_key(key=spare, actor="test", reason="lost")
    working = ApiKey.objects.filter(tenant=house.acme).count() - 1
    chosen = {"action": "suspend", "_selected_action": [str(house.acme.pk)]}

    asked = olga.post(reverse(TENANTS), chosen).content.decode()
    state_before = Tenant.objects.get(pk=house.acme.pk).state
    done = olga.post(reverse(TENANTS), chosen | {"reason": "unpaid"})
    again = olga.post(reverse(TENANTS), chosen).content.decode()
    back = olga.post(reverse(TENANTS), chosen | {"action": "resume"}).content.decode()

    assert f"refused from the next call on: {working}." in asked
    assert f"Running calls that are cut: {len(running)}." in asked
    assert state_before == "active"
    assert re.fullmatch(
        rf"Suspended 1 of 1 tenants; in force everywhere after \d+\.\d\d s\. "
        rf"Running calls with them: {len(running)}\.",
        messages_of(done),
    )
    assert house.ada.chat().status_code == 401
    assert "refused from the next call on: 0." in again
    assert f"work again from the next call on: {working}." in back


def test_without_redis_nobody_says_how_many_calls_suspending_cuts(olga, acme, settings):
    settings.CACHES = NOWHERE
    chosen = {"action": "suspend", "_selected_action": [str(acme.pk)]}

    asked = olga.post(reverse(TENANTS), chosen).content.decode()
    done = olga.post(reverse(TENANTS), chosen | {"reason": "unpaid"})

    assert "nobody can say how many calls run" in asked
    assert messages_of(done) == "Suspended 1 of 1 tenants; pending, because Redis cannot be reached."


def test_the_api_lists_running_calls_and_stops_one_or_several(olga, house, running):
    listed = olga.get(CALLS).json()
    mine = olga.get(f"{CALLS}?key={house.ada.key.pk}").json()
    one = post(olga, f"{CALLS}{running[0]}/stop/", reason="loop", message="Too long.")
    unclear = post(olga, f"{CALLS}stop/", reason="loop")
    others = post(olga, f"{CALLS}stop/", tenant="acme", reason="loop")

    assert (len(listed["results"]), len(mine["results"])) == (3, 3)
    assert [call["request_id"] for call in listed["results"]] == running
    assert (listed["results"][0]["tenant"], listed["results"][0]["route"]) == ("acme", "/api/chat")
    assert one == (200, {"stopped": [running[0]]})
    assert unclear[0] == 400
    assert others[0] == 200
    assert set(running[1:]) <= set(others[1]["stopped"]) <= set(running)
    eventually(lambda: not list(running_calls()))
    assert post(olga, f"{CALLS}{running[0]}/stop/", reason="loop")[0] == 404
    assert post(olga, f"{CALLS}{uuid.uuid4()}/stop/", reason="loop")[0] == 404


def test_there_is_no_page_of_one_running_call(olga, house):
    response = olga.get(reverse("admin:budgets_runningcall_change", args=[uuid.uuid4()]))

    assert response.status_code == 302


def test_a_management_key_of_one_tenant_sees_and_stops_its_own_calls_alone(house, running):
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    theirs, ours = manager(tenant=globex), manager(tenant=house.acme)
    path = f"running-calls/{running[0]}/stop/"

    seen = theirs.get("running-calls/").json()["results"]
    foreign = theirs.post(path, reason="loop")
    unknown = theirs.post(f"running-calls/{uuid.uuid4()}/stop/", reason="loop")
    every = theirs.post("running-calls/stop/", all=True, reason="loop").json()
    before = being_stopped()
    first = ours.get("running-calls/?page_size=2").json()
    second = ours.get(first["next"].partition("/manage/v1/")[2]).json()
    mine = ours.post("running-calls/stop/", all=True, reason="loop").json()

    assert (seen, every) == ([], {"stopped": []})
    assert (foreign.status_code, foreign.json()) == (404, unknown.json())
    assert before == set()
    assert [call["request_id"] for call in first["results"] + second["results"]] == running
    assert second["next"] is None
    assert set(mine["stopped"]) == set(running)
