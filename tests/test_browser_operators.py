"""What operators do in a browser: sign in to the admin, and take a key away while it streams."""

from __future__ import annotations

import re

import pytest

from audit.models import AuditEvent
from tenants.models import User
from tests.browser import enter, sign_in
from tests.browser_thread import expect
from tests.conftest import House
from tests.people import a_person
from tests.revoking import LONG


@pytest.fixture
def operator(house: House) -> User:
    person = a_person("superuser", house.acme)
    assert isinstance(person, User)
    return person


def test_an_operator_is_led_to_the_admin_after_signing_in(page, operator):
    sign_in(page, operator, "/admin/")

    expect(page).to_have_url(re.compile("/admin/$"))
    expect(page.get_by_role("link", name="Keys", exact=True)).to_be_visible()


def test_a_key_that_is_revoked_in_the_admin_is_cut_off_while_it_streams(house, page, operator):
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")
    enter(page, operator)

    with house.ada.http.stream("POST", "/api/chat", json=LONG) as answer:
        lines = answer.iter_lines()
        assert '"done":false' in next(lines)
        page.goto("/admin/keys/apikey/")
        page.get_by_role("row", name=house.ada.key.label).get_by_role("checkbox").check()
        page.locator("select[name=action]").select_option(label="Revoke selected keys")
        page.locator("button[name=index]").click()
        page.get_by_label("Reason").fill("leaked")
        page.get_by_role("button", name="Revoke").click()
        *_, last = lines

    assert "key" in last
    assert house.ada.chat().status_code == 401
    event = AuditEvent.objects.get(action="key.revoked")
    assert (event.actor, event.reason) == ("superuser", "leaked")
    [entry] = house.booked()
    assert entry.outcome == "stopped"
