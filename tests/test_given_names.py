"""Names that people give: whatever acts on a terminal or turns a line around is in none."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import CommandError, call_command

from keys.models import ApiKey, ManagementKey
from tenants.models import ServiceAccount, Team, Tenant
from tenants.names import for_terminal
from tests.accounts import a_tenant, quiet_counters
from tests.managing import manager
from tests.people import a_browser, a_person

pytestmark = pytest.mark.django_db(transaction=True)

ACTING = {
    "escape": "nightly\x1b[31m",
    "bell": "\anightly",
    "line": "nightly\nALL IS WELL",
    "next line": "nightly\x85",
    "line separator": "nightly\u2028other",
    "turned around": "nightly\u202eexe",
    "isolated": "nightly\u2066",
}


@pytest.fixture
def acme() -> Tenant:
    quiet_counters()
    return a_tenant()


@pytest.mark.parametrize("name", ACTING.values(), ids=list(ACTING))
@pytest.mark.parametrize(
    ("path", "field"), [("keys/", "label"), ("teams/", "name"), ("service-accounts/", "name")]
)
def test_the_api_refuses_such_a_name(acme: Tenant, path: str, field: str, name: str) -> None:
    answer = manager(tenant=acme).post(path, **{field: f"{name}!"})

    assert answer.status_code == 400
    assert "no control characters" in answer.content.decode()
    assert [model.objects.count() for model in (ApiKey, Team, ServiceAccount)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("create_tenant", ["--slug", "globex", "--name", "Globex\x1b[2J"]),
        ("issue_key", ["--tenant", "acme", "--label", "nightly\x1b[2J"]),
        ("issue_management_key", ["--label", "terraform\x1b[2J", "--scope", "tenants:read"]),
    ],
)
def test_commands_refuse_such_a_name(acme: Tenant, command: str, options: list[str]) -> None:
    with pytest.raises(CommandError, match="no control characters"):
        call_command(command, *options)

    assert [model.objects.count() for model in (Tenant, ApiKey, ManagementKey)] == [1, 0, 0]


def test_the_portal_says_what_is_wrong_with_such_a_name(acme: Tenant) -> None:
    browser: Any = a_browser(a_person("owner", acme))

    page = browser.post("/portal/acme/team/teams/", {"team-name": "Re\x1b[2Jsearch"})

    assert "A name has no control characters" in page.content.decode()
    assert not Team.objects.exists()


@pytest.mark.parametrize("name", ["Größe 100 %", "研究", "صباح", "👩‍🔬 lab", "a\u00a0b"])
def test_names_of_all_people_are_taken(acme: Tenant, name: str) -> None:
    assert manager(tenant=acme).post("teams/", name=name).status_code == 201

    assert Team.objects.get().name == name


def test_a_terminal_is_shown_what_it_would_obey() -> None:
    assert for_terminal("one\ttwo\nthree\x1b[31m\r\x9b\u202e 👩‍🔬") == (
        "one\ttwo\nthree\\x1b[31m\\r\\x9b\\u202e 👩‍🔬"
    )
