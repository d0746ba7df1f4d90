"""What a key may call and what will refuse it, foretold and then tried through the gateway's port."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from audit.walls import within
from budgets.services import arm_kill_switch, set_budget, set_rate_limit
from keys.above import Preview, above
from keys.callers import caller_of
from keys.effects import measured
from keys.endpoints import DOORS, ENDPOINTS
from keys.lifetimes import Grace
from keys.models import ApiKey
from keys.services import disable_key, end_grace, issue_key, revoke_key, rotate_key
from tenants.services import change_tenant, create_tenant, suspend_tenant
from tests.conftest import Caller, House, eventually
from tests.counting import redis


def preview(key: ApiKey) -> Preview:
    return above.preview(caller_of(ApiKey.objects.select_related("tenant").get(pk=key.pk)))


def test_a_preview_tells_the_models_that_the_gateway_lists_for_the_key(house: House):
    change_tenant(tenant=house.acme, actor="test", allow_all_models=False, models=["tiny:1b", "gone:7b"])
    callers = [house.caller(), house.caller(models=["THINKER"]), house.caller(allow_all_models=True)]

    eventually(lambda: preview(callers[0].key).refused == ())
    for caller in callers:
        listed = sorted(one["id"] for one in caller.http.get("/v1/models").json()["data"])
        assert listed
        assert list(preview(caller.key).models) == listed


OFF: dict[str, Callable[[House, Caller], Any]] = {
    "invalid_api_key: disabled": lambda _, one: disable_key(key=one.key, actor="olga", reason="odd"),
    "invalid_api_key: revoked": lambda _, one: revoke_key(key=one.key, actor="olga", reason="lost"),
    "invalid_api_key: suspended": lambda house, _: suspend_tenant(
        tenant=house.acme, actor="olga", reason="unpaid"
    ),
    "kill_switch_key": lambda _, one: arm_kill_switch(scope="key", key=one.key, actor="olga", reason="fire"),
    "kill_switch_platform": lambda *_: arm_kill_switch(scope="platform", actor="olga", reason="fire"),
    "insufficient_quota": lambda _, one: set_budget(
        scope="key", key=one.key, unit="tokens", period="day", limit=0, actor="olga"
    ),
}


@pytest.mark.parametrize("why", OFF)
def test_what_a_preview_says_will_be_refused_is_refused_with_the_same_code(house: House, why: str):
    caller = house.caller()
    # Redis was emptied for the test, and the gateway publishes what is installed once in a while.
    eventually(lambda: preview(caller.key).refused == ())
    OFF[why](house, caller)

    foretold = preview(caller.key)
    answer = caller.http.post(
        "/v1/chat/completions", json={"model": "tiny:1b", "messages": [{"role": "user", "content": "hi"}]}
    )

    assert foretold.models == ()
    assert foretold.refused == (answer.json()["error"]["code"],)


def test_a_preview_of_a_key_that_is_not_saved_shows_the_limits_above_it(house: House):
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=1000, actor="test")
    set_rate_limit(scope="tenant", tenant=house.acme, measure="requests_per_minute", limit=30, actor="test")
    eventually(lambda: preview(house.ada.key).models)
    draft = ApiKey(
        tenant=house.acme, label="new", models=["tiny:1b"], allow_all_models=False, scopes=["chat"]
    )

    told = above.preview(caller_of(draft))

    assert (told.models, told.scopes, told.endpoints) == (("tiny:1b",), ("chat",), DOORS["chat"])
    assert [(one.scope, one.unit, one.limit, one.left) for one in told.limits] == [
        ("tenant", "tokens", 1000, 1000),
        ("tenant", "requests", 30, None),
    ]
    assert not ApiKey.objects.filter(label="new").exists()
    assert not redis().keys(f"*snapshot:limits:{draft.pk.hex}")


def test_the_limit_that_refuses_first_stands_in_front(house: House):
    caller = house.caller()
    for unit, limit in (("requests", 2), ("tokens", 10**9)):
        set_budget(scope="key", key=caller.key, unit=unit, period="day", limit=limit, actor="test")
    set_budget(scope="key", key=caller.key, unit="tokens", period="hour", limit=1, shadow=True, actor="test")
    assert caller.chat(stream=False).status_code == 200
    house.booked(1)

    first = preview(caller.key).next_refusal

    assert first is not None
    assert (first.unit, first.limit, first.used, first.held, first.left) == ("requests", 2, 1, 0, 1)
    assert first.resets_at is not None
    assert now() < first.resets_at <= now() + timedelta(days=1)


def test_behind_the_walls_of_its_tenant_a_preview_says_the_same(house: House):
    set_budget(scope="platform", unit="tokens", period="day", limit=5000, actor="test")
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=1000, actor="test")
    caller = house.caller()
    eventually(lambda: preview(caller.key).refused == ())
    outside = preview(caller.key)

    with within(house.acme.pk):
        inside = preview(caller.key)
        rotate_key(key=caller.key, actor="olga", grace=Grace.DAY)
        assert end_grace(key=caller.key, actor="olga")
        assert disable_key(key=caller.key, actor="olga", reason="odd")
        effect = measured([caller.key], lambda key: revoke_key(key=key, actor="olga", reason="lost"))

    assert inside == outside
    assert (effect.changed, effect.running) == (1, 0)
    assert effect.seconds is not None


def test_where_nothing_is_installed_nothing_may_be_called(db: None):
    tenant = create_tenant(slug="lonely", name="Lonely", actor="test", allow_all_models=True)
    key, _ = issue_key(tenant=tenant, label="x", actor="test")

    told = preview(key)

    assert (told.models, told.refused) == ((), ("no_models",))
    assert told.endpoints == tuple(door for doors in DOORS.values() for door in doors)
    assert told.scopes == ENDPOINTS
