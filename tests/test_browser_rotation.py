"""A secret is changed in a browser while a call runs with the old one."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page

from keys.models import ApiKey
from tenants.models import Member, User
from tests.browser import enter, shown_secret
from tests.browser_thread import expect
from tests.conftest import PATIENCE_SECONDS, Caller, House, eventually
from tests.revoking import LONG, SHORT


@pytest.fixture
def laptop(house: House, owner: User) -> Caller:
    """A key of the owner's own."""
    return house.caller(member=Member.objects.get(user=owner))


def rotate(page: Page, key: ApiKey, grace: str) -> str:
    """Give the key another secret; returns it."""
    page.goto(f"/portal/acme/keys/{key.pk}/")
    page.get_by_role("link", name="Rotate").click()
    page.get_by_label(grace).check()
    page.get_by_role("button", name="Rotate and show the new secret").click()
    return shown_secret(page)


def test_a_running_stream_goes_on_through_a_rotation_with_grace_and_ends_with_the_grace(
    house: House, page: Page, owner: User, laptop: Caller
) -> None:
    house.ollama.settings.piece_delay = 0.05
    house.ollama.fault("pieces-100000")
    enter(page, owner)

    with laptop.http.stream("POST", "/api/chat", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        after = rotate(page, laptop.key, "For an hour")
        house.ollama.reset()
        new = httpx.Client(
            base_url=house.gateway.url,
            headers={"Authorization": f"Bearer {after}"},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )
        with new:
            both = [http.post("/api/chat", json=SHORT).status_code for http in (laptop.http, new)]
            for _ in range(20):
                assert '"done":false' in next(lines)
            page.get_by_role("button", name="End its grace now").click()
            expect(page.locator("#secrets")).to_contain_text("no, since")
            *_, last = lines
            ended = [http.post("/api/chat", json=SHORT).status_code for http in (laptop.http, new)]

    assert both == [200, 200]
    assert '"done":true' not in last
    assert ended == [401, 200]
    eventually(lambda: {entry.outcome for entry in house.booked(4)} == {"completed", "stopped"})
