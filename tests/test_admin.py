"""Every model in the admin: its list, its search, its form, and who may change what."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.db import models
from django.test import Client
from django.urls import reverse

from audit.models import AuditEvent, LoggedPrompt, RequestEvent
from budgets.models import (
    ArchivedMonth,
    Budget,
    BudgetPeriod,
    ClosedMonth,
    KillSwitch,
    LedgerEntry,
    ParkedRecord,
    PeriodClosing,
    Price,
    PriceProposal,
    RateLimit,
    RunningCall,
    Statement,
    UpstreamCost,
    UsageRollup,
)
from keys.models import ApiKey, PromptRules
from proxy.models import ModelAlias, Upstream
from proxy.services import save_upstream
from tenants.models import Member, Team, Tenant, User
from tests.conftest import House

READ_ONLY: set[type[models.Model]] = {
    AuditEvent, RequestEvent, LedgerEntry, UsageRollup, BudgetPeriod, PeriodClosing, ParkedRecord,
    RunningCall, PriceProposal, Statement, ArchivedMonth, LoggedPrompt,
}  # fmt: skip
OURS: set[type[models.Model]] = {
    Tenant, Team, Member, User, ApiKey, Upstream, ModelAlias, Budget, RateLimit, Price, KillSwitch,
    UpstreamCost, ClosedMonth, PromptRules,
    *READ_ONLY,
}  # fmt: skip


BY_NAME = sorted(OURS, key=lambda model: model.__name__)

each_model = pytest.mark.parametrize("model", BY_NAME, ids=lambda model: model.__name__)


def url_of(model: type[models.Model], page: str, *arguments: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=arguments)


@pytest.fixture
def operator(transactional_db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    return client


def test_every_model_that_people_look_at_is_in_the_admin():
    assert set(admin.site._registry) >= OURS


@each_model
def test_lists_open_and_search(operator, model):
    for address in (url_of(model, "changelist"), url_of(model, "changelist") + "?q=x"):
        response = operator.get(address)
        assert response.status_code == 200


@each_model
def test_forms_open_where_rows_may_be_added(operator, model):
    expected = 403 if model in READ_ONLY else 200

    assert operator.get(url_of(model, "add")).status_code == expected


def test_a_booked_call_is_shown_everywhere_and_may_be_changed_nowhere(house: House, operator):
    house.ada.chat()
    [entry] = house.booked()

    event = RequestEvent.objects.get(request_id=entry.request_id)
    rollup = UsageRollup.objects.get()
    for row in (entry, event, rollup, AuditEvent.objects.first()):
        assert row is not None
        address = url_of(type(row), "change", row.pk)
        assert operator.get(address).status_code == 200
        assert operator.post(address, {}).status_code == 403
        assert operator.post(url_of(type(row), "delete", row.pk), {"post": "yes"}).status_code == 403
    assert str(entry.request_id) in operator.get(url_of(RequestEvent, "changelist")).content.decode()


def test_an_upstream_is_changed_through_the_service_that_records_it(operator):
    upstream = save_upstream(upstream=Upstream(name="gpu-1", base_url="http://127.0.0.1:1"), actor="test")

    response = operator.post(
        url_of(Upstream, "change", upstream.pk), {"base_url": "http://127.0.0.1:2", "enabled": "on"}
    )

    assert response.status_code == 302
    event = AuditEvent.objects.filter(action="upstream.changed").latest("id")
    assert (event.actor, event.subject, event.details["base_url"]) == ("olga", "gpu-1", "http://127.0.0.1:2")
    assert event.details["before"] == {"base_url": "http://127.0.0.1:1", "enabled": True}


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host", "http://", "http://host/path", "http://user:secret@host", "http://host?x=1", "host:1",
        "http://[::1", "http://host:99999", "http://host:0", "http://host:x", "http://ho st", "http://h\u00f6st",
    ],
)  # fmt: skip
def test_an_upstream_needs_a_plain_address(operator, address):
    response = operator.post(url_of(Upstream, "add"), {"name": "gpu-1", "base_url": address, "enabled": "on"})

    assert response.status_code == 200
    assert not Upstream.objects.exists()


def test_nobody_but_an_operator_gets_in(transactional_db):
    User.objects.create_user("mia", "mia@example.org", "a long enough password")
    client = Client()
    client.login(username="mia", password="a long enough password")

    assert client.get(reverse("admin:index")).status_code == 302
