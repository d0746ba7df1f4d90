"""Where a change was asked for stands in the audit, whichever door it came through."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from django.test import Client

from audit.models import AuditEvent
from tenants.services import create_tenant, create_user
from tests.conftest import PATIENCE_SECONDS, House
from tests.gateway import ROOT, environment

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def signed_in(house: House, **headers: str) -> Iterator[httpx.Client]:
    """A browser with an operator in it."""
    user = create_user(username="root", email="r@example.org", is_staff=True, is_superuser=True, actor="test")
    visitor = Client()
    visitor.force_login(user)
    session = {"sessionid": visitor.cookies["sessionid"].value}
    url = house.gateway.url
    with httpx.Client(
        base_url=url,
        headers=headers,
        cookies=session,
        follow_redirects=True,
        trust_env=False,
        timeout=PATIENCE_SECONDS,
    ) as browser:
        yield browser


def token_on(browser: httpx.Client, page: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get(page).text)
    assert found is not None
    return found[1]


def rename(browser: httpx.Client, house: House, name: str) -> AuditEvent:
    page = f"/admin/tenants/tenant/{house.acme.pk}/change/"
    form = {
        "slug": "acme",
        "name": name,
        "time_zone": "UTC",
        "week_start": "1",
        "may_call": "silent",
        "listed": "",
        "csrfmiddlewaretoken": token_on(browser, page),
    }
    browser.post(page, data=form)
    return AuditEvent.objects.filter(action="tenant.changed").latest("id")


def test_a_change_in_the_admin_tells_the_address_of_the_socket(house):
    with signed_in(house, **{"X-Forwarded-For": "203.0.113.9"}) as browser:
        event = rename(browser, house, "ACME again")

    assert (event.actor, event.origin) == ("root", "admin from 127.0.0.1")


def test_a_command_tells_its_name_and_the_machine():
    subprocess.run(
        [sys.executable, ROOT / "manage.py", "create_tenant", "--slug", "acme", "--name", "ACME"],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )

    event = AuditEvent.objects.get(action="tenant.created")
    assert event.origin == f"command create_tenant on {socket.gethostname()}"
    assert "manage.py" in event.actor


def test_what_nobody_asked_for_from_anywhere_has_no_origin():
    create_tenant(slug="acme", name="ACME", actor="test")

    assert AuditEvent.objects.get().origin == ""
