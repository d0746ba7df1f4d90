"""The live meters of the portal: whose budgets, to whom, and as new as the counters."""

from __future__ import annotations

import re
import uuid

import pytest
from django.template import Context, Template
from django.test import RequestFactory

from budgets.models import Budget
from budgets.services import set_budget
from budgets.standing import standings
from keys.models import ApiKey
from keys.services import issue_key
from tenants.access import access_to
from tenants.models import Member, Tenant, User
from tenants.services import change_member, create_tenant, remove_member, suspend_tenant
from tests.conftest import House
from tests.people import EVERYBODY, OPERATORS, UNKNOWN, a_browser, a_person
from tests.sockets import closing_of, message, message_until, opened


def meter_of(key: ApiKey) -> str:
    return f"/live/portal/{key.tenant.slug}/keys/{key.pk}/"


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_meter_of_a_key_is_shown_to_those_who_read_its_usage(house: House, who: str) -> None:
    browser = a_browser(a_person(who, house.acme))

    with opened(house.gateway, meter_of(house.ada.key), browser) as socket:
        if who in ("owner", "admin", "finance", "auditor", *OPERATORS):
            assert "There is no budget here." in message(socket)["parts"]["meters"]
        else:
            assert closing_of(socket) == (4401 if who in UNKNOWN else 4404)


def test_a_member_sees_the_meter_of_their_own_keys_and_of_the_tenant(house: House) -> None:
    mia = a_person("member", house.acme)
    key, _ = issue_key(
        tenant=house.acme, member=Member.objects.get(user__username="member"), label="own", actor="test"
    )
    for address in (meter_of(key), "/live/portal/acme/"):
        with opened(house.gateway, address, a_browser(mia)) as socket:
            assert "There is no budget here." in message(socket)["parts"]["meters"]


@pytest.mark.parametrize(
    "address",
    ["/live/portal/globex/", "/live/portal/nobody/", "/live/portal/globex/keys/{theirs}/",
     "/live/portal/acme/keys/{theirs}/", "/live/portal/acme/keys/{unknown}/"],
)  # fmt: skip
def test_what_is_foreign_and_what_is_not_there_look_alike(house: House, address: str) -> None:
    theirs, _ = issue_key(
        tenant=create_tenant(slug="globex", name="Globex", actor="test"), label="theirs", actor="test"
    )
    browser = a_browser(a_person("owner", house.acme))

    with opened(house.gateway, address.format(theirs=theirs.pk, unknown=uuid.uuid4()), browser) as socket:
        assert closing_of(socket) == 4404


def test_the_meter_moves_with_a_call(house: House) -> None:
    set_budget(scope="key", key=house.ada.key, unit="requests", period="day", limit=4, actor="test")
    with opened(house.gateway, meter_of(house.ada.key), a_browser(a_person("owner", house.acme))) as socket:
        assert 'value="0"' in message(socket)["parts"]["meters"]

        house.ada.chat()
        message_until(socket, lambda said: 'value="25"' in said["parts"]["meters"])


def test_what_a_running_call_holds_is_shown(house: House) -> None:
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    set_budget(
        scope="tenant", tenant=house.acme, unit="output_tokens", period="month", limit=100, actor="test"
    )
    with opened(house.gateway, "/live/portal/acme/", a_browser(a_person("owner", house.acme))) as socket:
        message(socket)

        with house.ada.http.stream(
            "POST", "/api/chat", json={"model": "tiny:1b", "messages": [{"role": "user", "content": "hi"}]}
        ):
            message_until(socket, lambda said: 'value="100"' in said["parts"]["meters"])


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        pytest.param(lambda member: remove_member(member=member, actor="test"), 4404, id="removed"),
        pytest.param(
            lambda member: change_member(member=member, actor="test", role="member", team=None),
            4404,
            id="role",
        ),
        pytest.param(
            lambda member: change_member(member=member, actor="test", role="finance", team=None),
            4409,
            id="other role",
        ),
        pytest.param(
            lambda member: suspend_tenant(tenant=member.tenant, actor="test", reason="unpaid"),
            4409,
            id="suspended",
        ),
    ],
)
def test_a_change_of_what_somebody_is_closes_their_meter(house: House, happens, code) -> None:
    with opened(house.gateway, meter_of(house.ada.key), a_browser(a_person("admin", house.acme))) as socket:
        message(socket)

        happens(Member.objects.get(user__username="admin"))

        assert closing_of(socket) == code


def test_amounts_are_told_to_the_last_digit_in_the_zone_of_the_tenant(house: House) -> None:
    Tenant.objects.update(time_zone="Asia/Tokyo")
    user = a_person("owner", house.acme)
    set_budget(
        scope="key", key=house.ada.key, unit="micro_usd", period="month", limit=12_345_678, actor="test"
    )
    request = RequestFactory().get("/portal/acme/")
    request.access = access_to(user, "acme")  # type: ignore[attr-defined]  # as a page of a tenant has it

    page = Template("{% load meters %}{% key_meter key standings %}").render(
        Context(
            {"request": request, "key": house.ada.key, "standings": standings(list(Budget.objects.all()))}
        )
    )

    assert "$12.345678" in page
    assert f'data-live="{meter_of(house.ada.key)}"' in page
    assert "00:00:00</time>" in page
    assert "15:00:00 UTC" in page


def test_a_meter_speaks_as_its_viewer_chose(house: House) -> None:
    user = a_person("owner", house.acme)
    User.objects.update(language="de", time_zone="Asia/Tokyo")
    set_budget(scope="key", key=house.ada.key, unit="tokens", period="month", limit=1_234_567, actor="test")

    with opened(house.gateway, meter_of(house.ada.key), a_browser(user)) as socket:
        meters = message(socket)["parts"]["meters"]

    assert "1.234.567" in meters
    assert "Wieder voll" in meters
    assert re.search(r'title="\d\d\.\d\d\.\d{4} 00:00:00 UTC">\d\d\.\d\d\.\d{4} 09:00:00</time>', meters)
