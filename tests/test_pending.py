"""A change says that it is pending until every process goes by it, and is not pending for long."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import reverse

from budgets.models import Budget
from budgets.services import set_budget
from keys.models import ApiKey
from keys.services import issue_key
from tenants import generations
from tenants.models import Tenant
from tenants.services import change_tenant, create_tenant, create_user
from tests.conftest import eventually
from tests.counting import NOWHERE
from tests.test_generations import while_listening

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test")


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(create_user(username="root", email="", actor="test", is_staff=True, is_superuser=True))
    return client


def sql(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def public_id_of(tenant: Tenant) -> str:
    key, _ = issue_key(tenant=tenant, label="nightly", actor="test")
    return str(key.secrets.get().public_id)


COMMANDS: dict[str, Callable[[Tenant], list[str]]] = {
    "create_tenant": lambda _: ["--slug", "globex", "--name", "Globex"],
    "issue_key": lambda _: ["--tenant", "acme", "--label", "weekly"],
    "revoke_key": lambda tenant: [public_id_of(tenant), "--reason", "lost"],
    "set_budget": lambda _: ["--tenant", "acme", "--unit", "tokens", "--period", "day", "--limit", "5"],
    "set_policy": lambda _: ["--tenant", "acme", "--option", "num_ctx", "--maximum", "8192"],
    "set_outage_credit": lambda _: ["--tenant", "acme", "--tokens", "5"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("redis_is_there", [True, False])
def test_commands_tell_whether_the_change_is_in_force(
    settings: Any, acme: Tenant, command: str, redis_is_there: bool
) -> None:
    arguments = COMMANDS[command](acme)
    if not redis_is_there:
        settings.CACHES = NOWHERE

    text, as_json = StringIO(), StringIO()
    call_command(command, *arguments, "--json", stdout=as_json)
    assert json.loads(as_json.getvalue())["in_force"] is redis_is_there
    if command not in ("create_tenant", "issue_key"):
        # A repeat of the other two would make another one.
        call_command(command, *arguments, stdout=text)
        assert ("Pending" in text.getvalue()) is not redis_is_there


def pages(acme: Tenant) -> list[str]:
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")
    budget = set_budget(scope="tenant", tenant=acme, unit="tokens", period="day", limit=5, actor="test")
    return [
        reverse("admin:index"),
        reverse("admin:tenants_tenant_changelist"),
        reverse("admin:tenants_tenant_change", args=[acme.pk]),
        reverse("admin:keys_apikey_changelist"),
        reverse("admin:keys_apikey_change", args=[key.pk]),
        reverse("admin:budgets_budget_changelist"),
        reverse("admin:budgets_budget_change", args=[budget.pk]),
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: sql("UPDATE keys_apikey SET revoked_at = now()"), id="SQL on a key"),
        pytest.param(lambda: sql('UPDATE budgets_budget SET "limit" = 1'), id="SQL on a limit"),
        pytest.param(lambda: sql("UPDATE tenants_tenant SET state = 'suspended'"), id="SQL on a tenant"),
        pytest.param(
            lambda: change_tenant(tenant=Tenant.objects.get(), actor="test", name="Another"), id="a service"
        ),
    ],
)
def test_every_page_says_pending_until_redis_has_the_change(
    settings: Any, operator: Client, acme: Tenant, change: Callable[[], object]
) -> None:
    working, addresses = settings.CACHES, pages(acme)
    settings.CACHES = NOWHERE
    change()

    for page in addresses:
        told = operator.get(page).content.decode()
        assert "Pending: changes of acme are saved and not in force yet." in told
    settings.CACHES = working
    generations.project()
    for page in addresses:
        assert "Pending" not in operator.get(page).content.decode()


def test_a_page_names_the_platform_too(operator: Client, acme: Tenant) -> None:
    Budget.objects.create(scope="platform", unit="tokens", period="day", limit=1)
    sql("UPDATE tenants_tenant SET name = 'Another'")

    told = operator.get(reverse("admin:index")).content.decode()

    assert "Pending: changes of the platform, acme are" in told


def test_who_is_not_signed_in_is_told_nothing(client: Client, acme: Tenant) -> None:
    sql("UPDATE tenants_tenant SET name = 'Another'")

    assert "Pending" not in client.get(reverse("admin:login")).content.decode()


def test_without_notifications_the_poll_puts_a_change_in_force(
    monkeypatch: pytest.MonkeyPatch, acme: Tenant
) -> None:
    """F6: as behind a pooler, through which nobody is notified."""
    monkeypatch.setattr(generations, "CHANNEL", "nobody_speaks_here")
    monkeypatch.setattr(generations, "POLL_SECONDS", 0.1)
    key, _ = issue_key(tenant=acme, label="nightly", actor="test")

    def change() -> None:
        ApiKey.objects.filter(pk=key.pk).update(label="weekly")
        eventually(lambda: generations.in_force(acme.pk))

    while_listening(change)


def test_a_listener_that_cannot_connect_puts_changes_in_force_all_the_same(
    monkeypatch: pytest.MonkeyPatch, acme: Tenant
) -> None:
    """F6: all others still reach PostgreSQL."""
    monkeypatch.setattr(generations, "_address", lambda: {"host": "127.0.0.1", "port": 1})
    monkeypatch.setattr(generations, "LONGEST_WAIT_SECONDS", 0.1)

    def change() -> None:
        sql("UPDATE tenants_tenant SET state = 'suspended'")
        eventually(lambda: generations.in_force(acme.pk))

    while_listening(change)


def test_a_change_made_while_redis_is_away_is_in_force_soon_after(
    monkeypatch: pytest.MonkeyPatch, settings: Any, acme: Tenant
) -> None:
    """J4."""
    monkeypatch.setattr(generations, "POLL_SECONDS", 0.1)
    working = settings.CACHES

    def change() -> None:
        settings.CACHES = NOWHERE
        sql("UPDATE tenants_tenant SET state = 'suspended'")
        assert generations.pending() == [generations.subject_of(acme.pk)]
        settings.CACHES = working
        eventually(lambda: generations.in_force(acme.pk) and not generations.pending())

    while_listening(change)
