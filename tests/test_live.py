"""Live views: who may open a socket, what it says, and what closes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.test import Client

from tenants.models import User
from tests.conftest import House
from tests.people import EVERYBODY, a_browser, a_person
from tests.sockets import CALLS, closing_of, message, message_until, opened, refusal_of
from tests.test_streams import open_raw


@pytest.fixture
def olga(house: House) -> Client:
    """An operator who may do everything."""
    return a_browser(User.objects.create_superuser("olga"))


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        pytest.param(CALLS, "http://evil.example", id="a page of somebody else"),
        pytest.param(CALLS, "http://127.0.0.1:1", id="another server of this machine"),
        pytest.param(CALLS, "null", id="a page of nobody"),
        pytest.param(CALLS, "", id="no browser"),
        pytest.param("/live/admin/nothing/", None, id="no live view"),
        pytest.param("/live/", None, id="no path"),
        pytest.param("/admin/", None, id="a page"),
        pytest.param("/v1/chat/completions", None, id="a door"),
    ],
)
def test_a_socket_is_refused_before_it_is_one(
    house: House, olga: Client, path: str, origin: str | None
) -> None:
    # One that is no origin at all is none of the protocol's either.
    assert refusal_of(house.gateway, path, olga, origin) == (400 if origin == "null" else 403)


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_running_calls_are_shown_to_those_who_may_see_them(house: House, who: str) -> None:
    person = a_person(who, house.acme)
    if isinstance(person, User) and who == "operator":
        person.user_permissions.add(Permission.objects.get(codename="view_runningcall"))

    with opened(house.gateway, CALLS, a_browser(person)) as socket:
        if who in ("operator", "superuser"):
            assert "No call is running." in message(socket)["parts"]["calls"]
        else:
            signed_out = who == "stranger" or "inactive" in who
            assert closing_of(socket) == (4401 if signed_out else 4403)


def sign_out(browser: Client) -> None:
    browser.post("/account/logout/")


@pytest.mark.parametrize(
    ("taken", "code"),
    [
        pytest.param(sign_out, 4401, id="signed out"),
        pytest.param(lambda _: Session.objects.all().delete(), 4401, id="signed out everywhere"),
        pytest.param(lambda _: User.objects.update(is_active=False), 4401, id="made inactive"),
        pytest.param(lambda _: User.objects.update(password="another"), 4401, id="given another password"),
        pytest.param(lambda _: User.objects.update(is_superuser=False), 4403, id="no longer superuser"),
        pytest.param(lambda _: User.objects.update(is_staff=False), 4403, id="no longer on the staff"),
    ],
)
def test_rights_that_are_taken_close_the_socket(
    house: House, olga: Client, taken: Callable[[Client], object], code: int
) -> None:
    with opened(house.gateway, CALLS, olga) as socket:
        message(socket)

        taken(olga)

        assert closing_of(socket) == code


def test_another_right_asks_for_the_page_to_be_made_anew(house: House) -> None:
    operator = User.objects.create(username="olaf", is_staff=True)
    operator.user_permissions.add(Permission.objects.get(codename="view_runningcall"))

    with opened(house.gateway, CALLS, a_browser(operator)) as socket:
        message(socket)
        operator.user_permissions.add(Permission.objects.get(codename="stop_runningcall"))

        assert closing_of(socket) == 4409


def test_a_call_appears_and_goes(house: House, olga: Client) -> None:
    house.ollama.settings.piece_delay = 0.02
    house.ollama.fault("pieces-3000")
    with opened(house.gateway, CALLS, olga) as socket:
        assert "No call is running." in message(socket)["parts"]["calls"]

        with open_raw(house, "/api/chat"):
            message_until(socket, lambda said: "tiny:1b" in said["parts"]["calls"])

        message_until(socket, lambda said: "No call is running." in said["parts"]["calls"])
